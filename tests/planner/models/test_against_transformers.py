"""Our modules compute what the reference implementations compute, given the same weights."""

import pytest
import torch
import transformers
from torch import nn

from planner.models.resolve import resolve_model


def copy_linear(mine: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    with torch.no_grad():
        mine.get_parameter("weight").copy_(weight)
        if bias is not None:
            mine.get_parameter("bias").copy_(bias)


def copy(mine: nn.Module, theirs: nn.Module) -> None:
    copy_linear(mine, theirs.weight, getattr(theirs, "bias", None))


def built(text: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    source = resolve_model(text)
    model = source.build().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model, source.make_batch(2, 24, 0).inputs[0]


@pytest.fixture(autouse=True)
def _single_precision_is_not_enough():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


SIZES = "num_layers=2&hidden_size=32&num_heads=4&vocab_size=96"


def test_gpt2() -> None:
    mine, tokens = built(f"gpt2?{SIZES}&dropout=0&max_positions=32")
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=96, n_positions=32)
    ).eval()
    reference = theirs.transformer
    copy(mine.embedding.token, reference.wte)
    copy(mine.embedding.position, reference.wpe)
    copy(mine.head.norm, reference.ln_f)
    for block, other in zip(mine.blocks, reference.h, strict=True):
        nn.init.normal_(other.attn.c_attn.bias)
        copy(block.attention_norm, other.ln_1)
        copy(block.ffn_norm, other.ln_2)
        weights, biases = other.attn.c_attn.weight.chunk(3, 1), other.attn.c_attn.bias.chunk(3)
        for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            copy_linear(block.attention.get_submodule(part), weight.T, bias)
        copy_linear(block.attention.output, other.attn.c_proj.weight.T, other.attn.c_proj.bias)
        copy_linear(block.ffn.up, other.mlp.c_fc.weight.T, other.mlp.c_fc.bias)
        copy_linear(block.ffn.down, other.mlp.c_proj.weight.T, other.mlp.c_proj.bias)
    torch.testing.assert_close(mine(tokens), theirs(tokens).logits, rtol=1e-9, atol=1e-9)


def test_llama() -> None:
    mine, tokens = built(f"llama3-8b?{SIZES}&num_kv_heads=2&ffn_size=48")
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=96, intermediate_size=48, rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        )
    ).eval()  # fmt: skip
    reference = theirs.model
    copy(mine.embedding.token, reference.embed_tokens)
    copy(mine.head.norm, reference.norm)
    copy(mine.head.projection, theirs.lm_head)
    for block, other in zip(mine.blocks, reference.layers, strict=True):
        copy(block.attention_norm, other.input_layernorm)
        copy(block.ffn_norm, other.post_attention_layernorm)
        for part, name in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o")):
            copy(block.attention.get_submodule(part), other.self_attn.get_submodule(f"{name}_proj"))
        for part in ("gate", "up", "down"):
            copy(block.ffn.get_submodule(part), other.mlp.get_submodule(f"{part}_proj"))
    # Norms and rotary angles are computed in fp32 on both sides, in their own order.
    torch.testing.assert_close(mine(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)


def test_bert() -> None:
    mine, tokens = built(f"bert-large?{SIZES}&dropout=0&max_positions=32")
    theirs = transformers.BertForMaskedLM(
        transformers.BertConfig(
            num_hidden_layers=2, hidden_size=32, num_attention_heads=4, vocab_size=96,
            intermediate_size=128, max_position_embeddings=32,
        )
    ).eval()  # fmt: skip
    embeddings = theirs.bert.embeddings
    copy(mine.embedding.token, embeddings.word_embeddings)
    copy(mine.embedding.position, embeddings.position_embeddings)
    copy(mine.embedding.token_type, embeddings.token_type_embeddings)
    copy(mine.embedding.norm, embeddings.LayerNorm)
    for block, other in zip(mine.blocks, theirs.bert.encoder.layer, strict=True):
        for part in ("query", "key", "value"):
            copy(block.attention.get_submodule(part), other.attention.self.get_submodule(part))
        copy(block.attention.output, other.attention.output.dense)
        copy(block.attention_norm, other.attention.output.LayerNorm)
        copy(block.ffn.up, other.intermediate.dense)
        copy(block.ffn.down, other.output.dense)
        copy(block.ffn_norm, other.output.LayerNorm)
    head = theirs.cls.predictions
    copy(mine.head.transform, head.transform.dense)
    copy(mine.head.norm, head.transform.LayerNorm)
    copy(mine.head.projection, head.decoder)
    torch.testing.assert_close(mine(tokens), theirs(tokens).logits, rtol=1e-9, atol=1e-9)


def test_vit() -> None:
    mine, images = built(
        "vit-large?num_layers=2&hidden_size=32&num_heads=4&image_size=64&num_classes=10"
    )
    theirs = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            num_hidden_layers=2, hidden_size=32, num_attention_heads=4, intermediate_size=128,
            image_size=64, num_labels=10, layer_norm_eps=1e-6,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        mine.embedding.class_token.copy_(theirs.vit.embeddings.cls_token)
        mine.embedding.position.copy_(theirs.vit.embeddings.position_embeddings)
    (convolution,) = (x for x in theirs.modules() if isinstance(x, nn.Conv2d))
    copy(mine.embedding.patches, convolution)
    *linears, classifier = (x for x in theirs.modules() if isinstance(x, nn.Linear))
    *norms, last = (x for x in theirs.modules() if isinstance(x, nn.LayerNorm))
    copy(mine.head.norm, last)
    copy(mine.head.classifier, classifier)
    for index, block in enumerate(mine.blocks):
        attention, ffn = block.attention, block.ffn
        parts = (
            attention.query, attention.key, attention.value, attention.output, ffn.up, ffn.down,
        )  # fmt: skip
        for part, other in zip(parts, linears[6 * index : 6 * index + 6], strict=True):
            copy(part, other)
        copy(block.attention_norm, norms[2 * index])
        copy(block.ffn_norm, norms[2 * index + 1])
    torch.testing.assert_close(mine(images), theirs(images).logits, rtol=1e-9, atol=1e-9)
