"""When no plan of a policy fits: which memory lacks what, and what would make it fit."""

from collections.abc import Iterable

from coxcompile.hardware import HardwareSpec
from coxcompile.planner.cost_model import StagePrediction, predict_stage
from coxcompile.planner.expert_costs import Floats
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import Stage, StagePlan
from coxcompile.planner.workload import Workload


class DoesNotFitError(ValueError):
    """No plan of the policy fits; the message names the memory, the bytes and a remedy."""


def does_not_fit(
    policy: str,
    stage: Stage,
    tried: Iterable[StagePlan],
    model: ModelSpec,
    hardware: HardwareSpec,
    workload: Workload,
    probabilities: Floats | None = None,
) -> DoesNotFitError:
    """The error for a stage none of whose plans fits: about the one that lacks least."""
    predictions = [
        predict_stage(plan, stage, model, hardware, workload, probabilities) for plan in tried
    ]
    vram_bytes = hardware.gpu.memory_bytes if hardware.gpu else 0

    def lacking(prediction: StagePrediction) -> tuple[float, float]:
        """Bytes of host memory and of VRAM."""
        return (
            max(prediction.memory.host_bytes - hardware.cpu.memory_bytes, 0.0),
            max(prediction.memory.vram_bytes - vram_bytes, 0.0),
        )

    closest = min(predictions, key=lambda prediction: sum(lacking(prediction)))
    remedies = [
        f"{size / 1e9:.1f} GB more {memory}"
        for memory, size in zip(("host memory", "VRAM"), lacking(closest), strict=True)
        if size > 0
    ]
    host_for_any_batch = closest.memory.host["weights"] + closest.memory.host["reserve"]
    if workload.batch > 1 and host_for_any_batch < hardware.cpu.memory_bytes:
        remedies.append(f"a batch smaller than {workload.batch}")
    return DoesNotFitError(
        f"{policy}: no plan for the {stage} of {model.name} fits {hardware.name}: "
        f"{'; '.join(closest.shortage)}. What would help: {' or '.join(remedies)}."
    )
