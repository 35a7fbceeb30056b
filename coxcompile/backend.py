"""``torch.compile(model, backend="coxmoe")``: the pipeline, top to bottom."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from coxcompile.coexecution import compile_coexecution, refuse_contradictions
from coxcompile.expert_thresholds import apply_calibrated_thresholds
from coxcompile.inspect.names import input_names
from coxcompile.options import Options
from coxcompile.passes import PASSES, PassContext, lower
from coxcompile.passes.plan import accelerator_name
from coxcompile.pipeline import run_passes

Compiled = Callable[..., Any]


class TrainingNotSupportedError(RuntimeError):
    """The graph needs gradients; this backend compiles for inference."""


def coxmoe(
    graph_module: GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, object] | None = None,
    **_other_callers_keywords: object,
) -> Compiled:
    """The backend that torch.compile finds by its entry point.

    Args:
        graph_module: Dynamo's graph.
        example_inputs: its inputs, the model's own Parameters among them.
        options: see :class:`coxcompile.options.Options`.

    ``mode=`` and other keywords that callers of Inductor pass (transformers' ``generate`` does) are
    accepted and have no effect.

    Raises:
        OptionsError: an option is unknown or wrong, or options contradict each other.
        RecordError: this machine's calibration file is damaged.
        TrainingNotSupportedError: gradients are enabled and an input requires them.
    """
    chosen = Options.from_user(options)
    accelerator = accelerator_name(chosen)
    refuse_contradictions(chosen, accelerator)
    names = input_names(graph_module)
    if (trained := _first_requiring_gradient(example_inputs)) is not None:
        return _without_compiling(graph_module, chosen, names[trained])
    apply_calibrated_thresholds()
    if accelerator != "none":
        return compile_coexecution(graph_module, example_inputs, names, chosen, accelerator)
    context = PassContext(chosen, example_inputs, names)
    rewritten = run_passes(graph_module, context, PASSES)
    started = time.perf_counter()
    compiled = lower(rewritten, context)
    context.seconds["lower"] = time.perf_counter() - started
    return compiled


def _first_requiring_gradient(example_inputs: Sequence[Any]) -> int | None:
    if not torch.is_grad_enabled():
        return None
    return next(
        (
            i
            for i, value in enumerate(example_inputs)
            if isinstance(value, torch.Tensor) and value.requires_grad
        ),
        None,
    )


def _without_compiling(graph_module: GraphModule, options: Options, name: str) -> Compiled:
    reason = f"gradients are enabled and {name or 'an input'} requires them"
    if options.training == "error":
        raise TrainingNotSupportedError(
            f'backend="coxmoe" compiles for inference, but {reason}. Call the model under '
            "torch.no_grad() or torch.inference_mode(); or pass "
            'options={"training": "eager"} to run such graphs uncompiled.'
        )
    warnings.warn(f"coxmoe runs this graph uncompiled: {reason}.", stacklevel=2)
    return graph_module.forward
