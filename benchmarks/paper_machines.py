"""The paper's systems with one figure worse, to see which of them a prediction depends on."""

from dataclasses import replace

from coxcompile.hardware import EfficiencyCurve, HardwareSpec, Processor


def slowed(hardware: HardwareSpec, what: str, factor: float = 2.0) -> HardwareSpec:
    """``hardware`` with ``what`` divided by ``factor``.

    Args:
        what: "link", both directions' bandwidth; "gpu" or "cpu", how much of its peak it reaches in
            products and in prefill's attention; "host", host memory's bandwidth; "", nothing.
    """
    if what == "link":
        to_gpu = hardware.host_to_device
        assert to_gpu is not None, "the paper's systems have GPUs"
        link = replace(to_gpu, bytes_per_second=to_gpu.bytes_per_second / factor)
        return replace(hardware, host_to_device=link, device_to_host=link)
    if what == "gpu":
        assert hardware.gpu is not None, "the paper's systems have GPUs"
        return replace(hardware, gpu=_slower_products(hardware.gpu, factor))
    if what == "cpu":
        return replace(hardware, cpu=_slower_products(hardware.cpu, factor))
    if what == "host":
        bandwidth = hardware.cpu.memory_bytes_per_second / factor
        return replace(hardware, cpu=replace(hardware.cpu, memory_bytes_per_second=bandwidth))
    if what:
        raise ValueError(f"what is {what!r}, but must be link, gpu, cpu, host or empty")
    return hardware


def _slower_products(unit: Processor, factor: float) -> Processor:
    curve = unit.gemm_efficiency
    shares = tuple(share / factor for share in curve.shares)
    return replace(
        unit,
        gemm_efficiency=EfficiencyCurve(rows=curve.rows, shares=shares),
        attention_efficiency=unit.attention_efficiency / factor,
    )
