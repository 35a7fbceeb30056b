"""Scheduled co-execution graphs of tiny models under several plans, and runs of them.

Partitions run operator by operator: what is tested is their order, not their code.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves
from transformers import StaticCache

from coxcompile.inspect.names import input_names
from coxcompile.options import Options
from coxcompile.passes import COEXECUTION_PASSES, PassContext
from coxcompile.passes.device_memory import arena_slots, workspace
from coxcompile.pipeline import run_passes
from coxcompile.planner.plan import ExpertSplit, Plan, StagePlan
from coxcompile.runtime.accelerator import Kernel
from coxcompile.runtime.emulated.accelerator import EmulatedAccelerator
from coxcompile.runtime.executor import Executor
from coxcompile.runtime.expert_store import ExpertStore
from tests.models import FAMILIES, build

BATCH, PROMPT, CACHE = 4, 12, 32
VRAM = 64 << 20
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class PlanCase:
    """A plan, the family and the call that it is for; ``devices`` are "gcg" for gpu, cpu, gpu."""

    family: str
    call: str
    devices: str
    micro_batch: int
    coalesced: bool = True
    resident_share: float = 1.0
    kv_gpu_share: float = 0.0
    fetches_overlap: bool = True
    block: int = BATCH
    migrating: int = 4
    vram: int = VRAM

    def plan(self, experts: int, moe_layers: int) -> Plan:
        """All three kinds of experts where coalesced; else none are the CPU's."""
        resident = experts // 4
        migrating = self.migrating if self.coalesced else experts - resident
        split = ExpertSplit(
            resident=resident, migrating=migrating, cpu=experts - resident - migrating
        )
        sides = {"g": "gpu", "c": "cpu"}
        qkv, attention, output = (sides[letter] for letter in self.devices)
        stage = StagePlan(
            qkv=qkv,  # type: ignore[arg-type]
            attention=attention,  # type: ignore[arg-type]
            output=output,  # type: ignore[arg-type]
            micro_batch=self.micro_batch,
            block=self.block,
            coalesced=self.coalesced,
            experts=(split,) * moe_layers,
            staging_experts=2 if self.coalesced else (2 if self.fetches_overlap else 1) * migrating,
            fetches_overlap=self.fetches_overlap,
            resident_share=self.resident_share,
            kv_gpu_share=self.kv_gpu_share,
        )
        return Plan(policy="test", model="any", hardware="any", prefill=stage, decode=stage)


# Every family, prefill and decode, the policies' kinds of plans, attention on either side.
CASES: dict[str, PlanCase] = {
    "coalesced": PlanCase("qwen3_moe", "prefill", "gcg", 1),
    "coalesced decode": PlanCase("mixtral", "decode", "gcg", 2),
    "two blocks": PlanCase("olmoe", "decode", "gcg", 1, block=2),
    "moe-lightning": PlanCase("deepseek_v2", "prefill", "gcg", 2, coalesced=False),
    "moe-lightning, attention on the gpu": PlanCase(
        "granitemoe", "decode", "ggg", 2, coalesced=False, resident_share=0.5
    ),
    # Waits so that memory can be freed.
    "tight memory": PlanCase("qwen3_moe", "prefill", "gcg", 1, vram=451_000),
    "tight memory, not coalesced": PlanCase(
        "granitemoe", "decode", "ggg", 2, coalesced=False, resident_share=0.5, vram=800_000
    ),
    "flexgen": PlanCase(
        "mixtral", "prefill", "ggg", 2, coalesced=False, resident_share=0.3, fetches_overlap=False
    ),
    "caches on both sides": PlanCase(
        "qwen2_moe", "decode", "ggg", 1, resident_share=0.5, kv_gpu_share=0.5
    ),
    "attention alone on the gpu": PlanCase("phimoe", "prefill", "cgc", 2),
    "sliding window": PlanCase("gpt_oss", "prefill", "gcg", 2),
    "dense layer": PlanCase("glm4_moe", "prefill", "gcg", 2),
    "latent attention": PlanCase("deepseek_v3", "decode", "gcc", 2, resident_share=0.6),
}


@dataclass
class Scheduled:
    """A scheduled graph that verify has passed, with what it takes to run it or a mutant of it.

    Attributes:
        inputs: of the graph, as the model was called with them.
    """

    graph_module: GraphModule
    context: PassContext
    inputs: tuple[Any, ...] = ()
    _own: list[Any] = field(default_factory=list)

    @property
    def nodes(self) -> list[Node]:
        """All nodes in order."""
        return list(self.graph_module.graph.nodes)

    def executor(self, graph_module: Any = None) -> Executor:
        """A new one for the graph, or for a mutant of it: nothing is verified.

        All memory that it uses is poisoned until the first call.
        """
        if graph_module is None:
            graph_module = self.graph_module
        for node in graph_module.graph.nodes:
            node.meta["workspace"] = workspace(graph_module, node)
        kernels: dict[str, Kernel] = {}
        for node in graph_module.graph.find_nodes(op="call_module"):
            inner: Any = getattr(graph_module, str(node.target))
            kernels[str(node.target)] = inner.forward
        layers = self.context.expert_layers
        orders = [list(range(layer.experts)) for layer in layers]
        store = ExpertStore(accelerator(), layers, orders, arena_slots(layers))
        kernel = torch.ops.coxmoe.experts_subset_
        return Executor(graph_module, kernels, accelerator(), store, kernel, None)

    def run(self, executor: Executor) -> list[Tensor]:
        """The outputs of one call, and the inputs that may have been changed in it."""
        if not self._own:
            self._own = [value.clone() if _is_data(value) else value for value in self.inputs]
        for own, original in zip(self._own, self.inputs, strict=True):
            if _is_data(original):
                own.copy_(original)
        result = executor(*self._own)
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        return [tensor.clone() for tensor in (*tensors, *filter(_is_data, self._own))]


@cache
def accelerator() -> EmulatedAccelerator:
    """One for the process, since its streams live as long."""
    return EmulatedAccelerator(VRAM)


def _is_data(value: object) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter)


class _Backend:
    """Schedules a graph, keeps it and its inputs, and runs it uncompiled."""

    def __init__(self, plan: Plan, vram: int) -> None:
        self.plan = plan
        self.vram = vram
        self.scheduled: Scheduled

    def __call__(self, graph_module: GraphModule, example_inputs: Sequence[Any]) -> Any:
        options = Options.from_user(
            {"accelerator": "emulated", "vram": self.vram, "plan": self.plan}
        )
        context = PassContext(options, example_inputs, input_names(graph_module))
        context.vram = self.vram
        original = graph_module.forward
        graph_module = run_passes(graph_module, context, COEXECUTION_PASSES)
        self.scheduled = Scheduled(graph_module, context)

        def call(*inputs: Any) -> Any:
            self.scheduled.inputs = tuple(
                value.clone() if _is_data(value) else value for value in inputs
            )
            return original(*inputs)

        return call


@cache
def scheduled(name: str) -> Scheduled:
    """The graph of one of ``CASES``."""
    case = CASES[name]
    torch._dynamo.reset()
    model = build(case.family, dtype=torch.float32)
    experts = next(getattr(model.config, x) for x in EXPERTS if hasattr(model.config, x))
    plan = case.plan(experts, FAMILIES[case.family].expected_moe_layers(2))
    backend = _Backend(plan, case.vram)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    ids = torch.randint(0, 100, (BATCH, PROMPT), generator=torch.Generator().manual_seed(0))
    past = StaticCache(config=model.config, max_cache_len=CACHE)
    with torch.no_grad():
        if case.call == "decode":
            model(input_ids=ids, past_key_values=past)
            ids = ids[:, :1].contiguous()
        compiled(input_ids=ids, past_key_values=past)
    return backend.scheduled
