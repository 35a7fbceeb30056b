"""Times implementations of one layer's experts in turns, each right after a probe of the roofline.

Before, each is checked against float32, on a draw of the same case that is not timed.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from experts_implementations import Implementation, per_expert_linear
from experts_layers import DTYPE, Inputs, Layer, Weights, random_inputs

from coxcompile.measurement.roofline import Roofline, measure_roofline

ROOFLINE = "roofline"

LARGEST_ERROR = 1e-2
"""The relative Frobenius error from which a result counts as wrong; bfloat16 rounds to a third."""


class WrongResultError(Exception):
    """An implementation's output is not the layer's."""


@dataclass(frozen=True)
class Row:
    """One implementation's result."""

    layer: str
    tokens: int
    routing: str
    implementation: str
    milliseconds: float
    over_roofline: float
    """The roofline's time / the measured time."""
    error: float | None
    """Relative Frobenius error against the layer in float32; None for the roofline."""


def roofline_seconds(layer: Layer, expert_ids: torch.Tensor, roofline: Roofline) -> float:
    """The least time for these tokens: active experts' weights read once, all products."""
    tokens, top_k = expert_ids.shape
    expert_elements = 3 * layer.hidden * layer.intermediate
    active_experts = len(set(expert_ids.flatten().tolist()))
    elements = active_experts * expert_elements + 2 * tokens * layer.hidden
    return roofline.seconds(2 * tokens * top_k * expert_elements, elements * DTYPE.itemsize)


def errors_against_float32(
    inputs: Inputs, weights: Weights, compared: Mapping[str, Implementation]
) -> dict[str, float]:
    """Every implementation's relative Frobenius error; WrongResultError if one is too large."""
    hidden_states, expert_ids, routing_weights = inputs
    expected = per_expert_linear(
        hidden_states.float(), expert_ids, routing_weights.float(), weights
    )
    errors: dict[str, float] = {}
    for name, implementation in compared.items():
        actual = implementation.experts(*implementation.converted(inputs)).float()
        errors[name] = float((actual - expected).norm() / expected.norm())
        # Written so that a NaN is refused too.
        if not errors[name] < LARGEST_ERROR:
            raise WrongResultError(
                f"{name} computes something else: its relative error against float32 on "
                f"{len(hidden_states)} tokens is {errors[name]:.1e}, where rounding to bfloat16 "
                f"leaves less than {LARGEST_ERROR:.0e}; leave it out, or mend it"
            )
    return errors


def time_case(
    layer: Layer,
    tokens: int,
    routing: str,
    weights: Weights,
    compared: Mapping[str, Implementation],
    repeats: int,
    on_repeat: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Rows for one layer, number of tokens and routing: the roofline's, then each implementation's.

    `on_repeat` is called after each repeat.
    """
    # This is the warm-up, too.
    errors = errors_against_float32(random_inputs(layer, tokens, routing), weights, compared)
    names = list(compared)
    limits: list[float] = []
    measured: dict[str, list[float]] = {name: [] for name in names}
    fractions: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        inputs = random_inputs(layer, tokens, routing)
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            experts = compared[name].experts
            converted = compared[name].converted(inputs)
            # The probe reads more than any cache holds, so that no implementation finds its
            # weights in a cache because another has just read them.
            limit = roofline_seconds(layer, inputs[1], measure_roofline(DTYPE))
            begin = time.perf_counter()
            experts(*converted)
            seconds = time.perf_counter() - begin
            limits.append(limit)
            measured[name].append(seconds)
            fractions[name].append(limit / seconds)
        on_repeat()

    def row(name: str, seconds: list[float], over_roofline: float, error: float | None) -> Row:
        milliseconds = statistics.median(seconds) * 1e3
        return Row(layer.name, tokens, routing, name, milliseconds, over_roofline, error)

    return [
        row(ROOFLINE, limits, 1.0, None),
        *(
            row(name, measured[name], statistics.median(fractions[name]), errors[name])
            for name in names
        ),
    ]
