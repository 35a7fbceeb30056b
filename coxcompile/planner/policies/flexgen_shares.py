"""FlexGen's linear program: shares of weights, cache and hidden states of a block (ICML 2023)."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from coxcompile.planner.expert_costs import Floats

VARIABLES = (
    *("weights_gpu", "weights_host", "weights_disk", "cache_gpu", "cache_host"),
    *("hidden_gpu", "hidden_host", "prefill_seconds", "decode_seconds"),
)


@dataclass(frozen=True, kw_only=True)
class BlockCosts:
    """The constants of the program for one micro-batch and block; bytes and seconds.

    Attributes:
        layers: decoder layers (l).
        decode_steps: n - 1.
        layer_bytes: weights of one layer (w_i).
        prefill_hidden_bytes, decode_hidden_bytes: hidden states of the block, 2 s h1 bls and
            2 h1 bls.
        new_cache_bytes: what prefill adds to one layer's cache, 4 (s + 1) h_kv bls.
        cache_bytes: one layer's cache in the end, 4 (s + n) h_kv bls.
        micro_batch_hidden_bytes: 2 s h1 gbs, in VRAM also if hidden states wait in host memory.
        intermediate_bytes: a micro-batch's other intermediates.
        prefill_compute, decode_compute: GPU seconds of a layer, attention of decode left out.
        attention_gpu, attention_cpu: seconds of decode's attention in a layer.
        to_gpu, to_host, from_disk: bytes a second (B_cg, B_gc, B_dc).
        vram, host, disk: bytes to plan with; no disk: 0.
    """

    layers: int
    decode_steps: float
    layer_bytes: float
    prefill_hidden_bytes: float
    decode_hidden_bytes: float
    new_cache_bytes: float
    cache_bytes: float
    micro_batch_hidden_bytes: float
    intermediate_bytes: float
    prefill_compute: float
    decode_compute: float
    attention_gpu: float
    attention_cpu: float
    to_gpu: float
    to_host: float
    from_disk: float
    vram: float
    host: float
    disk: float


@dataclass(frozen=True)
class Shares:
    """The program's solution: a value for each of VARIABLES, and T = l·T_pre + l·(n - 1)·T_gen."""

    values: dict[str, float]
    seconds: float


def constraints(costs: BlockCosts) -> tuple[Floats, Floats]:
    """(A, b) of A·x ≤ b, x in the order of VARIABLES; memory rows are in shares of the memory.

    The bounds are sums, as in FlexGen's code: T_pre ≥ ctog + dtoc, ≥ gtoc, ≥ comp;
    T_gen ≥ ctog + each of gtoc, dtoc, comp.
    """
    c = costs
    weights_moved = c.layer_bytes / c.to_gpu
    from_disk = c.layer_bytes / c.from_disk if c.disk else 0.0
    hidden_in, hidden_out = c.prefill_hidden_bytes / c.to_gpu, c.prefill_hidden_bytes / c.to_host
    decode_in, decode_out = c.decode_hidden_bytes / c.to_gpu, c.decode_hidden_bytes / c.to_host
    to_gpu_in_decode = {
        **{"weights_host": weights_moved, "weights_disk": weights_moved, "hidden_host": decode_in},
        "decode_seconds": -1.0,
    }
    all_weights = c.layer_bytes * c.layers
    rows: list[tuple[dict[str, float], float]] = [
        (
            {
                "weights_host": weights_moved,
                "weights_disk": weights_moved + from_disk,
                "hidden_host": hidden_in,
                "prefill_seconds": -1.0,
            },
            0.0,
        ),
        (
            {
                "cache_host": c.new_cache_bytes / c.to_host,
                "hidden_host": hidden_out,
                "prefill_seconds": -1.0,
            },
            0.0,
        ),
        ({"prefill_seconds": -1.0}, -c.prefill_compute),
        ({**to_gpu_in_decode, "hidden_host": decode_in + decode_out}, 0.0),
        ({**to_gpu_in_decode, "weights_disk": weights_moved + from_disk / 0.95}, 0.0),
        (
            {**to_gpu_in_decode, "cache_gpu": c.attention_gpu, "cache_host": c.attention_cpu},
            -c.decode_compute,
        ),
        (
            {
                "weights_gpu": (all_weights - 2 * c.layer_bytes) / c.vram,
                "cache_gpu": c.cache_bytes * c.layers / c.vram,
                "hidden_gpu": c.prefill_hidden_bytes / c.vram,
                "hidden_host": c.micro_batch_hidden_bytes / c.vram,
            },
            1.0 - (c.intermediate_bytes + 2 * c.layer_bytes) / c.vram,
        ),
        (
            {
                "weights_gpu": all_weights / c.host,
                "weights_host": all_weights / c.host,
                "cache_host": c.cache_bytes * c.layers / c.host,
                "hidden_host": c.prefill_hidden_bytes / c.host,
            },
            1.0,
        ),
    ]
    if c.disk:
        rows.append(({"weights_disk": all_weights / c.disk}, 1.0))
    matrix = np.array([[row.get(name, 0.0) for name in VARIABLES] for row, _ in rows])
    return matrix, np.array([bound for _, bound in rows])


def solve(costs: BlockCosts) -> Shares | None:
    """The best shares; None if no shares fit the memories.

    Hidden states are never on disk, as FlexGen's runtime has it, and neither is the cache, for ours
    keeps weights alone there. The cache lies in one memory whole, since a ``Plan`` runs the
    attention of decode on one device, where FlexGen splits it. Host memory holds what VRAM does
    once more, as our runtime keeps all weights.
    """
    bound = dict.fromkeys(VARIABLES, (0.0, 1.0))
    bound["prefill_seconds"] = bound["decode_seconds"] = (0.0, np.inf)
    if not costs.disk:
        bound["weights_disk"] = (0.0, 0.0)
    objective = dict.fromkeys(VARIABLES, 0.0)
    objective["prefill_seconds"] = float(costs.layers)
    objective["decode_seconds"] = costs.layers * costs.decode_steps
    matrix, limits = constraints(costs)
    kinds = ("weights", "cache", "hidden")
    result = linprog(
        [objective[name] for name in VARIABLES],
        A_ub=matrix,
        b_ub=limits,
        A_eq=[[float(name.startswith(f"{kind}_")) for name in VARIABLES] for kind in kinds],
        b_eq=[1.0] * len(kinds),
        bounds=[bound[name] for name in VARIABLES],
        integrality=[int(name == "cache_gpu") for name in VARIABLES],
        method="highs",
    )
    if not result.success:
        return None
    return Shares(dict(zip(VARIABLES, map(float, result.x), strict=True)), float(result.fun))
