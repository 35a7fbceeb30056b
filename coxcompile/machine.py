"""What the operating system says of the machine at hand: names and sizes, no speeds."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


class DetectionError(RuntimeError):
    """The machine cannot be described from here; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Names as reports show them; ``gpu`` is None, and its memory 0, where there is none."""

    cpu: str
    memory_bytes: int
    gpu: str | None = None
    gpu_memory_bytes: int = 0

    @property
    def name(self) -> str:
        """CPU, and GPU if there is one."""
        return f"{self.cpu} + {self.gpu}" if self.gpu else self.cpu


def this_machine() -> Machine:
    """CPU and memory from /proc, the first GPU from torch.

    Raises:
        DetectionError: /proc is not what Linux has there.
    """
    try:
        lines = (PROC / "cpuinfo").read_text().splitlines()
        memory = (PROC / "meminfo").read_text().split("MemTotal:")[1].split()[0]
    except (OSError, IndexError) as error:
        raise DetectionError(
            f"this machine's memory and CPU cannot be read from {PROC} ({error}): describe it in a "
            "HardwareSpec's .toml file and name that file as the system"
        ) from None
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    # Arm's cpuinfo has no such line.
    model = models[0] if models else platform.machine()
    cores = len(os.sched_getaffinity(0))
    gpu, gpu_memory_bytes = _gpu()
    return Machine(
        cpu=f"{model} ({cores} CPUs)",
        memory_bytes=int(memory) * 1024,
        gpu=gpu,
        gpu_memory_bytes=gpu_memory_bytes,
    )


def _gpu() -> tuple[str | None, int]:
    import torch

    if not torch.cuda.is_available():
        return None, 0
    properties = torch.cuda.get_device_properties(0)
    return properties.name, properties.total_memory
