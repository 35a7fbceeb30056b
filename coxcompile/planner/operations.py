"""Seconds of OP0-OP2, and of what crosses the link between them, for one micro-batch."""

from dataclasses import dataclass
from typing import Literal

from coxcompile.hardware import HardwareSpec, Processor
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import Device, StagePlan
from coxcompile.planner.stage_load import StageLoad

Resource = Literal["gpu", "cpu", "host_to_device", "device_to_host"]


@dataclass(frozen=True)
class Work:
    """Something that occupies one resource for a time; ``name`` is what a timeline shows."""

    name: str
    resource: Resource
    seconds: float


def processor(hardware: HardwareSpec, device: Device) -> Processor:
    """The processor that ``device`` stands for.

    Raises:
        ValueError: the plan uses a GPU and the machine has none.
    """
    if device == "cpu":
        return hardware.cpu
    if hardware.gpu is None:
        raise ValueError(f"the plan uses a GPU, but {hardware.name} has none; use policy cpu-only")
    return hardware.gpu


def home(plan: StagePlan, hardware: HardwareSpec) -> Device:
    """Where hidden states are between layers: on the GPU if any expert runs there."""
    on_gpu = any(split.resident + split.migrating for split in plan.experts)
    return "gpu" if hardware.gpu is not None and on_gpu else "cpu"


def micro_batch_chain(
    plan: StagePlan, model: ModelSpec, hardware: HardwareSpec, load: StageLoad, ffn_dim: int
) -> list[Work]:
    """What one micro-batch does in one layer before the routed experts, in order (paper §4.1).

    OP0, OP1 and OP2 are rooflines of their device: T_comp = max(FLOP / P, (X + Y) / BW_mem). What
    has to change sides crosses the link in between: T_load of activations, T_store of new keys and
    values. The paper's T_load(OP1) moves X_1 = μ·s·n_q·d·b; new keys and values follow where the
    attention is. ``ffn_dim`` is the width of the layer's shared experts or dense FFN, which run
    with OP2.
    """
    tokens = load.tokens / load.micro_batches
    width = model.element_bytes
    hidden_bytes = tokens * model.hidden * width
    heads_bytes = tokens * model.query_heads * model.head_dim * width
    new_kv_bytes = tokens * model.kv_bytes
    read_kv_bytes = load.cached_reads / load.micro_batches * model.kv_bytes
    where = home(plan, hardware)
    chain: list[Work] = []

    def move(name: str, source: Device, target: Device, size: float) -> None:
        if source != target and size > 0:
            to_gpu = target == "gpu"
            link = hardware.host_to_device if to_gpu else hardware.device_to_host
            assert link is not None
            resource: Resource = "host_to_device" if to_gpu else "device_to_host"
            chain.append(Work(name, resource, link.seconds(size)))

    def multiply(name: str, device: Device, weights: float, activation_bytes: float) -> None:
        unit = processor(hardware, device)
        seconds = unit.gemm_seconds(
            2 * tokens * weights, activation_bytes + weights * width, max(tokens, 1.0)
        )
        chain.append(Work(name, device, seconds + unit.launch_seconds))

    # Not coalesced, VRAM holds the hidden states of one micro-batch: the others wait on the host.
    waiting = not plan.coalesced and load.micro_batches > 1
    move("hidden states", "cpu" if waiting else where, plan.qkv, hidden_bytes)
    multiply("QKV projection", plan.qkv, model.qkv_weights, hidden_bytes)
    move("queries, keys, values", plan.qkv, plan.attention, heads_bytes + new_kv_bytes)
    if plan.attention == "gpu":
        outside = 1 - plan.kv_gpu_share
        past_bytes = read_kv_bytes if load.steps > 1 or load.cached_reads > load.tokens else 0.0
        move("cached keys, values", "cpu", "gpu", outside * past_bytes)
    chain.append(_attention(plan, model, hardware, load, heads_bytes + read_kv_bytes))
    if plan.attention == "gpu":
        move("new keys, values", "gpu", "cpu", (1 - plan.kv_gpu_share) * new_kv_bytes)
    move("attention output", plan.attention, plan.output, heads_bytes)
    ffn_weights = 3 * model.hidden * ffn_dim
    multiply("output projection", plan.output, model.output_weights, heads_bytes)
    if ffn_dim:
        multiply("shared or dense FFN", plan.output, ffn_weights, hidden_bytes)
    move("hidden states", plan.output, where, hidden_bytes)
    if waiting:
        move("hidden states", where, "cpu", hidden_bytes)
    return chain


def _attention(
    plan: StagePlan,
    model: ModelSpec,
    hardware: HardwareSpec,
    load: StageLoad,
    bytes_read: float,
) -> Work:
    unit = processor(hardware, plan.attention)
    flops = 4 * load.pairs / load.micro_batches * model.query_heads * model.head_dim
    compute = flops / (unit.flops_per_second * unit.attention_efficiency)
    launches = plan.attention_parts * unit.launch_seconds
    if load.steps > 1 or load.cached_reads > load.tokens:  # decoding
        sequences = load.tokens / load.micro_batches
        launches += sequences * model.kv_heads * unit.attention_head_seconds
    return Work("attention", plan.attention, max(compute, unit.read_seconds(bytes_read)) + launches)


def layer_weights_to_fetch(plan: StagePlan, model: ModelSpec, ffn_dim: int) -> float:
    """Bytes of a layer's weights, routed experts aside, fetched for the GPU's operations."""
    on_gpu = 0.0
    if plan.qkv == "gpu":
        on_gpu += model.qkv_weights
    if plan.output == "gpu":
        on_gpu += model.output_weights + 3 * model.hidden * ffn_dim
    return (1 - plan.resident_share) * on_gpu * model.element_bytes
