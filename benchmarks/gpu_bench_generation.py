"""A model under several backends that take turns: prefill, and decoding given tokens."""

import copy
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_cases import Figures, SkippedError
from transformers import StaticCache

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from qwen3_moe import LAYER, build_model

from coxcompile.runtime.session import Session

Forward = Callable[..., Any]
MOST_CONTENDERS = 16


@dataclass(frozen=True)
class Sizes:
    """Of the model and of what it is given.

    Attributes:
        layers: of Qwen3-30B-A3B's, 1.25 GB each.
        batch: sequences.
        prompt: tokens of each.
        steps: of decoding.
    """

    layers: int
    batch: int
    prompt: int
    steps: int


@dataclass(frozen=True)
class Generated:
    """Seconds of prefill, of all decoding steps and of everything else, and the logits.

    Attributes:
        other: what a session did before its calls began: copying the weights that a graph keeps on
            the GPU, as prefill's and decoding's graphs take turns there.
        logits: [batch, 1 + steps, vocabulary] float32, on the host.
    """

    prefill: float
    decode: float
    other: float
    logits: torch.Tensor


class Contender:
    """A way to run the model, with a cache of its own on the device of its inputs.

    Args:
        forward: the model, compiled or not.
        config: the model's.
        sizes: of the cache.
        device: of the inputs.
        session: of co-execution, recording: its calls' own seconds count.
    """

    def __init__(
        self,
        forward: Forward,
        config: Any,
        sizes: Sizes,
        device: torch.device,
        session: Session | None,
    ) -> None:
        self._forward, self._device, self._session = forward, device, session
        self._cache: Any = StaticCache(config=config, max_cache_len=sizes.prompt + sizes.steps)
        heads, width = LAYER["num_key_value_heads"], LAYER["head_dim"]
        self._cache.early_initialization(sizes.batch, heads, width, torch.bfloat16, device)

    @torch.no_grad()
    def run(self, prompts: torch.Tensor, tokens: torch.Tensor) -> Generated:
        """Prefill with prompts [batch, length], then a step for each of tokens [batch, steps]."""
        self._cache.reset()
        inputs = [prompts, *(tokens[:, i : i + 1] for i in range(tokens.shape[1]))]
        inputs = [ids.to(self._device) for ids in inputs]
        seconds, logits = [], []
        torch.cuda.synchronize()
        for ids in inputs:
            started = time.perf_counter()
            output = self._forward(input_ids=ids, past_key_values=self._cache, logits_to_keep=1)
            logits.append(output.logits[:, -1].clone())
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        whole = sum(seconds)
        if self._session is not None:
            seconds = [execution.seconds for execution in self._session.executions]
            self._session.executions.clear()
        first, *others = seconds
        together = torch.stack(logits, dim=1).float().cpu()
        return Generated(first, sum(others), whole - sum(seconds), together)


class Race:
    """Contenders prepared one by one, then timed in rounds of one generation each."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self.sizes, self.device = sizes, device
        # Two graphs for each contender, all of the same function.
        torch._dynamo.config.recompile_limit = 2 * MOST_CONTENDERS
        # Drawing gigabytes takes a GPU no time.
        with device:
            self.on_device: Any = build_model(sizes.layers)
        self.on_host: Any = copy.deepcopy(self.on_device).cpu()
        generator = torch.Generator().manual_seed(1)
        vocabulary = LAYER["vocab_size"]
        shapes = ((sizes.batch, sizes.prompt), (sizes.batch, sizes.steps))
        self._inputs = [torch.randint(0, vocabulary, s, generator=generator) for s in shapes]
        self._contenders: dict[str, Contender] = {}
        self._logits: dict[str, torch.Tensor] = {}

    def drop_device_copy(self) -> None:
        """Give its memory back, where only the host's copy is run."""
        self.on_device = None
        torch.cuda.empty_cache()

    def prepare(
        self, name: str, forward: Forward, device: torch.device, session: Session | None = None
    ) -> Figures:
        """Compile by running twice; the second run's logits are kept."""
        contender = Contender(forward, self.on_host.config, self.sizes, device, session)
        started = time.perf_counter()
        contender.run(*self._inputs)
        first = time.perf_counter() - started
        again = contender.run(*self._inputs)
        self._logits[name] = again.logits
        self._contenders[name] = contender
        return {"compiling s": max(0.0, first - again.prefill - again.decode - again.other)}

    def measure(self, rounds: int, reference: str) -> Mapping[str, Figures]:
        """Medians of interleaved rounds for each contender.

        Raises:
            SkippedError: none is prepared.
        """
        names = list(self._contenders)
        if not names:
            raise SkippedError("nothing was prepared in time")
        readings: dict[str, list[Generated]] = {name: [] for name in names}
        for number in range(rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                readings[name].append(self._contenders[name].run(*self._inputs))
        return {name: self._figures(name, readings[name], reference) for name in names}

    def _figures(self, name: str, readings: list[Generated], reference: str) -> dict[str, float]:
        sizes = self.sizes
        prefill = statistics.median(one.prefill for one in readings)
        decode = statistics.median(one.decode for one in readings)
        figures = {
            "prefill tokens/s": sizes.batch * sizes.prompt / prefill,
            "decode tokens/s": sizes.batch * sizes.steps / decode,
            "new tokens/s": sizes.batch * (sizes.steps + 1) / (prefill + decode),
            "switching s": statistics.median(one.other for one in readings),
        }
        if reference in self._logits:
            expected = self._logits[reference]
            difference = (self._logits[name] - expected).norm(dim=-1)
            figures["difference"] = float((difference / expected.norm(dim=-1)).median())
        return figures
