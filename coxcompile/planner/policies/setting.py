"""One question to a policy (model, machine, workload), and what the shared cost model says."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from coxcompile.hardware import HardwareSpec
from coxcompile.planner.cost_model import StagePrediction, costs_of, predict_stage
from coxcompile.planner.expert_costs import ExpertCosts, Floats
from coxcompile.planner.memory import MemoryUse, memory_use, shortage
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import Plan, Stage, StagePlan
from coxcompile.planner.policies.fitting import DoesNotFitError, does_not_fit
from coxcompile.planner.policies.splits import gpu_of
from coxcompile.planner.stage_load import stage_load
from coxcompile.planner.workload import Workload

STAGES: tuple[Stage, Stage] = ("prefill", "decode")
Pair = tuple[StagePlan, StagePlan]
"""The plans of prefill and of decode."""


@dataclass(frozen=True)
class Setting:
    """What ``policy`` is asked; ``probabilities`` as in :func:`cost_model.predict`."""

    policy: str
    model: ModelSpec
    hardware: HardwareSpec
    workload: Workload
    probabilities: Floats | None = None
    _costs: dict[float, ExpertCosts] = field(default_factory=dict, repr=False)

    def predict(self, plan: StagePlan, stage: Stage) -> StagePrediction:
        """Time and memory of one stage."""
        case = (plan, stage, self.model, self.hardware, self.workload, self.probabilities)
        return predict_stage(*case, self._costs_of(plan, stage))

    def memory(self, plan: StagePlan, stage: Stage) -> MemoryUse:
        """Memory alone, which is many times cheaper than :meth:`predict`."""
        load, costs = stage_load(self.workload, stage, plan), self._costs_of(plan, stage)
        return memory_use(plan, self.model, self.hardware, self.workload, load, costs)

    def _costs_of(self, plan: StagePlan, stage: Stage) -> ExpertCosts:
        """They depend on nothing but how many tokens run through the experts together."""
        load = stage_load(self.workload, stage, plan)
        together = load.tokens / (1 if plan.coalesced else load.micro_batches)
        if together not in self._costs:
            self._costs[together] = costs_of(
                plan, self.model, self.hardware, load, self.probabilities
            )
        return self._costs[together]

    def fits(self, plan: StagePlan, stage: Stage) -> bool:
        """Whether all memories suffice."""
        return not shortage(self.memory(plan, stage), self.hardware)

    def spare_vram(self, plan: StagePlan, stage: Stage) -> float:
        """Bytes of VRAM that ``plan`` leaves free; negative: it lacks them."""
        capacity = gpu_of(self.policy, self.hardware).memory_bytes
        return capacity - self.memory(plan, stage).vram_bytes

    def fastest(self, stage: Stage, plans: Iterable[StagePlan]) -> tuple[float, StagePlan] | None:
        """Predicted seconds and plan of the fastest that fits (first of equals), or None."""
        best = None
        for plan in plans:
            if self.fits(plan, stage):
                seconds = self.predict(plan, stage).seconds
                if best is None or seconds < best[0]:
                    best = seconds, plan
        return best

    def fastest_pair(
        self, candidates: Iterable[tuple[Iterable[StagePlan], Iterable[StagePlan]]]
    ) -> Pair | None:
        """Of pairs of candidates for prefill and decode, the fastest in both stages together."""
        best: tuple[float, Pair] | None = None
        for prefills, decodes in candidates:
            prefill = self.fastest("prefill", prefills)
            decode = self.fastest("decode", decodes) if prefill else None
            if prefill and decode and (best is None or prefill[0] + decode[0] < best[0]):
                best = prefill[0] + decode[0], (prefill[1], decode[1])
        return best[1] if best else None

    def does_not_fit(self, tried: Sequence[Pair]) -> DoesNotFitError:
        """The error when no pair in ``tried`` fits: about the stage that keeps most from it."""
        lacking = {
            stage: [pair[i] for pair in tried if not self.fits(pair[i], stage)]
            for i, stage in enumerate(STAGES)
        }
        stage = max(STAGES, key=lambda stage: len(lacking[stage]))
        return does_not_fit(
            *(self.policy, stage, lacking[stage], self.model, self.hardware, self.workload),
            self.probabilities,
        )

    def answer(self, pair: Pair, reasons: Iterable[str]) -> Plan:
        """The policy's plan."""
        return Plan(
            policy=self.policy,
            model=self.model.name,
            hardware=self.hardware.name,
            prefill=pair[0],
            decode=pair[1],
            reasons=tuple(reasons),
        )
