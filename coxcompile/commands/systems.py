"""``coxmoe systems``: the machines that can be named."""

from coxcompile.commands.options import AsJson, print_json
from coxcompile.detection import calibration_file
from coxcompile.hardware import Processor
from coxcompile.systems import SYSTEMS, THIS


def systems(json: AsJson = False) -> None:
    """List the machines that can be named, with their peaks."""
    if json:
        print_json(list(SYSTEMS.values()))
        return
    from rich.console import Console
    from rich.table import Table

    path = calibration_file()
    state = f"calibrated in {path}" if path.exists() else "run coxmoe calibrate first"
    table = Table(
        caption="memory · TFLOP/s in bfloat16 · its GB/s: peaks from data sheets\n"
        f"{THIS}: the machine at hand, {state}"
    )
    for title in ("system", "GPU", "CPU"):
        table.add_column(title, no_wrap=True)
    table.add_column("link, GB/s", justify="right")
    for spec in SYSTEMS.values():
        link = spec.host_to_device
        table.add_row(
            spec.name,
            _peaks(spec.gpu) if spec.gpu else "-",
            _peaks(spec.cpu),
            f"{link.bytes_per_second / 1e9:.0f}" if link else "-",
        )
    Console().print(table)


def _peaks(processor: Processor) -> str:
    memory = f"{processor.memory_bytes / 2**30:.0f} GiB"
    teraflops = f"{processor.flops_per_second / 1e12:.4g}"
    return (
        f"{processor.name}\n{memory} · {teraflops} · {processor.memory_bytes_per_second / 1e9:.4g}"
    )
