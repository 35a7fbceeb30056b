"""Table 3 as predictions: from MoE-Lightning to CoX-MoE, one step at a time."""

from dataclasses import dataclass

from paper_numbers import EAS_HIT_RATIO, QWEN3, STEPS, SYSTEM_I, VRAM_SHARES, table_3_workload
from paper_outcomes import Outcome, outcome_of
from paper_reasons import comparison
from paper_routing import skewed_probabilities
from paper_searches import (
    ANYWHERE,
    ON_CPU_IN_DECODE,
    ON_GPU,
    Attention,
    plan_with_attention,
)

from coxcompile.planner.models import model_named
from coxcompile.planner.policies import make_plan
from coxcompile.systems import system_named


@dataclass(frozen=True)
class StepOutcome:
    """One step's prediction.

    Attributes:
        name: the paper's.
        reading: what was planned for it, where the digest leaves that open.
        over: the step that ``ratio`` is over; None for the first.
        ratio: predicted tokens/s over that step's; paper_ratio: the paper's.
        why: what binds the two plans.
    """

    name: str
    reading: str
    outcome: Outcome
    paper_tokens_per_second: float
    over: str | None = None
    ratio: float | None = None
    paper_ratio: float | None = None
    why: str | None = None


def predict_steps() -> list[StepOutcome]:
    """Qwen3 on System I; the second step in two readings, and all steps over the first.

    The paper's second step leaves attention where MoE-Lightning's or its own search without
    offloading puts it. On the GPU in both stages is one reading; where MoE-Lightning has it, in
    decode on the CPU, is the other. The last step's routing lets the hottest experts that fill the
    paper's 58.5% of VRAM take 80% of the choices.
    """
    model, hardware, workload = model_named(QWEN3), system_named(SYSTEM_I), table_3_workload()
    assert hardware.gpu is not None
    vram = VRAM_SHARES["cpu"] * hardware.gpu.memory_bytes
    hottest = int(vram / model.expert_bytes / model.moe_layers)
    routing = skewed_probabilities(model, hottest, EAS_HIT_RATIO)
    setting = (model, hardware, workload)
    lightning = outcome_of(make_plan("moe-lightning", *setting), *setting)

    def coalesced(name: str, attention: Attention = ANYWHERE) -> Outcome:
        plan = plan_with_attention(name, attention, *setting)
        return outcome_of(plan, *setting)

    on_gpu = coalesced("step 2a", ON_GPU)
    as_lightning = coalesced("step 2b", ON_CPU_IN_DECODE)
    free = coalesced("step 3")
    plan = plan_with_attention("step 4", ANYWHERE, *setting, routing)
    stratified = outcome_of(plan, *setting, routing)

    first, second, third, fourth = STEPS
    steps = [
        StepOutcome(first.name, "1: as its own search plans it", lightning, first.tokens_per_second)
    ]
    for step, reading, before, outcome in (
        (second, "2a: attention on the GPU in both stages", lightning, on_gpu),
        (second, "2b: attention where MoE-Lightning has it", lightning, as_lightning),
        (third, "3, over 2a: attention where the search puts it", on_gpu, free),
        (third, "3, over 2b", as_lightning, free),
        (
            fourth,
            f"4: the hottest {hottest} of {model.experts} take 80% of the choices",
            free,
            stratified,
        ),
    ):
        steps.append(
            StepOutcome(
                name=step.name,
                reading=reading,
                outcome=outcome,
                paper_tokens_per_second=step.tokens_per_second,
                over=before.policy,
                ratio=outcome.tokens_per_second / before.tokens_per_second,
                paper_ratio=step.ratio,
                why=comparison(outcome, before),
            )
        )
    steps.append(
        StepOutcome(
            name="all steps together",
            reading="4, over 1",
            outcome=stratified,
            paper_tokens_per_second=fourth.tokens_per_second,
            over=lightning.policy,
            ratio=stratified.tokens_per_second / lightning.tokens_per_second,
            paper_ratio=fourth.tokens_per_second / first.tokens_per_second,
            why=comparison(stratified, lightning),
        )
    )
    return steps
