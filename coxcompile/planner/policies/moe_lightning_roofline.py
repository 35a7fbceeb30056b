"""MoE-Lightning's hierarchical roofline and memory rules (ASPLOS 2025)."""

import numpy as np

from coxcompile.planner.expert_costs import Floats
from coxcompile.planner.policies.first_fit import memory_budgets
from coxcompile.planner.policies.setting import Setting
from coxcompile.planner.policies.splits import gpu_of


def layer_seconds(
    setting: Setting, micro_batch: int, block: Floats, resident_share: Floats
) -> tuple[Floats, Floats, Floats]:
    """(T_link, T_gpu, T_cpu) of one decoding step of one layer, for arrays of blocks.

    T_link = w_i (1 - r_w) / B_cg with w_i = 6 h h_e E; T_gpu = n · max(6 μ h h_e k / P,
    (2 μ (h + h_e) + 6 h h_e E) / B_g); T_cpu the roofline of attention at the cache's mean length.
    Unlike in its code attention counts the products with V, and P is at the efficiency of an
    expert's μ k / E rows.
    """
    model, workload, hardware = setting.model, setting.workload, setting.hardware
    gpu, link = gpu_of(setting.policy, hardware), hardware.host_to_device
    assert link is not None, "HardwareSpec has links wherever it has a GPU"
    layer_bytes = model.experts * model.expert_bytes
    activations = micro_batch * (model.hidden + model.expert_dim) * model.element_bytes
    products = 6 * micro_batch * model.hidden * model.expert_dim * model.top_k
    rows = max(micro_batch * model.top_k / model.experts, 1.0)
    once = gpu.gemm_seconds(float(products), float(activations + layer_bytes), rows)
    length = (workload.input_tokens + workload.output_tokens / 2) / workload.batch
    attention = max(
        4
        * length
        * model.query_heads
        * model.head_dim
        / (hardware.cpu.flops_per_second * hardware.cpu.attention_efficiency),
        hardware.cpu.read_seconds(length * model.kv_bytes),
    )
    on_link = layer_bytes * (1 - resident_share) / link.bytes_per_second
    return on_link, block / micro_batch * once, block * attention


def resident_shares(
    setting: Setting, micro_batch: int, block: Floats, vram_share: float, host_share: float
) -> Floats:
    """The largest r_w that its memory rules allow for each block; negative: none.

    VRAM: other weights + w_i l r_w + 2 w_i (1 - r_w) + hidden states + 2.4 μ s k (h + 3 h_e) bytes,
    where hidden states are a micro-batch's, as the block's wait in host memory. Host memory holds
    all weights, also those that are copied to VRAM, the cache, hidden states and a pinned layer.
    """
    model, workload = setting.model, setting.workload
    vram, host = memory_budgets(setting, vram_share, host_share)
    prompt = workload.input_tokens / workload.batch
    cached = workload.cached_tokens / workload.batch
    hidden_bytes = prompt * model.hidden * model.element_bytes
    elements = micro_batch * prompt * model.top_k * (model.hidden + 3 * model.expert_dim)
    fixed = model.other_bytes + hidden_bytes * micro_batch + 1.2 * model.element_bytes * elements
    layer_bytes, layers = model.experts * model.expert_bytes, model.moe_layers
    if fixed + layer_bytes * layers <= vram:
        share = 1.0
    else:
        share = (vram - fixed - 2 * layer_bytes) / (layer_bytes * max(layers - 2, 1))
    in_host = (
        model.total_bytes
        + block * (model.layers * cached * model.kv_bytes + hidden_bytes)
        + 2 * layer_bytes * (1 - share)
    )
    return np.where(in_host <= host, min(share, 1.0), -1.0)
