"""Attention of transformers' models is seen as the fused kernels run it."""

import pytest

pytest.importorskip("transformers")

from planner.models.resolve import resolve_model
from planner.tracing import trace_model


def attention_of(name, folder):
    graph = trace_model(resolve_model(name), sequence_length=64, cache_dir=folder)
    operators = [graph.operator(one) for unit in graph.units for one in unit.operators]
    return [operator.causal for operator in operators if operator.kind == "attention"]


@pytest.mark.parametrize(
    ("name", "is_causal"),
    [
        ("hf:llama?scale_down=32", True),
        ("hf:qwen3_moe?scale_down=32", True),
        ("nemotron4-15b?scale_down=32", True),
        ("gpt-oss-120b?scale_down=32&num_hidden_layers=4", True),
        ("hf:bert?scale_down=8", False),
    ],
)
def test_decoders_are_causal_and_encoders_are_not(tmp_path, name, is_causal):
    found = attention_of(name, tmp_path)
    assert found
    assert set(found) == {is_causal}


def test_models_that_run_keep_the_attention_of_the_library():
    model = resolve_model("hf:llama?scale_down=32").build()
    assert model.config._attn_implementation == "sdpa"
