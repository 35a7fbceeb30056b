"""The kernels around the products: sorting the router's choices, adding up their contributions."""

from typing import Any

import torch

from coxcompile.gpu_analysis.targets import Target
from coxcompile.runtime.emulated.triton_driver import triton_target
from coxcompile.runtime.kernels.gpu.launches import combine_
from coxcompile.runtime.kernels.gpu.routing import route
from coxcompile.runtime.kernels.gpu.weights import ExpertWeights

EXPERTS, TOP_K, TOKENS, WIDTH = 128, 8, 64, 2048


def compiled_routing_kernels(target: Target, block_tokens: int = 64) -> list[Any]:
    """Their ``CompiledKernel``s, for 128 experts, top 8 and 2048 outputs."""
    matrices = (torch.empty(2 * WIDTH, WIDTH), torch.empty(WIDTH, WIDTH))
    expert_ids = torch.zeros(TOKENS, TOP_K, dtype=torch.int64)
    output = torch.empty(TOKENS, WIDTH, dtype=torch.bfloat16)
    contributions = torch.empty(TOKENS * TOP_K, WIDTH, dtype=torch.bfloat16)
    with triton_target(target.name, execute=False) as launches:
        weights = ExpertWeights.from_tensors([matrices] * EXPERTS)
        route(expert_ids, weights.addresses[0], block_tokens)
        combine_(output, contributions, expert_ids, weights, add=False)
    return [launch.kernel for launch in launches]
