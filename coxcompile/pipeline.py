"""Running passes over a graph: checked, timed, kept and perhaps dumped after each."""

import time
from collections.abc import Sequence

from torch.fx import GraphModule

from coxcompile.inspect.dump import dump_graph, readable
from coxcompile.passes import Pass, PassContext


def run_passes(
    graph_module: GraphModule, context: PassContext, passes: Sequence[Pass]
) -> GraphModule:
    """The graph after all of ``passes``."""
    for run_pass in passes:
        started = time.perf_counter()
        graph_module = run_pass(graph_module, context)
        graph_module.graph.lint()
        graph_module.recompile()
        name = run_pass.__name__
        context.seconds[name] = time.perf_counter() - started
        context.graphs[name] = readable(graph_module)
        dump_graph(name, len(context.graphs) - 1, context)
    return graph_module
