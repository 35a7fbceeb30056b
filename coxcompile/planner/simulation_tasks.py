"""A stage plan as tasks for the event queue: steps of layers, with what each has to wait for."""

import itertools
from collections.abc import Sequence

from coxcompile.planner.event_queue import Task
from coxcompile.planner.expert_tasks import SLOTS, ExpertTasks
from coxcompile.planner.layer_time import output_head_time
from coxcompile.planner.operations import Work, home, layer_weights_to_fetch, micro_batch_chain
from coxcompile.planner.waves import EXPERT_WAVES, visits, waves_of_layer

STEPS = 2
"""Steps that are simulated back to back; the second shows what goes on from step to step."""

WEIGHTS, DISK = "layer weights", "read ahead"


class StageTasks(ExpertTasks):
    """Builds the tasks of one stage, step by step and layer by layer."""

    def pools(self) -> dict[str, int]:
        """Places of each pool that the tasks take from."""
        return {SLOTS: self.plan.staging_experts, WEIGHTS: 2, DISK: 3}

    def tasks_in_layer(self) -> int:
        """About how many tasks the largest layer has in all steps together."""
        chain = self._chain(self.model.layers - 1)
        most = max((2 * s.migrating + s.resident for s in self.plan.experts), default=0)
        return STEPS * ((len(chain) + 4) * self.load.micro_batches + most + 8)

    def add_steps(self, layers: Sequence[int]) -> None:
        """Add STEPS steps through these layers, each with the output head at its end."""
        count = self.load.micro_batches
        before = [self._add("start", None, 0.0)] * count
        for self._step in range(STEPS):
            for self._layer in layers:
                before = self._add_layer(self._layer, before)
                self._position += 1
            self._layer = None
            device = home(self.plan, self.hardware)
            time = output_head_time(self.plan, self.model, self.hardware, self.load)
            read = self._add_read(self.model.vocabulary_bytes)
            head = self._add("output head", device, float(time.seconds), after=[*before, *read])
            head.gives = (DISK, 1) if read else None
            before = [head] * count
            # All micro-batches are through before the next step begins.
            self._wave += sum(len(visits(self._chain(layer))) + EXPERT_WAVES for layer in layers)
        for served in self._in_waves.values():
            served.sort(key=lambda entry: entry[:2])
            for (_, _, first), (_, _, second) in itertools.pairwise(served):
                first.then(second)

    def _chain(self, layer: int) -> list[Work]:
        dense = layer < self.model.dense_layers
        ffn_dim = self.model.dense_dim if dense else self.model.shared_dim
        return micro_batch_chain(self.plan, self.model, self.hardware, self.load, ffn_dim)

    def _add_layer(self, layer: int, before: Sequence[Task]) -> list[Task]:
        """One layer; returns for each micro-batch the task with which it leaves the layer."""
        dense = layer < self.model.dense_layers
        read = self._add_read(self._layer_bytes(dense))
        start: list[Task] = []
        if not self.plan.fetches_overlap:
            start = [self._add("layer start", None, 0.0, after=before)]
        fetch = self._add_fetch(dense, read + start)
        experts = []
        if not self.plan.coalesced and not dense:
            experts = self._add_expert_fetches(layer - self.model.dense_layers, start)
        needed = read + fetch + (start + experts if start else [])
        chain = self._chain(layer)
        stops = len(visits(chain))
        ends: list[tuple[Task, int]] = []
        for index, task in enumerate(before):
            # As many micro-batches as a chain has visits are on their way; more would only queue.
            earlier = [ends[index - stops][0]] if index >= stops else []
            ends.append(self._add_chain(chain, index, [task, *earlier, *needed]))
        chained = [task for task, _ in ends]
        phase_end = self._add("phase end", None, 0.0, after=chained)
        for task in fetch:
            phase_end.gives, phase_end.frees = (WEIGHTS, 1), task.allocates
        if dense:
            leaving, end = chained, phase_end
        elif self.plan.coalesced:
            end = self._add_coalesced(layer - self.model.dense_layers, phase_end)
            leaving = [end] * len(chained)
        else:
            leaving, end = self._add_micro_batched(layer - self.model.dense_layers, ends, experts)
        if not self.plan.fetches_overlap:
            self._wave += len(ends) + stops + EXPERT_WAVES
        elif self.plan.coalesced and not dense:
            self._wave += len(ends) + stops
        else:
            self._wave += waves_of_layer(stops, len(ends))
        if read:
            self._add("layer end", None, 0.0, after=[end]).gives = (DISK, 1)
        return leaving

    def _layer_bytes(self, dense: bool) -> float:
        model = self.model
        if dense:
            return model.attention_bytes + model.dense_bytes
        return model.attention_bytes + model.shared_bytes + model.experts * model.expert_bytes

    def _add_read(self, weights: float) -> list[Task]:
        """Reading the disk's share of so many bytes of weights, ahead of need."""
        size = self.plan.disk_share * weights
        if not size:
            return []
        read = self._add("weights from disk", "disk", size / self.hardware.disk_bytes_per_second)
        read.takes = DISK
        return [read]

    def _add_fetch(self, dense: bool, after: Sequence[Task]) -> list[Task]:
        """Fetching the weights that are not resident, routed experts aside, ahead of need."""
        ffn_dim = self.model.dense_dim if dense else self.model.shared_dim
        size = layer_weights_to_fetch(self.plan, self.model, ffn_dim)
        link = self.hardware.host_to_device
        if size <= 0 or link is None:
            return []
        fetch = self._add("layer weights", "host_to_device", link.seconds(size), after)
        fetch.takes, fetch.allocates = WEIGHTS, size
        fetch.urgency, fetch.interruptible = 1 + 3 * self._position, True
        return [fetch]

    def _add_chain(
        self, chain: Sequence[Work], index: int, after: Sequence[Task]
    ) -> tuple[Task, int]:
        """A micro-batch's tasks: the last of them, and the wave in which it is served."""
        tasks: list[Task] = []
        wave = self._wave + index
        for work in chain:
            wave += bool(tasks) and tasks[-1].resource != work.resource
            before = tasks[-1:] or after
            tasks.append(self._add(work.name, work.resource, work.seconds, before, index))
            self._serve(tasks[-1], wave)
        self.sizes.hold_intermediates(tasks)
        return tasks[-1], wave
