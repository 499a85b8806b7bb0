"""Models of the transformers library, built from a configuration alone; nothing is downloaded."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from transformers import AttentionInterface, AttentionMaskInterface, initialization
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.auto import modeling_auto

from planner.errors import ModelError
from planner.models.data import cross_entropy, generator, integers, normals
from planner.models.options import (
    SCALE_DOWN,
    join_options,
    nearest,
    parse_value,
    scale_divisor,
    split_options,
)
from planner.models.presets import TransformersPreset
from planner.models.sizes import shrink, shrink_sequence
from planner.models.source import Batch, ModelSource

_LONGEST_DEFAULT = 2048
_SHORT_DEFAULT = 512
_LONGEST_WORDS = 300
"""Characters of the library's message that are shown [1]."""
_SHRINKING: dict[str, int] = {
    "vocab_size": 64, "intermediate_size": 64, "d_ff": 64, "n_inner": 64, "ffn_dim": 64,
    "moe_intermediate_size": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "num_hidden_layers": 4, "num_layers": 4, "n_layer": 4, "num_decoder_layers": 4,
    "encoder_layers": 4, "decoder_layers": 4,
    "num_attention_heads": 4, "n_head": 4, "num_heads": 4, "num_key_value_heads": 4,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "hidden_size": 64, "n_embd": 64, "d_model": 64,
    "q_lora_rank": 16, "kv_lora_rank": 16,
}  # fmt: skip
"""Configuration fields that shrink, and the number that must divide them afterwards [1]."""
_HEAD_COUNTS = ("num_attention_heads", "num_key_value_heads")
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")

_FUSED = "paraplan-fused"
"""Attention of traced models: the library's fused call without a mask, so that causal models are
seen as causal. On data-less tensors the library itself would spell out the mask, and gpt-oss (whose
fused kernels take its sinks) the scores."""
_SINKS = ("gpt_oss",)
AttentionInterface.register(_FUSED, sdpa_attention_forward)
AttentionMaskInterface.register(_FUSED, lambda *_arguments, **_keywords: None)


def _is_imageless(config: Any) -> bool:
    return getattr(config, "image_size", None) is None and not hasattr(config, "num_channels")


def resolve_transformers(text: str) -> ModelSource:
    """Describe ``hf:TYPE?key=value`` or ``hf:PATH/config.json``.

    Raises
    ------
    ModelError
        If the type or an option is unknown, or the file is no configuration.
    """
    location, options = split_options(text.removeprefix("hf:"))
    if location.endswith(".json"):
        model_type, fields = _read(Path(location))
        name = Path(location).parent.name or model_type
    else:
        model_type, fields, name = location, {}, f"hf:{location}"
    return _source(
        text, name=name, model_type=model_type, fields=fields, options=options,
        stem=f"hf:{location}", sequence_length=None,
    )  # fmt: skip


def resolve_transformers_preset(text: str, *, preset: TransformersPreset, name: str) -> ModelSource:
    """Describe a shipped transformers configuration, with the options of the text."""
    stem, options = split_options(text)
    return _source(
        text, name=name, model_type=preset.model_type, fields=dict(preset.options),
        options=options, stem=stem, sequence_length=preset.sequence_length,
    )  # fmt: skip


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ModelError(f"{path}: {reason}; expected a transformers config.json") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not JSON ({error}); expected a config.json") from None
    model_type = fields.pop("model_type", None) if isinstance(fields, dict) else None
    if not isinstance(model_type, str):
        raise ModelError(f"{path}: no 'model_type'; expected a transformers config.json")
    for ignored in ("architectures", "torch_dtype", "dtype", "transformers_version", "auto_map"):
        fields.pop(ignored, None)
    return model_type, fields


def _source(
    text: str,
    *,
    name: str,
    model_type: str,
    fields: dict[str, Any],
    options: dict[str, str],
    stem: str,
    sequence_length: int | None,
) -> ModelSource:
    divisor = scale_divisor(text, options)
    config = _configure(text, model_type=model_type, fields=fields, options=options)
    length = sequence_length or _default_length(config)
    if divisor > 1:
        config = _shrunk(text, config, divisor)
        length = shrink_sequence(length, divisor=divisor)
    auto_class = _auto_class(text, model_type)
    make_batch = _batch_maker(text, config)

    def scale_down(by: int) -> ModelSource:
        scaled = {**options, SCALE_DOWN: str(divisor * by)}
        return _source(
            join_options(stem, scaled), name=name, model_type=model_type, fields=fields,
            options=scaled, stem=stem, sequence_length=sequence_length,
        )  # fmt: skip

    return ModelSource(
        source=text,
        name=name,
        default_sequence_length=length,
        build=lambda: _build(text, auto_class, config),
        make_batch=make_batch,
        loss=lambda output, targets: cross_entropy(output.logits, targets),
        chain=lambda _module: None,
        scale_down=scale_down,
        key=f"{name}:{config.to_json_string(use_diff=False)}:transformers-{transformers.__version__}",
        tensor_parallel_limits=tuple(
            (key, int(value))
            for key in _HEAD_COUNTS
            if isinstance(value := getattr(config, key, None), int)
        ),
    )


def _configure(
    text: str, *, model_type: str, fields: dict[str, Any], options: dict[str, str]
) -> Any:
    known = list(transformers.CONFIG_MAPPING.keys())
    if model_type not in known:
        raise ModelError(
            f"{text}: no transformers model type {model_type!r}; {_type_hint(model_type, known)}"
        )
    default = transformers.AutoConfig.for_model(model_type)
    for key in options:
        if key != SCALE_DOWN and not hasattr(default, key):
            names = [*default.to_dict(), SCALE_DOWN]
            raise ModelError(f"{text}: {model_type} has no option {key!r}; {nearest(key, names)}")
    chosen = {key: parse_value(value) for key, value in options.items() if key != SCALE_DOWN}
    for key, value in {**fields, **chosen}.items():
        if key in _SHRINKING and isinstance(value, int) and value < 1:
            raise ModelError(f"{text}: {key} = {value}; expected a whole number from 1 up")
    return _new_config(text, model_type, {**fields, **chosen})


def _type_hint(model_type: str, known: list[str]) -> str:
    """Return what to write for a type that is none: a folder, a name of the hub, a misspelling."""
    if model_type and Path(model_type).is_dir():
        return f"of a folder give the file, hf:{model_type}/config.json"
    if "/" in model_type:
        return "nothing is downloaded: give a type as in hf:llama, or hf:PATH/config.json"
    close = nearest(model_type, known)
    return close if close.startswith("did") else "give a type as in hf:llama or hf:vit"


def _new_config(text: str, model_type: str, fields: dict[str, Any]) -> Any:
    try:
        return transformers.AutoConfig.for_model(model_type, **fields)
    except Exception as error:
        raise ModelError(
            f"{text}: transformers refuses the configuration: {_words(error)}; correct its options"
        ) from error


def _shrunk(text: str, config: Any, divisor: int) -> Any:
    fields = config.to_dict()
    for key, multiple in _SHRINKING.items():
        value = fields.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            small = shrink(value, divisor=divisor, multiple=multiple)
            fields[key] = min(value, small)
    for key in _SPECIAL_TOKENS:
        token = fields.get(key)
        if isinstance(token, int) and token >= fields.get("vocab_size", token + 1):
            fields[key] = None
    model_type = fields.pop("model_type")
    if "n_routed_experts" in fields:
        fields["first_k_dense_replace"] = min(fields.get("first_k_dense_replace", 0), 2)
    return _new_config(text, model_type, fields)


def _auto_class(text: str, model_type: str) -> Any:
    """Pick the class with a training objective; encoder-decoders before their own halves."""
    for table, auto_class in (
        (modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, "AutoModelForSeq2SeqLM"),
        (modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, "AutoModelForMaskedLM"),
        (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "AutoModelForCausalLM"),
        (
            modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
            "AutoModelForImageClassification",
        ),
    ):
        if model_type in table:
            return getattr(transformers, auto_class)
    raise ModelError(
        f"{text}: transformers has {model_type!r} neither as a language model nor as an image "
        "classifier; wrap it in a function of your own file"
    )


def _build(text: str, auto_class: Any, config: Any) -> nn.Module:
    """Build with the library's weights, or with none where a fake or meta device holds no data."""
    no_data = bool(_get_current_dispatch_mode_stack()) or torch.get_default_device().type == "meta"
    skip: Any = initialization.no_init_weights() if no_data else nullcontext()
    try:
        with skip:
            model = auto_class.from_config(config)
        if no_data and _takes_fused(model.config):
            attend_without_masks(model)
    except Exception as error:
        raise ModelError(
            f"{text}: transformers cannot build it: {_words(error)}; change its options, or wrap "
            "it in a function of your own file"
        ) from error
    model.tie_weights()
    built: nn.Module = model
    return built


def _words(error: Exception) -> str:
    """Return the library's message in one line: the first of several but announces the next."""
    return " ".join(str(error).split()).rstrip(".")[:_LONGEST_WORDS] or type(error).__name__


def attend_without_masks(model: Any) -> None:
    """Make a model hand no masks to attention: causal or full, as its layers are."""
    model.set_attn_implementation(_FUSED)


def _takes_fused(config: Any) -> bool:
    """Whether fused attention without a mask does the same work: decoders and plain encoders."""
    if config.is_encoder_decoder:
        return False
    return config._attn_implementation == "sdpa" or config.model_type in _SINKS


def _default_length(config: Any) -> int:
    if not _is_imageless(config):
        return 1
    longest = getattr(config, "max_position_embeddings", None) or _SHORT_DEFAULT
    return min(int(longest), _LONGEST_DEFAULT)


def _batch_maker(text: str, config: Any) -> Callable[[int, int, int], Batch]:
    if not _is_imageless(config):
        return lambda batch_size, _length, seed: _image_batch(config, batch_size, seed)
    if not hasattr(config, "vocab_size"):
        raise ModelError(
            f"{text}: its configuration tells neither a vocabulary nor an image size; wrap it in a "
            "function of your own file"
        )
    return lambda batch_size, length, seed: _text_batch(config, batch_size, length, seed)


def _image_batch(config: Any, batch_size: int, seed: int) -> Batch:
    source = generator(seed)
    edge = getattr(config, "image_size", None) or 224
    height, width = edge if isinstance(edge, list | tuple) else (edge, edge)
    images = normals((batch_size, config.num_channels, height, width), source=source)
    targets = integers((batch_size,), below=config.num_labels, source=source)
    return Batch(inputs=(images,), keywords={}, targets=targets)


def _text_batch(config: Any, batch_size: int, sequence_length: int, seed: int) -> Batch:
    source = generator(seed)
    ids = integers((batch_size, sequence_length + 1), below=config.vocab_size, source=source)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    if config.is_encoder_decoder:
        return Batch(inputs=(inputs,), keywords={"decoder_input_ids": inputs}, targets=targets)
    keywords = {"use_cache": False} if getattr(config, "use_cache", False) else {}
    return Batch(inputs=(inputs,), keywords=keywords, targets=targets)
