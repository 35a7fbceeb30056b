"""The graphs of accelerator="cuda", checked with fake tensors: there need be no GPU.

Of every family, in prefill and decode and under several plans: each node of the scheduled graph
finds all its tensors on the side on which it runs.
"""

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx import Graph as FxGraph
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from coxcompile.coexecution import compile_coexecution
from coxcompile.inspect.names import input_names
from coxcompile.options import Options
from coxcompile.passes.retarget import retarget
from coxcompile.planner.policies import NAMED
from coxcompile.runtime import emulated, instructions
from coxcompile.runtime.accelerator import Accelerator, CudaAccelerator
from coxcompile.runtime.instructions import INSTRUCTIONS
from coxcompile.runtime.session import Session
from tests.graph_cases import Graph, model_of
from tests.models import FAMILIES
from tests.pass_cases import inside, partitions, planned

pytest.importorskip("coxcompile._emulated", reason="it has the CUDA guard for fake tensors")

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
PLANS: list[dict[str, Any]] = [
    {"devices": "gpu/cpu/gpu"},
    {"devices": "gpu/gpu/gpu", "kv_gpu_share": 0.5, "resident_share": 0.5, "micro_batch": 2},
    {
        "devices": "gpu/cpu/cpu",
        "experts": (1, 3),
        "coalesced": False,
        "staging_experts": 3,
        "fetches_overlap": False,
    },
]


@pytest.fixture(autouse=True, scope="module")
def _fake_cuda() -> None:
    if not torch.cuda.is_available():
        emulated.register_fake_cuda_guard()


def side_of(graph: Graph, node: Node) -> str:
    """Where the values of a node of the scheduled graph lie, by what the node means."""
    if node.op in ("placeholder", "get_attr"):
        return "cpu"
    if node.op == "call_module":
        inner: GraphModule = getattr(graph.graph_module, str(node.target))
        results = [result.meta["val"] for result in inner.graph.output_node().args[0]]  # type: ignore[union-attr]
        (side,) = {value.device.type for value in results}
        return side
    if node.target in (instructions.transfer_start, instructions.transfer_rows_start):
        return "cuda" if node.args[1] == "gpu" else "cpu"
    if node.target in (instructions.stage_expert, instructions.stage_weights):
        return "cpu"
    if node.target is instructions.run_cpu_experts:
        return "cpu"
    if node.target in INSTRUCTIONS:
        return "cuda"
    (source,) = node.all_input_nodes  # a result of a partition, or a slice of an input
    return side_of(graph, source)


ON_THE_HOST = (
    *(instructions.device_weight, instructions.device_cache, instructions.run_cpu_experts),
    *(instructions.stage_expert, instructions.stage_weights),
    *(instructions.fetch_expert, instructions.fetch_weights),
)


def expected_side(node: Node) -> str:
    """Where a node of the scheduled graph has to find what it reads."""
    if node.op == "call_module":
        return "cuda" if node.meta["device"] == "gpu" else "cpu"
    if node.target in (instructions.transfer_start, instructions.transfer_rows_start):
        return "cpu" if node.args[1] == "gpu" else "cuda"
    if node.op == "output" or node.target in ON_THE_HOST:
        return "cpu"
    return "cuda"


def assert_one_side(graph: Graph) -> None:
    for node in graph.graph_module.graph.nodes:
        is_view = node.op == "call_function" and node.target not in INSTRUCTIONS
        if node.op in ("placeholder", "get_attr") or is_view:
            continue
        for source in node.all_input_nodes:
            if isinstance(source.meta["val"], Tensor | tuple) and source.target not in (
                instructions.fetch_expert,
            ):
                assert side_of(graph, source) == expected_side(node), (source, node)


def assert_on_device(inner: GraphModule, device: str) -> None:
    """All values of a partition, and whatever its operators are told of devices."""
    for node in inner.graph.nodes:
        if node.op == "output":
            continue
        for value in tree_leaves(node.meta["val"]):
            if isinstance(value, Tensor):
                assert value.device.type == device, node
        for argument in tree_leaves([node.args, node.kwargs]):
            if isinstance(argument, torch.device):
                assert argument.type == device, node


@pytest.mark.parametrize("call", ["prefill", "decode"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_node_finds_its_tensors_on_its_side(family: str, call: str) -> None:
    for plan in PLANS[:2] if call == "prefill" else PLANS[1:]:
        graph = planned("verify", family, call, dtype=torch.bfloat16, **plan)
        on_gpu = partitions(graph, "gpu")
        assert on_gpu
        layouts = {node: [layout(v) for v in node.meta["val"]] for node in on_gpu}
        for node in on_gpu:
            inner = getattr(graph.graph_module, str(node.target))
            retarget(inner, CUDA)
            assert_on_device(inner, "cuda")
            results = inner.graph.output_node().args[0]
            assert [layout(result.meta["val"]) for result in results] == layouts[node]
        for node in partitions(graph, "cpu"):
            assert_on_device(getattr(graph.graph_module, str(node.target)), "cpu")
        assert_one_side(graph)


def layout(value: Tensor) -> object:
    """Shape, dtype, and the strides of dimensions with more than one element."""
    strides = [stride for stride, size in zip(value.stride(), value.shape, strict=True) if size > 1]
    return value.shape, value.dtype, strides


def test_these_checks_find_a_transfer_that_is_missing() -> None:
    graph = planned("verify", dtype=torch.bfloat16)
    for node in partitions(graph, "gpu"):
        retarget(getattr(graph.graph_module, str(node.target)), CUDA)
    assert_one_side(graph)
    target = instructions.transfer_start
    for start in graph.graph_module.graph.find_nodes(op="call_function", target=target):
        for reader in list(start.users):
            if reader.target is not instructions.free:
                reader.replace_input_with(start, start.args[0])
                with pytest.raises(AssertionError):
                    assert_one_side(graph)
                reader.replace_input_with(start.args[0], start)


def partition_of(*operators: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> GraphModule:
    """A partition traced on the CPU: operators, each of "x", the result before, if it takes it."""
    graph = FxGraph()
    mode = FakeTensorMode()
    value = graph.placeholder("x")
    value.meta["val"] = mode.from_tensor(torch.zeros(4, 8))
    for target, arguments, keywords in operators:
        taken = tuple(value if argument == "x" else argument for argument in arguments)
        value = graph.call_function(target, taken, keywords)
        values = torch.fx.node.map_arg(taken, lambda source: source.meta["val"])
        with mode:
            value.meta["val"] = target(*values, **keywords)
    graph.output((value,))
    return GraphModule(torch.nn.Module(), graph)


CPU = torch.device("cpu")


def test_factories_and_casts_follow() -> None:
    inner = partition_of(
        (aten._to_copy.default, ("x",), {"dtype": torch.float64, "device": CPU}),
        (aten.full_like.default, ("x", 2), {"device": CPU}),
        (aten.arange.default, (8,), {"device": CPU}),
    )
    assert_on_device(inner, "cpu")
    retarget(inner, CUDA)
    assert_on_device(inner, "cuda")
    assert "cpu" not in inner.code


def test_a_factory_that_names_no_device_is_found() -> None:
    inner = partition_of(
        (aten.arange.default, (8,), {}),
        (aten.neg.default, ("x",), {}),
    )
    retarget(inner, CUDA)
    with pytest.raises(AssertionError):
        assert_on_device(inner, "cuda")


def test_mixed_devices_raise() -> None:
    inner = partition_of((aten.arange.default, (8,), {}), (aten.neg.default, ("x",), {}))
    (x,) = inner.graph.find_nodes(op="placeholder")
    result = inner.graph.output_node().all_input_nodes[0]
    with inner.graph.inserting_after(result):
        total = inner.graph.call_function(aten.add.Tensor, (x, result))
    total.meta["val"] = x.meta["val"]
    inner.graph.output_node().args = ((total,),)
    with pytest.raises(RuntimeError, match="at least two devices, cuda:0 and cpu"):
        retarget(inner, CUDA)


def test_results_keep_the_strides_that_others_were_told() -> None:
    """Where an operator leaves its result in other strides than on the CPU."""
    inner = partition_of((aten.permute.default, ("x", [1, 0]), {}), (aten.neg.default, ("x",), {}))
    (x,) = inner.graph.find_nodes(op="placeholder")
    assert inner.graph.output_node().args[0][0].meta["val"].stride() == (1, 8)
    x.next.args = (x, [0, 1])
    inner.graph.output_node().args[0][0].meta["val"] = x.meta["val"].t().contiguous().t()
    told = inner.graph.output_node().args[0][0].meta["val"].stride()
    retarget(inner, CUDA)
    assert inner.graph.output_node().args[0][0].meta["val"].stride() == told == (1, 4)
    values = torch.randn(4, 8)
    assert torch.equal(inner(values)[0], -values)


def test_views_become_reshapes() -> None:
    inner = partition_of((aten.view.default, ("x", [32]), {}))
    retarget(inner, CUDA)
    (result,) = inner.graph.output_node().all_input_nodes
    assert result.target is aten.reshape.default


def test_retargeting_to_the_cpu_changes_nothing() -> None:
    inner = partition_of((aten.full_like.default, ("x", 2), {"device": CPU}))
    before = inner.code
    retarget(inner, CPU)
    assert inner.code == before
    assert_on_device(inner, "cpu")


class FakeCuda(CudaAccelerator):
    """A GPU to compile for."""

    def __init__(self) -> None:
        self.device = self.kernel_device = CUDA


class FakeSession(Session):
    """Compiles for a GPU that is not there."""

    def accelerator(self, name: str, vram: int, throttle: object) -> Accelerator:
        assert (name, throttle) == ("cuda", None)
        return FakeCuda()


@pytest.fixture(name="compiled")
def compiled_fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[GraphModule]]:
    """What would go to Inductor from now on."""
    modules: list[GraphModule] = []

    def keep(inner: GraphModule) -> Any:
        modules.append(inner)
        return inner.forward

    # By this name as an attribute, the package has the pass, not its module.
    monkeypatch.setattr(
        sys.modules["coxcompile.passes.lower_coexecution"], "compile_partition", keep
    )
    torch._dynamo.reset()
    yield modules
    torch._dynamo.reset()


@pytest.mark.parametrize("policy", [name for name in NAMED if name != "cpu-only"])
def test_up_to_inductor_under_every_policy(policy: str, compiled: list[GraphModule]) -> None:
    """All that accelerator="cuda" does before Inductor and the first allocation on the GPU."""
    session = FakeSession()

    def backend(graph_module: GraphModule, inputs: list[Any]) -> Any:
        options = Options.from_user(
            {
                "accelerator": "cuda",
                "hardware": "rtx6000ada-8452y",
                "vram": "8GiB",
                "plan": policy,
                "session": session,
            }
        )
        names = input_names(graph_module)
        compile_coexecution(graph_module, inputs, names, options, "cuda")
        return graph_module.forward

    model = model_of("qwen3_moe")
    ids = torch.zeros(4, 8, dtype=torch.int64)
    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True)(ids, use_cache=False)
    (executor,) = session.executors
    assert compiled
    sides = set()
    for inner in compiled:
        (side,) = {result.meta["val"].device.type for result in inner.graph.output_node().args[0]}
        assert_on_device(inner, side)
        sides.add(side)
    assert sides == {"cuda", "cpu"}
    graph = Graph(executor.graph_module, None)  # type: ignore[arg-type]
    for node in partitions(graph):
        assert inside(graph, node)
        assert_on_device(
            getattr(executor.graph_module, str(node.target)),
            "cuda" if node.meta["device"] == "gpu" else "cpu",
        )
    assert_one_side(graph)
