"""The expert operators on AMX tiles, emulated: each run is a process of its own."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_report import ROOT, TOKEN_COUNTS, KernelReport, report

from coxcompile.onednn import OneDnn
from tests.amx import emulator

pytestmark = pytest.mark.skipif(
    emulator.obstacle() is not None, reason=f"AMX is not emulated: {emulator.obstacle()}"
)

# PyTorch's own products, in bfloat16 and in bytes; prints how far the first is from float64,
# whether the others are exact, and what was executed.
PRODUCTS = """
import json, torch
from tests.amx import activation

activation.activate()
generator = torch.Generator().manual_seed(0)
tokens, weight = (torch.randn(n, 90, generator=generator).bfloat16() for n in (50, 70))
exact = tokens.double() @ weight.double().T
error = (torch.nn.functional.linear(tokens, weight) - exact).norm() / exact.norm()
bytes = torch.randint(-128, 128, (64, 48), generator=generator).to(torch.int8)
rows = torch.randint(0, 256, (40, 64), generator=generator)
same = [
    torch.equal(torch._int_mm(left, bytes), left.int() @ bytes.int())
    for left in (rows.to(torch.int8), rows.to(torch.uint8))
]
print(json.dumps([error.item(), same, activation.counters()]))
"""
# Rows of AMX's tiles, from which on they are full.
TILE_ROWS = 16
TILE_DEPTH = 32


@pytest.fixture(scope="module")
def with_amx(tmp_path_factory: pytest.TempPathFactory) -> tuple[KernelReport, OneDnn]:
    path = tmp_path_factory.mktemp("amx") / "report.json"
    return report(path, emulator.environment(), "bfloat16", "--amx")


def test_onednn_dispatches_to_amx(with_amx: tuple[KernelReport, OneDnn]) -> None:
    used, onednn = with_amx
    assert "Intel AMX" in onednn.instruction_set
    assert onednn.implementation is not None
    assert onednn.implementation.endswith("_amx")
    assert onednn.has_amx
    assert 0 < used.panel_tokens["bfloat16"] <= TILE_ROWS
    assert used.counters["permission"] >= 1
    assert used.counters["cpuid"] > 0


def test_results_are_right(with_amx: tuple[KernelReport, OneDnn]) -> None:
    used, _ = with_amx
    assert used.results
    assert used.wrong() == []


def test_tiles_multiply_wherever_panels_are_taken(with_amx: tuple[KernelReport, OneDnn]) -> None:
    used, _ = with_amx
    for result in used.results:
        # Odd depths are no pairs of bfloat16.
        assert result.tile_products > 0 or "71x45" in result.name, result
    counters = used.counters
    # A product needs both operands in tiles, and its sums leave them.
    assert counters["tileloadd"] + counters["tileloaddt1"] > counters["tdpbf16ps"] / TILE_ROWS
    assert counters["tilestored"] > 0
    assert counters["ldtilecfg"] > 0


def test_whole_tiles_are_each_multiplied_once(
    with_amx: tuple[KernelReport, OneDnn],
) -> None:
    """Blocks of 16 rows, 16 tokens and a depth of 32: no product more than these take."""
    used, _ = with_amx
    least = used.panel_tokens["bfloat16"]
    hidden, intermediate = 64, 32
    projections = _tiles(2 * intermediate, hidden) + _tiles(hidden, intermediate)
    tokens = sum(math.ceil(count / TILE_ROWS) for count in TOKEN_COUNTS if count >= least)
    executed = {
        result.tile_products
        for result in used.results
        if result.name.startswith("coalesced_experts")
        and f"{hidden}x{intermediate} top-1" in result.name
    }
    assert executed == {tokens * projections}


def _tiles(outputs: int, depth: int) -> int:
    return outputs // TILE_ROWS * (depth // TILE_DEPTH)


def test_tiles_are_given_back(with_amx: tuple[KernelReport, OneDnn]) -> None:
    used, _ = with_amx
    assert used.counters["tilerelease"] > 0


def test_without_the_amx_bit_no_tile_is_touched(tmp_path: Path) -> None:
    used, onednn = report(tmp_path / "report.json", emulator.environment(), "bfloat16")
    assert not onednn.has_amx
    assert used.wrong() == []
    assert set(used.counters.values()) == {0}


def test_pytorch_s_own_products() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", PRODUCTS],
        env=emulator.environment(OMP_WAIT_POLICY="passive"),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    emulator.skip_unless_sites_were_found(finished)
    assert finished.returncode == 0, finished.stderr
    error, same, counters = json.loads(finished.stdout)
    assert error < 5e-3
    assert same == [True, True]
    for instruction in ("tdpbf16ps", "tdpbssd", "tdpbusd"):
        assert counters[instruction] > 0


def test_permission_is_needed_as_on_linux() -> None:
    """Without, an AMX instruction is a SIGILL, and faulthandler still says so."""
    refused = _zero_a_tile("do-not-ask")
    assert refused.returncode == -signal.SIGILL
    assert "Illegal instruction" in refused.stderr
    granted = _zero_a_tile("ask")
    assert granted.returncode == 0, granted.stderr


def _zero_a_tile(permission: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.amx.single_instructions", "zero", permission],
        env=emulator.environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
