"""The paper's system I, slowed down and shrunk until a small model takes as long as a large one.

All speeds are divided by one number, so the GPU, the CPU and the link keep their proportions. The
VRAM is given. Fixed costs of a transfer and of attention's heads are left out, and starting a
kernel takes what it takes the emulated accelerator, so that they do not outweigh the small model's
work.
"""

from dataclasses import replace

from coxcompile.hardware import HardwareSpec, Link, Processor
from coxcompile.systems import system_named

LAUNCH_SECONDS = 1e-3


def scaled_system(slowdown: float, vram: int) -> HardwareSpec:
    """System I (RTX 6000 Ada, Xeon 8452Y, PCIe 4.0), ``slowdown`` times slower."""
    system = system_named("rtx6000ada-8452y")
    assert system.gpu is not None
    assert system.host_to_device is not None
    assert system.device_to_host is not None
    return replace(
        system,
        name=f"system I / {slowdown:g}",
        cpu=_slower(system.cpu, slowdown, system.cpu.memory_bytes),
        gpu=_slower(system.gpu, slowdown, vram),
        host_to_device=_narrower(system.host_to_device, slowdown),
        device_to_host=_narrower(system.device_to_host, slowdown),
        gpu_reserve_bytes=vram // 16,
    )


def _slower(unit: Processor, slowdown: float, memory_bytes: int) -> Processor:
    return replace(
        unit,
        flops_per_second=unit.flops_per_second / slowdown,
        memory_bytes_per_second=unit.memory_bytes_per_second / slowdown,
        memory_bytes=memory_bytes,
        launch_seconds=LAUNCH_SECONDS,
        attention_head_seconds=0.0,
    )


def _narrower(link: Link, slowdown: float) -> Link:
    return replace(link, bytes_per_second=link.bytes_per_second / slowdown, latency_seconds=0.0)
