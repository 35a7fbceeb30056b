"""What carrying out a plan gives: times, a timeline, VRAM. A prediction, never a measurement."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coxcompile.planner.plan import Stage
from coxcompile.planner.timeline import TimelineTask, chrome_trace, save_trace, trace_events


@dataclass(frozen=True)
class Simulation:
    """One stage, carried out.

    Two steps are simulated back to back; the second, which starts as the first left the link and
    the staging slots, stands for all: times and fractions are its.

    Attributes:
        seconds: of the whole stage, for the whole workload: steps x blocks x step_seconds.
        step_seconds: of one step of one block.
        layers: those that were simulated; all, unless they have too many tasks.
        tasks: of both steps, in the order in which they ended.
        busy: for each resource, the share of the step in which it works.
        vram: (seconds, bytes) whenever what lies in VRAM changes.
    """

    stage: Stage
    seconds: float
    step_seconds: float
    layers: tuple[int, ...]
    tasks: tuple[TimelineTask, ...]
    busy: dict[str, float]
    vram: tuple[tuple[float, float], ...]

    @property
    def peak_vram_bytes(self) -> float:
        """The most that lies in VRAM at any time."""
        return max(size for _, size in self.vram)

    def chrome_trace(self) -> dict[str, Any]:
        """Both steps in the Chrome trace format, for https://ui.perfetto.dev."""
        return chrome_trace(trace_events(self.tasks, self.vram, self.stage))

    def save_trace(self, path: Path) -> None:
        """Write :meth:`chrome_trace` as JSON."""
        save_trace(self.chrome_trace(), path)


@dataclass(frozen=True)
class PlanSimulation:
    """Both stages, carried out; tokens_per_second counts generated tokens over both."""

    prefill: Simulation
    decode: Simulation
    tokens_per_second: float

    @property
    def seconds(self) -> float:
        """Both stages."""
        return self.prefill.seconds + self.decode.seconds

    def chrome_trace(self) -> dict[str, Any]:
        """Both stages side by side, each from its own zero, in the Chrome trace format."""
        stages = enumerate((self.prefill, self.decode), start=1)
        return chrome_trace(
            [
                event
                for number, stage in stages
                for event in trace_events(stage.tasks, stage.vram, stage.stage, number)
            ]
        )

    def save_trace(self, path: Path) -> None:
        """Write :meth:`chrome_trace` as JSON."""
        save_trace(self.chrome_trace(), path)
