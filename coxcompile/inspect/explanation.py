"""``coxcompile.explain``: what the backend would do with a model, without running it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._dynamo.convert_frame import CaptureOutput, fullgraph_capture
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import get_metrics_context
from torch._guards import TracingContext, tracing

from coxcompile.inspect.names import input_names
from coxcompile.options import Options
from coxcompile.passes import MoEBlock, PassContext, SkippedBlock


@dataclass(frozen=True)
class Explanation:
    """What was found in a model's graph.

    Attributes:
        blocks: the MoE blocks that become one op each.
        skipped: what resembles an MoE block and is left alone, or why there is no graph.
        graphs: name of each pass, with the readable graph it left.
    """

    blocks: tuple[MoEBlock, ...] = ()
    skipped: tuple[SkippedBlock, ...] = ()
    graphs: dict[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        if not self.blocks and not self.skipped:
            return "no MoE block found"
        lines = [f"{len(self.blocks)} MoE block(s) → coxmoe::coalesced_experts"]
        lines += [f"  {block}" for block in self.blocks]
        if self.skipped:
            lines.append(f"{len(self.skipped)} left alone")
            lines += [f"  {skipped}" for skipped in self.skipped]
        return "\n".join(lines)


def explain(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Trace ``model(*args, **kwargs)`` and run every pass before lowering on its graph.

    Nothing is executed: parameters and inputs are only looked at, so a large model costs a trace.
    If the model does not capture as one graph, ``skipped`` holds Dynamo's reason.
    """
    # Imported here: the backend imports this package for its dumps.
    from coxcompile.passes import PASSES
    from coxcompile.pipeline import run_passes

    model = getattr(model, "_orig_mod", model)
    try:
        with torch.no_grad(), get_metrics_context():
            captured = fullgraph_capture(model, args, kwargs)
    except TorchDynamoException as error:
        reason = f"the model does not capture as one graph: {str(error).strip().splitlines()[0]}"
        return Explanation(skipped=(SkippedBlock(type(model).__name__, "graph break", reason),))
    context = _context(captured)
    if context is None:
        return Explanation()
    backend_input = captured.backend_input
    assert backend_input is not None
    tracing_context = TracingContext(backend_input.fake_mode)
    tracing_context.tensor_to_context = backend_input.tensor_to_context
    with torch.no_grad(), tracing(tracing_context):
        run_passes(backend_input.graph_module, context, PASSES)
    return Explanation(tuple(context.blocks), tuple(context.skipped), context.graphs)


def _context(captured: CaptureOutput) -> PassContext | None:
    backend_input = captured.backend_input
    if backend_input is None:
        return None
    return PassContext(
        Options.from_user(None),
        backend_input.example_inputs,
        input_names(backend_input.graph_module),
    )
