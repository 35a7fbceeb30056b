"""The option "gpu_kernels": co-execution with Triton kernels, interpreted on emulated streams."""

from typing import Any

import pytest
import torch

from coxcompile.options import OptionsError
from coxcompile.runtime.emulated import statistics
from coxcompile.runtime.session import Session
from tests import coexecution_cases
from tests.coexecution_cases import (
    Variants,
    build_layers,
    emulated_options,
    mixed_plan,
    prefill_and_decode,
    released,
    token_ids,
)
from tests.gpu_cases import configuration
from tests.models import build
from tests.numerics import relative_error

clean_device = coexecution_cases.clean_device_fixture
eager_partitions = coexecution_cases.eager_partitions_fixture

VRAM = 16 << 20


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the sake of the interpreter."""
    tiles = configuration(block_outputs=64, block_inputs=64)
    module = "coxcompile.runtime.kernels.gpu.experts"
    monkeypatch.setattr(f"{module}._configuration", lambda *_: tiles)


def triton_options(session: Session, plan: Any) -> dict[str, object]:
    return {**emulated_options(session, VRAM, plan), "gpu_kernels": "triton"}


# A row-major concatenated layout, and a transposed interleaved one with biases and clamping.
@pytest.mark.parametrize(("family", "experts"), [("qwen3_moe", 16), ("gpt_oss", 8)])
def test_the_same_results_as_without_an_accelerator(
    family: str, experts: int, eager_partitions: None
) -> None:
    model = build_layers(family, 2, dtype=torch.float32)
    with released(Session()) as session:
        options = {
            "triton": triton_options(session, mixed_plan(experts, 2)),
            "none": {"accelerator": "none"},
        }
        variants = Variants(model, options)
        actual = prefill_and_decode(variants.model, model.config)
        assert statistics().peak_bytes <= VRAM
        variants.chosen = "none"
        expected = prefill_and_decode(variants.model, model.config)
    for ours, theirs in zip(actual.all(), expected.all(), strict=True):
        assert relative_error(ours, theirs) < 1e-5


def test_what_the_kernels_hold_counts_towards_the_peak(eager_partitions: None) -> None:
    model = build("qwen3_moe", dtype=torch.float32, layers=1)
    peaks = {}
    for kernels in ("triton", "torch"):
        with released(Session(record=True)) as session:
            options = triton_options(session, mixed_plan(16, 1)) | {"gpu_kernels": kernels}
            torch._dynamo.reset()
            compiled = torch.compile(model, backend="coxmoe", options=options)
            with torch.no_grad():
                compiled(input_ids=token_ids(4, 64), use_cache=False)
            peaks[kernels] = session.executions[0].traffic.peak_bytes
    assert peaks["triton"] > peaks["torch"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu_kernels": "cuda"}, r"got .cuda.*allowed: "),
        ({"gpu_kernels": "triton", "accelerator": "none"}, "without an accelerator there are none"),
    ],
)
def test_wrong_choices_are_refused(options: dict[str, object], message: str) -> None:
    compiled = torch.compile(build("mixtral", layers=1), backend="coxmoe", options=options)
    with pytest.raises(Exception, match=message) as caught:
        compiled(input_ids=token_ids(1, 4), use_cache=False)
    assert isinstance(caught.value.inner_exception, OptionsError)


def test_triton_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coxcompile.coexecution.find_spec", lambda name: None)
    options = triton_options(Session(), "coxmoe")
    compiled = torch.compile(build("mixtral", layers=1), backend="coxmoe", options=options)
    with torch.no_grad(), pytest.raises(Exception, match=r"pip install --no-deps triton==3\.7\.1"):
        compiled(input_ids=token_ids(1, 4), use_cache=False)
