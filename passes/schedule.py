"""A co-execution graph → one order of all its nodes, with the events and frees that it takes."""

import math

from torch.fx import GraphModule

from coxcompile.passes.context import PassContext
from coxcompile.passes.dependencies import dependencies
from coxcompile.passes.device_memory import room_for_values
from coxcompile.passes.issue import Issue

LOOKAHEADS = (math.inf, 64, 16, 4, 1, 0)
"""Waves that asynchronous nodes may be ahead, tried in turn until the values fit the memory."""


def schedule(graph_module: GraphModule, context: PassContext) -> GraphModule:
    """Order the nodes as the host issues them, with ``record_event``, ``wait_event`` and ``free``.

    Each stream serves its nodes in waves (:mod:`coxcompile.passes.waves`). The host issues every
    asynchronous node as soon as what it depends on has been issued, so transfers start as early as
    the memory allows, and only then carries out its own next one; waits stand right before what
    waits. A wait is inserted where no order of streams and no other wait implies it (transitive
    reduction), so none can be left out. Device buffers are freed at the first point at which all
    their readers are known to be through.

    Must not change what is computed: only order, events and frees are new. A graph that fits the
    memory in no order is left in the tightest one, for verify to refuse.
    """
    assert context.placement is not None
    needed = dependencies(graph_module, coalesced=context.placement.plan.coalesced)
    room = room_for_values(graph_module, context)
    for lookahead in LOOKAHEADS:
        issue = Issue(graph_module, needed, room, lookahead)
        issue.run()
        if issue.peak <= room:
            break
    graph_module.graph = issue.graph
    return graph_module
