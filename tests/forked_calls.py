"""Call the op in this process, then in forked children of it, and compare the bits.

``python -m tests.forked_calls WHICH``; ends with status 0 if each child gave the parent's bits.

GNU's OpenMP does not survive a fork: a thread that has run OpenMP with several threads waits for
ever at the child's first parallel region, in PyTorch's operators. Ours then use the calling thread
alone, whatever the child's number of threads; so the comparisons must not use PyTorch's.
"""

import multiprocessing
import sys
from collections.abc import Callable

import torch
from test_ops import Case, coalesced_experts
from torch.utils.data import DataLoader, Dataset

ARGUMENTS = Case(tokens=200, hidden=300, dtype=torch.bfloat16, routing="skewed").arguments()
SECONDS = 60


def output() -> torch.Tensor:
    return coalesced_experts(**ARGUMENTS)


def fork() -> None:
    expected = output().tolist()

    def compare() -> None:
        assert output().tolist() == expected

    child = multiprocessing.get_context("fork").Process(target=compare, daemon=True)
    child.start()
    child.join(SECONDS)
    assert child.exitcode == 0, f"the child's exit code is {child.exitcode} (None: it hangs)"


class Outputs(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        return output()


def load() -> None:
    expected = output()
    loader = DataLoader(
        Outputs(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=SECONDS
    )
    outputs = list(loader)
    assert len(outputs) == 6
    assert all(torch.equal(loaded, expected) for loaded in outputs)


CASES: dict[str, Callable[[], None]] = {"child": fork, "loader": load}

if __name__ == "__main__":
    torch.set_num_threads(2)
    expected = output()
    CASES[sys.argv[1]]()
    assert torch.equal(output(), expected), "the parent's bits changed"
    print("done")
