"""The scheduled graph → unchanged, and proved free of races and within its memory, or an error."""

from collections import defaultdict

from torch.fx import GraphModule, Node

from coxcompile.passes.context import PassContext
from coxcompile.passes.device_memory import allocates, held_throughout, workspace
from coxcompile.passes.devices import cache_of, overlap
from coxcompile.passes.happens_before import HappensBefore, ScheduleError
from coxcompile.runtime import instructions
from coxcompile.runtime.buffers import (
    Buffer,
    accesses,
    buffer_of,
    bytes_of,
    mutated_inputs,
    named_memory,
    read_when_issued,
    stream_of,
)


class DeviceMemoryError(ScheduleError):
    """More memory than there is; ``missing_bytes`` is how much more the worst node needs."""

    def __init__(self, message: str, missing_bytes: int) -> None:
        super().__init__(message)
        self.missing_bytes = missing_bytes


def verify(graph_module: GraphModule, context: PassContext) -> GraphModule:
    """Prove the order of every two accesses of which one writes, and the bytes held at every point.

    Of two accesses to one buffer (a value, a slot, a place in pinned memory; a ``free`` counts as a
    write) the later in the graph must come after the earlier one
    (:class:`~coxcompile.passes.happens_before.HappensBefore`). What reads a fetched expert must
    find the one it was fetched for, what reads an input must find it unchanged, and nothing may
    touch what was freed. At the output all is done.

    Runs in every compile. Written apart from :mod:`coxcompile.passes.schedule`, whose answers it
    checks.

    Raises:
        ScheduleError: the two nodes, or the node at which memory runs out, and the largest items.
    """
    _check_accesses(graph_module, HappensBefore(graph_module))
    _check_mutations(graph_module)
    for node in graph_module.graph.nodes:
        _check_experts(node, context)
    _check_memory(graph_module, context)
    return graph_module


def _check_accesses(graph_module: GraphModule, happens_before: HappensBefore) -> None:
    writer: dict[Buffer, Node] = {}
    readers: dict[Buffer, list[Node]] = defaultdict(list)
    filled: dict[Buffer, Node] = {}
    maker: dict[Buffer, Node] = {}
    freed: set[Buffer] = set()

    def require(earlier: Node, later: Node, buffer: Buffer) -> None:
        if not happens_before(earlier, later):
            raise ScheduleError(
                f"{later} on {stream_of(later)} accesses {buffer}, but does not come after "
                f"{earlier} on {stream_of(earlier)}: a wait is missing"
            )

    for node in graph_module.graph.nodes:
        found = accesses(graph_module, node)
        reads, writes = found.reads, found.writes
        if node.target is instructions.free:
            writes = frozenset(node.args)
            if stream_of(node) != stream_of(maker.get(node.args[0], node)):
                raise ScheduleError(f"{node} is not on the stream that allocated {node.args[0]}")
        if gone := freed & (reads | writes):
            raise ScheduleError(f"{node} accesses {gone.pop()}, which was freed before it")
        for buffer in reads:
            if buffer in writer:
                require(writer[buffer], node, buffer)
            readers[buffer].append(node)
        for buffer in read_when_issued(node):
            if buffer in writer and not happens_before.issue(writer[buffer], node):
                raise ScheduleError(
                    f"the host reads {buffer} when it issues {node}, but does not wait for "
                    f"{writer[buffer]} on {stream_of(writer[buffer])}"
                )
        _check_contents(node, filled)
        for buffer in writes:
            for earlier in (*readers[buffer], *([writer[buffer]] if buffer in writer else [])):
                if earlier is not node:
                    require(earlier, node, buffer)
            writer[buffer], readers[buffer] = node, []
            maker.setdefault(buffer, node)
            if isinstance(buffer, str):
                filled[buffer] = node
        if node.target is instructions.free:
            freed |= writes
    output = graph_module.graph.output_node()
    if unfinished := happens_before.not_done(output):
        raise ScheduleError(f"the call ends before {unfinished[0]} on {stream_of(unfinished[0])}")


def _check_contents(node: Node, filled: dict[Buffer, Node]) -> None:
    """Memory with a name holds what the node takes from it, nothing that came before or after."""
    for source in {buffer_of(source) for source in node.all_input_nodes}:
        name = named_memory(source)
        if name is not None and stream_of(node) is not None and filled.get(name) is not source:
            raise ScheduleError(
                f"{node} reads {source} from {name}, which holds {filled.get(name)} by then"
            )


def _check_mutations(graph_module: GraphModule) -> None:
    """An input that the graph writes to is read before only: it is written at the graph's end."""
    changed: dict[Node, list[tuple[Node, Node]]] = defaultdict(list)
    for node in graph_module.graph.nodes:
        if stream_of(node) is None:
            continue
        for source in node.all_input_nodes:
            for written, writer in changed.get(cache_of(source), ()):
                if overlap(source, written):
                    raise ScheduleError(
                        f"{node} reads {source}, which {writer} has changed by then"
                    )
        if node.op == "call_module":
            for written in mutated_inputs(graph_module, node):
                changed[cache_of(written)].append((written, node))


def _check_experts(node: Node, context: PassContext) -> None:
    """Every expert is fetched from its own copy into its own slot, and before it is computed."""
    if node.target is instructions.fetch_expert:
        staged, slot, layer, rank = node.args
        assert isinstance(staged, Node)
        if staged.args[1:3] != (layer, rank):
            raise ScheduleError(f"{node} takes expert {rank} of layer {layer} from {staged}")
        if slot != context.expert_layers[layer].slot_of(rank):  # type: ignore[index,arg-type]
            raise ScheduleError(f"{node} fills slot {slot}, in which another expert is computed")
    if node.target is instructions.run_experts:
        layer, table, fetches = node.args[4:]
        experts = context.expert_layers[layer]  # type: ignore[index]
        fetched = {(fetch.args[2], fetch.args[3]) for fetch in fetches}  # type: ignore[union-attr]
        for rank in experts.tables[table]:  # type: ignore[index]
            if rank >= experts.split.resident and (layer, rank) not in fetched:
                raise ScheduleError(f"{node} computes expert {rank}, but not after its fetch")


def _check_memory(graph_module: GraphModule, context: PassContext) -> None:
    items = held_throughout(graph_module, context)
    held = sum(items.values())
    needs: dict[Node, int] = {}
    for node in graph_module.graph.nodes:
        if node.target is instructions.free:
            held -= bytes_of(node.args[0].meta["val"])
            continue
        held += allocates(graph_module, node)
        needs[node] = held + workspace(graph_module, node)
    worst = max(needs, key=needs.__getitem__)
    if needs[worst] > context.vram:
        largest = sorted(items.items(), key=lambda item: -item[1])[:3]
        raise DeviceMemoryError(
            f"{worst} needs {needs[worst] / 1e6:.1f} MB on the accelerator, but the option vram "
            f"gives {context.vram / 1e6:.1f} MB; of it are held throughout: "
            + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in largest)
            + ". Give more vram, or a plan with a smaller micro_batch or fewer experts there",
            needs[worst] - context.vram,
        )
