"""Running one policy of the co-execution demo, and what is kept of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from coexecution_policies import Subject
from scaled_system import scaled_system
from skewed_moe import HEAD_DIM, KV_HEADS, VOCABULARY, skewed_moe
from transformers import StaticCache

from coxcompile import ActivationMap, ChoiceCounts, Session
from coxcompile.planner.model_spec import model_from_config
from coxcompile.planner.plan import Plan
from coxcompile.planner.simulator import simulate
from coxcompile.planner.timeline import chrome_trace, save_trace, trace_events
from coxcompile.planner.workload import uniform_workload

PROTOTYPES = 6
"""Sequences whose prefill decides which experts are resident (paper §4.3)."""


@dataclass(frozen=True)
class Row:
    """What one policy gave. Times are the emulated machine's; bytes are of all calls together.

    What is predicted is what the planner's simulator says, told how often each expert was chosen.

    Attributes:
        max_relative_error: of the logits, in any call, against the compiled model on the CPU alone.
        hit_ratio: share of expert choices in the decoding steps that found a resident expert.
        serialised_seconds: of a decoding step with every node waiting for the one before.
    """

    policy: str
    tokens_per_second: float
    predicted_tokens_per_second: float
    bytes_h2d: int
    bytes_d2h: int
    peak_device_bytes: int
    budget_bytes: int
    hit_ratio: float
    max_relative_error: float
    prefill_seconds: float
    predicted_prefill_seconds: float
    step_seconds: float
    predicted_step_seconds: float
    serialised_seconds: float


class Comparison:
    """One model, machine and workload for all policies, and what the CPU alone computes."""

    def __init__(
        self, batch: int, input_tokens: int, output_tokens: int, slowdown: float, over_vram: int
    ) -> None:
        self.model = skewed_moe()
        self.spec = model_from_config(self.model.config, "Qwen3-MoE, small")
        self.vram = self.spec.total_bytes // over_vram
        self.hardware = scaled_system(slowdown, self.vram)
        self.workload = uniform_workload(batch, input_tokens, output_tokens)
        self.length = input_tokens + output_tokens
        generator = torch.Generator().manual_seed(1)
        shape = (batch, input_tokens)
        self.prompts = torch.randint(0, VOCABULARY, shape, generator=generator)
        counts = ChoiceCounts()
        self.tokens: list[torch.Tensor] = [self.prompts]
        compiled = self._compile({"accelerator": "none", "count_choices": counts})
        self._generate(compiled, self.prompts[:PROTOTYPES], steps=0)
        self.prototypes = self._map(counts, PROTOTYPES * input_tokens)
        counts.reset()
        self.reference = self._generate(compiled, self.prompts, steps=output_tokens - 1)
        self.choices = self._map(counts, self.workload.output_tokens + batch * (input_tokens - 1))

    def run(self, subject: Subject, directory: Path) -> Row:
        """Compile for the subject's plan, generate as the reference did, then a step serialised."""
        known = self.prototypes if subject.stratified else None
        probabilities = known.probabilities() if known else None
        plan = subject.plan(self.spec, self.hardware, self.workload, probabilities)
        session = Session(record=True)
        options = {
            "accelerator": "emulated",
            "vram": self.vram,
            "plan": plan,
            "activation_map": known,
            "hardware": self.hardware,
            "throttle": True,
            "session": session,
        }
        compiled = self._compile(options)
        cache = self._cache(len(self.prompts))
        results = [self._step(compiled, tokens, cache) for tokens in self.tokens]
        session.serialised = True
        self._step(compiled, self.tokens[-1], self._cache(len(self.prompts)))
        prefill, *steps, serialised = session.executions
        session.release()
        self._save_timeline(subject, plan, prefill, steps, directory)
        simulation = simulate(
            *(plan, self.spec, self.hardware, self.workload, self.choices.probabilities()),
            hottest_first=subject.stratified,
        )
        seconds = prefill.seconds + sum(step.seconds for step in steps)
        calls = [prefill, *steps]
        return Row(
            policy=subject.name,
            tokens_per_second=self.workload.output_tokens / seconds,
            predicted_tokens_per_second=simulation.tokens_per_second,
            bytes_h2d=sum(call.traffic.host_to_device for call in calls),
            bytes_d2h=sum(call.traffic.device_to_host for call in calls),
            peak_device_bytes=max(call.traffic.peak_bytes for call in calls),
            budget_bytes=self.vram,
            hit_ratio=self._hit_ratio(plan, known),
            max_relative_error=max(map(_error, results, self.reference)),
            prefill_seconds=prefill.seconds,
            predicted_prefill_seconds=simulation.prefill.step_seconds,
            step_seconds=sorted(step.seconds for step in steps)[len(steps) // 2],
            predicted_step_seconds=simulation.decode.step_seconds,
            serialised_seconds=serialised.seconds,
        )

    def _compile(self, options: dict[str, Any]) -> Any:
        torch._dynamo.reset()
        return torch.compile(
            self.model, backend="coxmoe", fullgraph=True, dynamic=False, options=options
        )

    def _cache(self, batch: int) -> StaticCache:
        cache = StaticCache(config=self.model.config, max_cache_len=self.length)
        cache.early_initialization(batch, KV_HEADS, HEAD_DIM, torch.bfloat16, torch.device("cpu"))
        return cache

    def _step(self, compiled: Any, tokens: torch.Tensor, cache: StaticCache) -> torch.Tensor:
        with torch.no_grad():
            result = compiled(input_ids=tokens, past_key_values=cache, logits_to_keep=1)
        return result.logits.float()

    def _generate(self, compiled: Any, prompts: torch.Tensor, steps: int) -> list[torch.Tensor]:
        """Greedily; keeps the tokens, so that every policy gets the same inputs."""
        cache = self._cache(len(prompts))
        results = [self._step(compiled, prompts, cache)]
        for _ in range(steps):
            self.tokens.append(results[-1][:, -1:].argmax(-1))
            results.append(self._step(compiled, self.tokens[-1], cache))
        return results

    def _map(self, counts: ChoiceCounts, tokens: int) -> ActivationMap:
        return ActivationMap(
            counts=counts.to_numpy(),
            layers=counts.layers,
            model=self.spec.name,
            tokens=tokens,
            strategy="full pass",
        )

    def _hit_ratio(self, plan: Plan, known: ActivationMap | None) -> float:
        resident = [split.resident for split in plan.decode.experts]
        if known is not None:
            return self.choices.hit_ratio_of(known, resident)
        hits = sum(
            int(row[:count].sum()) for row, count in zip(self.choices.counts, resident, strict=True)
        )
        return hits / int(self.choices.counts.sum())

    def _save_timeline(
        self, subject: Subject, plan: Plan, prefill: Any, steps: list[Any], directory: Path
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        events = [
            event
            for number, (stage, execution) in enumerate(
                (("prefill", prefill), ("decode", steps[-1])), start=1
            )
            for event in trace_events(execution.timeline(), (), stage, number)
        ]
        save_trace(chrome_trace(events), directory / f"timeline_{subject.name}.json")


def _error(result: torch.Tensor, reference: torch.Tensor) -> float:
    return float((result - reference).norm() / reference.norm())
