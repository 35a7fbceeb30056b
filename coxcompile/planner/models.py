"""Open MoE models by name, with the dimensions of their published configs.

Weights count as bfloat16, also where a checkpoint stores fewer bits (GPT-OSS 4, DeepSeek-V3 8).
Left out is what generating text one token at a time does not run: layers for multi-token
prediction, vision towers. So are biases and norms, less than a thousandth of the weights.
"""

from coxcompile.naming import look_up
from coxcompile.planner.model_spec import ModelSpec


def model_named(name: str) -> ModelSpec:
    """The model of that name in :data:`MODELS`.

    Raises:
        UnknownNameError: there is none; the message lists the names and the nearest.
    """
    return look_up("model", name, MODELS)


def _deepseek(
    *,
    name: str,
    layers: int,
    dense_layers: int,
    hidden: int,
    heads: int,
    query_rank: int | None,
    experts: int,
    top_k: int,
    expert_dim: int,
    shared_experts: int,
    dense_dim: int,
    vocabulary: int,
) -> ModelSpec:
    """A model with DeepSeek-V2's latent attention (arXiv 2405.04434 §2.1), the same in V3.

    ``head_dim`` is the mean of a key's 192 dimensions (128 and 64 rotary) and a value's 128, with
    which OP1's FLOP (4·s·s_kv·n_q·d) and activations are those of keys and values expanded from
    the latent. ``query_rank``: width of the queries' latent; None where they have none.
    """
    plain, rotary, value, latent = 128, 64, 128, 512
    query_width = heads * (plain + rotary)
    queries = query_rank * (hidden + query_width) if query_rank else hidden * query_width
    return ModelSpec(
        name=name,
        layers=layers,
        dense_layers=dense_layers,
        hidden=hidden,
        query_heads=heads,
        kv_heads=heads,
        head_dim=(plain + rotary + value) // 2,
        experts=experts,
        top_k=top_k,
        expert_dim=expert_dim,
        shared_dim=shared_experts * expert_dim,
        dense_dim=dense_dim,
        vocabulary=vocabulary,
        qkv_elements=queries + hidden * (latent + rotary) + latent * heads * (plain + value),
        output_elements=heads * value * hidden,
        kv_elements=latent + rotary,
    )


_SPECS = (
    ModelSpec(
        name="mixtral-8x7b",
        layers=32,
        hidden=4096,
        query_heads=32,
        kv_heads=8,
        head_dim=128,
        experts=8,
        top_k=2,
        expert_dim=14336,
        vocabulary=32000,
    ),
    ModelSpec(
        name="mixtral-8x22b",
        layers=56,
        hidden=6144,
        query_heads=48,
        kv_heads=8,
        head_dim=128,
        experts=8,
        top_k=2,
        expert_dim=16384,
        vocabulary=32000,
    ),
    ModelSpec(
        name="qwen3-30b-a3b",
        layers=48,
        hidden=2048,
        query_heads=32,
        kv_heads=4,
        head_dim=128,
        experts=128,
        top_k=8,
        expert_dim=768,
        vocabulary=151936,
    ),
    ModelSpec(
        name="qwen3-235b-a22b",
        layers=94,
        hidden=4096,
        query_heads=64,
        kv_heads=4,
        head_dim=128,
        experts=128,
        top_k=8,
        expert_dim=1536,
        vocabulary=151936,
    ),
    _deepseek(
        name="deepseek-v2-lite",
        layers=27,
        dense_layers=1,
        hidden=2048,
        heads=16,
        query_rank=None,
        experts=64,
        top_k=6,
        expert_dim=1408,
        shared_experts=2,
        dense_dim=10944,
        vocabulary=102400,
    ),
    _deepseek(
        name="deepseek-v2",
        layers=60,
        dense_layers=1,
        hidden=5120,
        heads=128,
        query_rank=1536,
        experts=160,
        top_k=6,
        expert_dim=1536,
        shared_experts=2,
        dense_dim=12288,
        vocabulary=102400,
    ),
    _deepseek(
        name="deepseek-v3",
        layers=61,
        dense_layers=3,
        hidden=7168,
        heads=128,
        query_rank=1536,
        experts=256,
        top_k=8,
        expert_dim=2048,
        shared_experts=1,
        dense_dim=18432,
        vocabulary=129280,
    ),
    ModelSpec(
        name="gpt-oss-20b",
        layers=24,
        hidden=2880,
        query_heads=64,
        kv_heads=8,
        head_dim=64,
        experts=32,
        top_k=4,
        expert_dim=2880,
        vocabulary=201088,
    ),
    ModelSpec(
        name="gpt-oss-120b",
        layers=36,
        hidden=2880,
        query_heads=64,
        kv_heads=8,
        head_dim=64,
        experts=128,
        top_k=4,
        expert_dim=2880,
        vocabulary=201088,
    ),
    ModelSpec(
        name="glm4.5",
        layers=92,
        dense_layers=3,
        hidden=5120,
        query_heads=96,
        kv_heads=8,
        head_dim=128,
        experts=160,
        top_k=8,
        expert_dim=1536,
        shared_dim=1536,
        dense_dim=12288,
        vocabulary=151552,
    ),
    ModelSpec(
        name="llama4-scout",
        layers=48,
        hidden=5120,
        query_heads=40,
        kv_heads=8,
        head_dim=128,
        experts=16,
        top_k=1,
        expert_dim=8192,
        shared_dim=8192,
        vocabulary=202048,
    ),
    # Every second layer is dense, not the first 24: only their number counts here.
    ModelSpec(
        name="llama4-maverick",
        layers=48,
        dense_layers=24,
        hidden=5120,
        query_heads=40,
        kv_heads=8,
        head_dim=128,
        experts=128,
        top_k=1,
        expert_dim=8192,
        shared_dim=8192,
        dense_dim=16384,
        vocabulary=202048,
    ),
)

MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}
"""The paper's three and the large open ones, by lower-case name."""
