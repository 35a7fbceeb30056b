"""Triton kernels on emulated targets: launched, compiled, recorded, interpreted and checked."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton import knobs
from triton.compiler.errors import CompilationError
from triton.runtime import driver
from triton.runtime.errors import OutOfResources
from triton.runtime.jit import JITFunction

from coxcompile.runtime import emulated
from coxcompile.runtime.emulated.triton_driver import Launch, triton_target
from tests.triton_cases import (
    cast,
    copy_block,
    copy_by_address,
    copy_by_descriptor,
    fail,
    hold,
    multiply,
    square_and_add,
    squares,
    tuned,
)
from tests.triton_checks import checked

MATRIX_INSTRUCTIONS = {
    "sm_80": "mma.sync",
    "sm_86": "mma.sync",
    "sm_89": "mma.sync",
    "sm_90": "wgmma.mma_async",
    "sm_100": "tcgen05.mma",
    "sm_120": "mma.sync",
    "gfx942": "v_mfma",
}


@pytest.fixture(name="launches")
def launches_fixture() -> Iterator[list[Launch]]:
    with triton_target("sm_90") as launches:
        yield launches


@pytest.mark.parametrize("name", MATRIX_INSTRUCTIONS)
def test_launches_are_compiled_for_the_target_and_recorded(name: str) -> None:
    a, b = torch.randn(64, 32).bfloat16(), torch.randn(32, 16).bfloat16()
    out = torch.zeros(64, 16)
    with triton_target(name) as launches:
        multiply[lambda constants: (constants["M"] // 64, 1)](a, b, out, M=64, N=16, K=32)
    (launch,) = launches
    assembly = launch.kernel.asm["amdgcn" if name == "gfx942" else "ptx"]
    assert MATRIX_INSTRUCTIONS[name] in assembly
    assert str(launch.kernel.metadata.target.arch) in name
    assert launch.kernel.name == "multiply"
    assert launch.grid == (1, 1, 1)
    assert launch.arguments == {"a": a, "b": b, "out": out, "M": 64, "N": 16, "K": 32}
    assert (out - a.float() @ b.float()).abs().max() < 1e-4


def test_without_execution_tensors_are_left_alone() -> None:
    a, out = torch.randn(16), torch.zeros(16, dtype=torch.bfloat16)
    with triton_target("sm_80", execute=False) as launches:
        cast[(1,)](a, out, N=16)
        cast[(1,)](a.to("meta"), out.to("meta"), N=16)
    assert [launch.kernel.asm["cubin"][:4] for launch in launches] == [b"\x7fELF"] * 2
    assert not out.any()


def test_an_unknown_target_is_an_error() -> None:
    with (
        pytest.raises(ValueError, match=r"name is 'sm_70', but must be one of sm_80, .*gfx942"),
        triton_target("sm_70"),
    ):
        pass


def test_triton_s_own_interpreter_is_an_error() -> None:
    with knobs.runtime.scope():
        knobs.runtime.interpret = True
        with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"), triton_target("sm_80"):
            pass


def test_tuning_is_an_error(launches: list[Launch]) -> None:
    with pytest.raises(NotImplementedError, match="emulated sm_90 cannot"):
        tuned[(1,)](torch.zeros(1))


def test_tensors_elsewhere_are_an_error(launches: list[Launch]) -> None:
    with pytest.raises(ValueError, match="tensor on meta"):
        cast[(1,)](torch.zeros(16, device="meta"), torch.zeros(16), N=16)
    assert launches == []


def test_too_much_shared_memory_is_an_error() -> None:
    x = torch.zeros(4, 128, 128, dtype=torch.float16)
    for _ in range(2):  # Triton keeps the error with the kernel
        with triton_target("sm_89") as launches, pytest.raises(OutOfResources, match="shared"):
            hold[(1,)](x, N=128, STAGES=6, num_warps=8)
        assert launches == []
    with triton_target("sm_90"):
        hold[(1,)](x, N=128, STAGES=6, num_warps=8)


def test_kernels_call_functions_and_take_typed_arguments(launches: list[Launch]) -> None:
    x, out = torch.randn(4, 16), torch.zeros(2, 16)
    squares[(2,)](x, out, 0.5, 1, N=16, FUNCTION=square_and_add)
    expected = x[1].square() + x[2].square() + 0.5
    torch.testing.assert_close(out, expected.expand(2, 16))
    assert launches[0].kernel.src.signature["start"] == "i64"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8])
def test_integers_become_pointers(launches: list[Launch], dtype: torch.dtype) -> None:
    weights = [(torch.rand(16) * 100).to(dtype) for _ in range(3)]
    table = torch.tensor([weight.data_ptr() for weight in weights])
    out = torch.zeros(3, 16, dtype=dtype)
    kind = {torch.bfloat16: tl.bfloat16, torch.uint8: tl.uint8}[dtype]
    with checked(extra_tensors=weights):
        copy_by_address[(3,)](table, out, N=16, TYPE=kind)
    assert torch.equal(out, torch.stack(weights))
    with checked(extra_tensors=weights[:2]), pytest.raises(IndexError, match=r"\(2, 0, 0\): 16 of"):
        copy_by_address[(3,)](table, out, N=16, TYPE=kind)


@pytest.mark.parametrize("name", ["sm_80", "sm_90", "gfx942"])
def test_descriptors_made_in_kernels(name: str) -> None:
    x, out = torch.randn(20, 32).bfloat16(), torch.zeros(20, 32, dtype=torch.bfloat16)
    asked = []

    def allocate(size: int, alignment: int, stream: int | None) -> torch.Tensor:
        asked.append((size, alignment))
        return torch.empty(size, dtype=torch.int8)

    def launch(rows: int) -> None:
        copy_by_descriptor[(2,)](x, out, rows, 32, M=16, N=32)

    with triton_target(name), checked():
        if name == "sm_90":
            with pytest.raises(RuntimeError, match="no allocator was set"):
                launch(20)
        triton.set_allocator(allocate)
        try:
            launch(20)
            with pytest.raises(IndexError, match="load outside"):
                launch(21)
        finally:
            triton.set_allocator(triton.runtime._allocation._NULL_ALLOCATOR)
    assert torch.equal(out, x)
    assert asked == ([(2 * 2 * 128, 128)] * 2 if name == "sm_90" else [])


def test_accesses_out_of_range_are_found(launches: list[Launch]) -> None:
    x, out = torch.randn(40), torch.zeros(40)
    with checked():
        copy_block[(3,)](x, out, 40, 16, MASKED=True, N=16)
        assert torch.equal(out, x)
        with pytest.raises(IndexError, match=r"program \(2, 0, 0\): 8 of 16 lanes load .* 0 bytes"):
            copy_block[(3,)](x, out, 40, 16, MASKED=False, N=16)
        with pytest.raises(IndexError, match="8 of 16 lanes store"):
            copy_block[(3,)](torch.randn(48), out, 40, 16, MASKED=False, N=16)
        view = torch.randn(64)[:40]
        with pytest.raises(IndexError, match="lanes load"):
            copy_block[(3,)](view, out, 40, 16, MASKED=False, N=16)
    copy_block[(3,)](view, torch.zeros(64)[:40], 40, 16, MASKED=False, N=16)


def test_double_stores_are_found(launches: list[Launch]) -> None:
    x, out = torch.randn(64), torch.zeros(64)
    with checked():
        copy_block[(4,)](x, out, 64, 16, MASKED=True, N=16)
        copy_block[(4,)](x, out, 64, 16, MASKED=True, N=16)  # another launch may
        with pytest.raises(RuntimeError, match=r"\(0, 0, 0\) and \(1, 0, 0\) both store"):
            copy_block[(4,)](x, out, 64, 8, MASKED=True, N=16)
        with pytest.raises(RuntimeError, match="both store"):  # of half an element
            copy_block[(2,)](
                x.view(torch.int16), out.view(torch.int16), 128, 16 + 1, MASKED=True, N=32
            )
    copy_block[(4,)](x, out, 64, 8, MASKED=True, N=16)


def patched_state() -> dict[str, Any]:
    modules = {"tl": tl, "core": tl.core, "math": tl.math, "tensor": tl.tensor, "jit": JITFunction}
    state = {f"{m}.{name}": value for m, o in modules.items() for name, value in vars(o).items()}
    return state | {"active": driver._active}


def test_exceptions_reach_the_caller_and_nothing_stays_patched() -> None:
    before = patched_state()
    names = set(fail.__globals__)
    with triton_target("sm_90"), triton_target("sm_80"):
        with pytest.raises(AssertionError, match="Assume failed") as caught:
            fail[(3,)](torch.tensor([4.0]))
        assert caught.value.__notes__ == ["in program (0, 0, 0) of the Triton kernel fail"]
        with pytest.raises(CompilationError):
            fail[(1,)](torch.tensor([4]))
        fail[(3,)](torch.tensor([2.0]))
    assert patched_state() == before
    assert set(fail.__globals__) == names
    with pytest.raises(RuntimeError, match="0 active drivers"):
        fail[(1,)](torch.tensor([2.0]))


def test_two_threads_launch_at_once(launches: list[Launch]) -> None:
    start = threading.Barrier(2)

    def work(seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        start.wait()
        worst = 0.0
        for columns in (16, 32, 64):
            a = torch.randn(64, 32, generator=generator).bfloat16()
            b = torch.randn(32, columns, generator=generator).bfloat16()
            out = torch.zeros(64, columns)
            multiply[(1,)](a, b, out, M=64, N=columns, K=32, num_stages=seed)
            worst = max(worst, float((out - a.float() @ b.float()).abs().max()))
        return worst

    with ThreadPoolExecutor(2) as threads:
        assert max(threads.map(work, (1, 2))) < 1e-4
    assert len(launches) == 6


def test_another_thread_cannot_have_another_target(launches: list[Launch]) -> None:
    def enter() -> None:
        with triton_target("sm_80"):
            pass

    with (
        ThreadPoolExecutor(1) as thread,
        pytest.raises(RuntimeError, match=r"another thread is within triton_target\('sm_90'\)"),
    ):
        thread.submit(enter).result()
    cast[(1,)](torch.zeros(16), torch.zeros(16), N=16)
    assert launches[0].kernel.metadata.target.arch == 90


def test_kernels_run_on_streams_of_the_emulated_accelerator(launches: list[Launch]) -> None:
    pytest.importorskip("coxcompile._emulated", reason="the emulated accelerator is not built")
    device = emulated.load()
    values = torch.randn(16)
    x, out = values.to(device), torch.empty(16, dtype=torch.bfloat16, device=device)
    source, target = emulated.borrow(x), emulated.borrow(out)

    def launch() -> None:
        cast[(1,)](source, target, N=16)

    emulated.enqueue(launch, "cast")
    torch.accelerator.synchronize()
    assert torch.equal(out.cpu(), values.bfloat16())


def test_inductor_compiles_for_the_cpu_within_and_afterwards() -> None:
    x = torch.randn(64)
    with triton_target("sm_90"):
        cast[(1,)](x, torch.zeros(64), N=64)
        torch.testing.assert_close(torch.compile(torch.sin)(x), x.sin())
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(torch.sin)(x), x.sin())


def test_the_accelerator_needs_no_triton() -> None:
    script = "import sys, coxcompile.runtime.emulated; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
