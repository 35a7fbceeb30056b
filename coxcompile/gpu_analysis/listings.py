"""Disassembled machine code as a list of instructions, and the loop that multiplies in it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import networkx  # type: ignore[import-untyped]


@dataclass(frozen=True)
class Branch:
    """The instruction at ``source`` jumps to the one at ``target``; always, if unconditional."""

    source: int
    target: int
    unconditional: bool


@dataclass(frozen=True)
class Listing:
    """A kernel's instructions in the order of their addresses, its branches and its ends."""

    instructions: tuple[str, ...]
    branches: tuple[Branch, ...]
    ends: frozenset[int]

    def innermost_loop(self, wanted: Callable[[str], bool]) -> Sequence[str]:
        """The instructions of the smallest loop with a wanted one in it; none: all there are.

        A loop is a natural loop of the control flow graph. What software pipelining has taken out
        of it, before and behind it, is not counted with it; blocks that the compiler has moved away
        from it are.
        """
        fitting = [
            code
            for loop in self._loops()
            if any(map(wanted, code := [self.instructions[index] for index in sorted(loop)]))
        ]
        return min(fitting, key=len, default=self.instructions)

    def _loops(self) -> list[set[int]]:
        graph = self._control_flow()
        # Versions of networkx differ in whether the first instruction is there.
        dominators = {**networkx.immediate_dominators(graph, 0), 0: 0}
        by_header: dict[int, set[int]] = {}
        for tail, header in graph.edges:
            # A loop is entered at its header and repeated from its end: two ways there at least.
            if graph.in_degree(header) > 1 and _dominates(header, tail, dominators):
                members = by_header.setdefault(header, {header})
                waiting = [tail]
                while waiting:
                    node = waiting.pop()
                    if node not in members:
                        members.add(node)
                        waiting.extend(graph.predecessors(node))
        return list(by_header.values())

    def _control_flow(self) -> networkx.DiGraph:
        """Between instructions; those that no path from the first leads to are left out."""
        graph = networkx.DiGraph()
        graph.add_edges_from((branch.source, branch.target) for branch in self.branches)
        last = {branch.source for branch in self.branches if branch.unconditional} | self.ends
        numbers = range(len(self.instructions) - 1)
        graph.add_edges_from((number, number + 1) for number in numbers if number not in last)
        return graph.subgraph({0, *networkx.descendants(graph, 0)})


@dataclass(frozen=True)
class _Syntax:
    label: re.Pattern[str]
    instruction: re.Pattern[str]
    branch: re.Pattern[str]
    unconditional: re.Pattern[str]
    end: re.Pattern[str]


_SASS = _Syntax(
    label=re.compile(r"^(?P<label>\.L_x_\d+):"),
    instruction=re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?P<text>[^;]+)"),
    branch=re.compile(r"\bBRA\b.*`\((?P<label>\.L_x_\d+)\)"),
    unconditional=re.compile(r"^BRA[\w.]*\s+`"),
    end=re.compile(r"^EXIT\b"),
)
_AMDGCN = _Syntax(
    label=re.compile(r"^(?P<label>\.LBB\d+_\d+):"),
    instruction=re.compile(r"^\t(?P<text>[a-z][a-z0-9]*_[^;]+)"),
    branch=re.compile(r"^s_c?branch\w*\s+(?P<label>\.LBB\d+_\d+)"),
    unconditional=re.compile(r"^s_branch\b"),
    end=re.compile(r"^s_endpgm\b"),
)


def sass(text: str) -> Listing:
    """NVIDIA's, as ``nvdisasm -c`` prints it."""
    return _parse(text, _SASS)


def amdgcn(text: str) -> Listing:
    """AMD's, as LLVM writes assembly."""
    return _parse(text, _AMDGCN)


def _parse(text: str, syntax: _Syntax) -> Listing:
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := syntax.label.match(line):
            labels[label["label"]] = len(instructions)
        elif instruction := syntax.instruction.search(line):
            instructions.append(instruction["text"].strip())
    branches = (
        Branch(source, labels[match["label"]], bool(syntax.unconditional.match(instruction)))
        for source, instruction in enumerate(instructions)
        if (match := syntax.branch.search(instruction)) and match["label"] in labels
    )
    ends = (index for index, text in enumerate(instructions) if syntax.end.match(text))
    return Listing(tuple(instructions), tuple(branches), frozenset(ends))


def _dominates(node: int, other: int, dominators: dict[int, int]) -> bool:
    while other != node and dominators[other] != other:
        other = dominators[other]
    return other == node
