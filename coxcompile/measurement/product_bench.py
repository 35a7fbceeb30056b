"""Runs the GPU kernels of one projection at a time on random experts, to check or to time them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coxcompile.gpu_analysis.products import ProductName
from coxcompile.measurement.random_experts import RandomExperts
from coxcompile.runtime.kernels.gpu.configurations import ExpertConfiguration, ProductConfiguration
from coxcompile.runtime.kernels.gpu.device import current_device
from coxcompile.runtime.kernels.gpu.launches import combine_, down_, gate_up_
from coxcompile.runtime.kernels.gpu.routing import Routing, route

Tokens = tuple[Tensor, Tensor, Tensor]
"""Hidden states [T, H], expert ids [T, top_k], routing weights [T, top_k]."""


@dataclass(frozen=True)
class Tiles:
    """A projection, and a configuration that it could have."""

    product: ProductName
    block_tokens: int
    configuration: ProductConfiguration

    @property
    def both(self) -> ExpertConfiguration:
        """As the kernels' host side takes it."""
        one = self.configuration
        return ExpertConfiguration(block_tokens=self.block_tokens, gate_up=one, down=one)


@dataclass(frozen=True)
class _Draw:
    tokens: Tokens
    sorted_activated: Tensor


class ProductBench:
    """Random experts and some draws of tokens for them.

    Args:
        experts: on the device that Triton launches on.
        draws: of tokens; all of the same sizes. Ids out of range are nobody's.
        result_dtype: of what projections write: the tokens', or float32 to see what they sum.
        expert_slots: int64 [E]; negative: not here. None: all are.
    """

    def __init__(
        self,
        experts: RandomExperts,
        draws: Sequence[Tokens],
        result_dtype: torch.dtype,
        expert_slots: Tensor | None = None,
    ) -> None:
        self._experts, self._gating = experts, experts.form.gating
        self._weights = experts.weights(expert_slots)
        self._device = current_device()
        self._dtype = result_dtype
        self._slots = expert_slots
        hidden_states, ids, _ = draws[0]
        self._draws = []
        for tokens in draws:
            activated = torch.randn(ids.numel(), experts.intermediate, device=ids.device)
            self._draws.append(_Draw(tokens, activated.to(hidden_states.dtype)))
        self._expected: dict[str, Tensor] = {}
        self._routings: dict[tuple[int, int], Routing] = {}
        self._results = {
            "gate_up": self._empty(ids.numel(), experts.intermediate),
            "down": self._empty(ids.numel(), experts.hidden),
        }

    def run(self, tiles: Tiles, number: int = 0) -> Tensor:
        """The projection of one draw: [T * top_k, I] sorted, or [T * top_k, H] by choice."""
        number %= len(self._draws)
        draw, routing = self._draws[number], self.routing(tiles.block_tokens, number)
        hidden_states, ids, routing_weights = draw.tokens
        result = self._results[tiles.product]
        if tiles.product == "gate_up":
            gate_up_(
                *(result, hidden_states, self._weights, routing, self._gating, ids.shape[1]),
                *(tiles.both, self._device),
            )
        else:
            down_(
                *(result, draw.sorted_activated, routing_weights, self._weights, routing),
                *(tiles.both, self._device),
            )
        return result

    def routing(self, block_tokens: int, number: int = 0) -> Routing:
        """Of one draw, made when first asked for."""
        key = block_tokens, number
        if key not in self._routings:
            ids = self._draws[number].tokens[1]
            self._routings[key] = route(ids, self._weights.addresses[0], block_tokens)
        return self._routings[key]

    def error(self, tiles: Tiles) -> float:
        """Relative Frobenius error of the first draw against float64; NaN if rows are missing."""
        self._results[tiles.product].fill_(float("nan"))
        actual = self.run(tiles).double()
        known = self._known_ids(self._draws[0].tokens[1])
        order = self.routing(tiles.block_tokens).sorted_choices[: int((known >= 0).sum())].long()
        if tiles.product not in self._expected:
            self._expected[tiles.product] = self._exact(tiles.product, known, order)
        actual = actual[: len(order)] if tiles.product == "gate_up" else actual[order]
        return relative_error(actual, self._expected[tiles.product])

    def _exact(self, product: ProductName, known: Tensor, order: Tensor) -> Tensor:
        """Rows of the first draw's choices in ``order``, which depends on no tiles."""
        hidden_states, _, routing_weights = self._draws[0].tokens
        if product == "gate_up":
            return self._experts.exact_activated(hidden_states, known)[order]
        activated = torch.zeros_like(self._draws[0].sorted_activated)
        activated[order] = self._draws[0].sorted_activated[: len(order)]
        return self._experts.exact_contributions(activated, known, routing_weights)[order]

    def combine_error(self) -> float:
        """Of adding up random contributions; rows of experts that are not here are NaN."""
        ids = self._draws[0].tokens[1]
        known = self._known_ids(ids)
        contributions = torch.randn_like(self._results["down"].float()).to(self._dtype)
        here = (known >= 0).flatten()[:, None]
        output = self._empty(len(ids), self._experts.hidden).float().fill_(float("nan"))
        poisoned = contributions.masked_fill(~here, float("nan"))
        combine_(output, poisoned, ids.contiguous(), self._weights, add=False)
        expected = contributions.double().masked_fill(~here, 0).view(*ids.shape, -1).sum(1)
        return relative_error(output.double(), expected)

    def _known_ids(self, ids: Tensor) -> Tensor:
        experts = len(self._experts.down.stored) if self._slots is None else len(self._slots)
        known = ids.masked_fill((ids < 0) | (ids >= experts), -1)
        if self._slots is None:
            return known
        return torch.where(known >= 0, self._slots[known.clamp(min=0)], -1)

    def _empty(self, rows: int, columns: int) -> Tensor:
        device = self._weights.addresses.device
        return torch.empty(rows, columns, dtype=self._dtype, device=device)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ of float64 tensors."""
    return float((actual - expected).norm() / expected.norm())
