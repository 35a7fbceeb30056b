"""The option cpu_kernels="ipex" where its extension is missing or does not fit, and its pass.

What the extension computes is tested in tests/ipex, by `make test-ipex`.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.fx import Graph, GraphModule, Node

from coxcompile.coexecution import refuse_contradictions
from coxcompile.options import Options, OptionsError
from coxcompile.passes import PassContext
from coxcompile.passes.use_ipex_experts import use_ipex_experts
from coxcompile.runtime.kernels import ipex_obstacle
from tests.models import build

PACKAGE = "intel_extension_for_pytorch"
Install = Callable[[str], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    """Install a distribution of that version whose package ends the process when imported."""

    def install_version(version: str) -> None:
        information = tmp_path / f"{PACKAGE}-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {version}\n"
        )
        package = tmp_path / PACKAGE
        package.mkdir()
        (package / "__init__.py").write_text("raise SystemExit('imported')\n")
        monkeypatch.syspath_prepend(tmp_path)

    return install_version


@pytest.fixture
def _torch_2_8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.8.0+cu128")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)


def problems_of(accelerator: str = "none", **options: Any) -> tuple[str, ...]:
    with pytest.raises(OptionsError) as raised:
        refuse_contradictions(Options(cpu_kernels="ipex", **options), accelerator)
    return raised.value.problems


def test_without_the_extension_nothing_is_compiled(tmp_path: Path) -> None:
    model = build("qwen3_moe")
    options = {"accelerator": "none", "cpu_kernels": "ipex", "dump": tmp_path / "graphs"}
    compiled = torch.compile(model, backend="coxmoe", options=options)
    with torch.no_grad(), pytest.raises(BackendCompilerFailed) as raised:
        compiled(input_ids=torch.zeros(1, 4, dtype=torch.int64))
    error = raised.value.inner_exception
    assert isinstance(error, OptionsError)
    assert "it takes torch 2.8 and intel_extension_for_pytorch 2.8" in str(error)
    assert f"here are torch {torch.__version__} and no {PACKAGE}" in str(error)
    assert "install both at 2.8" in str(error)
    assert not (tmp_path / "graphs").exists()


@pytest.mark.parametrize("version", ["2.8.0", "2.8.0+cpu", "2.7.0", "2.13.0"])
def test_an_extension_beside_another_torch_is_not_imported(install: Install, version: str) -> None:
    install(version)
    (problem,) = problems_of()
    assert f"here are torch {torch.__version__} and {PACKAGE} {version}" in problem
    assert PACKAGE not in sys.modules


@pytest.mark.usefixtures("_torch_2_8")
@pytest.mark.parametrize("version", ["2.7.0", "2.80.0", "3.8.0"])
def test_another_extension_beside_torch_2_8(install: Install, version: str) -> None:
    install(version)
    (problem,) = problems_of()
    assert f"here are torch 2.8.0+cu128 and {PACKAGE} {version}" in problem


@pytest.mark.usefixtures("_torch_2_8")
def test_both_at_2_8_on_a_processor_with_bfloat16(install: Install) -> None:
    install("2.8.0+cpu")
    assert ipex_obstacle() is None
    refuse_contradictions(Options(cpu_kernels="ipex"), "none")
    assert PACKAGE not in sys.modules


@pytest.mark.usefixtures("_torch_2_8")
def test_a_processor_without_bfloat16(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("2.8.0")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    (problem,) = problems_of()
    assert "take AVX512-BF16, which this processor lacks" in problem


@pytest.mark.usefixtures("_torch_2_8")
def test_a_processor_held_below_bfloat16(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("2.8.0")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx512")
    (problem,) = problems_of()
    assert "ATEN_CPU_CAPABILITY=avx512 keeps them below" in problem


@pytest.mark.usefixtures("_torch_2_8")
@pytest.mark.parametrize("accelerator", ["cuda", "emulated"])
def test_experts_are_not_divided(
    install: Install, accelerator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("2.8.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (problem,) = problems_of(accelerator, gpu_kernels="torch")
    assert f"there is one: {accelerator}" in problem
    assert 'use accelerator="none" or cpu_kernels="auto"' in problem


def graph_of(*computed: str, **arguments: Any) -> tuple[GraphModule, PassContext]:
    """One block. ``arguments``: its keyword arguments, or inputs in place of the usual ones;
    ``computed``: the inputs that the graph computes.
    """
    inputs: dict[str, Tensor | None] = {
        "hidden_states": torch.zeros(6, 64, dtype=torch.bfloat16),
        "expert_ids": torch.zeros(6, 2, dtype=torch.int64),
        "routing_weights": torch.zeros(6, 2),
        "gate_up": nn.Parameter(torch.zeros(8, 192, 64, dtype=torch.bfloat16)),
        "down": nn.Parameter(torch.zeros(8, 64, 96, dtype=torch.bfloat16)),
        "gate_up_bias": None,
        "down_bias": None,
    }
    keywords = {"activation": "silu", "gate_layout": "concatenated", "transposed": False}
    keywords |= {name: value for name, value in arguments.items() if name not in inputs}
    inputs |= {name: value for name, value in arguments.items() if name in inputs}
    graph = Graph()
    given = {name: value for name, value in inputs.items() if value is not None}
    nodes: dict[str, Node] = {}
    for name, value in given.items():
        nodes[name] = graph.placeholder(name)
        nodes[name].meta = {"val": value, "path": f"model.layers.3.experts.{name}"}
    for name in computed:
        meta = dict(nodes[name].meta)
        nodes[name] = graph.call_function(torch.ops.aten.neg.default, (nodes[name],))
        nodes[name].meta = meta
    operator = torch.ops.coxmoe.coalesced_experts.default
    block = graph.call_function(operator, tuple(map(nodes.get, inputs)), keywords)
    block.meta["val"] = given["hidden_states"]
    graph.output((block,))
    options = Options(cpu_kernels="ipex")
    return GraphModule(nn.Module(), graph), PassContext(options, list(given.values()), list(given))


def targets(graph_module: GraphModule) -> list[str]:
    nodes = graph_module.graph.nodes
    return [str(node.target) for node in nodes if node.op == "call_function"]


def test_a_block_becomes_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    module = importlib.import_module("coxcompile.passes.use_ipex_experts")
    monkeypatch.setattr(module, "load_ipex", lambda: loaded.append(True))
    graph_module, context = graph_of()
    rewritten = use_ipex_experts(graph_module, context)
    rewritten.graph.lint()
    assert targets(rewritten) == ["coxmoe.ipex_experts.default"]
    (experts,) = rewritten.graph.find_nodes(
        op="call_function", target=torch.ops.coxmoe.ipex_experts.default
    )
    names = [argument.name for argument in experts.args]
    assert names == ["hidden_states", "expert_ids", "routing_weights", "gate_up", "down"]
    assert experts.meta["val"].shape == (6, 64)
    assert loaded == [True]


def test_without_the_option_a_block_stays() -> None:
    graph_module, context = graph_of()
    context.options = Options()
    assert targets(use_ipex_experts(graph_module, context)) == ["coxmoe.coalesced_experts.default"]


def large(experts: int) -> nn.Parameter:
    """Of 2^20 elements an expert, which take no memory."""
    weight = torch.zeros(experts, 2048, 512, dtype=torch.bfloat16, device="meta")
    return nn.Parameter(weight, requires_grad=False)


def made_in_inference_mode() -> nn.Parameter:
    with torch.inference_mode():
        return nn.Parameter(torch.zeros(8, 64, 96, dtype=torch.bfloat16), requires_grad=False)


@pytest.mark.parametrize(
    ("computed", "arguments", "reason"),
    [
        ((), {"hidden_states": torch.zeros(6, 64)}, "computes in bfloat16, and this model in flo"),
        ((), {"activation": "gelu"}, 'its activation is "silu", and this model\'s is "gelu"'),
        ((), {"gate_layout": "interleaved"}, "and these are interleaved"),
        ((), {"transposed": True}, "and these are transposed"),
        ((), {"gate_up_bias": torch.zeros(8, 192)}, "adds no biases"),
        ((), {"down": nn.Parameter(torch.zeros(8, 64, 40))}, "multiples of 32, not 40"),
        (("down",), {}, "these experts' weights are computed"),
        ((), {"gate_up": torch.zeros(8, 192, 64)}, "these experts' weights are computed"),
        ((), {"down": made_in_inference_mode()}, "made in inference mode"),
        ((), {"down": nn.Parameter(torch.zeros(64, 8, 96).transpose(0, 1))}, "takes contiguous"),
        ((), {"gate_up": large(2048)}, "it counts 2147483648 elements"),
    ],
)
def test_what_the_operator_cannot_compute_is_named(
    computed: tuple[str, ...], arguments: dict[str, Any], reason: str
) -> None:
    graph_module, context = graph_of(*computed, **arguments)
    before = targets(graph_module)
    with pytest.raises(OptionsError) as raised:
        use_ipex_experts(graph_module, context)
    (problem,) = raised.value.problems
    assert problem.startswith('option "cpu_kernels": got "ipex", but ')
    assert reason in problem
    assert "(model.layers.3.experts)" in problem
    assert targets(graph_module) == before


def test_a_layer_may_have_almost_as_many_elements_as_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = importlib.import_module("coxcompile.passes.use_ipex_experts")
    monkeypatch.setattr(module, "load_ipex", lambda: None)
    graph_module, context = graph_of(gate_up=large(2047))
    assert targets(use_ipex_experts(graph_module, context)) == ["coxmoe.ipex_experts.default"]
