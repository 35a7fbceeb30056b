"""What lies between an expert's two projections, in float32; see ``kernels.gating.Gating``."""

import triton
import triton.language as tl

SQRT_HALF: tl.constexpr = tl.constexpr(0.7071067811865476)
GELU_CUBIC: tl.constexpr = tl.constexpr(0.044715)
SQRT_8_OVER_PI: tl.constexpr = tl.constexpr(1.5957691216057308)


@triton.jit
def activate(gate, up, alpha, limit, ACTIVATION: tl.constexpr):
    """``act(gate) * up`` of float32 tiles; names as in :mod:`coxcompile.ops`."""
    if ACTIVATION == "silu":
        result = gate * tl.sigmoid(gate) * up
    elif ACTIVATION == "gelu":
        result = gate * 0.5 * (1.0 + tl.erf(gate * SQRT_HALF)) * up
    elif ACTIVATION == "gelu_tanh":
        # tanh(x) is 2 sigmoid(2 x) - 1.
        cubic = gate + gate * gate * gate * GELU_CUBIC
        result = gate * tl.sigmoid(cubic * SQRT_8_OVER_PI) * up
    elif ACTIVATION == "relu":
        result = tl.maximum(gate, 0.0, propagate_nan=tl.PropagateNan.ALL) * up
    else:
        tl.static_assert(ACTIVATION == "swigluoai")
        gate = tl.minimum(gate, limit, propagate_nan=tl.PropagateNan.ALL)
        up = tl.clamp(up, -limit, limit, propagate_nan=tl.PropagateNan.ALL)
        result = (up + 1.0) * gate * tl.sigmoid(alpha * gate)
    return result
