"""Which instruction set PyTorch's oneDNN dispatches to, as its own log says."""

import os
import subprocess
import sys
from dataclasses import dataclass

_PROGRAM = "from coxcompile.onednn import multiply_once; multiply_once()"
_PREFIX = "onednn_verbose,v1,"
_TIMEOUT_SECONDS = 120


class OneDnnError(RuntimeError):
    """oneDNN does not say what it dispatches to; the message says what it did instead."""


@dataclass(frozen=True, kw_only=True)
class OneDnn:
    """What oneDNN's log holds.

    ``implementation`` is that of a linear in bfloat16, as ``brg_matmul:avx512_core_bf16``; None
    where PyTorch computes it without oneDNN, as it does below AVX-512.
    """

    instruction_set: str
    implementation: str | None

    @property
    def has_amx(self) -> bool:
        """Whether bfloat16 products run on AMX tiles."""
        return self.implementation is not None and self.implementation.endswith("amx")


def this_onednn() -> OneDnn:
    """What a process started now, with this one's environment, gets.

    oneDNN has no function for it that PyTorch exports, and settles it with the first product of a
    process; so a process of its own computes one, with ``ONEDNN_VERBOSE=1``. Takes the seconds that
    importing torch takes.

    Raises:
        OneDnnError: that process failed, or its PyTorch has no oneDNN.
    """
    finished = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        env={**os.environ, "ONEDNN_VERBOSE": "1"},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
    )
    if finished.returncode != 0:
        last = (finished.stderr.strip().splitlines() or [f"exit code {finished.returncode}"])[-1]
        raise OneDnnError(f"a product in a process of its own failed: {last}")
    return read_log(finished.stdout)


def multiply_once() -> None:
    """One product in bfloat16, for the log."""
    import torch

    with torch.no_grad():
        torch.ones(1, 1).to_mkldnn()  # goes through oneDNN whatever it has been limited to
        torch.nn.functional.linear(*torch.ones(2, 64, 64, dtype=torch.bfloat16))


def read_log(log: str) -> OneDnn:
    """What the log of a process with ``ONEDNN_VERBOSE=1`` says.

    Raises:
        OneDnnError: it names no instruction set.
    """
    lines = [line[len(_PREFIX) :] for line in log.splitlines() if line.startswith(_PREFIX)]
    sets = [line.split("isa:", 1)[1] for line in lines if line.startswith("info,cpu,isa:")]
    if not sets:
        raise OneDnnError("this PyTorch logged no use of oneDNN")
    products = [
        line.split(",")[4] for line in lines if line.startswith("primitive,exec,cpu,matmul")
    ]
    return OneDnn(instruction_set=sets[0], implementation=products[0] if products else None)
