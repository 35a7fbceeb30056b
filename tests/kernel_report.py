"""The expert kernels' numerics in a process of its own, whose environment chooses the kernels.

    python -m tests.kernel_report REPORT [--amx] DTYPE...

writes a KernelReport as JSON. ``--amx`` makes oneDNN see AMX; it takes the emulator of tests/amx.
"""

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from numerics import reference_experts, relative_error
from test_experts_subset import contribution, reference_share, share_of
from test_ops import TOLERANCE, Case

from coxcompile.onednn import OneDnn, multiply_once, read_log
from tests.amx import activation, emulator

if importlib.util.find_spec("coxcompile._native") is None:
    pytest.skip("the C++ kernels are not built", allow_module_level=True)

ROOT = Path(__file__).parents[1]
# By expert: none, one, about a tile of AMX, and enough for panels without AMX too.
TOKEN_COUNTS = (0, 1, 15, 16, 17, 90)
SHARE = (5, 1, 4)
# Whole tiles of AMX; no multiple of any block; odd, which panels do not take; several panels deep.
SIZES = ((64, 32), (70, 46), (71, 45), (2078, 60))
# Some ten times what it takes.
_TIMEOUT_SECONDS = 60
_VARIABLES = {
    "ONEDNN_VERBOSE": "1",
    "PYTHONPATH": str(ROOT / "tests"),
    # Threads that wait spin otherwise, which takes minutes where others use the processor too.
    "OMP_WAIT_POLICY": "passive",
}


class Result(msgspec.Struct, frozen=True):
    """One call of an operator against float64, and the TDPBF16PS it executed."""

    name: str
    error: float
    tolerance: float
    tile_products: int


class KernelReport(msgspec.Struct, frozen=True):
    """What a process used, and how far from float64 its results are.

    ``counters`` are the emulator's at the end; empty without it.
    """

    capability: str
    instruction_sets: dict[str, str]
    panel_tokens: dict[str, int]
    counters: dict[str, int]
    results: list[Result]

    def wrong(self) -> list[Result]:
        """Results beyond their tolerance; NaN is beyond any."""
        return [result for result in self.results if not result.error <= result.tolerance]


def report(
    path: Path, environment: Mapping[str, str], *arguments: str
) -> tuple[KernelReport, OneDnn]:
    """Run this program with an environment; the report, and what oneDNN says of itself there."""
    finished = subprocess.run(
        [sys.executable, "-m", "tests.kernel_report", str(path), *arguments],
        env={**environment, **_VARIABLES},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
    )
    emulator.skip_unless_sites_were_found(finished)
    assert finished.returncode == 0, f"exit code {finished.returncode}: {finished.stderr[-4000:]}"
    return msgspec.json.decode(path.read_bytes(), type=KernelReport), read_log(finished.stdout)


def main(path: str, *options: str) -> None:
    """Write the report."""
    if "--amx" in options:
        activation.activate()
    multiply_once()
    torch.ops.coxmoe.cpu_panel_tokens()  # tries brgemm, which executes tile products of its own
    dtypes = [getattr(torch, name) for name in options if name != "--amx"]
    results = []
    for case in cases(dtypes):
        for op, error in case.errors().items():
            before = activation.counters().get("tdpbf16ps", 0)
            value = error()
            executed = activation.counters().get("tdpbf16ps", 0) - before
            results.append(Result(f"{op} {case.name}", value, case.tolerance, executed))
    written = KernelReport(
        torch.backends.cpu.get_cpu_capability(),
        torch.ops.coxmoe.cpu_instruction_sets(),
        torch.ops.coxmoe.cpu_panel_tokens(),
        activation.counters(),
        results,
    )
    Path(path).write_bytes(msgspec.json.encode(written))


@dataclass(frozen=True)
class RaggedCase:
    """A Case of test_ops.py with TOKEN_COUNTS for a routing, to one or to two experts a token."""

    case: Case

    @property
    def name(self) -> str:
        """What is not alike in all of them."""
        case = self.case
        return (
            f"{case.dtype} {case.hidden}x{case.intermediate} top-{case.top_k} {case.activation} "
            f"{case.gate_layout}{' transposed' * case.transposed}{' biases' * case.biases}"
        )

    @property
    def tolerance(self) -> float:
        """The bound of test_ops.py."""
        return TOLERANCE[self.case.dtype]

    def errors(self) -> dict[str, Callable[[], float]]:
        """What runs each operator and gives its relative error."""
        arguments = self.arguments()

        def whole() -> float:
            result = torch.ops.coxmoe.coalesced_experts(**arguments)
            return relative_error(result, reference_experts(**arguments))

        def share() -> float:
            result = contribution(torch.ops.coxmoe.experts_subset_, share_of(arguments, SHARE))
            return relative_error(result, reference_share(arguments, SHARE))

        return {"coalesced_experts": whole, "experts_subset_": share}

    def arguments(self) -> dict[str, Any]:
        """The operator's; a second choice is the next expert."""
        arguments = self.case.arguments()
        generator = torch.Generator().manual_seed(1)
        first = torch.arange(len(TOKEN_COUNTS)).repeat_interleave(torch.tensor(TOKEN_COUNTS))
        first = first[torch.randperm(len(first), generator=generator)]
        choices = [(first + place) % len(TOKEN_COUNTS) for place in range(self.case.top_k)]
        arguments["expert_ids"] = torch.stack(choices, dim=1)
        return arguments


def cases(dtypes: Sequence[torch.dtype]) -> Iterator[RaggedCase]:
    """All sizes in all layouts."""
    common = Case(tokens=sum(TOKEN_COUNTS), experts=len(TOKEN_COUNTS), top_k=1)
    for dtype in dtypes:
        for hidden, intermediate in SIZES:
            sized = replace(common, dtype=dtype, hidden=hidden, intermediate=intermediate)
            yield RaggedCase(sized)
            yield RaggedCase(replace(sized, transposed=True, biases=True, top_k=2))
            yield RaggedCase(
                replace(sized, transposed=True, gate_layout="interleaved", activation="swigluoai")
            )
            yield RaggedCase(replace(sized, gate_layout="interleaved", biases=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
