"""Graphs of the tiny families as co-execution's passes get them, annotated by find_layers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch._dynamo.convert_frame import fullgraph_capture
from torch._dynamo.utils import get_metrics_context
from torch._guards import TracingContext, tracing
from torch.fx import GraphModule, Node
from transformers import StaticCache

from coxcompile.inspect.names import input_names
from coxcompile.options import Options
from coxcompile.passes import PassContext
from coxcompile.passes.coalesce import coalesce
from coxcompile.passes.find_layers import find_layers
from coxcompile.passes.find_moe import find_moe
from coxcompile.passes.group_query_heads import group_query_heads
from coxcompile.passes.normalize import normalize
from tests.models import FAMILIES, build, build_dense

BATCH, PROMPT, CACHE = 4, 12, 32
CALLS = ("forward", "prefill", "decode")
"""Without a cache; a prompt, and one token, over a StaticCache."""


@dataclass(frozen=True)
class Graph:
    """A graph after find_layers, and the context its passes shared."""

    graph_module: GraphModule
    context: PassContext

    @property
    def nodes(self) -> list[Node]:
        """All calls, in order."""
        return [node for node in self.graph_module.graph.nodes if node.op == "call_function"]

    def of(self, operation: str, layer: int | None = None) -> list[Node]:
        """The nodes of one operation of one layer, or of all."""
        return [
            node
            for node in self.nodes
            if node.meta.get("operation") == operation
            and (layer is None or node.meta.get("layer") == layer)
        ]


def capture(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Graph:
    """The graph of one call, through the passes up to find_layers."""
    torch._dynamo.reset()
    with torch.no_grad(), get_metrics_context():
        captured = fullgraph_capture(function, args, kwargs)
    backend_input = captured.backend_input
    assert backend_input is not None
    graph_module = backend_input.graph_module
    context = PassContext(Options(), backend_input.example_inputs, input_names(graph_module))
    tracing_context = TracingContext(backend_input.fake_mode)
    tracing_context.tensor_to_context = backend_input.tensor_to_context
    with torch.no_grad(), tracing(tracing_context):
        for run_pass in (normalize, find_moe, coalesce, group_query_heads, find_layers):
            graph_module = run_pass(graph_module, context)
    return Graph(graph_module, context)


def model_of(family: str, **config: Any) -> torch.nn.Module:
    """The tiny model of a family; "dense" is a Llama."""
    return build(family, **config) if family in FAMILIES else build_dense(**config)


@cache
def family_graph(family: str, call: str, dtype: torch.dtype = torch.bfloat16) -> Graph:
    """The graph of a tiny model of two layers."""
    model = model_of(family, dtype=dtype)
    ids = torch.randint(0, 100, (BATCH, PROMPT), generator=torch.Generator().manual_seed(0))
    if call == "forward":
        return capture(model, input_ids=ids, use_cache=False)
    past = StaticCache(config=model.config, max_cache_len=CACHE)
    with torch.no_grad():
        model(input_ids=ids, past_key_values=past)
    ids = ids[:, :1] if call == "decode" else ids
    return capture(model, input_ids=ids, past_key_values=past)
