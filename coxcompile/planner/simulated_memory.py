"""VRAM of what lives and dies while a stage is simulated."""

from collections.abc import Sequence
from dataclasses import dataclass

from coxcompile.hardware import HardwareSpec
from coxcompile.planner.event_queue import Task
from coxcompile.planner.memory import STAGING, MemoryUse, operation_bytes
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.operations import layer_weights_to_fetch
from coxcompile.planner.plan import StagePlan
from coxcompile.planner.stage_load import StageLoad


@dataclass(frozen=True)
class BufferSizes:
    """Bytes of VRAM.

    Attributes:
        static: held from start to end.
        slot: of one staging slot.
        operations: intermediates of one micro-batch in each of its operations, by name.
        expert_rows: intermediates of one expert while it is computed.
        results: the block's hidden states after the experts, beside those before them.
    """

    static: float
    slot: float
    operations: dict[str, float]
    expert_rows: float
    results: float

    def hold_intermediates(self, chain: Sequence[Task]) -> None:
        """Let a micro-batch's operations on the GPU hold what they read and write.

        What is moved there for one is held from the move's start, what is moved away to its end.
        """
        for index, task in enumerate(chain):
            if task.resource != "gpu":
                continue
            before, after = chain[max(index - 1, 0)], chain[min(index + 1, len(chain) - 1)]
            first = before if before.resource == "host_to_device" else task
            last = after if after.resource == "device_to_host" else task
            first.allocates += self.operations[task.name]
            last.frees += self.operations[task.name]


def buffer_sizes(
    plan: StagePlan, model: ModelSpec, hardware: HardwareSpec, load: StageLoad, use: MemoryUse
) -> BufferSizes:
    """The sizes behind the items of ``use``."""
    if not use.vram:
        return BufferSizes(static=0, slot=0, operations={}, expert_rows=0, results=0)
    streamed = max(
        layer_weights_to_fetch(plan, model, model.shared_dim),
        layer_weights_to_fetch(plan, model, model.dense_dim) if model.dense_layers else 0.0,
    )
    operations = operation_bytes(plan, model, load.tokens / load.micro_batches)
    results = use.vram["hidden states"] / 2 if plan.coalesced else 0.0
    dynamic = (
        use.vram[STAGING]
        + 2 * streamed
        + use.vram["intermediates of a micro-batch"]
        + use.vram["intermediates of experts"]
        + results
    )
    return BufferSizes(
        static=use.vram_bytes - dynamic,
        slot=use.vram[STAGING] / max(plan.staging_experts, 1),
        operations={name: size for name, (size, _) in operations.items()},
        expert_rows=use.vram["intermediates of experts"],
        results=results,
    )
