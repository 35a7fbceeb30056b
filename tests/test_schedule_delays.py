"""However long its operations take, a scheduled graph computes the same."""

import pytest
import torch

from coxcompile.runtime import emulated, instructions
from coxcompile.runtime.emulated import Delays
from coxcompile.runtime.executor import CoexecutionError
from tests import emulated_cases
from tests.schedule_cases import CASES, Scheduled, scheduled
from tests.schedule_mutants import Mutant

device_fixture = emulated_cases.device_fixture

SEEDS = range(10)


@pytest.mark.parametrize("name", CASES)
def test_random_delays_change_nothing(name: str) -> None:
    case = scheduled(name)
    executor = case.executor()
    expected = case.run(executor)
    assert all(output.isfinite().all() for output in expected)
    for seed in SEEDS:
        emulated.configure(delays=Delays(seed, most_seconds=0.003, share=0.3))
        assert all(map(torch.equal, case.run(executor), expected)), f"seed {seed}"


def test_the_same_delays_show_a_schedule_without_waits() -> None:
    case = scheduled("coalesced")
    expected = case.run(case.executor())
    waiting_for_nothing = [n for n in case.nodes if n.target is not instructions.wait_event]
    mutant = Mutant("no waits", "all", waiting_for_nothing)
    for seed in SEEDS:
        emulated.configure(delays=Delays(seed, most_seconds=0.003, share=0.3))
        assert _is_wrong(case, mutant, expected), f"seed {seed}"


def _is_wrong(case: Scheduled, mutant: Mutant, expected: list[torch.Tensor]) -> bool:
    try:
        outputs = case.run(case.executor(mutant.build(case)))
    except CoexecutionError:
        return True
    finally:
        emulated.take_error()
    return not all(map(torch.equal, outputs, expected))
