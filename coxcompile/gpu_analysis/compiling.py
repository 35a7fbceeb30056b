"""Compiling the experts' products for GPUs that are not here, by the normal launch path."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from triton.runtime.errors import OutOfResources

from coxcompile.gpu_analysis.products import ProductName
from coxcompile.gpu_analysis.targets import Target
from coxcompile.runtime.emulated.triton_driver import triton_target
from coxcompile.runtime.kernels.gating import Gating
from coxcompile.runtime.kernels.gpu.configurations import (
    ExpertConfiguration,
    ProductConfiguration,
)
from coxcompile.runtime.kernels.gpu.device import current_device
from coxcompile.runtime.kernels.gpu.launches import down_, gate_up_
from coxcompile.runtime.kernels.gpu.projections import Format
from coxcompile.runtime.kernels.gpu.routing import Routing
from coxcompile.runtime.kernels.gpu.weights import ExpertWeights

TOKENS, TOP_K = 16, 2
EVEN, UNEVEN = 256, 272
"""Inputs and outputs that whole blocks make up, and that they do not (1408, 2880)."""

_DENSE = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_FORMATS: dict[str, Format] = {"float8": "float8", "int8": "int8", "int4": "int4"}
_QUANTISED = {"float8": torch.float8_e4m3fn, "int8": torch.int8, "int4": torch.uint8}


@dataclass(frozen=True, kw_only=True)
class Form:
    """What the kernels are compiled for, beside tiles and the type of the weights.

    The default is the plainest: row-major weights, gate and up one after another, SiLU, no bias,
    widths that are whole numbers of blocks, one scale an output.
    """

    transposed: bool = False
    gate_layout: Literal["concatenated", "interleaved"] = "concatenated"
    activation: str = "silu"
    bias: bool = False
    even: bool = True
    grouped_scales: bool = False


PLAIN = Form()
_DENSE_FORMS = (
    Form(transposed=True),
    Form(gate_layout="interleaved"),
    Form(activation="gelu"),
    Form(activation="swigluoai", bias=True),
    Form(even=False),
    Form(transposed=True, activation="gelu", bias=True, even=False),
    Form(gate_layout="interleaved", activation="swigluoai", bias=True, even=False),
)
_QUANTISED_FORMS = (
    Form(gate_layout="interleaved"),
    Form(activation="swigluoai", bias=True, even=False),
    Form(grouped_scales=True),
)


def other_forms(weights: str, name: ProductName) -> tuple[Form, ...]:
    """Forms beside the plain one in which a default configuration has to do, too."""
    forms = _QUANTISED_FORMS if weights in _QUANTISED else _DENSE_FORMS
    if name == "gate_up":
        return forms
    # Only gate and up have a layout and an activation.
    plain = {replace(form, gate_layout="concatenated", activation="silu") for form in forms}
    return tuple(sorted(plain - {PLAIN}, key=repr))


def compiled_product(
    target: Target,
    weights: str,
    name: ProductName,
    block_tokens: int,
    configuration: ProductConfiguration,
    form: Form = PLAIN,
) -> Any:
    """The ``CompiledKernel`` of one product, or None if it needs more than the target has.

    Args:
        target: the GPU.
        weights: "bfloat16", "float16", "float32", "float8", "int8" or "int4".
        name: which product.
        block_tokens: of a tile.
        configuration: of the product.
        form: which variant of the kernel.
    """
    both = ExpertConfiguration(block_tokens=block_tokens, gate_up=configuration, down=configuration)
    dtype = _DENSE.get(weights, torch.bfloat16)
    width = EVEN if form.even else UNEVEN
    expert_weights = _expert_weights(weights, width, form)
    choices = TOKENS * TOP_K
    integers = torch.zeros(choices, dtype=torch.int32)
    routing = Routing(
        sorted_choices=integers,
        ends=integers[:1],
        tile_experts=integers,
        tile_starts=integers,
        tile_count=integers[:1],
        most_tiles=1,
    )
    activated = torch.empty(choices, width, dtype=dtype)
    with triton_target(target.name, execute=False) as launches:
        try:
            if name == "gate_up":
                gating = Gating("gate_up", form.activation, form.gate_layout, 1.702, 7.0)
                gate_up_(
                    activated,
                    torch.empty(TOKENS, width, dtype=dtype),
                    *(expert_weights, routing, gating, TOP_K, both, current_device()),
                )
            else:
                down_(
                    torch.empty(choices, width, dtype=dtype),
                    activated,
                    torch.empty(TOKENS, TOP_K),
                    *(expert_weights, routing, both, current_device()),
                )
        except OutOfResources:
            return None
    return launches[-1].kernel


def _expert_weights(weights: str, width: int, form: Form) -> ExpertWeights:
    quantised = weights in _QUANTISED
    dtype = _QUANTISED[weights] if quantised else _DENSE[weights]
    columns = width // 2 if weights == "int4" else width

    def matrix(outputs: int) -> torch.Tensor:
        shape = (columns, outputs) if form.transposed else (outputs, columns)
        return torch.empty(*shape, dtype=dtype)

    def per_output(outputs: int, *groups: int) -> torch.Tensor:
        return torch.empty(outputs, *groups, dtype=torch.bfloat16)

    groups = 2 if form.grouped_scales else 1
    return ExpertWeights.from_tensors(
        [
            (
                matrix(2 * width),
                matrix(width),
                per_output(2 * width) if form.bias else None,
                per_output(width) if form.bias else None,
                per_output(2 * width, groups) if quantised else None,
                per_output(width, groups) if quantised else None,
            )
        ],
        transposed=form.transposed,
        format=_FORMATS.get(weights, "dense"),
    )
