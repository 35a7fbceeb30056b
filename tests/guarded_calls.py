"""The CPU kernels on tensors between guard pages; ends with SIGSEGV where one strays.

    python -m tests.guarded_calls all|amx|beyond|beyond-heap

Prints what it is about to do. ``all``: edge cases of every operator, with the same bits as on
ordinary tensors. ``amx``: those in bfloat16, on the tiles of tests/amx. ``beyond``: a call that
does read past a tensor's end; ``beyond-heap``: the same of a tensor from the heap.
"""

import ctypes
import faulthandler
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from test_experts_subset import contribution, share_of
from test_ops import TOLERANCE, Case, coalesced_experts

from tests.amx import activation
from tests.guard_pages import End, GuardedMemory

Arguments = dict[str, Any]
# By expert. The last one's last rows are the last of the weights.
TOKEN_COUNTS = ((0, 0, 0), (0, 0, 1), (1, 0, 7), (0, 5, 18), (3, 27, 44), (0, 2, 93))
SIZES = ((1, 1), (2, 2), (7, 3), (33, 17), (64, 32), (70, 46), (129, 66), (2078, 60))
WRONG_IDS = (-1, 3, 2**40, -(2**63), 2**63 - 1)
LINEAR_SHAPES = ((0, 40, 3), (1, 1, 1), (3, 33, 63), (8, 70, 130), (16, 256, 128))


def main(which: str) -> None:
    """Run the calls."""
    faulthandler.enable()
    if which.startswith("beyond"):
        read_beyond(guarded=which == "beyond")
        return
    if which == "amx":
        activation.activate()
    for dtype in [torch.bfloat16] if which == "amx" else TOLERANCE:
        for end in get_args(End):
            for case, counts in itertools.product(cases(dtype), TOKEN_COUNTS):
                say(f"{case.dtype} {case.hidden}x{case.intermediate} {counts} {end}")
                run_experts(with_token_counts(case, counts), end)
            refuse_wrong_ids(dtype, end)
            for tokens, depth, outputs in LINEAR_SHAPES:
                say(f"streamed_linear {dtype} {tokens} {depth}->{outputs} {end}")
                run_linear(dtype, end, tokens, depth, outputs)
    assert which != "amx" or activation.counters()["tdpbf16ps"] > 0
    say("done")


def cases(dtype: torch.dtype) -> Iterator[Case]:
    """Every size, the layouts in turn."""
    layouts = itertools.cycle(itertools.product((False, True), ("concatenated", "interleaved")))
    for hidden, intermediate in SIZES:
        sized = Case(
            experts=3, top_k=1, dtype=dtype, hidden=hidden, intermediate=intermediate, biases=True
        )
        for _ in range(2):
            transposed, gate_layout = next(layouts)
            yield replace(sized, transposed=transposed, gate_layout=gate_layout)


def with_token_counts(case: Case, counts: tuple[int, ...]) -> Arguments:
    """The arguments of a call in which expert e gets counts[e] tokens, in turns."""
    arguments = replace(case, tokens=sum(counts)).arguments()
    ids = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    shuffled = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))]
    return arguments | {"expert_ids": shuffled[:, None]}


def run_experts(arguments: Arguments, end: End) -> None:
    """Both operators, with ids of both types; the share is the last experts'."""
    expected = coalesced_experts(**arguments)
    for ids in (torch.int64, torch.int32):
        guarded = copies(arguments | {"expert_ids": arguments["expert_ids"].to(ids)}, end)
        assert torch.equal(coalesced_experts(**guarded), expected)
    share = share_of(arguments, (1, 2))
    output = GuardedMemory().copy(torch.zeros(expected.shape), end)
    torch.ops.coxmoe.experts_subset_(output, **copies(share, end))
    assert torch.equal(output, contribution(torch.ops.coxmoe.experts_subset_, share))


def refuse_wrong_ids(dtype: torch.dtype, end: End) -> None:
    """Ids that name no expert are refused, wherever they would have led."""
    for wrong, place in itertools.product(WRONG_IDS, (0, -1)):
        say(f"{dtype} expert id {wrong} at {place} {end}")
        arguments = Case(experts=3, top_k=2, dtype=dtype).arguments()
        arguments["expert_ids"][place, place] = wrong
        guarded = copies(arguments, end)
        share = copies(share_of(arguments, (1, 2)), end)
        output = GuardedMemory().copy(torch.zeros(guarded["hidden_states"].shape), end)
        refused(lambda guarded=guarded: coalesced_experts(**guarded), wrong)
        refused(
            lambda output=output, share=share: torch.ops.coxmoe.experts_subset_(output, **share),
            wrong,
        )
        assert not output.any()


def refused(call: Callable[[], object], wrong: int) -> None:
    with pytest.raises(IndexError, match=f"expert_ids holds {wrong}"):
        call()


def run_linear(dtype: torch.dtype, end: End, tokens: int, depth: int, outputs: int) -> None:
    """streamed_linear with a bias."""
    given = [
        torch.randn(*shape).to(dtype) for shape in ((tokens, depth), (outputs, depth), (outputs,))
    ]
    memory = GuardedMemory()
    result = torch.ops.coxmoe.streamed_linear(*(memory.copy(tensor, end) for tensor in given))
    assert torch.equal(result, torch.ops.coxmoe.streamed_linear(*given))


def read_beyond(guarded: bool) -> None:
    """Claim one token more than there is memory for."""
    arguments = with_token_counts(Case(experts=3, top_k=1), (0, 5, 18))
    if guarded:
        arguments = copies(arguments, "last")
    tokens, hidden = arguments["hidden_states"].shape
    claimed = (ctypes.c_float * ((tokens + 1) * hidden)).from_address(
        arguments["hidden_states"].data_ptr()
    )
    ids, weights = arguments["expert_ids"], arguments["routing_weights"]
    say("reading beyond")
    coalesced_experts(
        **arguments
        | {
            "hidden_states": torch.frombuffer(claimed, dtype=torch.float32).view(-1, hidden),
            "expert_ids": torch.cat([ids, ids[-1:]]),
            "routing_weights": torch.cat([weights, weights[-1:]]),
        }
    )


def copies(arguments: Arguments, end: End) -> Arguments:
    """All tensors between guard pages."""
    memory = GuardedMemory()
    return {
        name: memory.copy(value, end) if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }


def say(what: str) -> None:
    print(what, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
