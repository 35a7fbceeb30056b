"""Random models, machines, workloads and stage plans of all kinds, for the simulator's tests."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from coxcompile.hardware import EfficiencyCurve, HardwareSpec, Link, Processor
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import Device, ExpertSplit, Stage, StagePlan
from coxcompile.planner.workload import LengthGroup, Workload


@dataclass(frozen=True)
class Case:
    """The arguments of predict_stage and simulate_stage."""

    plan: StagePlan
    stage: Stage
    model: ModelSpec
    hardware: HardwareSpec
    workload: Workload
    probabilities: NDArray[np.float64] | None

    @property
    def arguments(self) -> tuple[Any, ...]:
        return (
            *(self.plan, self.stage, self.model, self.hardware),
            *(self.workload, self.probabilities),
        )


@st.composite
def cases(draw: st.DrawFn, most_dense_layers: int = 2) -> Case:
    model = draw(models(most_dense_layers))
    hardware = draw(machines())
    workload = draw(workloads())
    return Case(
        draw(stage_plans(model, hardware, workload)),
        draw(st.sampled_from(["prefill", "decode"])),
        model,
        hardware,
        workload,
        draw(routings(model)),
    )


@st.composite
def models(draw: st.DrawFn, most_dense_layers: int) -> ModelSpec:
    layers = draw(st.integers(2, 4))
    kv_heads = draw(st.integers(1, 4))
    experts = draw(st.integers(1, 16))
    return ModelSpec(
        name="small",
        layers=layers,
        dense_layers=draw(st.integers(0, min(most_dense_layers, layers - 1))),
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
def machines(draw: st.DrawFn) -> HardwareSpec:
    """With and without a GPU; links as slow as 0.1 GB/s and as fast as 25 GB/s."""
    curve = EfficiencyCurve(rows=(1.0, 64.0), shares=(draw(st.sampled_from([0.1, 1.0])), 1.0))
    with_gpu = draw(st.sampled_from([True, True, True, False]))
    disk = draw(st.sampled_from([0.0, 0.0, 0.0, 2e9]))
    gpu = Processor(
        name="gpu",
        flops_per_second=draw(st.sampled_from([1e12, 1e13, 1e14])),
        memory_bytes=48 * 10**9,
        memory_bytes_per_second=draw(st.sampled_from([1e11, 1e12])),
        gemm_efficiency=curve,
        launch_seconds=1e-5,
    )
    return HardwareSpec(
        name="machine",
        source="made up for a test",
        cpu=Processor(
            name="cpu",
            flops_per_second=draw(st.sampled_from([1e11, 1e12, 1e13])),
            memory_bytes=10**12,
            memory_bytes_per_second=draw(st.sampled_from([2e10, 3e11])),
            gemm_efficiency=curve,
            launch_seconds=1e-5,
        ),
        gpu=gpu if with_gpu else None,
        host_to_device=draw(links) if with_gpu else None,
        device_to_host=draw(links) if with_gpu else None,
        disk_bytes=10**13 if disk else 0,
        disk_bytes_per_second=disk,
    )


links = st.builds(
    Link,
    bytes_per_second=st.sampled_from([1e8, 1e9, 5e9, 25e9]),
    latency_seconds=st.just(1e-5),
)


@st.composite
def workloads(draw: st.DrawFn, most_sequences: int = 12, least_output: int = 2) -> Workload:
    """One or two groups of short sequences."""
    group = st.builds(
        LengthGroup,
        count=st.integers(1, most_sequences),
        input_tokens=st.integers(1, 300),
        output_tokens=st.integers(least_output, 40),
    )
    return Workload(groups=tuple(draw(st.lists(group, min_size=1, max_size=2))))


@st.composite
def routings(draw: st.DrawFn, model: ModelSpec) -> NDArray[np.float64] | None:
    """No activation map, or one that differs between layers."""
    if draw(st.booleans()):
        return None
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shares = generator.dirichlet(np.full(model.experts, 0.5), size=model.moe_layers)
    return np.minimum(shares * model.top_k, 1.0)


@st.composite
def splits(draw: st.DrawFn, model: ModelSpec) -> ExpertSplit:
    resident = draw(st.integers(0, model.experts))
    migrating = draw(st.integers(0, model.experts - resident))
    return ExpertSplit(
        resident=resident, migrating=migrating, cpu=model.experts - resident - migrating
    )


@st.composite
def stage_plans(
    draw: st.DrawFn, model: ModelSpec, hardware: HardwareSpec, workload: Workload
) -> StagePlan:
    """Plans that can be carried out on the machine, whether or not they fit its memories."""
    gpu = hardware.gpu is not None
    devices: list[Device] = ["gpu", "cpu"] if gpu else ["cpu"]
    split = ExpertSplit(resident=0, migrating=0, cpu=model.experts)
    if gpu:
        split = draw(splits(model))
    coalesced = draw(st.booleans())
    block = draw(st.integers(1, workload.batch))
    attention = draw(st.sampled_from(devices))
    on_disk = hardware.disk_bytes and not model.dense_layers
    least = min(split.migrating, 1) if coalesced else 2 * split.migrating
    return StagePlan(
        qkv=draw(st.sampled_from(devices)),
        attention=attention,
        output=draw(st.sampled_from(devices)),
        micro_batch=draw(st.integers(1, block)),
        block=block,
        coalesced=coalesced,
        experts=(split,) * model.moe_layers,
        staging_experts=least + draw(st.integers(0, 3)),
        resident_share=draw(st.sampled_from([1.0, 0.5, 0.0])) if gpu else 1.0,
        kv_gpu_share=draw(st.sampled_from([0.0, 0.5, 1.0])) if attention == "gpu" else 0.0,
        attention_parts=draw(st.integers(1, 3)),
        cpu_rows_share=draw(st.sampled_from([0.0, 0.25, 0.5])) if split.migrating else 0.0,
        disk_share=draw(st.sampled_from([0.0, 0.5])) if on_disk else 0.0,
    )


def faster(hardware: HardwareSpec, what: str, factor: float) -> HardwareSpec:
    """The machine with one part's figure ("gpu.flops_per_second") ``factor`` times as large."""
    part, figure = what.split(".")
    unit = getattr(hardware, part)
    if unit is None:
        return hardware
    return replace(hardware, **{part: replace(unit, **{figure: factor * getattr(unit, figure)})})
