"""Numerics of every configuration that the table has for the GPU at hand."""

from dataclasses import replace

import torch
from gpu_cases import Case
from gpu_check_kernels import cases_of
from gpu_check_variants import MEDIUM, Size, Variant, of_configuration

from coxcompile.measurement.random_experts import ExpertForm
from coxcompile.runtime.kernels.gpu.configurations import Row, load_table
from coxcompile.runtime.kernels.gpu.device import current_device

CONFIGURED = replace(MEDIUM, hidden=1024, intermediate=768)
"""The sizes that configurations of the table are checked with; tokens are as many as fill tiles."""


def configuration_cases(device: torch.device) -> list[Case]:
    """Every row of the table for this device, with and without what takes more registers."""
    names, named = current_device().names, []
    rows = [row for row in load_table() if row.device in names]
    if not rows:
        raise LookupError(f"the table has no row for {' or '.join(names)}")
    for row in rows:
        richer = ExpertForm(
            weights=row.weights, activation="swigluoai", gate_layout="interleaved", bias=True
        )
        for form in (ExpertForm(weights=row.weights), richer):
            variant = Variant(form=form, size=_size_for(row))
            variant = of_configuration(row.configuration, variant)
            named.append((_name_of(row, form), variant))
    return cases_of(named, device)


def _size_for(row: Row) -> Size:
    average = min(row.tokens_per_expert, 2 * row.configuration.block_tokens)
    tokens = max(1, average * CONFIGURED.experts // CONFIGURED.top_k)
    hidden, intermediate = row.hidden or CONFIGURED.hidden, row.intermediate
    return replace(
        CONFIGURED,
        hidden=hidden,
        intermediate=intermediate or CONFIGURED.intermediate,
        tokens=tokens,
    )


def _name_of(row: Row, form: ExpertForm) -> str:
    shape = f"{row.experts} of {row.hidden} x {row.intermediate}" if row.experts else "any shape"
    plain = "" if form == ExpertForm(weights=row.weights) else ", interleaved, bias, swigluoai"
    return f"{row.weights}, up to {row.tokens_per_expert} tokens, {shape}{plain}"
