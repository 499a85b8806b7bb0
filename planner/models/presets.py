"""The shipped models: a name, a sentence, a family and its sizes. No torch here."""

from dataclasses import dataclass, field
from typing import Any

from planner.models.sizes import (
    AlexnetSize,
    BertSize,
    ConvolutionSize,
    DlrmSize,
    GptSize,
    InceptionSize,
    LlamaSize,
    LstmSize,
    MlpSize,
    ResnetSize,
    Size,
    VitSize,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """One shipped model of our own."""

    title: str
    family: str
    """Module of this package that builds it."""
    size: Size
    sequence_length: int = 1
    """Tokens per sample; 1 where the model has no sequence [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformersPreset:
    """One shipped model that is a transformers configuration with its published sizes."""

    title: str
    model_type: str
    sequence_length: int
    options: dict[str, Any] = field(default_factory=dict)


GPT2_VOCABULARY = 50257
MEGATRON_VOCABULARY = 51200
"""GPT-2's vocabulary padded so that tensor parallelism divides it, arXiv:2104.04473 section 5."""


def _gpt2(layers: int, hidden: int, heads: int, title: str) -> Preset:
    size = GptSize(
        num_layers=layers, hidden_size=hidden, num_heads=heads, dropout=0.1,
        vocab_size=GPT2_VOCABULARY, max_positions=1024,
    )  # fmt: skip
    return Preset(title=title, family="gpt", size=size, sequence_length=1024)


def _megatron(layers: int, hidden: int, heads: int, title: str) -> Preset:
    size = GptSize(
        num_layers=layers, hidden_size=hidden, num_heads=heads, dropout=0.1,
        vocab_size=MEGATRON_VOCABULARY, max_positions=2048,
    )  # fmt: skip
    return Preset(title=title, family="gpt", size=size, sequence_length=2048)


def _mpt(layers: int, hidden: int, heads: int) -> Preset:
    size = GptSize(
        num_layers=layers, hidden_size=hidden, num_heads=heads, vocab_size=50368,
        max_positions=2048,
    )  # fmt: skip
    title = "MPT as llm-foundry's training benchmarks run it: learned positions, biases, tied head"
    return Preset(title=title, family="gpt", size=size, sequence_length=2048)


def _llama(layers: int, hidden: int, heads: int, ffn: int, title: str) -> Preset:
    size = LlamaSize(
        num_layers=layers, hidden_size=hidden, num_heads=heads, num_kv_heads=8, ffn_size=ffn,
        vocab_size=128_256,
    )  # fmt: skip
    return Preset(title=title, family="llama", size=size, sequence_length=8192)


def _bert(layers: int, hidden: int, heads: int, title: str) -> Preset:
    size = BertSize(
        num_layers=layers, hidden_size=hidden, num_heads=heads, vocab_size=30522, dropout=0.1
    )
    return Preset(title=title, family="bert", size=size, sequence_length=512)


def _resnet(name: str, depths: tuple[int, ...]) -> Preset:
    title = f"{name} for ImageNet, arXiv:1512.03385 (v1.5)"
    return Preset(title=title, family="resnet", size=ResnetSize(depths=depths))


def _vgg(title: str) -> Preset:
    return Preset(title=title, family="alexnet_vgg", size=ConvolutionSize(dropout=0.5))


_TABLE_2104 = "Megatron-LM, arXiv:2104.04473 table 1"
_TABLE_2205 = "Megatron, arXiv:2205.05198 table 3"
_TABLE_GPT3 = "GPT-3, arXiv:2005.14165 table 2.1, vocabulary padded to 51200"
_TABLE_LLAMA3 = "Llama 3, arXiv:2407.21783 table 3"

_CRITEO_TERABYTE_ROWS = (
    39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10,
    2208, 11938, 155, 4, 976, 14, 39979771, 25641295, 39664984, 585935, 12972, 108, 36,
)  # fmt: skip
"""Rows of the 26 tables of Criteo Terabyte with ids capped at 40 million, as in MLPerf training."""

PRESETS: dict[str, Preset] = {
    "gpt2": _gpt2(12, 768, 12, "GPT-2 small, 124 M parameters, tied head"),
    "gpt2-medium": _gpt2(24, 1024, 16, "GPT-2 medium, 355 M parameters, tied head"),
    "gpt2-large": _gpt2(36, 1280, 20, "GPT-2 large, 774 M parameters, tied head"),
    "gpt2-xl": _gpt2(48, 1600, 25, "GPT-2 XL, 1.56 B parameters, tied head"),
    "gpt3-1.3b": _megatron(24, 2048, 16, f"{_TABLE_GPT3}; 16 heads of 128"),
    "gpt3-6.7b": _megatron(32, 4096, 32, _TABLE_GPT3),
    "gpt3-13b": _megatron(40, 5120, 40, _TABLE_GPT3),
    "gpt3-175b": _megatron(96, 12288, 96, _TABLE_GPT3),
    "gpt-1.7b": _megatron(24, 2304, 24, _TABLE_2104),
    "gpt-3.6b": _megatron(30, 3072, 32, _TABLE_2104),
    "gpt-7.5b": _megatron(36, 4096, 32, _TABLE_2104),
    "gpt-18b": _megatron(40, 6144, 48, _TABLE_2104),
    "gpt-22b": _megatron(48, 6144, 64, _TABLE_2205),
    "gpt-39b": _megatron(48, 8192, 64, _TABLE_2104),
    "gpt-76b": _megatron(60, 10240, 80, _TABLE_2104),
    "gpt-145b": _megatron(80, 12288, 96, _TABLE_2104),
    "gpt-310b": _megatron(96, 16384, 128, _TABLE_2104),
    "gpt-530b": _megatron(105, 20480, 128, _TABLE_2205),
    "gpt-1t": _megatron(128, 25600, 160, _TABLE_2205),
    "mpt-125m": _mpt(12, 768, 12),
    "mpt-350m": _mpt(24, 1024, 16),
    "mpt-760m": _mpt(24, 1536, 12),
    "mpt-1b": _mpt(24, 2048, 16),
    "mpt-3b": _mpt(32, 2560, 20),
    "mpt-7b": _mpt(32, 4096, 32),
    "mpt-13b": _mpt(40, 5120, 40),
    "mpt-30b": _mpt(48, 7168, 56),
    "mpt-70b": _mpt(80, 8192, 64),
    "llama3-8b": _llama(32, 4096, 32, 14336, f"{_TABLE_LLAMA3}, 8 B"),
    "llama3-70b": _llama(80, 8192, 64, 28672, f"{_TABLE_LLAMA3}, 70 B"),
    "llama3-405b": _llama(126, 16384, 128, 53248, f"{_TABLE_LLAMA3}, 405 B"),
    "bert-base": _bert(12, 768, 12, "BERT-base with a masked-language head, arXiv:1810.04805"),
    "bert-large": _bert(24, 1024, 16, "BERT-large with a masked-language head, arXiv:1810.04805"),
    "vit-large": Preset(
        title="ViT-L/16 at 224 pixels, arXiv:2010.11929",
        family="vit",
        size=VitSize(num_layers=24, hidden_size=1024, num_heads=16),
    ),
    "resnet50": _resnet("ResNet-50", (3, 4, 6, 3)),
    "resnet101": _resnet("ResNet-101", (3, 4, 23, 3)),
    "resnet152": _resnet("ResNet-152", (3, 8, 36, 3)),
    "alexnet": Preset(
        title="AlexNet, the one-tower form of arXiv:1404.5997",
        family="alexnet_vgg",
        size=AlexnetSize(dropout=0.5),
    ),
    "vgg11": _vgg("VGG-11, arXiv:1409.1556 configuration A"),
    "vgg16": _vgg("VGG-16, arXiv:1409.1556 configuration D"),
    "vgg19": _vgg("VGG-19, arXiv:1409.1556 configuration E"),
    "inception-v3": Preset(
        title="Inception-v3 at 299 pixels, arXiv:1512.00567, no auxiliary classifier",
        family="inception",
        size=InceptionSize(image_size=299, dropout=0.5),
    ),
    "lstm": Preset(
        title="two-layer LSTM language model, the large one of arXiv:1409.2329",
        family="lstm",
        size=LstmSize(num_layers=2, hidden_size=1500, vocab_size=10_000, dropout=0.65),
        sequence_length=35,
    ),
    "dlrm": Preset(
        title="DLRM on Criteo Terabyte as in MLPerf training, arXiv:1906.00091",
        family="dlrm",
        size=DlrmSize(
            table_rows=_CRITEO_TERABYTE_ROWS, embedding_size=128, num_dense=13,
            bottom_widths=(512, 256), top_widths=(1024, 1024, 512, 256),
        ),
    ),
    "mlp": Preset(
        title="four wide linear layers, the smallest thing worth splitting",
        family="mlp",
        size=MlpSize(num_inputs=1024, num_layers=4, hidden_size=4096, num_classes=1000),
    ),
}  # fmt: skip


def _qwen3(name: str, *, layers: int, hidden: int, heads: int, expert: int) -> TransformersPreset:
    return TransformersPreset(
        title=f"Qwen3 {name}, arXiv:2505.09388 table 2",
        model_type="qwen3_moe",
        sequence_length=4096,
        options={
            "vocab_size": 151936, "hidden_size": hidden, "moe_intermediate_size": expert,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 4,
            "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
        },
    )  # fmt: skip


TRANSFORMERS_PRESETS: dict[str, TransformersPreset] = {
    "t5-large": TransformersPreset(
        title="T5-large, arXiv:1910.10683, a transformers configuration",
        model_type="t5",
        sequence_length=512,
        options={
            "d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24,
            "num_decoder_layers": 24, "num_heads": 16,
        },
    ),
    "mixtral-8x7b": TransformersPreset(
        title="Mixtral 8x7B, arXiv:2401.04088, a transformers configuration",
        model_type="mixtral",
        sequence_length=4096,
    ),
    "nemotron4-15b": TransformersPreset(
        title="Nemotron-4 15B, arXiv:2402.16819 table 1: squared ReLU, grouped queries",
        model_type="nemotron",
        sequence_length=4096,
        options={
            "vocab_size": 256000, "hidden_size": 6144, "intermediate_size": 24576,
            "num_hidden_layers": 32, "num_attention_heads": 48, "num_key_value_heads": 8,
        },
    ),
    "mixtral-8x22b": TransformersPreset(
        title="Mixtral 8x22B, configuration published by Mistral AI",
        model_type="mixtral",
        sequence_length=8192,
        options={
            "vocab_size": 32768, "hidden_size": 6144, "intermediate_size": 16384,
            "num_hidden_layers": 56, "num_attention_heads": 48, "num_key_value_heads": 8,
        },
    ),
    "qwen3-30b-a3b": _qwen3("30B-A3B", layers=48, hidden=2048, heads=32, expert=768),
    "qwen3-235b-a22b": _qwen3("235B-A22B", layers=94, hidden=4096, heads=64, expert=1536),
    "gpt-oss-120b": TransformersPreset(
        title="gpt-oss 120B, arXiv:2508.10925, a transformers configuration",
        model_type="gpt_oss",
        sequence_length=4096,
    ),
    "deepseek-v2": TransformersPreset(
        title="DeepSeek-V2 236 B, arXiv:2405.04434",
        model_type="deepseek_v2",
        sequence_length=4096,
        options={
            "vocab_size": 102400, "hidden_size": 5120, "intermediate_size": 12288,
            "moe_intermediate_size": 1536, "num_hidden_layers": 60, "num_attention_heads": 128,
            "num_key_value_heads": 128, "n_shared_experts": 2, "n_routed_experts": 160,
            "num_experts_per_tok": 6, "first_k_dense_replace": 1, "q_lora_rank": 1536,
            "kv_lora_rank": 512,
        },
    ),
    "deepseek-v3": TransformersPreset(
        title="DeepSeek-V3 671 B, arXiv:2412.19437, a transformers configuration",
        model_type="deepseek_v3",
        sequence_length=4096,
    ),
}  # fmt: skip
