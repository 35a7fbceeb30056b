"""Choosing each row of the table of configurations: nothing is timed, all is predicted."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from coxcompile.gpu_analysis.analysis import Analysis
from coxcompile.gpu_analysis.bounds import bounds
from coxcompile.gpu_analysis.expected_routing import ExpertLayer
from coxcompile.gpu_analysis.prediction import predict
from coxcompile.gpu_analysis.products import PRODUCTS, Product, ProductName, products
from coxcompile.gpu_analysis.targets import Target
from coxcompile.runtime.kernels.gpu.configurations import ExpertConfiguration, Row

BUCKETS: dict[int, tuple[int, ...]] = {
    16: (1, 4, 16),
    32: (32,),
    64: (64,),
    256: (128, 256),
    1024: (512, 1024, 2048),
}
"""Tokens an expert that a row is for, at most, and those that it is chosen by."""
EXACT_GAIN = 0.03
"""A shape gets a row of its own only if that is predicted to save so much of the time."""


@dataclass(frozen=True)
class Case:
    """A layer and a number of tokens."""

    layer: ExpertLayer
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a row's tokens and shapes are predicted to take, as a geometric mean over the cases."""

    configuration: ExpertConfiguration
    seconds: float


def cases(layers: Iterable[ExpertLayer], bucket: int) -> tuple[Case, ...]:
    """By which a bucket's configurations are compared.

    Raises:
        KeyError: there is no such bucket.
    """
    return tuple(
        Case(layer, max(1, round(per_expert * layer.experts / layer.top_k)))
        for layer in layers
        for per_expert in BUCKETS[bucket]
    )


def geometric_mean(seconds: Iterable[float]) -> float:
    """Of positive numbers."""
    logarithms = [math.log(value) for value in seconds]
    return math.exp(sum(logarithms) / len(logarithms))


def best(
    target: Target,
    weights: str,
    analyses: Mapping[tuple[ProductName, int], Sequence[Analysis]],
    compared: Sequence[Case],
) -> Choice:
    """The tiles with the least predicted time for both products.

    Args:
        target: the GPU.
        weights: what they are stored as.
        analyses: by product and block_tokens, only of those that may be defaults.
        compared: what the time is predicted for.

    Raises:
        ValueError: for no ``block_tokens`` are there analyses of both products.
    """
    choices = []
    for block_tokens in sorted({block_tokens for _, block_tokens in analyses}):
        of_products: list[tuple[Analysis, list[float]]] = []
        for index, name in enumerate(PRODUCTS):
            fitting = analyses.get((name, block_tokens), ())
            predicted = [
                (analysis, [_seconds(target, weights, case, index, analysis) for case in compared])
                for analysis in fitting
            ]
            if predicted:
                of_products.append(min(predicted, key=lambda pair: geometric_mean(pair[1])))
        if len(of_products) < 2:
            continue
        (gate_up, first), (down, second) = of_products
        choices.append(
            Choice(
                configuration=ExpertConfiguration(
                    block_tokens=block_tokens,
                    gate_up=gate_up.configuration,
                    down=down.configuration,
                ),
                seconds=geometric_mean(map(sum, zip(first, second, strict=True))),
            )
        )
    if not choices:
        raise ValueError(f"no configuration of {weights} experts may be a default on {target.name}")
    return min(choices, key=lambda choice: choice.seconds)


def rows(
    target: Target,
    weights: str,
    analyses: Mapping[tuple[ProductName, int], Sequence[Analysis]],
    layers: Sequence[ExpertLayer],
    exact_layers: Sequence[ExpertLayer],
) -> list[Row]:
    """The table's rows for one target and type of weights.

    Args:
        target: the GPU.
        weights: what they are stored as.
        analyses: see :func:`best`.
        layers: that rows for any shape are chosen by.
        exact_layers: that get rows of their own where these are predicted to be faster.
    """
    result = []
    for bucket in BUCKETS:
        general = best(target, weights, analyses, cases(layers, bucket)).configuration
        result.append(_row(target, weights, bucket, general))
        for layer in exact_layers:
            compared = cases([layer], bucket)
            own = best(target, weights, analyses, compared)
            only_general = {
                key: [one for one in some if one.configuration == getattr(general, key[0])]
                for key, some in analyses.items()
                if key[1] == general.block_tokens
            }
            in_general = best(target, weights, only_general, compared)
            if own.seconds < (1 - EXACT_GAIN) * in_general.seconds:
                result.append(_row(target, weights, bucket, own.configuration, layer))
    return result


def _seconds(target: Target, weights: str, case: Case, index: int, analysis: Analysis) -> float:
    assert analysis.resources is not None
    assert analysis.code is not None
    product: Product = products(case.layer, weights)[index]
    configuration, block_tokens = analysis.configuration, analysis.block_tokens
    return predict(
        bounds(case.layer, case.tokens, product, configuration, block_tokens, target),
        product,
        configuration,
        block_tokens,
        target,
        analysis.resources,
        analysis.code,
    ).seconds


def _row(
    target: Target,
    weights: str,
    bucket: int,
    configuration: ExpertConfiguration,
    layer: ExpertLayer | None = None,
) -> Row:
    return Row(
        device=target.name,
        weights=weights,
        tokens_per_expert=bucket,
        configuration=configuration,
        source="static",
        experts=layer.experts if layer else None,
        intermediate=layer.intermediate if layer else None,
        hidden=layer.hidden if layer else None,
    )
