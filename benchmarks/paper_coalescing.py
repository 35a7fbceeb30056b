"""Fig. 2 as a prediction: what micro-batches cost the experts of one decoding step."""

from dataclasses import dataclass

from paper_numbers import HALVING, LENGTHS, QWEN3, SYSTEM_I

from coxcompile.planner.expert_costs import expert_costs, uniform_probabilities
from coxcompile.planner.models import model_named
from coxcompile.planner.operations import micro_batch_chain
from coxcompile.planner.plan import ExpertSplit, StagePlan
from coxcompile.planner.stage_load import stage_load
from coxcompile.planner.workload import uniform_workload
from coxcompile.systems import system_named

PLACES = ("cpu", "link", "gpu")
"""The experts run on the CPU, on the GPU after crossing the link, on the GPU from VRAM."""


@dataclass(frozen=True)
class Coalescing:
    """Experts of all layers, run once a micro-batch, for a decoding step of all sequences.

    Attributes:
        place: of :data:`PLACES`.
        expert_rows: tokens that an expert gets at a time, on average.
        seconds: of the experts.
        over_double: seconds over those of micro-batches twice as large; paper_over_double: §1.
        experts_share: of the seconds of OP0 to OP3, added up as the paper's T_layer does.
    """

    place: str
    micro_batch: int
    expert_rows: float
    seconds: float
    over_double: float | None
    paper_over_double: float | None
    experts_share: float


def predict_coalescing() -> list[Coalescing]:
    """Qwen3 on System I with 256 sequences: μ = 256 runs every expert once, coalesced.

    The digest does not say where the paper's experts run, so all three places are shown; attention
    is on the CPU, projections on the GPU, lengths are Fig. 7's shortest.
    """
    model, hardware = model_named(QWEN3), system_named(SYSTEM_I)
    batch = 2 * max(HALVING)
    workload = uniform_workload(batch, *LENGTHS[0])
    link = hardware.host_to_device
    assert link is not None
    resident = ExpertSplit(resident=model.experts, migrating=0, cpu=0)
    found = []
    for place in PLACES:
        before: float | None = None
        for micro_batch in sorted({batch, *HALVING}, reverse=True):
            plan = StagePlan(
                qkv="gpu",
                attention="cpu",
                output="gpu",
                micro_batch=micro_batch,
                block=batch,
                coalesced=False,
                experts=(resident,) * model.moe_layers,
            )
            load = stage_load(workload, "decode", plan)
            tokens = load.tokens / load.micro_batches
            costs = expert_costs(model, hardware, tokens, uniform_probabilities(model))
            on_gpu, on_cpu = costs.gpu_seconds[0, -1], costs.cpu_seconds[0, -1]
            fetched = costs.fetched_experts[0, -1] * link.seconds(model.expert_bytes)
            once = {"cpu": on_cpu, "link": max(fetched, on_gpu), "gpu": on_gpu}[place]
            passes = load.micro_batches * model.moe_layers
            seconds = passes * float(once)
            chain = micro_batch_chain(plan, model, hardware, load, model.shared_dim)
            others = passes * float(sum(work.seconds for work in chain))
            found.append(
                Coalescing(
                    place=place,
                    micro_batch=micro_batch,
                    expert_rows=tokens * model.top_k / model.experts,
                    seconds=seconds,
                    over_double=seconds / before if before else None,
                    paper_over_double=HALVING.get(micro_batch),
                    experts_share=seconds / (seconds + others),
                )
            )
            before = seconds
    return found
