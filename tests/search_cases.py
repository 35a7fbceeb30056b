"""Models and machines so small that every plan of a search can be enumerated."""

from dataclasses import replace

from hypothesis import strategies as st

from coxcompile.hardware import EfficiencyCurve, HardwareSpec, Link, Processor
from coxcompile.planner.model_spec import ModelSpec


@st.composite
def models(draw: st.DrawFn, most_experts: int = 4) -> ModelSpec:
    """One or two layers of a few experts, perhaps one of them dense."""
    layers = draw(st.integers(1, 2))
    kv_heads = draw(st.integers(1, 4))
    experts = draw(st.integers(1, most_experts))
    return ModelSpec(
        name="small",
        layers=layers,
        dense_layers=draw(st.integers(0, layers - 1)),
        hidden=draw(st.sampled_from([512, 1024])),
        query_heads=kv_heads * draw(st.integers(1, 4)),
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([64, 128])),
        experts=experts,
        top_k=draw(st.integers(1, experts)),
        expert_dim=draw(st.sampled_from([256, 1024])),
        shared_dim=draw(st.sampled_from([0, 256])),
        dense_dim=1024,
        vocabulary=draw(st.sampled_from([1000, 32000])),
    )


@st.composite
def machines(draw: st.DrawFn, model: ModelSpec) -> HardwareSpec:
    """Machines whose VRAM holds some, but seldom all, of the model's experts."""
    curve = EfficiencyCurve(rows=(1.0, 64.0), shares=(draw(st.sampled_from([0.1, 1.0])), 1.0))
    experts_bytes = model.moe_layers * model.experts * model.expert_bytes
    room = draw(st.floats(0.0, 1.2)) * experts_bytes + draw(st.integers(0, 10**8))
    link = Link(bytes_per_second=draw(st.sampled_from([1e8, 1e9, 25e9])), latency_seconds=1e-5)
    return HardwareSpec(
        name="machine",
        source="made up for a test",
        cpu=Processor(
            name="cpu",
            flops_per_second=draw(st.sampled_from([1e11, 1e13])),
            memory_bytes=10**12,
            memory_bytes_per_second=draw(st.sampled_from([2e10, 3e11])),
            gemm_efficiency=curve,
            launch_seconds=1e-5,
        ),
        gpu=Processor(
            name="gpu",
            flops_per_second=draw(st.sampled_from([1e12, 1e14])),
            memory_bytes=int(2**30 + model.other_bytes + room),
            memory_bytes_per_second=draw(st.sampled_from([1e11, 1e12])),
            gemm_efficiency=curve,
            launch_seconds=1e-5,
        ),
        host_to_device=link,
        device_to_host=link,
    )


FIGURES = (
    "gpu.flops_per_second",
    "gpu.memory_bytes",
    "gpu.memory_bytes_per_second",
    "cpu.flops_per_second",
    "cpu.memory_bytes",
    "cpu.memory_bytes_per_second",
    "links",
)
"""What :func:`better` can raise."""


def better(hardware: HardwareSpec, figure: str, factor: float) -> HardwareSpec:
    """The machine with one of its figures ``factor`` times as large."""
    if figure == "links":
        assert hardware.host_to_device is not None
        speed = factor * hardware.host_to_device.bytes_per_second
        link = replace(hardware.host_to_device, bytes_per_second=speed)
        return replace(hardware, host_to_device=link, device_to_host=link)
    device, field = figure.split(".")
    unit = getattr(hardware, device)
    value = type(getattr(unit, field))(factor * getattr(unit, field))
    return replace(hardware, **{device: replace(unit, **{field: value})})
