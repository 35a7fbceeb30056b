"""Bytes that a plan needs in VRAM, host memory and on disk, item by item."""

from dataclasses import dataclass

from coxcompile.hardware import HardwareSpec
from coxcompile.planner.expert_costs import ExpertCosts
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.operations import home, layer_weights_to_fetch
from coxcompile.planner.plan import Device, StagePlan
from coxcompile.planner.stage_load import StageLoad
from coxcompile.planner.workload import Workload

STAGING = "staging of migrating experts"
"""The item of VRAM that a plan without migrating experts does not need."""


@dataclass(frozen=True)
class MemoryUse:
    """Items by name, in bytes, for each of the three memories."""

    vram: dict[str, float]
    host: dict[str, float]
    disk: dict[str, float]

    @property
    def vram_bytes(self) -> float:
        """All of VRAM."""
        return sum(self.vram.values())

    @property
    def host_bytes(self) -> float:
        """All of host memory."""
        return sum(self.host.values())

    @property
    def disk_bytes(self) -> float:
        """All of the disk."""
        return sum(self.disk.values())


def memory_use(
    plan: StagePlan,
    model: ModelSpec,
    hardware: HardwareSpec,
    workload: Workload,
    load: StageLoad,
    costs: ExpertCosts,
) -> MemoryUse:
    """What the stage holds at its peak (paper §4.1, the VRAM constraint, and the other two alike).

    Intermediates are those of one micro-batch for the operations on the device (two, where
    micro-batches overlap), of attention with scores never stored (flash attention), and of one
    expert at a time for its tokens, ``expert_rows`` at most. Hidden states of the whole
    block stay where the experts are combined, in and out. ``costs`` are those of the tokens that
    run through the experts together.
    """
    on_gpu = [device == "gpu" for device in plan.devices]
    any_on_gpu = any(on_gpu) or home(plan, hardware) == "gpu"
    width = model.element_bytes
    tokens = load.tokens / load.micro_batches
    kv_bytes = (
        model.layers * model.kv_bytes * workload.cached_tokens * (plan.block / workload.batch)
    )
    staging = plan.staging_experts * model.expert_bytes * (1 - plan.cpu_rows_share)
    block_tokens = load.tokens if plan.coalesced else tokens
    hidden_states = 2 * block_tokens * model.hidden * width
    expert_tokens = min(
        float(max(costs.most_tokens, default=0.0)), plan.expert_rows or float("inf")
    )
    expert_rows = expert_tokens * (model.hidden + 3 * model.expert_dim) * width
    operations = operation_bytes(plan, model, tokens)
    gpu_rows, cpu_rows = (
        sum(size for size, device in operations.values() if device == kind)
        for kind in ("gpu", "cpu")
    )
    overlapping = 2 if load.micro_batches > 1 and any_on_gpu else 1

    vram: dict[str, float] = {}
    if any_on_gpu:
        resident = sum(split.resident for split in plan.experts) * model.expert_bytes
        streamed = max(
            layer_weights_to_fetch(plan, model, model.shared_dim),
            layer_weights_to_fetch(plan, model, model.dense_dim) if model.dense_layers else 0.0,
        )
        vram = {
            "resident experts": resident,
            STAGING: staging,
            "other weights": _other_weights_on_gpu(plan, model) + 2 * streamed,
            "KV cache": plan.kv_gpu_share * kv_bytes,
            "intermediates of a micro-batch": overlapping * gpu_rows,
            "intermediates of experts": expert_rows if home(plan, hardware) == "gpu" else 0.0,
            "hidden states": hidden_states if home(plan, hardware) == "gpu" else 0.0,
            "workspace": hardware.gpu_reserve_bytes,
        }
    host: dict[str, float] = {
        "weights": (1 - plan.disk_share) * model.total_bytes,
        "KV cache": (1 - plan.kv_gpu_share) * kv_bytes,
        "intermediates of a micro-batch": overlapping * cpu_rows,
        "intermediates of experts": expert_rows if any(s.cpu for s in plan.experts) else 0.0,
        "hidden states": 2 * load.tokens * model.hidden * width,
        "reserve": hardware.host_reserve_bytes,
    }
    disk = {"weights": plan.disk_share * model.total_bytes}
    return MemoryUse(vram, host, disk)


def shortage(use: MemoryUse, hardware: HardwareSpec) -> list[str]:
    """A sentence for each memory that is too small: how much it lacks, and the largest item."""
    have = {
        "VRAM": (use.vram, hardware.gpu.memory_bytes if hardware.gpu else 0),
        "host memory": (use.host, hardware.cpu.memory_bytes),
        "disk": (use.disk, hardware.disk_bytes),
    }
    lacking = []
    for name, (items, capacity) in have.items():
        if (missing := sum(items.values()) - capacity) > 0:
            largest = max(items, key=lambda item: items[item])
            lacking.append(
                f"{name} lacks {missing / 1e9:.1f} GB ({sum(items.values()) / 1e9:.1f} of "
                f"{capacity / 1e9:.1f} GB; the largest item is {largest} with "
                f"{items[largest] / 1e9:.1f} GB)"
            )
    return lacking


def _other_weights_on_gpu(plan: StagePlan, model: ModelSpec) -> float:
    """Resident weights that are no routed experts: of the operations on the GPU, and the head."""
    size = float(model.head_bytes)
    if plan.qkv == "gpu":
        size += plan.resident_share * model.layers * model.qkv_weights * model.element_bytes
    if plan.output == "gpu":
        projections = model.layers * model.output_weights * model.element_bytes
        ffn = model.moe_layers * model.shared_bytes + model.dense_layers * model.dense_bytes
        size += plan.resident_share * (projections + ffn)
    return size


def operation_bytes(
    plan: StagePlan, model: ModelSpec, tokens: float
) -> dict[str, tuple[float, Device]]:
    """Bytes that a micro-batch's operations read and write, and where; by names in its chain."""
    heads = model.query_heads * model.head_dim
    new_kv = model.kv_bytes / model.element_bytes
    ffn_dim = max(model.shared_dim, model.dense_dim if model.dense_layers else 0)
    size = tokens * model.element_bytes
    return {
        "QKV projection": (size * (model.hidden + heads + new_kv), plan.qkv),
        "attention": (size / plan.attention_parts * (2 * heads + new_kv), plan.attention),
        "output projection": (size * (heads + model.hidden), plan.output),
        "shared or dense FFN": (size * 3 * ffn_dim, plan.output),
    }
