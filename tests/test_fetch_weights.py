"""Weights that VRAM does not hold: fetched once a layer and block, and no others."""

import pytest
from torch.fx import Node

from coxcompile.passes.context import parameters_of
from coxcompile.passes.devices import device_of
from coxcompile.runtime import instructions
from coxcompile.runtime.buffers import bytes_of
from tests.graph_cases import Graph
from tests.pass_cases import added, calls, planned
from tests.reference_run import assert_same_results


def fetched(graph: Graph) -> dict[int, list[Node]]:
    """For each layer the parameters that are staged, over all blocks."""
    layers: dict[int, list[Node]] = {}
    for staged in calls(graph, instructions.stage_weights):
        layers.setdefault(staged.meta["layer"], []).extend(staged.args[1:])  # type: ignore[arg-type]
    return layers


def of_one_layer(graph: Graph) -> dict[int, list[Node]]:
    """For each layer the parameters that only its nodes on the accelerator read."""
    layers: dict[int, list[Node]] = {}
    for parameter in parameters_of(graph.graph_module, graph.context):
        if parameter.users and all(device_of(user) == "gpu" for user in parameter.users):
            (layer, *others) = {user.meta.get("layer") for user in parameter.users}
            if layer is not None and not others:
                layers.setdefault(layer, []).append(parameter)
    return layers


def size(parameters: list[Node]) -> int:
    return sum(bytes_of(parameter.meta["val"]) for parameter in parameters)


@pytest.mark.parametrize("family", ["qwen3_moe", "glm4_moe"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9])
def test_about_the_planned_share_is_fetched(family: str, share: float) -> None:
    candidates = of_one_layer(planned("keep_caches", family))
    graph = planned("fetch_weights", family, resident_share=share)
    for layer, parameters in fetched(graph).items():
        names = {parameter.name for parameter in parameters}
        assert names <= {parameter.name for parameter in candidates[layer]}
        missing = (1 - share) * size(candidates[layer]) - size(parameters)
        # No parameter left out would bring the sum closer, nor would leaving one away.
        sizes = {p.name: bytes_of(p.meta["val"]) for p in candidates[layer]}
        for name, parameter_bytes in sizes.items():
            change = missing + parameter_bytes if name in names else missing - parameter_bytes
            assert abs(change) >= abs(missing)
    if share == 0:
        assert [size(p) for p in fetched(graph).values()] == [
            size(candidates[layer]) for layer in sorted(candidates)
        ]


def test_operators_before_and_after() -> None:
    before, after = planned("keep_caches"), planned("fetch_weights", resident_share=0.0)
    change = {getattr(t, "__name__", t): number for t, number in added(before, after).items()}
    parameters = sum(map(len, fetched(after).values()))
    assert parameters == sum(map(len, of_one_layer(before).values()))
    assert change == {"stage_weights": 2, "fetch_weights": 2, "getitem": parameters}
    for arrived in calls(after, instructions.fetch_weights):
        (staged,) = arrived.all_input_nodes
        assert staged.target is instructions.stage_weights
        assert [bytes_of(v) for v in arrived.meta["val"]] == [
            bytes_of(p.meta["val"])
            for p in staged.args[1:]  # type: ignore[union-attr]
        ]
        assert not {"micro_batch"} & {*arrived.meta, *staged.meta}


@pytest.mark.parametrize(
    "plan",
    [
        {"resident_share": 0.0},
        {"resident_share": 0.4, "micro_batch": 1, "block": 2},
        {"resident_share": 0.0, "devices": "gpu/gpu/gpu", "coalesced": False, "experts": (0, 2)},
    ],
    ids=str,
)
def test_results_stay(plan: dict[str, object]) -> None:
    assert_same_results(
        planned("fetch_weights", **plan),  # type: ignore[arg-type]
        planned("keep_caches", **plan),  # type: ignore[arg-type]
    )


def test_layers_take_turns_with_two_buffers_or_wait_for_one() -> None:
    def buffers(**plan: object) -> list[object]:
        graph = planned("fetch_weights", resident_share=0.0, **plan)  # type: ignore[arg-type]
        return [node.args[1] for node in calls(graph, instructions.fetch_weights)]

    assert buffers() == [0, 1]
    assert buffers(coalesced=False, fetches_overlap=False) == [0, 0]


def test_a_fetch_for_each_block_serves_all_its_micro_batches() -> None:
    graph = planned("fetch_weights", resident_share=0.0, micro_batch=1, block=2)
    fetches = calls(graph, instructions.fetch_weights)
    assert [(node.meta["layer"], node.meta["block"]) for node in fetches] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    for node in fetches:
        readers = {user for part in node.users for user in part.users}
        assert {reader.meta["block"] for reader in readers} == {node.meta["block"]}
        assert len({reader.meta["micro_batch"] for reader in readers}) == 2


@pytest.mark.parametrize("devices", ["gpu/cpu/gpu", "cpu/cpu/gpu", "gpu/gpu/gpu"])
def test_other_parameters_are_left_alone(devices: str) -> None:
    before = planned("keep_caches", devices=devices)
    after = planned("fetch_weights", devices=devices, resident_share=0.0)
    moved = {p.name for parameters in fetched(after).values() for p in parameters}
    others = {
        node.name: node
        for node in parameters_of(before.graph_module, before.context)
        if node.name not in moved
    }
    experts = {name for layer in after.context.expert_layers for name in layer.inputs}
    assert not moved & experts
    for node in others.values():
        read_on_the_cpu = any(device_of(user) == "cpu" for user in node.users)
        of_no_layer = any("layer" not in user.meta for user in node.users)
        assert read_on_the_cpu or of_no_layer, node
    assert any(u.meta.get("operation") == "head" for n in others.values() for u in n.users)


@pytest.mark.parametrize("plan", [{"resident_share": 1.0}, {"devices": "cpu/cpu/cpu"}], ids=str)
def test_nothing_to_fetch(plan: dict[str, object]) -> None:
    plan = {"experts": (0, 0), "resident_share": 0.0, **plan}
    before = planned("keep_caches", **plan)  # type: ignore[arg-type]
    after = planned("fetch_weights", **plan)  # type: ignore[arg-type]
    assert after.graph_module.code == before.graph_module.code
