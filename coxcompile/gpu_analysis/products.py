"""The two products of an expert layer as a kernel sees them: rows, columns, bytes, tiles."""

import math
from dataclasses import dataclass
from typing import Literal

from coxcompile.gpu_analysis.expected_routing import ExpectedRouting, ExpertLayer
from coxcompile.runtime.kernels.gpu.configurations import ProductConfiguration

ProductName = Literal["gate_up", "down"]
PRODUCTS: tuple[ProductName, ProductName] = ("gate_up", "down")

WEIGHT_BYTES: dict[str, float] = {
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "float8": 1,
    "int8": 1,
    "int4": 0.5,
}
"""Of one weight, by what weights are stored as; scales are left out."""


def activation_bytes(weights: str) -> int:
    """Of one number of hidden states and results: float32 for such weights, else 16 bits."""
    return 4 if weights == "float32" else 2


@dataclass(frozen=True, kw_only=True)
class Product:
    """One projection of one expert: ``matrices`` of [outputs, inputs], times tokens."""

    name: ProductName
    matrices: int
    outputs: int
    inputs: int
    weights: str

    @property
    def weight_bytes(self) -> float:
        """Of one expert."""
        return self.matrices * self.outputs * self.inputs * WEIGHT_BYTES[self.weights]

    def flops_per_choice(self) -> int:
        """A product and a sum for each weight."""
        return 2 * self.matrices * self.outputs * self.inputs

    def tile_flops(self, configuration: ProductConfiguration, block_tokens: int) -> int:
        """Of one tile and one step of ``block_inputs``."""
        outputs = self.matrices * configuration.block_outputs
        return 2 * outputs * block_tokens * configuration.block_inputs

    def tile_weight_bytes(self, configuration: ProductConfiguration) -> float:
        """Of weights that one tile loads in one step."""
        elements = self.matrices * configuration.block_outputs * configuration.block_inputs
        return elements * WEIGHT_BYTES[self.weights]

    def tile_bytes(self, configuration: ProductConfiguration, block_tokens: int) -> float:
        """Of weights and tokens that one tile loads in one step."""
        tokens = block_tokens * configuration.block_inputs * activation_bytes(self.weights)
        return self.tile_weight_bytes(configuration) + tokens

    @property
    def result_bytes(self) -> int:
        """That one choice's result has."""
        return self.outputs * activation_bytes(self.weights)

    def blocks(self, configuration: ProductConfiguration) -> int:
        """Tiles side by side over the outputs."""
        return math.ceil(self.outputs / configuration.block_outputs)

    def steps(self, configuration: ProductConfiguration) -> int:
        """Passes of a tile's loop over the inputs."""
        return math.ceil(self.inputs / configuration.block_inputs)

    def memory_bytes(self, tokens: int, routing: ExpectedRouting) -> float:
        """Between device memory and the GPU, each number once.

        Gate and up read each active expert's weights, the hidden states, and write what is
        activated; down reads its weights and that, and writes one contribution a choice.
        """
        rows = tokens if self.name == "gate_up" else routing.choices
        read = rows * self.inputs * activation_bytes(self.weights)
        written = routing.choices * self.result_bytes
        return routing.active_experts * self.weight_bytes + read + written


def products(layer: ExpertLayer, weights: str) -> tuple[Product, Product]:
    """Gate and up, and down.

    Raises:
        ValueError: there are no such weights.
    """
    if weights not in WEIGHT_BYTES:
        raise ValueError(f"weights is {weights!r}; use one of {', '.join(WEIGHT_BYTES)}")
    hidden, intermediate = layer.hidden, layer.intermediate
    return (
        Product(name="gate_up", matrices=2, outputs=intermediate, inputs=hidden, weights=weights),
        Product(name="down", matrices=1, outputs=hidden, inputs=intermediate, weights=weights),
    )
