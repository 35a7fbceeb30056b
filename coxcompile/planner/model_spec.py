"""What the planner knows of a model: dimensions, and the bytes and FLOP that follow from them."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A decoder of ``layers`` layers, the first ``dense_layers`` of them without experts.

    Sizes are numbers of elements unless a name says bytes; paper §4.1 names them in brackets.

    Attributes:
        name: as reports show it.
        layers: decoder layers (L).
        dense_layers: how many of them have one ordinary FFN in place of routed experts.
        hidden: model dimension (h).
        query_heads: (n_q).
        kv_heads: (n_kv).
        head_dim: (d).
        experts: routed experts of a layer (E).
        top_k: experts a token is routed to (k).
        expert_dim: intermediate width of a routed expert (h_e).
        shared_dim: intermediate width of a layer's shared experts together; they see every token.
        dense_dim: intermediate width of a dense layer's FFN.
        vocabulary: rows of the embedding and of the output head.
        tied_embeddings: the two are one matrix.
        element_bytes: bytes of a weight, activation or cache element (b).
        qkv_elements: weights of OP0 (QKV projection) of a layer; None: h·(n_q + 2 n_kv)·d.
        output_elements: weights of OP2 (output projection); None: n_q·d·h.
        kv_elements: cached elements of a token in a layer; None: 2·n_kv·d. Models with latent
            attention (DeepSeek) set it to the latent's width, which is what has to be kept.
    """

    name: str
    layers: int
    dense_layers: int = 0
    hidden: int
    query_heads: int
    kv_heads: int
    head_dim: int
    experts: int
    top_k: int
    expert_dim: int
    shared_dim: int = 0
    dense_dim: int = 0
    vocabulary: int
    tied_embeddings: bool = False
    element_bytes: int = 2
    qkv_elements: int | None = None
    output_elements: int | None = None
    kv_elements: int | None = None

    def __post_init__(self) -> None:
        for name in (
            *("layers", "hidden", "query_heads", "kv_heads", "head_dim", "experts", "top_k"),
            *("expert_dim", "vocabulary", "element_bytes"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be 1 or more")
        if self.top_k > self.experts:
            raise ValueError(f"top_k is {self.top_k}, but there are {self.experts} experts")
        if not 0 <= self.dense_layers <= self.layers:
            raise ValueError(
                f"dense_layers is {self.dense_layers}, but must lie in [0, {self.layers}]"
            )

    @property
    def moe_layers(self) -> int:
        """Layers with routed experts."""
        return self.layers - self.dense_layers

    @property
    def qkv_weights(self) -> int:
        """Elements of OP0's weight in a layer."""
        return self.qkv_elements or self.hidden * (self.query_heads + 2 * self.kv_heads) * (
            self.head_dim
        )

    @property
    def output_weights(self) -> int:
        """Elements of OP2's weight in a layer."""
        return self.output_elements or self.query_heads * self.head_dim * self.hidden

    @property
    def expert_bytes(self) -> int:
        """One gated expert: 3·h·h_e·b (paper §4.1, OP3)."""
        return 3 * self.hidden * self.expert_dim * self.element_bytes

    @property
    def attention_bytes(self) -> int:
        """The projections of one layer, OP0 and OP2."""
        return (self.qkv_weights + self.output_weights) * self.element_bytes

    @property
    def shared_bytes(self) -> int:
        """Shared experts and router of one MoE layer."""
        return (3 * self.shared_dim + self.experts) * self.hidden * self.element_bytes

    @property
    def dense_bytes(self) -> int:
        """The FFN of one dense layer."""
        return 3 * self.hidden * self.dense_dim * self.element_bytes

    @property
    def vocabulary_bytes(self) -> int:
        """Embedding and output head."""
        matrices = 1 if self.tied_embeddings else 2
        return matrices * self.vocabulary * self.hidden * self.element_bytes

    @property
    def head_bytes(self) -> int:
        """The output head alone, which every decoding step reads."""
        return self.vocabulary * self.hidden * self.element_bytes

    @property
    def other_bytes(self) -> int:
        """All weights that are no routed expert."""
        return (
            self.layers * self.attention_bytes
            + self.moe_layers * self.shared_bytes
            + self.dense_layers * self.dense_bytes
            + self.vocabulary_bytes
        )

    @property
    def total_bytes(self) -> int:
        """All weights."""
        return self.other_bytes + self.moe_layers * self.experts * self.expert_bytes

    @property
    def kv_bytes(self) -> int:
        """Cached keys and values of one token in one layer."""
        return (self.kv_elements or 2 * self.kv_heads * self.head_dim) * self.element_bytes


def model_from_config(config: Any, name: str | None = None) -> ModelSpec:
    """The spec of a Hugging Face config (``AutoConfig.from_pretrained(path)`` or made in code).

    Reads the field names that transformers' MoE families use; a config of a multi-modal model is
    read through its ``text_config``.

    Raises:
        ValueError: a size is missing, so this is no MoE decoder that the planner knows; the message
            names the field.
    """
    config = getattr(config, "text_config", None) or config

    def read(*names: str, default: int | None = None) -> int:
        for field in names:
            value = getattr(config, field, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        if default is None:
            raise ValueError(
                f"{type(config).__name__} has none of {', '.join(names)}: not an MoE decoder the "
                "planner can read; describe it in a ModelSpec instead"
            )
        return default

    hidden, query_heads = read("hidden_size"), read("num_attention_heads")
    layers = read("num_hidden_layers")
    head_dim = read("head_dim", default=hidden // query_heads)
    dense_dim = read("intermediate_size_mlp", "intermediate_size", default=0)
    expert_dim = read("moe_intermediate_size", "intermediate_size")
    shared_dim = read("shared_expert_intermediate_size", "shared_intermediate_size", default=0)
    if not shared_dim:
        # Llama4 has one shared expert in every MoE layer and no field that says so.
        always = 1 if hasattr(config, "interleave_moe_layer_step") else 0
        shared_dim = expert_dim * read("n_shared_experts", "num_shared_experts", default=always)
    dtype = getattr(config, "dtype", None)
    latent = _latent_attention(config, hidden, query_heads)
    return ModelSpec(
        name=name or getattr(config, "name_or_path", "") or str(config.model_type),
        layers=layers,
        dense_layers=_dense_layers(config, layers),
        hidden=hidden,
        query_heads=query_heads,
        kv_heads=read("num_key_value_heads", default=query_heads),
        head_dim=latent.pop("head_dim", head_dim),
        experts=read("num_experts", "n_routed_experts", "num_local_experts"),
        top_k=read("num_experts_per_tok", "moe_topk", "num_experts_per_token"),
        expert_dim=expert_dim,
        shared_dim=shared_dim,
        dense_dim=dense_dim,
        vocabulary=read("vocab_size"),
        tied_embeddings=bool(getattr(config, "tie_word_embeddings", False)),
        element_bytes=getattr(dtype, "itemsize", 2),
        **latent,
    )


def _dense_layers(config: Any, layers: int) -> int:
    kinds = getattr(config, "mlp_layer_types", None)
    if kinds:
        return sum(kind == "dense" for kind in kinds)
    moe_layers = getattr(config, "moe_layers", None)
    if moe_layers is not None:
        return layers - len(moe_layers)
    first_dense = getattr(config, "first_k_dense_replace", None)
    if isinstance(first_dense, int):
        return min(first_dense, layers)
    return len(getattr(config, "mlp_only_layers", None) or ())


def _latent_attention(config: Any, hidden: int, query_heads: int) -> dict[str, int]:
    """DeepSeek's attention: queries and keys/values go through low-rank latents.

    ``head_dim`` is the mean of a head's query-key and value widths: attention does as much as with
    heads of that size.
    """
    latent = getattr(config, "kv_lora_rank", None)
    if latent is None:
        return {}
    rotary, plain = config.qk_rope_head_dim, config.qk_nope_head_dim
    query_width = query_heads * (rotary + plain)
    rank = config.q_lora_rank
    queries = rank * (hidden + query_width) if rank else hidden * query_width
    keys_values = hidden * (latent + rotary) + latent * query_heads * (plain + config.v_head_dim)
    return {
        "head_dim": (rotary + plain + config.v_head_dim) // 2,
        "qkv_elements": queries + keys_values,
        "output_elements": query_heads * config.v_head_dim * hidden,
        "kv_elements": latent + rotary,
    }
