"""The variants of the expert kernels: forms of experts, tiles, routings and sizes."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from coxcompile.measurement.random_experts import WEIGHTS, ExpertForm
from coxcompile.runtime.kernels.gpu.configurations import ExpertConfiguration, ProductConfiguration


@dataclass(frozen=True)
class Size:
    """Of a layer and a call."""

    experts: int
    top_k: int
    hidden: int
    intermediate: int
    tokens: int


MEDIUM = Size(experts=16, top_k=4, hidden=512, intermediate=384, tokens=300)
UNEVEN = replace(MEDIUM, hidden=264, intermediate=136)
ODD = replace(MEDIUM, hidden=67, intermediate=33)
LARGE = Size(experts=128, top_k=8, hidden=2048, intermediate=768, tokens=1024)
"""Qwen3-30B-A3B's layer."""

_PLAIN = ProductConfiguration(block_outputs=64, block_inputs=64, warps=4, stages=3)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Experts, tokens and tiles of one check.

    Attributes:
        absent: every fourth expert is not here, and ids out of range occur.
    """

    form: ExpertForm = field(default_factory=ExpertForm)
    size: Size = MEDIUM
    block_tokens: int = 16
    gate_up: ProductConfiguration = _PLAIN
    down: ProductConfiguration = _PLAIN
    routing: Literal["uniform", "skewed", "few"] = "skewed"
    absent: bool = False


def variants() -> list[tuple[str, Variant]]:
    """By name: every form, routing and kind of tiles, and sizes beyond what is interpreted."""
    forms = [(name, Variant(form=form)) for name, form in _forms()]
    return [*forms, *_tilings(), *_routings(), *_sizes()]


def of_configuration(configuration: ExpertConfiguration, variant: Variant) -> Variant:
    """The variant with these tiles."""
    return replace(
        variant,
        block_tokens=configuration.block_tokens,
        gate_up=configuration.gate_up,
        down=configuration.down,
    )


def _forms() -> Iterator[tuple[str, ExpertForm]]:
    for weights in WEIGHTS:
        yield weights, ExpertForm(weights=weights)
        yield f"{weights} interleaved", ExpertForm(weights=weights, gate_layout="interleaved")
        yield f"{weights} bias", ExpertForm(weights=weights, bias=True)
        if weights in ("bfloat16", "float16", "float32"):
            transposed = ExpertForm(weights=weights, transposed=True)
            yield f"{weights} transposed", transposed
            yield (
                f"{weights} transposed interleaved bias swigluoai",
                replace(transposed, gate_layout="interleaved", bias=True, activation="swigluoai"),
            )
        else:
            yield f"{weights} in 4 groups", ExpertForm(weights=weights, groups=4)
            yield (
                f"{weights} in 4 groups, interleaved, bias",
                ExpertForm(weights=weights, groups=4, gate_layout="interleaved", bias=True),
            )
    for activation in ("gelu", "gelu_tanh", "relu", "swigluoai"):
        yield activation, ExpertForm(activation=activation, bias=True)
        yield (
            f"{activation} interleaved",
            ExpertForm(activation=activation, gate_layout="interleaved"),
        )


def _tilings() -> Iterator[tuple[str, Variant]]:
    bulk, persistent = replace(_PLAIN, descriptors=True), replace(_PLAIN, persistent=True)
    for weights in WEIGHTS:
        yield f"{weights} by descriptors", _tiled(bulk, ExpertForm(weights=weights))
    for name, form in (
        ("transposed", ExpertForm(transposed=True)),
        ("interleaved", ExpertForm(gate_layout="interleaved")),
        ("bias", ExpertForm(bias=True)),
    ):
        yield f"{name} by descriptors", _tiled(bulk, form)
    yield "persistent", _tiled(persistent)
    yield "persistent by descriptors", _tiled(replace(bulk, persistent=True))
    yield "persistent, int4", _tiled(persistent, ExpertForm(weights="int4"))
    for block_tokens in (32, 64, 128):
        yield f"tiles of {block_tokens} tokens", replace(_tiled(_PLAIN), block_tokens=block_tokens)
    for outputs, inputs, warps, stages in ((32, 32, 4, 2), (128, 64, 8, 3), (128, 32, 4, 4)):
        wide = ProductConfiguration(
            block_outputs=outputs, block_inputs=inputs, warps=warps, stages=stages
        )
        yield f"tiles of {outputs} x {inputs}, {warps} warps, {stages} stages", _tiled(wide)


def _tiled(product: ProductConfiguration, form: ExpertForm = ExpertForm()) -> Variant:  # noqa: B008
    return Variant(form=form, gate_up=product, down=product)


def _routings() -> Iterator[tuple[str, Variant]]:
    for routing in ("uniform", "few"):
        yield f"{routing} routing", Variant(routing=routing)
    yield "experts that are not here", Variant(absent=True)
    for tokens in (1, 2, 17, 3000):
        yield f"{tokens} tokens", Variant(size=replace(MEDIUM, tokens=tokens))


def _sizes() -> Iterator[tuple[str, Variant]]:
    bulk = replace(_PLAIN, descriptors=True)
    for weights in WEIGHTS:
        yield f"{weights}, uneven sizes", Variant(form=ExpertForm(weights=weights), size=UNEVEN)
    yield "transposed, uneven sizes", Variant(form=ExpertForm(transposed=True), size=UNEVEN)
    yield "uneven sizes by descriptors", Variant(size=UNEVEN, gate_up=bulk, down=bulk)
    for name, form in (("", ExpertForm(bias=True)), ("transposed, ", ExpertForm(transposed=True))):
        yield f"{name}odd sizes", Variant(form=form, size=ODD)
    for weights in WEIGHTS:
        large = Variant(form=ExpertForm(weights=weights), size=LARGE, block_tokens=64)
        yield f"{weights}, Qwen3-30B-A3B's layer", large
