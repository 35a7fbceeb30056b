"""The names of a graph's inputs, however the model's forward is wrapped."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from coxcompile.inspect.names import input_names


def wrapped(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As decorators for deprecated arguments do it."""

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        return forward(*args, **kwargs)

    return call


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2, bias=False))

    def forward(self, given: Tensor) -> Tensor:
        return self.inner(given)


class WrappedModel(Model):
    forward = wrapped(Model.forward)


def names_of(model: nn.Module) -> set[str]:
    found: list[str] = []

    def backend(graph_module: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        found.extend(input_names(graph_module))
        return graph_module.forward

    torch._dynamo.reset()
    torch.compile(model, backend=backend)(torch.randn(1, 2))
    return set(found)


def test_parameters_have_their_names_in_the_model() -> None:
    assert "inner.0.weight" in names_of(Model())


def test_parameters_have_the_same_names_if_forward_is_wrapped() -> None:
    assert "inner.0.weight" in names_of(WrappedModel())
