"""Presets: published sizes, chains and scaled-down runs."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from planner.models.presets import PRESETS, TRANSFORMERS_PRESETS
from planner.models.resolve import preset_names, preset_title, resolve_model

PUBLISHED_PARAMETERS = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3-405b": 405_853_388_800,
    "bert-base": 109_514_298,
    "bert-large": 335_174_458,
    "vit-large": 304_326_632,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "vgg11": 132_863_336,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "inception-v3": 23_834_568,
    "alexnet": 61_100_840,
    "t5-large": 737_668_096,
    "mixtral-8x7b": 46_702_792_704,
    "deepseek-v3": 671_026_404_352,
}
"""What torchvision, transformers and the checkpoints' cards count."""

PRINTED_BILLIONS = {
    "gpt3-1.3b": "1.3",
    "gpt3-6.7b": "6.7",
    "gpt3-13b": "13",
    "gpt3-175b": "174.6",
    "gpt-1.7b": "1.7",
    "gpt-3.6b": "3.6",
    "gpt-7.5b": "7.5",
    "gpt-18b": "18.4",
    "gpt-22b": "22",
    "gpt-39b": "39.1",
    "gpt-76b": "76.1",
    "gpt-145b": "145.6",
    "gpt-310b": "310.1",
    "gpt-530b": "529.6",
    "gpt-1t": "1008.0",
    "lstm": "0.066",
}
"""As printed in arXiv:2005.14165 table 2.1, 2104.04473 table 1, 2205.05198 table 3, 1409.2329
section 4.1; GPT-3 with 51200 tokens instead of 50257 counts 174.6 (2104.04473 section 5.1)."""


def count_parameters(name: str) -> int:
    with FakeTensorMode():
        return sum(parameter.numel() for parameter in resolve_model(name).build().parameters())


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_parameters_are_the_published_ones(name: str) -> None:
    assert count_parameters(name) == PUBLISHED_PARAMETERS[name]


@pytest.mark.parametrize("name", PRINTED_BILLIONS)
def test_parameters_round_to_the_printed_figure(name: str) -> None:
    printed = PRINTED_BILLIONS[name]
    decimals = len(printed.partition(".")[2])
    assert f"{count_parameters(name) / 1e9:.{decimals}f}" == printed


def test_gpt_parameters_follow_equation_2_of_the_megatron_paper() -> None:
    """arXiv:2104.04473 equation 2, 12 l h^2 (1 + 13/(12 h) + (V + s)/(12 l h)), and a norm."""
    layers, hidden, vocabulary, positions = 96, 12288, 51200, 2048
    expected = 12 * layers * hidden**2 + 13 * layers * hidden + (vocabulary + positions) * hidden
    assert count_parameters("gpt3-175b") == expected + 2 * hidden


def test_dlrm_rows_are_those_of_criteo_terabyte_capped_at_forty_million() -> None:
    size = PRESETS["dlrm"].size
    assert sum(size.table_rows) == 187_767_399
    assert len(size.table_rows) == 26


def test_every_preset_has_a_title() -> None:
    assert set(preset_names()) == {*PRESETS, *TRANSFORMERS_PRESETS}
    assert all(preset_title(name) for name in preset_names())


def small(name: str):
    wide = {"gpt3-175b": 64, "gpt-530b": 64, "gpt-310b": 64, "gpt-1t": 64, "gpt-145b": 64}
    return resolve_model(name).scale_down(64 if "llama" in name else wide.get(name, 32))


@pytest.mark.parametrize("name", PRESETS)
def test_scaled_down_model_trains_on_the_cpu(name: str) -> None:
    source = small(name)
    torch.manual_seed(0)
    model = source.build()
    batch = source.make_batch(2, min(32, source.default_sequence_length), 0)
    loss = source.loss(model(*batch.inputs, **batch.keywords), batch.targets)
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
    assert sum(float(p.grad.abs().sum()) for p in model.parameters()) > 0


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "dlrm"])
def test_chain_composes_to_the_forward_pass(name: str) -> None:
    source = small(name)
    model = source.build()
    paths = source.chain(model)
    assert paths is not None
    assert len(paths) >= 4
    (inputs,) = source.make_batch(2, min(32, source.default_sequence_length), 1).inputs
    hidden = inputs
    for path in paths:
        hidden = model.get_submodule(path)(hidden)
        assert isinstance(hidden, torch.Tensor)
    assert torch.equal(hidden, model(inputs))
    composed = {id(p) for path in paths for p in model.get_submodule(path).parameters()}
    assert composed == {id(p) for p in model.parameters()}


def test_dlrm_is_no_chain() -> None:
    source = small("dlrm")
    assert source.chain(source.build()) is None


@pytest.mark.parametrize("name", ["gpt2", "llama3-8b", "bert-large", "vit-large"])
def test_a_shard_of_the_heads_gives_its_part_of_the_attention(name: str) -> None:
    """Cutting q, k, v by rows and the output by columns yields partial sums of the whole."""
    source = small(name)
    torch.manual_seed(0)
    model = source.build().eval()
    whole = model.get_submodule("blocks.0.attention")
    hidden = torch.randn(2, 16, whole.query.in_features)
    expected = whole(hidden)
    if whole.output.bias is not None:
        torch.nn.init.zeros_(whole.output.bias)
    parts = []
    for rank in range(2):
        shard = source.build().eval().get_submodule("blocks.0.attention")
        for child in ("query", "key", "value"):
            linear, cut = whole.get_submodule(child), shard.get_submodule(child)
            cut.weight = torch.nn.Parameter(linear.weight.chunk(2)[rank])
            if linear.bias is not None:
                cut.bias = torch.nn.Parameter(linear.bias.chunk(2)[rank])
        shard.output.weight = torch.nn.Parameter(whole.output.weight.chunk(2, dim=1)[rank])
        shard.output.bias = None
        parts.append(shard(hidden))
    torch.testing.assert_close(parts[0] + parts[1], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name", [name for name in PRESETS if PRESETS[name].family in ("gpt", "llama", "bert", "vit")]
)
def test_scaled_down_transformers_divide_by_four(name: str) -> None:
    source = small(name)
    with FakeTensorMode():
        model = source.build()
    assert all(count % 4 == 0 for _, count in source.tensor_parallel_limits)
    assert len(model.blocks) >= 4
    for parameter in model.parameters():
        assert parameter.shape[-1] % 4 == 0


def test_whole_models_build_in_bf16_without_memory() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        source = resolve_model("gpt3-175b?num_layers=2")
        with FakeTensorMode():
            model = source.build()
            batch = source.make_batch(1, 2048, 0)
            loss = source.loss(model(*batch.inputs), batch.targets)
            loss.backward()
    finally:
        torch.set_default_dtype(before)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.embedding.token.weight is model.head.projection.weight


def test_a_seed_names_one_batch() -> None:
    source = small("gpt2")
    first, again, other = (source.make_batch(2, 32, seed) for seed in (3, 3, 4))
    assert torch.equal(first.inputs[0], again.inputs[0])
    assert not torch.equal(first.inputs[0], other.inputs[0])
    assert torch.equal(first.inputs[0][:, 1:], first.targets[:, :-1])


def test_scaling_down_twice_is_scaling_down_by_the_product_and_can_be_written() -> None:
    twice = resolve_model("gpt3-13b").scale_down(4).scale_down(4)
    assert twice.source == "gpt3-13b?scale_down=16"
    assert twice.key == resolve_model("gpt3-13b?scale_down=16").key
    assert twice.key != resolve_model("gpt3-13b?scale_down=8").key


def test_resolving_a_preset_loads_neither_torch_nor_transformers() -> None:
    script = (
        "import sys; from planner.models.resolve import preset_names, resolve_model;"
        "resolve_model('gpt3-175b').scale_down(8); preset_names();"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
