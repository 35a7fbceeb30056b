"""What tests of co-execution share: tiny models called on the emulated accelerator and without.

Skips them where its extension is not built.
"""

import contextlib
import faulthandler
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from transformers import StaticCache

from coxcompile.backend import coxmoe
from coxcompile.planner.plan import ExpertSplit, Plan, StagePlan
from coxcompile.runtime import emulated
from coxcompile.runtime.session import Session
from tests.emulated_cases import collect_leftovers
from tests.models import FAMILIES, build

pytest.importorskip("coxcompile._emulated", reason="the emulated accelerator is not built")

CACHE_LENGTH = 32
LONGEST_SECONDS = 300


@pytest.fixture(name="eager_partitions")
def eager_partitions_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """See ``leave_partitions_to_eager``."""
    leave_partitions_to_eager(monkeypatch)


def leave_partitions_to_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run what Inductor would compile operator by operator, with the accelerator and without."""
    # By these names as attributes, the package has the passes, not their modules.
    with_accelerator = sys.modules["coxcompile.passes.lower_coexecution"]
    monkeypatch.setattr(with_accelerator, "compile_partition", lambda inner: inner.forward)
    without = sys.modules["coxcompile.passes.lower"]
    monkeypatch.setattr(without, "compile_fx", lambda inner, values, **_: inner.forward)


@pytest.fixture(autouse=True)
def clean_device_fixture() -> Iterator[None]:
    """Nothing compiled before, no limit and nothing failed after; a test that hangs is ended."""
    torch._dynamo.reset()
    emulated.load()
    collect_leftovers()
    emulated.configure()
    faulthandler.dump_traceback_later(LONGEST_SECONDS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    emulated.take_error()
    emulated.configure()


class Variants:
    """A model compiled with several options, from graphs that Dynamo makes once.

    Attributes:
        chosen: the options that calls of ``model`` run with, by name.
        model: what ``torch.compile`` returns.
        compiled: by name, for the graph called last.
        inputs: of that graph, in its last call.
    """

    def __init__(
        self, model: nn.Module, options: Mapping[str, Mapping[str, object]], **keywords: Any
    ) -> None:
        self.chosen = next(iter(options))
        self.model = torch.compile(model, backend=self._compile, fullgraph=True, **keywords)
        self._options = options

    def _compile(self, graph_module: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        compiled: dict[str, Callable[..., Any]] = {}

        def run(*inputs: Any) -> Any:
            self.compiled, self.inputs = compiled, inputs
            if self.chosen not in compiled:
                options = self._options[self.chosen]
                compiled[self.chosen] = coxmoe(graph_module, inputs, options=options)
            return compiled[self.chosen](*inputs)

        return run


@dataclass(frozen=True)
class Outputs:
    """Of a prefill and decoding steps: logits of each, keys and values of each layer at the end."""

    logits: list[Tensor]
    cache: list[Tensor]

    def all(self) -> list[Tensor]:
        """To compare with others'."""
        return [*self.logits, *self.cache]


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters."""
    return sum(parameter.nbytes for parameter in model.parameters())


def build_layers(family: str, moe_layers: int, **keywords: Any) -> nn.Module:
    """The tiny model of a family, with so many MoE layers."""
    return build(family, layers=moe_layers + FAMILIES[family].dense_layers, **keywords)


def token_ids(batch: int, length: int, seed: int = 0) -> Tensor:
    """[batch, length], of the tiny models' vocabulary."""
    return torch.randint(0, 100, (batch, length), generator=torch.Generator().manual_seed(seed))


def prefill_and_decode(
    model: Callable[..., Any], config: Any, *, batch: int = 2, length: int = 12, steps: int = 2
) -> Outputs:
    """Run a prompt and decoding steps over a StaticCache."""
    cache = StaticCache(config=config, max_cache_len=CACHE_LENGTH)
    inputs = [
        token_ids(batch, length),
        *(token_ids(batch, 1, seed) for seed in range(1, steps + 1)),
    ]
    with torch.no_grad():
        logits = [model(input_ids=ids, past_key_values=cache).logits for ids in inputs]
    return Outputs(
        [part.clone() for part in logits],
        [part for layer in cache.layers for part in (layer.keys, layer.values)],
    )


def emulated_options(session: Session, vram: int, plan: Plan | str) -> dict[str, object]:
    """The options of a model that is divided between the emulated accelerator and the CPU."""
    return {"accelerator": "emulated", "session": session, "vram": vram, "plan": plan}


def splits(session: Session) -> list[ExpertSplit]:
    """Where the experts of all layers of all graphs are."""
    return [layer.split for executor in session.executors for layer in executor.store.layers]


def mixed_plan(experts: int, layers: int, **changes: Any) -> Plan:
    """Experts resident, migrating and on the CPU, attention on the CPU, micro-batches of 2."""
    resident = migrating = experts // 4
    split = ExpertSplit(resident=resident, migrating=migrating, cpu=experts - resident - migrating)
    fields: dict[str, Any] = {
        **{"qkv": "gpu", "attention": "cpu", "output": "gpu", "micro_batch": 2, "block": 4},
        **{"coalesced": True, "staging_experts": 2, "experts": (split,) * layers},
        **changes,
    }
    stage = StagePlan(**fields)
    return Plan(policy="given", model="tiny", hardware="emulated", prefill=stage, decode=stage)


@contextlib.contextmanager
def released(session: Session) -> Iterator[Session]:
    """Gives the accelerator's memory back at the end, all of it."""
    try:
        yield session
    finally:
        session.release()
    assert emulated.statistics().allocated_bytes == 0
