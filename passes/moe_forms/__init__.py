"""How MoE blocks arrive in a graph, one matcher a file; find_moe tries FORMS in order."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.fx import Node

from coxcompile.passes.moe_forms.batched_mm import match_batched_mm
from coxcompile.passes.moe_forms.grouped_mm import match_grouped_mm
from coxcompile.passes.moe_forms.parts import MoEParts


@dataclass(frozen=True)
class Form:
    """One spelling of an MoE block.

    Attributes:
        name: as reports show it.
        products: names of the operators by which it multiplies with expert weights.
        match: ``(sum_node, parameters) -> MoEParts``; raises ``NoMatch`` with the reason.
            ``sum_node`` is a candidate for the sum over a token's top_k experts that ends a block.
    """

    name: str
    products: frozenset[str]
    match: Callable[[Node, Mapping[Node, torch.Tensor]], MoEParts]


FORMS = (
    Form(
        "grouped_mm",
        frozenset({"aten._grouped_mm.default", "transformers.grouped_mm_fallback.default"}),
        match_grouped_mm,
    ),
    Form("batched_mm", frozenset({"aten.bmm.default"}), match_batched_mm),
)

__all__ = ["FORMS", "Form"]
