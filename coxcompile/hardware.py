"""What the planner knows of a machine: processors, their memories, the links between them."""

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Dtype = Literal["bfloat16", "float32"]
Numbers = TypeVar("Numbers", float, NDArray[Any])


@dataclass(frozen=True, kw_only=True)
class EfficiencyCurve:
    """The share of a processor's GEMM peak that is reached with so many rows (tokens).

    Attributes:
        rows: numbers of rows, ascending.
        shares: for each of them, the share of the peak in (0, 1]. Between two of them the share is
            interpolated over the logarithm of the rows, outside it is the nearest one's.
    """

    rows: tuple[float, ...] = (1.0,)
    shares: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.rows or len(self.rows) != len(self.shares):
            raise ValueError(
                f"rows has {len(self.rows)} and shares {len(self.shares)} numbers, but must have "
                "the same number, at least one"
            )
        if list(self.rows) != sorted(set(self.rows)) or self.rows[0] <= 0:
            raise ValueError(f"rows is {self.rows}, but must ascend from a positive number")
        if not all(0 < share <= 1 for share in self.shares):
            raise ValueError(f"shares is {self.shares}, but each must lie in (0, 1]")

    def share(self, rows: Numbers) -> Numbers:
        """The share of the peak at ``rows`` rows, a number or an array of them."""
        shares: Numbers = np.interp(np.log(rows), np.log(self.rows), self.shares)
        return shares


@dataclass(frozen=True, kw_only=True)
class Processor:
    """A GPU, or all CPU cores of a machine together.

    Attributes:
        name: as reports show it.
        flops_per_second: GEMM peak in the model's dtype, a multiply-add counted as two.
        memory_bytes: size of its memory (VRAM, or host memory).
        memory_bytes_per_second: peak read bandwidth of that memory.
        memory_efficiency: share of the bandwidth that kernels sustain.
        gemm_efficiency: share of the GEMM peak by rows.
        attention_efficiency: share of the GEMM peak that attention reaches in prefill.
        attention_head_seconds: what each KV head of each sequence costs in decoding beside reading
            its cache: a product of few rows is far from the peak.
        launch_seconds: fixed cost of starting one kernel (operation unit).
    """

    name: str
    flops_per_second: float
    memory_bytes: int
    memory_bytes_per_second: float
    memory_efficiency: float = 1.0
    gemm_efficiency: EfficiencyCurve = EfficiencyCurve()
    attention_efficiency: float = 1.0
    attention_head_seconds: float = 0.0
    launch_seconds: float = 0.0

    def __post_init__(self) -> None:
        _require_positive(self, "flops_per_second", "memory_bytes", "memory_bytes_per_second")
        for name in ("memory_efficiency", "attention_efficiency"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must lie in (0, 1]")
        for name in ("attention_head_seconds", "launch_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be 0 or more")

    def gemm_seconds(self, flops: Numbers, bytes_read: Numbers, rows: Numbers) -> Numbers:
        """A roofline: the slower of products at ``rows`` rows' efficiency and reads; no launch."""
        compute = flops / (self.flops_per_second * self.gemm_efficiency.share(rows))
        read = bytes_read / (self.memory_bytes_per_second * self.memory_efficiency)
        slower: Numbers = np.maximum(compute, read)
        return slower

    def read_seconds(self, bytes_read: float) -> float:
        """Reading ``bytes_read`` at the sustained bandwidth."""
        return bytes_read / (self.memory_bytes_per_second * self.memory_efficiency)


@dataclass(frozen=True, kw_only=True)
class Link:
    """One direction of the link between host and GPU.

    Attributes:
        bytes_per_second: sustained bandwidth from pinned memory.
        latency_seconds: fixed cost of one transfer.
    """

    bytes_per_second: float
    latency_seconds: float = 0.0

    def __post_init__(self) -> None:
        _require_positive(self, "bytes_per_second")
        if self.latency_seconds < 0:
            raise ValueError(f"latency_seconds is {self.latency_seconds}, but must be 0 or more")

    def seconds(self, size: float) -> float:
        """One transfer of ``size`` bytes; nothing for none."""
        return self.latency_seconds + size / self.bytes_per_second if size > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class ExpertThresholds:
    """From how many tokens of an expert on which loop of the CPU's kernel multiplies its weights.

    For bfloat16; docs/architecture.md ("The expert kernel") has the loops.

    Attributes:
        columns: the least tokens that go as columns; 0: never.
        last_vector: the least tokens left over of whole vectors of 16 that go as columns too; 16:
            none do.
        panels: the least tokens that go by panels; 0: never.
        kernels: what of a processor and its limits decides which loops there are: the instruction
            set of the products of few tokens, and the loops. Thresholds are for these alone.
    """

    columns: int
    last_vector: int
    panels: int
    kernels: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, least in (("columns", 0), ("last_vector", 1), ("panels", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but must be a number of tokens, {least} or "
                    "more"
                )


@dataclass(frozen=True, kw_only=True)
class HardwareSpec:
    """A machine: CPU and host memory, perhaps one GPU behind two links, perhaps a disk.

    Attributes:
        name: as reports show it.
        source: where the numbers are from ("data sheet", "measured by coxmoe calibrate").
        dtype: of the models that the processors' speeds are for.
        cpu: all cores together; its memory is the host's.
        gpu: None on a machine without one.
        host_to_device: the link to the GPU; needed with a GPU.
        device_to_host: the link from it; needed with a GPU.
        gpu_reserve_bytes: set aside in VRAM for the driver's context and libraries' workspaces.
        host_reserve_bytes: set aside in host memory for the operating system and the process.
        disk_bytes: space for weights and caches on disk; 0 for none.
        disk_bytes_per_second: read bandwidth of the disk.
        expert_thresholds: of the CPU's expert kernel; None: the built-in ones.
    """

    name: str
    source: str
    dtype: Dtype = "bfloat16"
    cpu: Processor
    gpu: Processor | None = None
    host_to_device: Link | None = None
    device_to_host: Link | None = None
    gpu_reserve_bytes: int = 2**30
    host_reserve_bytes: int = 4 * 2**30
    disk_bytes: int = 0
    disk_bytes_per_second: float = 0.0
    expert_thresholds: ExpertThresholds | None = None

    def __post_init__(self) -> None:
        if self.gpu is not None and (self.host_to_device is None or self.device_to_host is None):
            raise ValueError("a machine with a gpu needs host_to_device and device_to_host")
        if self.disk_bytes and self.disk_bytes_per_second <= 0:
            raise ValueError(
                f"disk_bytes_per_second is {self.disk_bytes_per_second}, but must be positive "
                "where disk_bytes is"
            )


def _require_positive(record: object, *names: str) -> None:
    for name in names:
        if getattr(record, name) <= 0:
            raise ValueError(f"{name} is {getattr(record, name)}, but must be positive")
