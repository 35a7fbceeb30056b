"""What ran when, and how to look at it: Chrome traces, busy fractions, VRAM over time."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMELINE_RESOURCES = ("gpu", "cpu", "host_to_device", "device_to_host", "disk")


@dataclass(frozen=True, slots=True)
class TimelineTask:
    """A time in which a task ran without interruption; seconds from the start.

    Attributes:
        layer: None for the output head.
        micro_batch: None for what belongs to all of them.
    """

    name: str
    resource: str
    step: int
    layer: int | None
    micro_batch: int | None
    start: float
    end: float


def busy_fractions(tasks: Sequence[TimelineTask], start: float, end: float) -> dict[str, float]:
    """For each resource the share of [start, end] in which it works."""
    busy = dict.fromkeys(TIMELINE_RESOURCES, 0.0)
    for task in tasks:
        busy[task.resource] += max(min(task.end, end) - max(task.start, start), 0.0)
    return {name: seconds / (end - start) if end > start else 0.0 for name, seconds in busy.items()}


def trace_events(
    tasks: Sequence[TimelineTask],
    vram: Sequence[tuple[float, float]],
    process: str,
    number: int = 1,
) -> list[dict[str, Any]]:
    """Events of the Chrome trace format (times in µs): a process with a thread per resource.

    Args:
        vram: (seconds, bytes), shown as a counter.
    """
    resources = {task.resource for task in tasks}
    used = [name for name in TIMELINE_RESOURCES if name in resources]
    used += sorted(resources.difference(TIMELINE_RESOURCES))
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": number, "name": "process_name", "args": {"name": process}}
    ]
    for thread, name in enumerate(used):
        common = {"ph": "M", "pid": number, "tid": thread}
        events.append({**common, "name": "thread_name", "args": {"name": name}})
        events.append({**common, "name": "thread_sort_index", "args": {"sort_index": thread}})
    for task in tasks:
        belongs = {"step": task.step, "layer": task.layer, "micro_batch": task.micro_batch}
        events.append(
            {
                "ph": "X",
                "pid": number,
                "tid": used.index(task.resource),
                "name": task.name,
                "ts": task.start * 1e6,
                "dur": (task.end - task.start) * 1e6,
                "args": {key: value for key, value in belongs.items() if value is not None},
            }
        )
    for seconds, size in vram:
        counter = {"ph": "C", "pid": number, "name": "VRAM", "ts": seconds * 1e6}
        events.append({**counter, "args": {"bytes": size}})
    return events


def chrome_trace(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The trace as chrome://tracing and https://ui.perfetto.dev read it."""
    return {"displayTimeUnit": "ms", "traceEvents": list(events)}


def save_trace(trace: dict[str, Any], path: Path) -> None:
    """Write a Chrome trace as JSON."""
    path.write_text(json.dumps(trace), encoding="utf-8")
