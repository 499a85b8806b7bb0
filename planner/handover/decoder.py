"""Sizes of a decoder-only transformer, read from a preset or a transformers configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from planner.models.inspected import inspect_model
from planner.models.options import SCALE_DOWN, override, scale_divisor, split_options
from planner.models.presets import PRESETS
from planner.models.sizes import GptSize, LlamaSize
from planner.models.source import ModelSource

Activation = Literal["gelu", "swiglu", "squared_relu"]

_GPT_ROLES = {
    "attention.query.weight": "S0",
    "attention.key.weight": "S0",
    "attention.value.weight": "S0",
    "attention.output.weight": "S1",
    "ffn.up.weight": "S0",
    "ffn.down.weight": "S1",
}
_LLAMA_ROLES = {**_GPT_ROLES, "ffn.gate.weight": "S0"}
_ATTENTION_ROLES = {
    "self_attn.q_proj.weight": "S0",
    "self_attn.k_proj.weight": "S0",
    "self_attn.v_proj.weight": "S0",
    "self_attn.o_proj.weight": "S1",
}
_GATED_ROLES = {
    **_ATTENTION_ROLES,
    "mlp.gate_proj.weight": "S0",
    "mlp.up_proj.weight": "S0",
    "mlp.down_proj.weight": "S1",
}
_PLAIN_ROLES = {**_ATTENTION_ROLES, "mlp.up_proj.weight": "S0", "mlp.down_proj.weight": "S1"}
_EXPERT_ROLES = {
    **_ATTENTION_ROLES,
    "mlp.experts.gate_up_proj": "S0",
    "mlp.experts.down_proj": "S0",
}
"""Experts are one tensor, experts first: a tensor group that splits it holds whole experts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoder:
    """A decoder-only transformer; counts and widths [1]."""

    family: str
    """``gpt`` and ``llama`` for our own, else the transformers type."""
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    ffn_size: int
    """Width of the feed-forward layer, of one expert where there are experts."""
    vocab_size: int
    max_positions: int
    """Learned positions; 0 for rotary ones."""
    tied: bool
    dropout: float
    activation: Activation
    has_biases: bool
    """Whether every linear layer has one."""
    has_query_biases: bool
    """Whether query, key and value have one."""
    norms_queries: bool
    rms_norm: bool
    norm_eps: float
    rope_theta: float
    rotary_share: float = 1.0
    num_experts: int = 0
    experts_per_token: int = 0
    renormalises_routes: bool = True
    """Whether the weights of the chosen experts sum to one."""
    roles: Mapping[str, str]
    """Parameter of a block -> placement under Megatron's tensor parallelism (column S0, row S1)."""


def find_decoder(source: ModelSource) -> Decoder | None:
    """Return the sizes of a model, or None where it is no decoder that hand-over knows.

    A preset of our own tells its sizes; any other model is built without weights and asked for its
    transformers configuration.

    Examples
    --------
    >>> from planner.models.resolve import resolve_model
    >>> find_decoder(resolve_model("gpt3-175b")).hidden_size
    12288
    >>> find_decoder(resolve_model("resnet50")) is None
    True
    """
    name, options = split_options(source.source)
    if name not in PRESETS:
        return decoder_of_configuration(inspect_model(source, block_paths=()).configuration)
    size = override(PRESETS[name].size, options, text=source.source)
    if SCALE_DOWN in options:
        size = size.shrunk(scale_divisor(source.source, options))
    if isinstance(size, GptSize):
        return _gpt(size)
    return _llama(size) if isinstance(size, LlamaSize) else None


def _gpt(size: GptSize) -> Decoder:
    return Decoder(
        family="gpt", num_layers=size.num_layers, hidden_size=size.hidden_size,
        num_heads=size.num_heads, num_kv_heads=size.num_heads, head_size=size.head_size,
        ffn_size=size.ffn_multiple * size.hidden_size, vocab_size=size.vocab_size,
        max_positions=size.max_positions, tied=size.tied, dropout=size.dropout,
        activation="gelu", has_biases=True, has_query_biases=True, norms_queries=False,
        rms_norm=False, norm_eps=1e-5, rope_theta=0.0, roles=_GPT_ROLES,
    )  # fmt: skip


def _llama(size: LlamaSize) -> Decoder:
    return Decoder(
        family="llama", num_layers=size.num_layers, hidden_size=size.hidden_size,
        num_heads=size.num_heads, num_kv_heads=size.num_kv_heads, head_size=size.head_size,
        ffn_size=size.ffn_size, vocab_size=size.vocab_size, max_positions=0, tied=size.tied,
        dropout=size.dropout, activation="swiglu", has_biases=False, has_query_biases=False,
        norms_queries=False, rms_norm=True, norm_eps=size.norm_eps, rope_theta=size.rope_theta,
        roles=_LLAMA_ROLES,
    )  # fmt: skip


_ROLES_OF_TYPE: dict[str, Mapping[str, str]] = {
    "llama": _GATED_ROLES,
    "mistral": _GATED_ROLES,
    "qwen2": _GATED_ROLES,
    "qwen3": _GATED_ROLES,
    "nemotron": _PLAIN_ROLES,
    "mixtral": _EXPERT_ROLES,
    "qwen3_moe": _EXPERT_ROLES,
}
"""transformers types that hand-over knows, with the parameters of their blocks."""
_ACTIVATIONS: dict[str, Activation] = {"silu": "swiglu", "relu2": "squared_relu"}


def decoder_of_configuration(fields: Mapping[str, Any]) -> Decoder | None:
    """Return the sizes that a transformers configuration tells; None for irregular layers."""
    family = fields.get("model_type", "")
    activation = _ACTIVATIONS.get(str(fields.get("hidden_act")))
    if family not in _ROLES_OF_TYPE or activation is None or _is_irregular(fields):
        return None
    heads = fields["num_attention_heads"]
    rope = fields.get("rope_parameters") or {}
    experts = _first(fields, "num_local_experts", "num_experts")
    return Decoder(
        family=family, num_layers=fields["num_hidden_layers"], hidden_size=fields["hidden_size"],
        num_heads=heads, num_kv_heads=fields.get("num_key_value_heads") or heads,
        head_size=fields.get("head_dim") or fields["hidden_size"] // heads,
        ffn_size=_first(fields, "moe_intermediate_size", "intermediate_size"),
        vocab_size=fields["vocab_size"], max_positions=0,
        tied=bool(fields.get("tie_word_embeddings")),
        dropout=float(fields.get("attention_dropout") or 0.0), activation=activation,
        has_biases=bool(fields.get("attention_bias")) and bool(fields.get("mlp_bias")),
        has_query_biases=family == "qwen2" or bool(fields.get("attention_bias")),
        norms_queries=family.startswith("qwen3"), rms_norm=family != "nemotron",
        norm_eps=float(_first(fields, "rms_norm_eps", "norm_eps")),
        rope_theta=float(rope.get("rope_theta", 10000.0)),
        rotary_share=float(rope.get("partial_rotary_factor", 1.0)), num_experts=experts,
        experts_per_token=fields.get("num_experts_per_tok", 0) if experts else 0,
        renormalises_routes=bool(fields.get("norm_topk_prob", True)),
        roles=_ROLES_OF_TYPE[family],
    )  # fmt: skip


def _first(fields: Mapping[str, Any], *names: str) -> Any:
    return next((fields[name] for name in names if fields.get(name)), 0)


def _is_irregular(fields: Mapping[str, Any]) -> bool:
    """Whether layers differ from each other or look through a window: not in ``Decoder``."""
    rope_type = (fields.get("rope_parameters") or {}).get("rope_type", "default")
    window = fields.get("sliding_window") if fields.get("use_sliding_window", True) else None
    uneven = fields.get("mlp_only_layers") or fields.get("decoder_sparse_step", 1) != 1
    half_biased = bool(fields.get("mlp_bias")) != bool(fields.get("attention_bias"))
    has_both = "mlp_bias" in fields
    return bool(window or uneven or rope_type != "default" or (has_both and half_biased))
