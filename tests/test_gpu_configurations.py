"""Every configuration of the packaged table, compiled for its GPU: no spills, the widest matrix
instructions. And what the table promises of Qwen3's layer, by bounds, not measurements.
"""

import dataclasses
import multiprocessing
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor

import pytest

from coxcompile.gpu_analysis.bounds import Bounds, bounds
from coxcompile.gpu_analysis.checking import Key, form_objection, plain_objection
from coxcompile.gpu_analysis.expected_routing import ExpertLayer
from coxcompile.gpu_analysis.products import PRODUCTS, WEIGHT_BYTES, products
from coxcompile.gpu_analysis.selection import BUCKETS
from coxcompile.gpu_analysis.targets import TARGETS
from coxcompile.planner.models import model_named
from coxcompile.runtime.kernels.gpu.configurations import (
    STATIC_TABLE,
    ProductConfiguration,
    load_rows,
    look_up,
)

ROWS = load_rows(STATIC_TABLE)
QWEN3 = ExpertLayer.of_model(model_named("qwen3-30b-a3b"))
PROCESSES = 2

Part = tuple[Key, ProductConfiguration]


def parts(weights: Iterable[str]) -> list[Part]:
    """Each different product of the table's rows for these weights, once."""
    found = {
        (
            (row.device, row.weights, name, row.configuration.block_tokens),
            getattr(row.configuration, name),
        )
        for row in ROWS
        for name in PRODUCTS
        if row.weights in weights
    }
    return sorted(found, key=repr)


def objections(check: object, compiled: list[Part]) -> dict[Part, str]:
    """What ``check`` has against each, by compiling in several processes."""
    begin = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
        found = list(pool.map(check, *zip(*compiled, strict=True), chunksize=4))  # type: ignore[arg-type]
    seconds = time.perf_counter() - begin
    print(f"{len(compiled)} configurations in {seconds:.0f} s", file=sys.stderr)
    return {part: why for part, why in zip(compiled, found, strict=True) if why}


def test_the_table_is_whole() -> None:
    """Rows for any shape: each target, each type of weights, each number of tokens."""
    general = [
        (row.device, row.weights, row.tokens_per_expert) for row in ROWS if row.experts is None
    ]
    assert sorted(general) == sorted(
        (target, weights, bucket)
        for target in TARGETS
        for weights in WEIGHT_BYTES
        for bucket in BUCKETS
    )
    assert {row.source for row in ROWS} == {"static"}


def test_every_bfloat16_configuration_is_right_for_its_target() -> None:
    assert objections(plain_objection, parts(["bfloat16"])) == {}


@pytest.mark.slow
def test_every_other_configuration_is_right_for_its_target() -> None:
    assert objections(plain_objection, parts(set(WEIGHT_BYTES) - {"bfloat16"})) == {}


@pytest.mark.slow
@pytest.mark.parametrize("weights", WEIGHT_BYTES)
def test_every_configuration_is_right_in_all_forms(weights: str) -> None:
    """Transposed, interleaved, other activations, biases, widths that are not whole blocks."""
    assert objections(form_objection, parts([weights])) == {}


@pytest.mark.slow
def test_every_configuration_is_right_if_persistent() -> None:
    """As ``coxmoe tune`` may try them."""
    persistent = [
        (key, dataclasses.replace(of, persistent=True)) for key, of in parts(["bfloat16"])
    ]
    assert objections(plain_objection, persistent) == {}


def bounds_of(target: str, tokens: int) -> list[Bounds]:
    """Of both products of Qwen3's layer in bfloat16, in the configuration that is looked up."""
    configuration = look_up(
        ROWS,
        [target],
        "bfloat16",
        tokens * QWEN3.top_k / QWEN3.experts,
        experts=QWEN3.experts,
        intermediate=QWEN3.intermediate,
        hidden=QWEN3.hidden,
    )
    return [
        bounds(
            QWEN3,
            tokens,
            product,
            getattr(configuration, product.name),
            configuration.block_tokens,
            TARGETS[target],
        )
        for product in products(QWEN3, "bfloat16")
    ]


@pytest.mark.parametrize("target", TARGETS)
def test_decoding_is_bound_by_memory_and_reads_each_expert_once(target: str) -> None:
    """64 tokens are 4 an expert: one tile each, so that even level 2 is asked only once."""
    for product, found in zip(products(QWEN3, "bfloat16"), bounds_of(target, 64), strict=True):
        assert found.bound == "memory"
        weights = found.active_experts * product.weight_bytes
        assert weights <= found.memory_bytes <= 1.02 * weights
        assert found.tiles <= 1.001 * found.active_experts


@pytest.mark.parametrize("target", TARGETS)
def test_prefill_does_four_fifths_useful_work(target: str) -> None:
    """4096 tokens are 256 an expert."""
    for found in bounds_of(target, 4096):
        assert found.useful_share >= 0.8


BELOW_THE_RIDGE = {"sm_89", "sm_90", "sm_100", "gfx942"}
"""Where 256 tokens an expert are too few to be bound by compute, however they are cut into tiles:
the weights' bytes alone take longer than the useful FLOP. On an H100 gate and up need 330, down
600."""


@pytest.mark.parametrize("target", TARGETS)
def test_prefill_is_bound_by_compute_where_the_ridge_allows(target: str) -> None:
    for found in bounds_of(target, 4096):
        if target in BELOW_THE_RIDGE:
            assert found.intensity < found.ridge
        else:
            assert found.intensity > found.ridge
            assert found.bound == "compute"


@pytest.mark.parametrize("target", TARGETS)
def test_a_longer_prefill_is_bound_by_compute_everywhere(target: str) -> None:
    for found in bounds_of(target, 32768):
        assert (found.bound == "compute") == (found.intensity / found.useful_share > found.ridge)
        assert found.intensity > found.ridge
        assert found.useful_share >= 0.8
