"""Fig. 3a as a prediction: what attention on either device leaves of VRAM, and the latency."""

from dataclasses import dataclass

from paper_numbers import BATCH, LENGTHS, QWEN3, SYSTEM_I, VRAM_SHARES
from paper_outcomes import outcome_of
from paper_searches import ON_CPU, ON_GPU, plan_with_attention

from coxcompile.planner.cost_model import predict
from coxcompile.planner.models import model_named
from coxcompile.planner.plan import Stage
from coxcompile.planner.workload import uniform_workload
from coxcompile.systems import system_named


@dataclass(frozen=True)
class AttentionPlace:
    """The best coalesced plan of one stage with attention on ``device``.

    Attributes:
        seconds: of the stage; latency_change: against attention on the GPU.
        experts_share: of VRAM, for resident experts and staging slots; paper_experts_share: §3.2.
        vram_bytes: by item.
    """

    stage: Stage
    device: str
    seconds: float
    latency_change: float
    experts_share: float
    paper_experts_share: float
    cache_in_vram: float
    vram_bytes: dict[str, float]
    capacity_bytes: int


def predict_attention() -> list[AttentionPlace]:
    """Qwen3 on System I, with Fig. 7's batch and the lengths 97 and 256.

    The digest does not say for which model and lengths the paper's shares are. These are the
    longest of Fig. 7's with which the cache still fits this VRAM, where it evicts most experts.
    """
    model, hardware = model_named(QWEN3), system_named(SYSTEM_I)
    workload = uniform_workload(BATCH, *LENGTHS[1])
    assert hardware.gpu is not None
    found = []
    on_gpu: dict[str, float] = {}
    for device, allowed in (("gpu", ON_GPU), ("cpu", ON_CPU)):
        plan = plan_with_attention(f"attention on {device}", allowed, model, hardware, workload)
        outcome = outcome_of(plan, model, hardware, workload)
        prediction = predict(plan, model, hardware, workload)
        stages: tuple[Stage, Stage] = ("prefill", "decode")
        for stage in stages:
            result = outcome.stage(stage)
            memory = prediction.prefill if stage == "prefill" else prediction.decode
            before = on_gpu.setdefault(stage, result.seconds)
            found.append(
                AttentionPlace(
                    stage=stage,
                    device=device,
                    seconds=result.seconds,
                    latency_change=result.seconds / before - 1,
                    experts_share=result.expert_vram_bytes / hardware.gpu.memory_bytes,
                    paper_experts_share=VRAM_SHARES[device],
                    cache_in_vram=result.cache_in_vram,
                    vram_bytes={item: float(size) for item, size in memory.memory.vram.items()},
                    capacity_bytes=hardware.gpu.memory_bytes,
                )
            )
    return found
