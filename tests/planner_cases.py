"""A model, a machine of any size and random ones of both, for tests of the planner."""

from hypothesis import strategies as st

from coxcompile.hardware import EfficiencyCurve, HardwareSpec, Link, Processor
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.workload import LengthGroup, Workload

MIXTRAL = ModelSpec(
    name="mixtral",
    layers=32,
    hidden=4096,
    query_heads=32,
    kv_heads=8,
    head_dim=128,
    experts=8,
    top_k=2,
    expert_dim=14336,
    vocabulary=32000,
)


def machine(vram_bytes: float, host_bytes: float, disk_bytes: int = 0) -> HardwareSpec:
    curve = EfficiencyCurve(rows=(1.0, 64.0, 1024.0), shares=(0.05, 0.4, 0.8))
    return HardwareSpec(
        name="machine",
        source="made up",
        cpu=Processor(
            name="cpu",
            flops_per_second=4e12,
            memory_bytes=int(host_bytes),
            memory_bytes_per_second=1e11,
            gemm_efficiency=curve,
            attention_efficiency=0.3,
            launch_seconds=3e-6,
        ),
        gpu=Processor(
            name="gpu",
            flops_per_second=121e12,
            memory_bytes=int(vram_bytes),
            memory_bytes_per_second=3e11,
            gemm_efficiency=curve,
            attention_efficiency=0.5,
            launch_seconds=5e-6,
        ),
        host_to_device=Link(bytes_per_second=2e10, latency_seconds=1e-5),
        device_to_host=Link(bytes_per_second=2e10, latency_seconds=1e-5),
        disk_bytes=disk_bytes,
        disk_bytes_per_second=2e9 if disk_bytes else 0.0,
    )


L4 = machine(24e9, 192e9)


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    layers = draw(st.integers(1, 6))
    dense_layers = draw(st.integers(0, min(1, layers - 1)))
    experts = draw(st.integers(1, 16))
    return ModelSpec(
        name="random",
        layers=layers,
        dense_layers=dense_layers,
        hidden=64 * draw(st.integers(1, 16)),
        query_heads=8,
        kv_heads=draw(st.sampled_from([1, 2, 8])),
        head_dim=64,
        experts=experts,
        top_k=draw(st.integers(1, experts)),
        expert_dim=64 * draw(st.integers(1, 32)),
        shared_dim=draw(st.sampled_from([0, 128])),
        dense_dim=512,
        vocabulary=1000,
    )


workloads = st.lists(
    st.builds(
        LengthGroup,
        count=st.integers(1, 40),
        input_tokens=st.integers(1, 2000),
        output_tokens=st.integers(1, 300),
    ),
    min_size=1,
    max_size=2,
).map(lambda groups: Workload(groups=tuple(groups)))
