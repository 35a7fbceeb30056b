"""The option spread_experts on a machine of one NUMA node; tests/numa has those of two."""

import logging
from typing import Any

import pytest
import torch

import coxcompile.coexecution
from coxcompile.coexecution import refuse_contradictions
from coxcompile.options import Options, OptionsError
from coxcompile.passes.spread_experts import spread_experts
from tests.graph_cases import family_graph


@pytest.fixture
def spread(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], int]]:
    """The shapes and projections that are spread over two nodes, which there are not."""
    calls = []

    def spread_over_nodes(weight: torch.Tensor, projections: int) -> list[int]:
        calls.append((tuple(weight.shape), projections))
        return [weight.nbytes // 2, weight.nbytes // 2]

    monkeypatch.setattr(torch.ops.coxmoe, "memory_nodes", lambda: [0, 1])
    monkeypatch.setattr(torch.ops.coxmoe, "spread_over_nodes", spread_over_nodes)
    return calls


def run(family: str, **options: Any) -> None:
    graph = family_graph(family, "forward", torch.float32)
    context = graph.context
    before = str(graph.graph_module.graph)
    usual = context.options
    context.options = Options(**options)
    try:
        assert spread_experts(graph.graph_module, context) is graph.graph_module
    finally:
        context.options = usual
    assert str(graph.graph_module.graph) == before


def test_each_weight_with_its_projections(spread: list[tuple[tuple[int, ...], int]]) -> None:
    run("mixtral", spread_experts=True)
    assert len(spread) == 4
    for (gate_up, of_gate_up), (down, of_down) in zip(spread[::2], spread[1::2], strict=True):
        experts, hidden, intermediate = down
        assert gate_up == (experts, 2 * intermediate, hidden)
        assert (of_gate_up, of_down) == (2 * experts, experts)


def test_transposed_weights_stay(spread: list[tuple[tuple[int, ...], int]]) -> None:
    run("gpt_oss", spread_experts=True)
    assert not spread


def test_without_the_option_all_stay(spread: list[tuple[tuple[int, ...], int]]) -> None:
    run("mixtral")
    assert not spread


def test_on_one_node_all_stay(
    spread: list[tuple[tuple[int, ...], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.coxmoe, "memory_nodes", lambda: [0])
    run("mixtral", spread_experts=True)
    assert not spread


@pytest.mark.usefixtures("spread")
def test_pages_that_stayed_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.ops.coxmoe, "spread_over_nodes", lambda weight, _: [weight.nbytes, 0])
    run("mixtral", spread_experts=True)
    assert not caplog.records
    monkeypatch.setattr(
        torch.ops.coxmoe, "spread_over_nodes", lambda weight, _: [weight.nbytes // 2, 0]
    )
    run("mixtral", spread_experts=True)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "only 0.00 of 0.00 GB of the experts' weights lie" in record.getMessage()


def test_the_nodes_here_and_bytes_on_them() -> None:
    weight = torch.randn(300, 512)
    before = weight.clone()
    nodes = torch.ops.coxmoe.memory_nodes()
    placed = torch.ops.coxmoe.spread_over_nodes(weight, 2)
    assert len(placed) == len(nodes)
    assert 0.9 * weight.nbytes < sum(placed) <= weight.nbytes
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    ("weight", "projections", "message"),
    [
        (torch.zeros(8, 4).t(), 1, "must be on the CPU and contiguous"),
        (torch.zeros(8), 1, r"weight has shape \[8\], but must be"),
        (torch.zeros(8, 4), 3, "projections is 3, but must divide weight's 8 rows"),
        (torch.zeros(8, 4), 0, "projections is 0, but must divide weight's 8 rows"),
    ],
)
def test_bad_arguments(weight: torch.Tensor, projections: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torch.ops.coxmoe.spread_over_nodes(weight, projections)


@pytest.mark.parametrize(
    ("accelerator", "options", "reason"),
    [
        ("emulated", {}, 'use accelerator="none" or leave it out'),
        ("none", {"cpu_kernels": "ipex"}, "reads packed copies of the weights"),
    ],
)
def test_contradictions(accelerator: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(OptionsError) as raised:
        refuse_contradictions(Options(spread_experts=True, **options), accelerator)
    (problem,) = [p for p in raised.value.problems if p.startswith('option "spread_experts": ')]
    assert reason in problem


def test_without_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coxcompile.coexecution, "CPU_KERNELS", "plain")
    with pytest.raises(OptionsError, match="the C\\+\\+ kernels, which move the pages"):
        refuse_contradictions(Options(spread_experts=True), "none")
