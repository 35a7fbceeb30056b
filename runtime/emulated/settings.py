"""How fast the device and its links are, how much memory it has, and where it is delayed."""

from dataclasses import dataclass

from coxcompile.hardware import Link
from coxcompile.runtime.emulated.extension import loaded_extension


@dataclass(frozen=True)
class Delays:
    """Random delays before operations, to bring out races.

    Attributes:
        seed: what each stream draws depends on it and the stream's number alone.
        most_seconds: a delay is uniform between 0 and this.
        share: the probability in [0, 1] that an operation is delayed.
    """

    seed: int
    most_seconds: float
    share: float

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, but must be 0 or more")
        _require_seconds("most_seconds", self.most_seconds)
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}, but must lie in [0, 1]")


def configure(
    *,
    memory_bytes: int | None = None,
    host_to_device: Link | None = None,
    device_to_host: Link | None = None,
    delays: Delays | None = None,
) -> None:
    """Set all of the device's limits at once; what is not given has none.

    Args:
        memory_bytes: allocations beyond it raise ``torch.OutOfMemoryError``.
        host_to_device: what copies to the device take. All streams share it; copies queue by their
            stream's priority, and long ones give way to more urgent ones every 0.5 ms.
        device_to_host: the same for copies from the device.
        delays: random ones. Those of ``delay_label`` are cleared in any case.

    Raises:
        ValueError: memory_bytes is negative.
    """
    if memory_bytes is not None and memory_bytes < 0:
        raise ValueError(f"memory_bytes is {memory_bytes}, but must be 0 or more, or None")
    random = delays or Delays(seed=0, most_seconds=0.0, share=0.0)
    loaded_extension().configure(
        memory_bytes,
        _speed(host_to_device),
        _speed(device_to_host),
        random.seed,
        random.most_seconds,
        random.share,
    )


def delay_label(label: str, seconds: float) -> None:
    """Delay every operation of this label by ``seconds`` (0 for no more) beside random delays.

    Raises:
        ValueError: seconds is negative.
    """
    _require_seconds("seconds", seconds)
    loaded_extension().delay_label(label, seconds)


def _speed(link: Link | None) -> tuple[float, float] | None:
    return None if link is None else (link.bytes_per_second, link.latency_seconds)


def _require_seconds(name: str, seconds: float) -> None:
    if seconds < 0:
        raise ValueError(f"{name} is {seconds}, but must be 0 or more")
