"""The expert store: what it copies when, where it says experts are, and what it refuses."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from coxcompile.planner.plan import ExpertSplit
from coxcompile.runtime import emulated
from coxcompile.runtime.emulated.accelerator import EmulatedAccelerator
from coxcompile.runtime.expert_layer import ExpertLayer
from coxcompile.runtime.expert_store import ExpertStore, Weights
from tests import coexecution_cases

clean_device = coexecution_cases.clean_device_fixture

EXPERTS, RESIDENT = 6, 2
SPLIT = ExpertSplit(resident=RESIDENT, migrating=2, cpu=2)
ORDER = (4, 2, 0, 5, 1, 3)
MIGRATING_SLOT = 2 * RESIDENT
EXPERT_BYTES = 4 * (8 * 4 + 4 * 4 + 8)


def weights_of(seed: int) -> Weights:
    """gate_up, down and a bias of gate_up, float32."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((EXPERTS, 8, 4), (EXPERTS, 4, 4), (EXPERTS, 8))
    return (*(torch.randn(size, generator=generator) for size in sizes), None)


def layer_of(number: int, weights: Weights) -> ExpertLayer:
    return ExpertLayer(
        number=number,
        path=f"layers.{number}.experts",
        split=SPLIT,
        first_slot=number * RESIDENT,
        migrating_slots=(MIGRATING_SLOT, MIGRATING_SLOT),
        tables=((0, 1), (2,), (3,)),
        weights=weights,
        inputs=("gate_up", "down", "bias", None),
        arguments={},
        top_k=2,
    )


class Case:
    """A store of two layers."""

    def __init__(self) -> None:
        self.weights = [weights_of(0), weights_of(1)]
        layers = [layer_of(number, weights) for number, weights in enumerate(self.weights)]
        accelerator = EmulatedAccelerator(1 << 20)
        self.store = ExpertStore(accelerator, layers, [ORDER, ORDER], MIGRATING_SLOT + 1)

    def bytes_of_prepare(self) -> int:
        """Bytes that it copies, beside tables."""
        emulated.reset_statistics()
        self.store.prepare(self.weights)
        torch.accelerator.synchronize()
        return emulated.statistics().bytes_host_to_device

    def require_resident(self, orders: Sequence[Sequence[int]]) -> None:
        """The hottest experts' weights lie where the first table says, and the others' nowhere."""
        for number, (order, host) in enumerate(zip(orders, self.weights, strict=True)):
            slots = self.store.table(number, 0).cpu()
            hottest = order[:RESIDENT]
            assert sorted((slots >= 0).nonzero().flatten().tolist()) == sorted(hottest)
            for expert in hottest:
                parts = [weight for weight in host if weight is not None]
                for part, weight in zip(self.store.slot(int(slots[expert])), parts, strict=True):
                    assert torch.equal(part.cpu(), weight[expert])


@pytest.fixture(name="case")
def case_fixture() -> Case:
    return Case()


def test_tables_say_where_each_expert_is(case: Case) -> None:
    case.store.prepare(case.weights)
    case.require_resident([ORDER, ORDER])
    assert nonnegative(case.store.table(0, 1)) == {0: MIGRATING_SLOT}
    assert nonnegative(case.store.table(0, 2)) == {5: MIGRATING_SLOT}
    assert nonnegative(case.store.cpu_table(0, on_host=True)) == {1: 1, 3: 3}
    assert nonnegative(case.store.cpu_table(0, on_host=False)) == {1: 1, 3: 3}
    assert [case.store.expert(1, rank) for rank in range(EXPERTS)] == list(ORDER)


def nonnegative(table: Tensor) -> dict[int, int]:
    return {expert: slot for expert, slot in enumerate(table.tolist()) if slot >= 0}


def test_nothing_is_copied_twice(case: Case) -> None:
    assert case.bytes_of_prepare() >= 2 * RESIDENT * EXPERT_BYTES
    assert case.bytes_of_prepare() == 0


def test_a_changed_weight_is_copied_again(case: Case) -> None:
    case.store.prepare(case.weights)
    down = case.weights[1][1]
    assert down is not None
    down[ORDER[0]] = 7.0
    assert case.bytes_of_prepare() == RESIDENT * EXPERT_BYTES
    case.require_resident([ORDER, ORDER])


def test_other_weights_at_the_same_address_are_copied_too(case: Case) -> None:
    memory = torch.randn(EXPERTS * 16)
    for _ in range(2):
        down = torch.from_numpy(memory.numpy()).view(EXPERTS, 4, 4)
        case.weights[0] = (case.weights[0][0], down, *case.weights[0][2:])
        case.store.prepare(case.weights)
        case.require_resident([ORDER, ORDER])
        memory.mul_(2)


def test_experts_that_stay_resident_stay_where_they_are(case: Case) -> None:
    case.store.prepare(case.weights)
    before = nonnegative(case.store.table(0, 0))
    other = (5, 4, 2, 0, 1, 3)
    case.store.reorder([other, ORDER])
    tables = 2 * 4 * EXPERTS * 8
    assert case.bytes_of_prepare() == EXPERT_BYTES + tables
    case.require_resident([other, ORDER])
    after = nonnegative(case.store.table(0, 0))
    assert after[4] == before[4]
    assert after[5] == before[2]


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (0, 1, 2, 3, 4, 4), (1, 2, 3, 4, 5, 6)])
def test_an_order_names_each_expert_once(case: Case, order: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"layers\.1\.experts has experts 0 to 5"):
        case.store.reorder([ORDER, order])
    assert case.store.orders == [ORDER, ORDER]


def test_release_and_prepare_again(case: Case) -> None:
    first = case.bytes_of_prepare()
    case.store.release()
    torch.accelerator.synchronize()
    assert emulated.statistics().allocated_bytes == 0
    assert case.bytes_of_prepare() == first
    case.require_resident([ORDER, ORDER])
    case.store.release()


def test_experts_of_different_sizes_do_not_share_an_arena() -> None:
    case = Case()
    other = tuple(None if w is None else torch.cat([w, w], dim=1) for w in weights_of(2))
    layers = [layer_of(0, case.weights[0]), layer_of(1, other)]
    store = ExpertStore(EmulatedAccelerator(1 << 20), layers, [ORDER, ORDER], MIGRATING_SLOT + 1)
    with pytest.raises(ValueError, match=r"layers\.0\.experts and layers\.1\.experts"):
        store.prepare([case.weights[0], other])
