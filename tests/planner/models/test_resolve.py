"""Names, options and transformers configurations."""

import json
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from planner.errors import ModelError
from planner.models.resolve import preset_title, resolve_model


def test_options_change_sizes() -> None:
    source = resolve_model("gpt2?num_layers=2&hidden_size=64&num_heads=4&tied=false")
    with FakeTensorMode():
        model = source.build()
    assert len(model.blocks) == 2
    assert model.head.projection.weight.shape == (50257, 64)
    assert model.head.projection.weight is not model.embedding.token.weight
    assert source.tensor_parallel_limits == (("num_attention_heads", 4),)
    assert source.key != resolve_model("gpt2").key


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpt3-176b", "gpt3-176b: no such model; did you mean gpt3-175b"),
        ("gpt2?layers=2", "gpt2?layers=2: no option 'layers'; did you mean num_layers"),
        ("gpt2?num_layers", "option 'num_layers' has no value; expected key=value"),
        ("gpt2?num_layers=2&num_layers=3", "option 'num_layers' is given twice"),
        ("gpt2?num_layers=two", "num_layers = 'two'; expected a whole number from 1 up"),
        ("gpt2?tied=1", "tied = '1'; expected true or false"),
        ("gpt2?num_heads=5", "num_heads, hidden_size = 5 and 768: expected the first to divide"),
        ("gpt2?dropout=1.5", "dropout = 1.5: expected a probability below 1"),
        ("gpt2?scale_down=0", "scale_down = '0'; expected a whole number from 1 up"),
        ("resnet50?depths=3", "expected a list of whole numbers such as [3,4,6,3]"),
        ("alexnet?image_size=32", "image_size = 32: expected at least 64"),
        ("GPT2", "GPT2: no such model; did you mean gpt2 or"),
        ("config.json", "a transformers configuration is given as hf:config.json"),
        ("models.txt:build", "a file is given as FILE.py:FUNCTION or hf:FOLDER/config.json"),
        ("hf:meta-llama/Llama-3-8B", "nothing is downloaded: give a type as in hf:llama"),
        ("hf:.", "of a folder give the file, hf:./config.json"),
        ("hf:llama?num_hidden_layers=0", "num_hidden_layers = 0; expected a whole number from 1"),
        ("hf:llama?hidden_size=100", "100) is not a multiple of the number of attention heads"),
        ("hf:clip", "neither a vocabulary nor an image size; wrap it in a function of your own"),
        ("hf:lama", "no transformers model type 'lama'; did you mean"),
        ("hf:gpt2?n_hed=3", "gpt2 has no option 'n_hed'; did you mean n_head"),
        ("hf:nowhere/config.json", "nowhere/config.json: No such file or directory"),
        ("hf:encodec", "neither as a language model nor as an image classifier"),
    ],
)
def test_mistakes_are_told_in_one_line(text: str, expected: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve_model(text)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_title_names_the_nearest() -> None:
    with pytest.raises(ModelError, match="did you mean vgg16"):
        preset_title("vgg-16")


def test_a_sequence_longer_than_the_learned_positions() -> None:
    with pytest.raises(
        ModelError, match=r"2048: the model has 1024 positions; .*max_positions=2048"
    ):
        resolve_model("gpt2").make_batch(1, 2048, 0)
    assert (
        resolve_model("gpt2?max_positions=2048").make_batch(1, 2048, 0).inputs[0].shape[1] == 2048
    )


@pytest.mark.parametrize(
    "text", ["t5-large", "mixtral-8x7b", "deepseek-v3", "hf:gpt2", "hf:bert", "hf:vit", "hf:resnet"]
)
def test_transformers_models_trace_in_bf16_without_memory(text: str) -> None:
    source = resolve_model(text).scale_down(16)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode():
            model = source.build()
            batch = source.make_batch(2, min(32, source.default_sequence_length), 0)
            loss = source.loss(model(*batch.inputs, **batch.keywords), batch.targets)
            loss.backward()
    finally:
        torch.set_default_dtype(before)
    assert loss.shape == ()


def test_a_transformers_model_trains_on_the_cpu_and_ties_its_weights() -> None:
    source = resolve_model("hf:gpt2?scale_down=32")
    torch.manual_seed(0)
    model = source.build()
    batch = source.make_batch(2, 32, 0)
    loss = source.loss(model(*batch.inputs, **batch.keywords), batch.targets)
    loss.backward()
    assert loss.isfinite()
    assert model.lm_head.weight is model.transformer.wte.weight
    with FakeTensorMode():
        fake = source.build()
    assert fake.lm_head.weight is fake.transformer.wte.weight


def test_a_configuration_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny" / "config.json"
    path.parent.mkdir()
    fields = {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 64}
    path.write_text(json.dumps(fields), encoding="utf-8")
    source = resolve_model(f"hf:{path}")
    assert source.name == "tiny"
    assert source.tensor_parallel_limits == (("num_attention_heads", 2),)
    assert len(source.build().transformer.h) == 2
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="no 'model_type'"):
        resolve_model(f"hf:{path}")
