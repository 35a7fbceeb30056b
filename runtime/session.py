"""What co-execution graphs of one process share: the accelerator, and what was recorded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from coxcompile.runtime.accelerator import Accelerator
from coxcompile.runtime.execution import Execution

if TYPE_CHECKING:  # the executor imports what the options import, and they this
    from coxcompile.planner.activation_map import ActivationMap
    from coxcompile.runtime.executor import Executor


class Session:
    """The graphs compiled with it take turns on the accelerator: all of its memory is one's.

    Given as ``options={"session": Session()}`` to every graph of a model (prefill and decode are
    two). A graph that is called after another one copies its weights and resident experts first.

    Attributes:
        record: let every call append what its nodes took to ``executions``.
        serialised: let every node end before the next begins, to see what overlapping them gains.
        executions: of the recorded calls, in order.
    """

    def __init__(self, *, record: bool = False, serialised: bool = False) -> None:
        self.record = record
        self.serialised = serialised
        self.executions: list[Execution] = []
        self.executors: list[Executor] = []
        self._accelerators: dict[tuple[Any, ...], Accelerator] = {}
        self._active: Executor | None = None

    def accelerator(self, name: str, vram: int, throttle: Any) -> Accelerator:
        """The accelerator of that name, which all graphs of the session use.

        Raises:
            ValueError: the session has another one already.
        """
        asked = (name, vram, throttle)
        if asked not in self._accelerators:
            if self._accelerators:
                raise ValueError(
                    f"session: it has the accelerator {next(iter(self._accelerators))[0]!r} with "
                    "other limits; give each accelerator a Session of its own"
                )
            self._accelerators[asked] = _make(name, vram, throttle)
        return self._accelerators[asked]

    def add(self, executor: "Executor") -> None:
        """A graph that was compiled with the session."""
        self.executors.append(executor)

    def run(self, executor: "Executor", inputs: Sequence[Any]) -> Any:
        """Call a graph, which has the accelerator's memory to itself."""
        if self._active is not executor:
            if self._active is not None:
                self._active.release()
            self._active = executor
        result, execution = executor.run(inputs, record=self.record, serialised=self.serialised)
        if execution is not None:
            self.executions.append(execution)
        return result

    def replace_hot_experts(self, activation_map: "ActivationMap") -> None:
        """Make other experts resident from the next call on; nothing is compiled again.

        Raises:
            ValueError: the map is of other layers or numbers of experts.
        """
        counted = len(activation_map.layers)
        for executor in self.executors:
            for layer in executor.store.layers:
                if layer.number >= counted or layer.experts != activation_map.experts:
                    raise ValueError(
                        f"activation_map: it counts {counted} layers of "
                        f"{activation_map.experts} experts, but {layer.path} is layer "
                        f"{layer.number}, of {layer.experts}; count choices of this model"
                    )
        orders = [order.tolist() for order in activation_map.hottest(activation_map.experts)]
        for executor in self.executors:
            store = executor.store
            store.reorder([orders[layer.number] for layer in store.layers])

    def release(self) -> None:
        """Give the accelerator's memory back; the next call copies what it needs again."""
        if self._active is not None:
            self._active.release()
            self._active = None


def _make(name: str, vram: int, throttle: Any) -> Accelerator:
    if name == "cuda":
        from coxcompile.runtime.accelerator import CudaAccelerator

        return CudaAccelerator()
    # Imported here: it loads a C++ extension and registers a device with PyTorch.
    from coxcompile.runtime.emulated.accelerator import EmulatedAccelerator

    return EmulatedAccelerator(vram, throttle)
