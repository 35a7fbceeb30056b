"""Numerics of every variant of the expert kernels, against float64 on the same device."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from gpu_cases import Case, Figures, SkippedError
from gpu_check_variants import Variant, variants

from coxcompile.gpu_analysis.products import PRODUCTS
from coxcompile.measurement.product_bench import ProductBench, Tiles
from coxcompile.measurement.random_experts import RandomExperts
from coxcompile.measurement.random_tokens import popularity, random_tokens

ERROR_BOUND = 1e-5
"""Of what projections sum in float32, relative (Frobenius)."""


def kernel_cases(device: torch.device) -> list[Case]:
    """Of all variants."""
    return cases_of(variants(), device)


def cases_of(named: Sequence[tuple[str, Variant]], device: torch.device) -> list[Case]:
    """A case for each variant."""
    return [Case(name, _Check(name, variant, device)) for name, variant in named]


@dataclass(frozen=True)
class _Check:
    name: str
    variant: Variant
    device: torch.device

    def __call__(self) -> Figures:
        variant, size = self.variant, self.variant.size
        if variant.gate_up.descriptors and not _has_bulk_copies():
            raise SkippedError("this GPU has no tensor memory accelerator")
        torch.manual_seed(zlib.crc32(self.name.encode()))
        bench = self._bench()
        errors: dict[str, float] = {
            product: bench.error(Tiles(product, variant.block_tokens, getattr(variant, product)))
            for product in PRODUCTS
        }
        errors["combine"] = bench.combine_error()
        # max() would pass NaN by; a sum does not.
        worst = max(errors.values()) if sum(errors.values()) >= 0 else float("nan")
        return {"error": worst, "bound": ERROR_BOUND, **errors, "tokens": size.tokens}

    def _bench(self) -> ProductBench:
        variant, size, device = self.variant, self.variant.size, self.device
        form = variant.form
        experts = RandomExperts(form, size.experts, size.hidden, size.intermediate, device)
        likely = popularity(variant.routing, size.experts, size.top_k, device)
        drawn = random_tokens(size.tokens, size.hidden, size.top_k, form.dtype, likely)
        if not variant.absent:
            return ProductBench(experts, [drawn], torch.float32)
        hidden_states, ids, routing_weights = drawn
        slots = torch.randperm(size.experts, device=device)
        slots[::4] = -1
        ids[::7, 0] = -1
        ids[1::7, 0] = size.experts
        return ProductBench(experts, [(hidden_states, ids, routing_weights)], torch.float32, slots)


def _has_bulk_copies() -> bool:
    target = triton.runtime.driver.active.get_current_target()
    return bool(target.backend == "cuda" and target.arch >= 90)
