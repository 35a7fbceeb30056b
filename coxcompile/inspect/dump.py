"""Graphs as text a person can read, written after every pass on request."""

from pathlib import Path

import torch
from torch._logging._internal import trace_structured
from torch.fx import GraphModule, Node

from coxcompile.passes.context import PassContext


def readable(graph_module: GraphModule) -> str:
    """One line a node: ``name: dtype[shape] = operator(arguments)``.

    Inputs have their path behind them, and nodes of a schedule their stream.
    """
    return "\n".join(_line(node) for node in graph_module.graph.nodes) + "\n"


def _line(node: Node) -> str:
    stream = node.meta.get("stream")
    return f"{_statement(node)}  # {stream}" if stream else _statement(node)


def _statement(node: Node) -> str:
    if node.op == "output":
        return f"return {node.args[0]}"
    value = _describe(node.meta.get("val"))
    if node.op == "placeholder":
        path = node.meta.get("path", "")
        return f"{node.name}: {value}" + (f"  # {path}" if path else "")
    if node.op == "get_attr":
        return f"{node.name}: {value} = self.{node.target}"
    arguments = [str(a) for a in node.args] + [f"{k}={v}" for k, v in node.kwargs.items()]
    return f"{node.name}: {value} = {_operator(node.target)}({', '.join(arguments)})"


def _operator(target: object) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return getattr(target, "__name__", str(target))


def _describe(value: object) -> str:
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{dtype}[{', '.join(str(size) for size in value.shape)}]"
    if isinstance(value, list | tuple):
        return f"({', '.join(_describe(item) for item in value)})"
    return type(value).__name__


def dump_graph(pass_name: str, number: int, context: PassContext) -> None:
    """Hand the graph after a pass to tlparse, and write it if ``options.dump`` names a directory.

    Files are ``graph_<n>/<number>_<pass>.txt``: a model may compile to several graphs, and a
    prefill and a decode graph are two.
    """
    text = context.graphs[pass_name]
    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": f"coxmoe_{pass_name}", "encoding": "string"},
        payload_fn=lambda: text,
    )
    if context.options.dump is None:
        return
    if number == 0:
        context.dump_directory = _new_directory(context.options.dump)
    assert context.dump_directory is not None
    (context.dump_directory / f"{number}_{pass_name}.txt").write_text(text)
    if context.blocks or context.skipped:
        report = [str(block) for block in context.blocks]
        report += [f"left alone: {skipped}" for skipped in context.skipped]
        (context.dump_directory / "blocks.txt").write_text("\n".join(report) + "\n")


def _new_directory(parent: Path) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        directory = parent / f"graph_{number}"
        try:
            directory.mkdir()
        except FileExistsError:
            number += 1
        else:
            return directory
