"""The instructions of a co-execution graph: what its nodes do beside compiled partitions.

They stand as targets of FX nodes and are carried out by
:class:`coxcompile.runtime.executor.Executor`; here is what each means. ``node.meta["stream"]`` says
where (:data:`STREAMS`). "host" is the one host thread, which carries out CPU work inline; the
others are asynchronous. "weights" and "host_to_device" are two streams on one link, of which the
latter goes first.
"""

from collections.abc import Callable
from typing import Any, Literal, NoReturn

Stream = Literal["host", "gpu", "host_to_device", "device_to_host", "staging", "weights"]
STREAMS: tuple[Stream, ...] = (
    *("host", "gpu", "host_to_device", "device_to_host", "staging", "weights"),
)

INSTRUCTIONS: dict[Callable[..., Any], Stream | None] = {}
"""Every instruction with the stream it belongs to; None: its node says which."""


def _instruction(stream: Stream | None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        INSTRUCTIONS[function] = stream
        return function

    return declare


def _not_a_function() -> NoReturn:
    raise RuntimeError("an instruction of a co-execution graph: only its executor carries it out")


@_instruction(None)
def transfer_start(value: Any, device: str) -> Any:
    """Begin copying a tensor to "gpu" or "cpu"; the result must not be read before a wait."""
    _not_a_function()


@_instruction(None)
def transfer_wait(value: Any) -> Any:
    """The result of a transfer, complete. The pass schedule turns it into the events it takes."""
    _not_a_function()


@_instruction(None)
def transfer_rows_start(rows: Any, device: str) -> Any:
    """As ``transfer_start``, of the rows that ``pack_rows`` put first and of no others."""
    _not_a_function()


@_instruction("host")
def device_weight(parameter: Any) -> Any:
    """The copy of a parameter or constant that stays on the accelerator; made before the call."""
    _not_a_function()


@_instruction("host")
def device_cache(cache: Any) -> Any:
    """The accelerator's copy of a KV cache, kept from call to call beside the host's."""
    _not_a_function()


@_instruction("staging")
def stage_expert(place: int, layer: int, rank: int, *weights: Any) -> Any:
    """Copy the layer's ``rank``-th migrating expert from its weights into pinned memory."""
    _not_a_function()


@_instruction("weights")
def fetch_expert(staged: Any, slot: int, layer: int, rank: int) -> Any:
    """Copy a staged expert into a slot of the arena."""
    _not_a_function()


@_instruction("staging")
def stage_weights(place: int, *parameters: Any) -> Any:
    """Copy parameters of a layer, one after the other, into pinned memory."""
    _not_a_function()


@_instruction("weights")
def fetch_weights(staged: Any, buffer: int) -> Any:
    """Copy staged parameters into a buffer; the result is a tuple with each of them."""
    _not_a_function()


@_instruction("gpu")
def new_expert_output(hidden_states: Any) -> Any:
    """Zeros float32 [T, H], to which the shares of a layer's experts are added."""
    _not_a_function()


@_instruction("gpu")
def run_experts(
    output: Any,
    hidden_states: Any,
    expert_ids: Any,
    routing_weights: Any,
    layer: int,
    table: int,
    fetched: Any,
) -> Any:
    """Add the share of the experts in one of the layer's tables to ``output`` and return it.

    ``fetched`` are the ``fetch_expert`` that it needs to be done.
    """
    _not_a_function()


@_instruction("gpu")
def pack_rows(hidden_states: Any, expert_ids: Any, routing_weights: Any, layer: int) -> Any:
    """The rows of the tokens that the layer's CPU experts get, to the front."""
    _not_a_function()


@_instruction("host")
def run_cpu_experts(rows: Any, layer: int, *weights: Any) -> Any:
    """The share of the layer's CPU experts for packed rows, from the weights where they lie."""
    _not_a_function()


@_instruction("gpu")
def add_rows(output: Any, rows: Any, results: Any) -> Any:
    """Add the CPU's results to the tokens that ``rows`` are of, in ``output``; return it."""
    _not_a_function()


@_instruction(None)
def record_event(number: int) -> None:
    """Mark this point of a stream."""
    _not_a_function()


@_instruction(None)
def wait_event(number: int) -> None:
    """Let a stream, or the host, go on only when a marked point has been passed."""
    _not_a_function()


@_instruction("host")
def free(value: Any) -> None:
    """Give a device buffer back to the stream that allocated it."""
    _not_a_function()
