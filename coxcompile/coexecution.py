"""Compiling a graph for an accelerator and the CPU together."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch.fx import GraphModule

from coxcompile.ops import CPU_KERNELS
from coxcompile.options import Options, OptionsError
from coxcompile.passes import COEXECUTION_PASSES, PASSES, PassContext, lower, lower_coexecution
from coxcompile.passes.plan import hardware_for
from coxcompile.passes.verify import DeviceMemoryError
from coxcompile.pipeline import run_passes
from coxcompile.planner.plan import Plan
from coxcompile.planner.policies import DoesNotFitError
from coxcompile.runtime.kernels import ipex_obstacle
from coxcompile.runtime.session import Session

PLANS_TRIED = 8
"""Plans of a policy for one graph, each leaving the memory that the one before lacked."""

_logger = logging.getLogger("coxcompile")
_default_session = Session()


def compile_coexecution(
    graph_module: GraphModule,
    example_inputs: Sequence[Any],
    names: Sequence[str],
    options: Options,
    accelerator: str,
) -> Callable[..., Any]:
    """Compile Dynamo's graph for ``accelerator`` ("cuda" or "emulated") and the CPU.

    A plan is made for sizes, so a graph of symbolic sizes is compiled anew for each that it is
    called with. A graph without an MoE block runs on the CPU, and a line says so.
    """
    if _number_places(graph_module) or any(map(_is_symbolic, example_inputs)):
        return _ForEachSize(graph_module, names, options, accelerator)
    return _compile(graph_module, example_inputs, names, options, accelerator)


def _compile(
    graph_module: GraphModule,
    example_inputs: Sequence[Any],
    names: Sequence[str],
    options: Options,
    accelerator: str,
) -> Callable[..., Any]:
    """Policies count a model's memory, verify that of its graph: where the graph needs more, what
    the plan lacked is set aside and the policy asked again.
    """
    set_aside_bytes = 0
    refused: DeviceMemoryError | None = None
    for attempt in range(PLANS_TRIED):
        context = PassContext(options, example_inputs, names, set_aside_bytes=set_aside_bytes)
        try:
            return _compile_once(graph_module, context, accelerator)
        except DeviceMemoryError as error:
            if isinstance(options.plan, Plan):
                raise
            refused = error
            set_aside_bytes += (attempt + 1) * error.missing_bytes
        except DoesNotFitError as error:
            raise error from refused
    assert refused is not None
    raise refused


def _compile_once(
    graph_module: GraphModule, context: PassContext, accelerator: str
) -> Callable[..., Any]:
    options = context.options
    find_blocks = COEXECUTION_PASSES.index(PASSES[1]) + 1
    found = run_passes(graph_module, context, COEXECUTION_PASSES[:find_blocks])
    if not context.blocks:
        _logger.warning("coxcompile: a graph without an MoE block runs on the CPU alone.")
        return lower(found, context)
    hardware = hardware_for(options)
    assert hardware.gpu is not None
    context.vram = options.vram or hardware.gpu.memory_bytes
    context.throttle = hardware if options.throttle else None
    context.gpu_kernels = gpu_kernels_for(options, accelerator)
    scheduled = run_passes(found, context, COEXECUTION_PASSES[find_blocks:])
    session = options.session or _default_session
    device = session.accelerator(accelerator, context.vram, context.throttle)
    started = time.perf_counter()
    executor = lower_coexecution(scheduled, context, device)
    context.seconds["lower_coexecution"] = time.perf_counter() - started
    session.add(executor)
    return lambda *inputs: session.run(executor, inputs)


class _ForEachSize:
    """A graph of symbolic sizes, compiled for each combination of sizes when it is first called."""

    def __init__(
        self,
        graph_module: GraphModule,
        names: Sequence[str],
        options: Options,
        accelerator: str,
    ) -> None:
        self._arguments = (names, options, accelerator)
        self._graph_module = graph_module
        self._compiled: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._number_places = _number_places(graph_module)

    def __call__(self, *inputs: Any) -> Any:
        """Run on the inputs of the graph."""
        sizes = tuple(v.shape if isinstance(v, torch.Tensor) else v for v in inputs)
        numbers = {place: inputs[place].item() for place in self._number_places}
        key = (*sizes, *numbers.values())
        if key not in self._compiled:
            graph_module = _with_numbers(self._graph_module, numbers)
            with torch.no_grad():
                self._compiled[key] = _compile(graph_module, inputs, *self._arguments)
        return self._compiled[key](*inputs)


def _number_places(graph_module: GraphModule) -> list[int]:
    """The inputs that the graph takes a number from: so Dynamo hands over floats, if dynamic."""
    return [
        place
        for place, node in enumerate(graph_module.graph.find_nodes(op="placeholder"))
        if any(user.op == "call_method" and user.target == "item" for user in node.users)
    ]


def _with_numbers(graph_module: GraphModule, numbers: Mapping[int, float]) -> GraphModule:
    """The graph with these numbers as constants; it still has the inputs that they came from."""
    if not numbers:
        return graph_module
    graph = torch.fx.Graph()
    copied: dict[torch.fx.Node, torch.fx.Node] = {}
    graph.output(graph.graph_copy(graph_module.graph, copied))
    originals = graph_module.graph.find_nodes(op="placeholder")
    for place, number in numbers.items():
        for user in list(copied[originals[place]].users):
            if user.op == "call_method" and user.target == "item":
                user.replace_all_uses_with(number)  # type: ignore[arg-type]
                graph.erase_node(user)
    return GraphModule(graph_module, graph)


def _is_symbolic(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return any(isinstance(size, torch.SymInt) for size in value.shape)
    return isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool)


def gpu_kernels_for(options: Options, accelerator: str) -> Literal["triton", "torch"]:
    """What the option "gpu_kernels" means on this accelerator."""
    if options.gpu_kernels != "auto":
        return options.gpu_kernels
    return "triton" if accelerator == "cuda" else "torch"


def refuse_contradictions(options: Options, accelerator: str) -> None:
    """Raise OptionsError, with all problems, where options do not go together.

    Args:
        accelerator: what the option of that name stands for here.
    """
    problems = []
    if accelerator == "cuda" and not torch.cuda.is_available():
        problems.append(
            'option "accelerator": got "cuda", but torch finds no CUDA device; use "auto" or "none"'
        )
    if options.throttle and accelerator != "emulated":
        problems.append(
            'option "throttle": got True, but only accelerator="emulated" can be slowed down'
        )
    if accelerator == "none" and options.gpu_kernels != "auto":
        problems.append(
            f'option "gpu_kernels": got "{options.gpu_kernels}", but without an accelerator there '
            'are none; use accelerator="cuda" or "emulated", or leave it out'
        )
    if gpu_kernels_for(options, accelerator) == "triton" and find_spec("triton") is None:
        problems.append(
            'option "gpu_kernels": "triton" is asked for, but the package triton is not installed; '
            'pip install --no-deps triton==3.7.1, or use gpu_kernels="torch"'
        )
    if accelerator != "none" and options.count_choices is not None:
        problems.append(
            'option "count_choices": choices are counted without an accelerator; use '
            'accelerator="none" for counting'
        )
    if accelerator != "none" and options.pack_linears:
        problems.append(
            'option "pack_linears": weights are packed without an accelerator; use '
            'accelerator="none" or leave it out'
        )
    if options.spread_experts and (reason := _obstacle_to_spreading(options, accelerator)):
        problems.append(f'option "spread_experts": {reason}')
    if options.cpu_kernels == "ipex":
        problems += _ipex_problems(accelerator)
    if problems:
        raise OptionsError(problems)


def _obstacle_to_spreading(options: Options, accelerator: str) -> str | None:
    if accelerator != "none":
        return (
            "experts are spread over NUMA nodes without an accelerator; use "
            'accelerator="none" or leave it out'
        )
    if options.cpu_kernels == "ipex":
        return (
            'cpu_kernels="ipex" reads packed copies of the weights; use "auto", or leave '
            "spread_experts out"
        )
    if CPU_KERNELS != "native":
        return (
            "the C++ kernels, which move the pages, were not built; install a C++ compiler and "
            "coxcompile again, or leave it out"
        )
    return None


def _ipex_problems(accelerator: str) -> list[str]:
    asked = 'option "cpu_kernels": got "ipex"'
    problems = []
    if accelerator != "none":
        problems.append(
            f"{asked}, which does not divide experts with an accelerator, but there is one: "
            f'{accelerator}; use accelerator="none" or cpu_kernels="auto"'
        )
    if (obstacle := ipex_obstacle()) is not None:
        problems.append(f'{asked}, but {obstacle.reason}; {obstacle.remedy}, or use "auto"')
    return problems
