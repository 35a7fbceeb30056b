"""The routed experts of a layer as tasks for the event queue."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from coxcompile.hardware import HardwareSpec
from coxcompile.planner.event_queue import Task
from coxcompile.planner.expert_costs import ExpertCosts
from coxcompile.planner.expert_work import ExpertWork, expert_work, fetch_one
from coxcompile.planner.model_spec import ModelSpec
from coxcompile.planner.plan import StagePlan
from coxcompile.planner.simulated_memory import BufferSizes
from coxcompile.planner.stage_load import StageLoad

SLOTS = "staging slots"


@dataclass
class ExpertTasks:
    """Builds tasks, those of routed experts among them.

    Attributes:
        tasks: in the order in which they are to be served if all else is equal.
    """

    plan: StagePlan
    model: ModelSpec
    hardware: HardwareSpec
    load: StageLoad
    costs: ExpertCosts
    sizes: BufferSizes
    tasks: list[Task] = field(default_factory=list)
    _step: int = 0
    _layer: int | None = None
    _position: int = 0
    _wave: int = 0
    _in_waves: dict[str, list[tuple[int, int, Task]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def _add(
        self,
        name: str,
        resource: str | None,
        seconds: float,
        after: Sequence[Task] = (),
        micro_batch: int | None = None,
    ) -> Task:
        task = Task(
            name=name,
            resource=resource,
            seconds=float(seconds),
            step=self._step,
            layer=self._layer,
            micro_batch=micro_batch,
        )
        for predecessor in dict.fromkeys(after):
            predecessor.then(task)
        self.tasks.append(task)
        return task

    def _serve(self, task: Task, wave: int) -> None:
        """Let the task's resource serve it in its wave, earlier micro-batches first."""
        assert task.resource is not None
        assert task.micro_batch is not None
        self._in_waves[task.resource].append((wave, task.micro_batch, task))

    def _add_coalesced(self, moe_layer: int, phase_end: Task) -> Task:
        plan, split, row = self.plan, self.plan.experts[moe_layer], self.costs.row[moe_layer]
        work = self._work(moe_layer)
        gpu_seconds = np.diff(self.costs.gpu_seconds[row])
        fetched = np.diff(self.costs.fetched_experts[row])
        on_gpu = split.resident + split.migrating
        phase_end.allocates = self.sizes.results
        last = [phase_end]
        if on_gpu and self.hardware.gpu is not None:
            launch = 2 * self.hardware.gpu.launch_seconds
            start = self._add("launch of experts", "gpu", launch, [phase_end])
            for expert in range(on_gpu):
                migrates = expert >= split.resident
                kept = 1 - plan.cpu_rows_share if migrates else 1.0
                compute = self._add(f"expert {expert}", "gpu", kept * gpu_seconds[expert], [start])
                compute.allocates = compute.frees = self.sizes.expert_rows
                if migrates:
                    seconds = fetched[expert] * fetch_one(plan, self.model, self.hardware)
                    fetch = self._add_expert_fetch(expert, seconds)
                    fetch.then(compute)
                    compute.gives = (SLOTS, 1)
                    compute.frees += self.sizes.slot
                else:
                    # Computing what came over the link first makes room for what is to come.
                    compute.urgency = 1
                last.append(compute)
        last.append(self._add_cpu_share(work, phase_end))
        end = self._add("layer end", None, 0.0, after=last)
        end.frees = self.sizes.results
        return end

    def _add_expert_fetches(self, moe_layer: int, after: Sequence[Task]) -> list[Task]:
        """Fetching all of a layer's migrating experts, for micro-batches to share."""
        split = self.plan.experts[moe_layer]
        seconds = fetch_one(self.plan, self.model, self.hardware)
        fetches = [
            self._add_expert_fetch(expert, seconds)
            for expert in range(split.resident, split.resident + split.migrating)
        ]
        for task in after:
            for fetch in fetches:
                task.then(fetch)
        return fetches

    def _add_micro_batched(
        self, moe_layer: int, ends: Sequence[tuple[Task, int]], fetches: Sequence[Task]
    ) -> tuple[list[Task], Task]:
        split, work = self.plan.experts[moe_layer], self._work(moe_layer)
        fetched = self._add("experts fetched", None, 0.0, after=fetches)
        leaving, computed = [], []
        for index, (task, wave) in enumerate(ends):
            last = [task]
            if split.resident + split.migrating:
                compute = self._add("experts", "gpu", float(work.gpu), [task, fetched], index)
                compute.allocates = compute.frees = self.sizes.expert_rows
                self._serve(compute, wave + (task.resource != "gpu"))
                last.append(compute)
                computed.append(compute)
            last.append(self._add_cpu_share(work, task, wave))
            leaving.append(self._add("layer end", None, 0.0, after=last))
        end = self._add("layer end", None, 0.0, after=leaving)
        if split.migrating:
            free = self._add("experts of all done", None, 0.0, after=computed)
            free.gives, free.frees = (SLOTS, split.migrating), split.migrating * self.sizes.slot
        return leaving, end

    def _work(self, moe_layer: int) -> ExpertWork:
        split = self.plan.experts[moe_layer]
        return expert_work(
            self.plan,
            self.model,
            self.hardware,
            self.load,
            self.costs,
            self.costs.row[moe_layer],
            split.resident,
            split.cpu,
        )

    def _add_expert_fetch(self, expert: int, seconds: float) -> Task:
        fetch = self._add(f"fetch of expert {expert}", "host_to_device", seconds)
        fetch.takes, fetch.allocates = SLOTS, self.sizes.slot
        fetch.urgency, fetch.interruptible = 2 + 3 * self._position, True
        return fetch

    def _add_cpu_share(self, work: ExpertWork, after: Task, wave: int = 0) -> Task:
        """The CPU's experts, and its rows of the migrating ones, with their tokens' way there."""
        steps = (
            ("tokens to the CPU", "device_to_host", work.there),
            ("experts", "cpu", work.cpu),
            ("results of the CPU", "host_to_device", work.back),
        )
        for name, resource, seconds in steps:
            if seconds > 0:
                wave += after.resource != resource
                after = self._add(name, resource, float(seconds), [after], after.micro_batch)
                if after.micro_batch is not None:
                    self._serve(after, wave)
        if after.micro_batch is None and after.resource == "host_to_device":
            # Nothing waits for the results before the layer's other experts are done.
            after.urgency, after.interruptible = 3 + 3 * self._position, True
        return after
