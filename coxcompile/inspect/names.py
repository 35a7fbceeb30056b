"""The names that a graph's inputs have in the user's model."""

import re

from torch.fx import GraphModule, Node

_KEYS = re.compile(r"\['([^']*)'\]|\.(\w+)")
_FIRST_OF_ARGUMENTS = re.compile(r"^L\['\w+'\]\[0\]\.")
"""The model where its forward is wrapped by a function of (*args, **kwargs), as decorators do."""
_CONTAINERS = ("self", "_modules", "_parameters", "_buffers", "L", "G")


def input_names(graph_module: GraphModule) -> list[str]:
    """A dotted name for each placeholder, such as "model.layers.0.mlp.experts.down_proj"."""
    return [_name(node) for node in graph_module.graph.find_nodes(op="placeholder")]


def _name(node: Node) -> str:
    source = getattr(node, "_dynamo_source", None)
    if source is None:
        return node.name
    # A method in PyTorch 2.8, a property since.
    full_name = source.name() if callable(source.name) else source.name
    name = _FIRST_OF_ARGUMENTS.sub(".", full_name)
    keys = [quoted or attribute for quoted, attribute in _KEYS.findall(name)]
    return ".".join(key for key in keys if key not in _CONTAINERS)
