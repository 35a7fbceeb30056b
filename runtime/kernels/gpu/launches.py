"""Starting the kernels: grids, and everything that they are compiled for."""

from typing import Any

import torch
import triton

from coxcompile.runtime.kernels.gating import Gating
from coxcompile.runtime.kernels.gpu.combine import combine_choices
from coxcompile.runtime.kernels.gpu.configurations import ExpertConfiguration, ProductConfiguration
from coxcompile.runtime.kernels.gpu.device import Device
from coxcompile.runtime.kernels.gpu.products import project_down, project_gate_up
from coxcompile.runtime.kernels.gpu.projections import PARTS
from coxcompile.runtime.kernels.gpu.routing import Routing
from coxcompile.runtime.kernels.gpu.triton_types import triton_type
from coxcompile.runtime.kernels.gpu.weights import ExpertWeights

COMBINED_AT_A_TIME = 1024
"""Outputs of a token that one program adds up."""


def gate_up_(
    activated: torch.Tensor,
    hidden_states: torch.Tensor,
    weights: ExpertWeights,
    routing: Routing,
    gating: Gating,
    top_k: int,
    configuration: ExpertConfiguration,
    device: Device,
) -> None:
    """activated[i] = the gated projection of the token of sorted choice i.

    Args:
        activated: [choices, I] contiguous, any floating point.
        hidden_states: [T, H] with contiguous rows.
        weights: gate_up's are read.
        routing: of the choices, in tiles of ``configuration.block_tokens``.
        gating: what is done with gate and up.
        top_k: choices of a token.
        configuration: which tiles.
        device: where.
    """
    hidden, intermediate = hidden_states.shape[1], activated.shape[1]
    programs = _programs(routing, intermediate, configuration.gate_up, device)
    project_gate_up[(programs,)](
        activated,
        hidden_states,
        *_addresses(weights, 0),
        *_tiles(routing),
        hidden,
        intermediate,
        hidden_states.stride(0),
        weights.gate_up.groups,
        gating.alpha,
        float("inf") if gating.limit is None else gating.limit,
        TOP_K=top_k,
        ACTIVATION=gating.activation,
        INTERLEAVED=gating.gate_layout == "interleaved",
        BLOCK_TOKENS=configuration.block_tokens,
        **_constants(weights, 0, configuration.gate_up, hidden_states.dtype, device),
    )


def down_(
    contributions: torch.Tensor,
    activated: torch.Tensor,
    routing_weights: torch.Tensor,
    weights: ExpertWeights,
    routing: Routing,
    configuration: ExpertConfiguration,
    device: Device,
) -> None:
    """contributions[c] = choice c's expert output times its routing weight, if its expert is here.

    Args:
        contributions: [choices, H] contiguous, any floating point.
        activated: [choices, I] contiguous, in sorted order.
        routing_weights: [T, top_k] contiguous, any floating point.
        weights: down's are read.
        routing: as for ``gate_up_``.
        configuration: which tiles.
        device: where.
    """
    hidden, intermediate = contributions.shape[1], activated.shape[1]
    programs = _programs(routing, hidden, configuration.down, device)
    project_down[(programs,)](
        contributions,
        activated,
        routing_weights,
        *_addresses(weights, 1),
        *_tiles(routing),
        hidden,
        intermediate,
        weights.down.groups,
        BLOCK_TOKENS=configuration.block_tokens,
        **_constants(weights, 1, configuration.down, activated.dtype, device),
    )


def combine_(
    output: torch.Tensor,
    contributions: torch.Tensor,
    expert_ids: torch.Tensor,
    weights: ExpertWeights,
    *,
    add: bool,
) -> None:
    """output[t] = the sum of token t's contributions, or that is added to it; see ``combine.py``.

    Args:
        output: [T, H] contiguous, any floating point.
        contributions: [choices, H] contiguous.
        expert_ids: [T, top_k] contiguous.
        weights: says which experts are here.
        add: add, and leave tokens alone that chose no expert that is here.
    """
    (tokens, hidden), top_k = output.shape, expert_ids.shape[1]
    block = min(COMBINED_AT_A_TIME, triton.next_power_of_2(hidden))
    combine_choices[(tokens, triton.cdiv(hidden, block))](
        output,
        contributions,
        expert_ids,
        weights.addresses[0],
        hidden,
        weights.experts,
        TOP_K=top_k,
        ADD=add,
        BLOCK=block,
    )


def _programs(routing: Routing, outputs: int, product: ProductConfiguration, device: Device) -> int:
    programs: int = routing.most_tiles * triton.cdiv(outputs, product.block_outputs)
    if product.persistent:
        programs = min(programs, device.multiprocessors * device.programs(product))
    return programs


def _addresses(weights: ExpertWeights, projection: int) -> tuple[torch.Tensor, ...]:
    """The addresses of weights, biases and scales: every other row of the table."""
    matrices, biases, scales = (weights.addresses[row] for row in range(projection, len(PARTS), 2))
    return matrices, scales, biases


def _tiles(routing: Routing) -> tuple[torch.Tensor, ...]:
    sorted_choices, ends = routing.sorted_choices, routing.ends
    return sorted_choices, ends, routing.tile_experts, routing.tile_starts, routing.tile_count


def _constants(
    weights: ExpertWeights,
    number: int,
    product: ProductConfiguration,
    dtype: torch.dtype,
    device: Device,
) -> dict[str, Any]:
    projection = (weights.gate_up, weights.down)[number]
    block_inputs = product.block_inputs
    if projection.groups > 1:  # a group of inputs that share a scale is a whole number of blocks
        block_inputs = min(block_inputs, projection.inputs // projection.groups)
    in_bytes = weights.format in ("float8", "int4")
    row = product.block_outputs if weights.transposed else block_inputs
    row_bytes = row // 2 if weights.format == "int4" else row * projection.dtype.itemsize
    descriptors = product.descriptors and min(projection.alignment, row_bytes) >= 16
    if descriptors:
        device.provide_descriptor_memory()
    return {
        "TRANSPOSED": weights.transposed,
        "FORMAT": weights.format,
        "WEIGHT_TYPE": triton_type(torch.uint8 if in_bytes else projection.dtype),
        "SCALE_TYPE": triton_type(projection.scale_dtype),
        "BIAS_TYPE": triton_type(projection.bias_dtype),
        "GROUPED": projection.groups > 1,
        "ALIGNMENT": projection.alignment,
        "PRECISION": device.float32_precision if dtype == torch.float32 else "ieee",
        "DESCRIPTORS": descriptors,
        "EVEN_INPUTS": projection.inputs % block_inputs == 0,
        "BLOCK_OUTPUTS": product.block_outputs,
        "BLOCK_INPUTS": block_inputs,
        "num_warps": product.warps,
        "num_stages": product.stages,
    }
