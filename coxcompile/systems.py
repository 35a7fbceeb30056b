"""Machines by name: the paper's three and some common boxes, from data sheets.

Peaks are dense bfloat16 products with float32 sums; sizes are GiB as vendors mean them; everything
that no data sheet gives is an assumption, stated where it is made:

- Memory: streaming kernels sustain 0.9 of a GPU's bandwidth and 0.8 of a CPU's (252-260 of 307 GB/s
  is what text generation reaches on eight channels of DDR5-4800).
- PCIe: 0.8 of the raw rate from pinned memory (25 of 32 GB/s of 4.0 x16); 10 µs a transfer.
- Attention of prefill: half of the peak with a fused kernel on a GPU. On a CPU, where the softmax
  between two small products runs on the same vector units, 0.15: PyTorch reached 0.14 on Zen 5.
- Starting a kernel: 5 µs on a GPU; 20 µs on a CPU, where all cores have to begin and to meet.

``coxmoe calibrate`` measures all of these on a machine one has.
"""

from pathlib import Path

from coxcompile.detection import detect_system
from coxcompile.hardware import EfficiencyCurve, HardwareSpec, Link, Processor
from coxcompile.naming import look_up
from coxcompile.planner.records import load

__all__ = ["SYSTEMS", "THIS", "detect_system", "system_named"]

THIS = "this"
"""The name that stands for the machine at hand."""

GIB = 2**30
TERA, GIGA = 1e12, 1e9

GPU_GEMM = EfficiencyCurve(
    rows=(1, 2, 4, 8, 16, 64, 128, 256, 1024),
    shares=(0.0156, 0.031, 0.0625, 0.125, 0.25, 0.45, 0.6, 0.68, 0.75),
)
"""A tensor core multiplies 16 rows at least, so fewer take as long; at 16, moving each weight
through shared memory for so few products costs most of the peak; from 128 on tiles are as large as
they get, and the power limit keeps the last quarter."""

AMX_GEMM = EfficiencyCurve(rows=(1, 4, 16, 64, 256), shares=(0.03, 0.06, 0.15, 0.25, 0.35))
"""One AMX product takes 16 rows and is 1024 FLOP a cycle and core: at the 2.0 to 2.8 GHz of 36 busy
cores 74 to 103 TFLOP/s, half to 0.7 of the 144 that the paper calls the peak; of that, kernels with
many rows reach about two thirds. A row or two are left to AVX-512, an eighth of AMX' peak."""

AMX_GEMM_OF_TRUE_PEAK = EfficiencyCurve(
    rows=AMX_GEMM.rows, shares=tuple(2 * share for share in AMX_GEMM.shares)
)
"""The same where the peak given is 1024 FLOP a cycle and core at the base clock."""

VECTOR_GEMM = EfficiencyCurve(rows=(1, 2, 4, 16, 64, 256), shares=(0.11, 0.19, 0.3, 0.5, 0.7, 0.8))
"""Vector units have no rows to fill, but at few rows each weight loaded serves few products: the
shares that this project's kernels reached on Zen 5 with weights in a cache."""


def system_named(name: str) -> HardwareSpec:
    """The machine of that name in :data:`SYSTEMS`, ``this`` one, or a .json or .toml file's.

    Raises:
        UnknownNameError: there is no such name; the message lists those there are and the nearest.
        RecordError: the file is missing or damaged.
        DetectionError: see :func:`detect_system`.
    """
    if name.lower() == THIS:
        return detect_system()
    path = Path(name)
    if path.suffix in (".json", ".toml"):
        return load(HardwareSpec, path)
    return look_up("system", name, SYSTEMS)


def _gpu(name: str, teraflops: float, gibibytes: int, gigabytes_per_second: float) -> Processor:
    return Processor(
        name=name,
        flops_per_second=teraflops * TERA,
        memory_bytes=gibibytes * GIB,
        memory_bytes_per_second=gigabytes_per_second * GIGA,
        memory_efficiency=0.9,
        gemm_efficiency=GPU_GEMM,
        attention_efficiency=0.5,
        launch_seconds=5e-6,
    )


def _cpu(
    name: str,
    teraflops: float,
    gibibytes: int,
    gigabytes_per_second: float,
    gemm_efficiency: EfficiencyCurve,
) -> Processor:
    return Processor(
        name=name,
        flops_per_second=teraflops * TERA,
        memory_bytes=gibibytes * GIB,
        memory_bytes_per_second=gigabytes_per_second * GIGA,
        memory_efficiency=0.8,
        gemm_efficiency=gemm_efficiency,
        attention_efficiency=0.15,
        launch_seconds=20e-6,
    )


def _system(
    name: str, cpu: Processor, gpu: Processor | None = None, pcie: int = 4, disk: bool = True
) -> HardwareSpec:
    """``pcie``: the generation, 16 lanes; ``disk``: an NVMe drive of 4 TB that reads 7 GB/s."""
    link = Link(bytes_per_second=0.8 * {4: 32, 5: 64}[pcie] * GIGA, latency_seconds=10e-6)
    return HardwareSpec(
        name=name,
        source="data sheet",
        cpu=cpu,
        gpu=gpu,
        host_to_device=link if gpu else None,
        device_to_host=link if gpu else None,
        disk_bytes=4 * 10**12 if disk else 0,
        disk_bytes_per_second=7 * GIGA if disk else 0.0,
    )


# Paper, evaluation; it names neither the cards' form (PCIe, as workstations have them, is assumed)
# nor a disk.
_XEON_8452Y = _cpu("Xeon Platinum 8452Y, AMX", 144, 512, 307.2, AMX_GEMM)
_XEON_8480 = _cpu("Xeon Platinum 8480+, AMX", 114.7, 512, 307.2, AMX_GEMM_OF_TRUE_PEAK)

_SPECS = (
    _system("rtx6000ada-8452y", _XEON_8452Y, _gpu("RTX 6000 Ada", 364, 48, 960), disk=False),
    _system("a100-8452y", _XEON_8452Y, _gpu("A100 80GB PCIe", 312, 80, 1935), disk=False),
    _system("h100-8452y", _XEON_8452Y, _gpu("H100 80GB PCIe", 756, 80, 2000), 5, disk=False),
    # 16 Zen 4 cores at 4.5 GHz, 64 bfloat16 FLOP a cycle each; two channels of DDR5-5200.
    _system(
        "rtx4090-7950x",
        _cpu("Ryzen 9 7950X", 4.6, 128, 83.2, VECTOR_GEMM),
        _gpu("RTX 4090", 165.2, 24, 1008),
    ),
    # 64 Zen 3 cores at 2.45 GHz, 32 float32 FLOP a cycle each: no bfloat16 products.
    _system(
        "rtx3090-epyc",
        _cpu("EPYC 7763", 5.0, 512, 204.8, VECTOR_GEMM),
        _gpu("RTX 3090", 71, 24, 936),
    ),
    _system("l40s-xeon", _XEON_8480, _gpu("L40S", 362, 48, 864)),
    _system("h200-xeon", _XEON_8480, _gpu("H200 SXM", 989, 141, 4800), 5),
    _system("xeon-8480-cpu", _XEON_8480),
    # 96 Zen 4 cores at 2.4 GHz, 64 bfloat16 FLOP a cycle each; 12 channels of DDR5-4800.
    _system("epyc-9654-cpu", _cpu("EPYC 9654", 14.7, 768, 460.8, VECTOR_GEMM)),
)

SYSTEMS: dict[str, HardwareSpec] = {spec.name: spec for spec in _SPECS}
"""By lower-case name; the first three are the paper's systems I to III."""
