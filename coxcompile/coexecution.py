"""Compiling a graph for an accelerator and the CPU together."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from coxcompile.options import Options, OptionsError
from coxcompile.passes import COEXECUTION_PASSES, PASSES, PassContext, lower, lower_coexecution
from coxcompile.passes.plan import hardware_for
from coxcompile.pipeline import run_passes
from coxcompile.runtime.session import Session

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

    Raises:
        OptionsError: options that contradict each other.
    """
    _check(options, accelerator)
    if any(isinstance(value, torch.SymInt) or _is_symbolic(value) for value in example_inputs):
        return _ForEachSize(graph_module, names, options, accelerator)
    return _compile(graph_module, example_inputs, names, options, accelerator)


def _compile(
    graph_module: GraphModule,
    example_inputs: Sequence[Any],
    names: Sequence[str],
    options: Options,
    accelerator: str,
) -> Callable[..., Any]:
    context = PassContext(options, example_inputs, names)
    find_blocks = COEXECUTION_PASSES.index(PASSES[1]) + 1
    found = run_passes(graph_module, context, COEXECUTION_PASSES[:find_blocks])
    if not context.blocks:
        _logger.warning("coxcompile: a graph without an MoE block runs on the CPU alone.")
        return lower(found, context)
    hardware = hardware_for(options)
    assert hardware.gpu is not None
    context.vram = options.vram or hardware.gpu.memory_bytes
    context.throttle = hardware if options.throttle else None
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

    def __call__(self, *inputs: Any) -> Any:
        """Run on the inputs of the graph."""
        sizes = tuple(v.shape if isinstance(v, torch.Tensor) else v for v in inputs)
        if sizes not in self._compiled:
            with torch.no_grad():
                self._compiled[sizes] = _compile(self._graph_module, inputs, *self._arguments)
        return self._compiled[sizes](*inputs)


def _is_symbolic(value: object) -> bool:
    if not isinstance(value, torch.Tensor):
        return False
    return any(isinstance(size, torch.SymInt) for size in value.shape)


def _check(options: Options, accelerator: str) -> None:
    problems = []
    if accelerator == "cuda" and not torch.cuda.is_available():
        problems.append(
            'option "accelerator": got "cuda", but torch finds no CUDA device; use "auto" or "none"'
        )
    if options.throttle and accelerator != "emulated":
        problems.append(
            'option "throttle": got True, but only accelerator="emulated" can be slowed down'
        )
    if options.count_choices is not None:
        problems.append(
            'option "count_choices": choices are counted without an accelerator; use '
            'accelerator="none" for counting'
        )
    if options.pack_linears:
        problems.append(
            'option "pack_linears": weights are packed without an accelerator; use '
            'accelerator="none" or leave it out'
        )
    if problems:
        raise OptionsError(problems)
