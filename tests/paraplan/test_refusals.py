"""Mistakes on the command line: status 2, one line that says where, what and what next."""

from pathlib import Path

import pytest

from tests.paraplan.answers import MACHINE, SMALL, Call

ON_MACHINE = ("--cluster", MACHINE, "--global-batch", "16")


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (("simulate", "gpt22", *ON_MACHINE), "gpt2"),
        (("simulate", "mlp", "--cluster", "dgx-a100", "-b", "8"), "dgx-a100-80g"),
        (("simulate", "mlp", *ON_MACHINE, "--software", "eeger"), "eager"),
        (("profiles", "dgx-h10"), "dgx-h100"),
        (("simulate", "mlp", "--clusterr", "x"), "--cluster"),
        (("simulate", "hf:gpt2?n_layerz=2", *ON_MACHINE), "n_layer"),
    ],
)
def test_unknown_names_offer_the_nearest(
    refused: Call, arguments: tuple[str, ...], nearest: str
) -> None:
    assert nearest in refused(*arguments).err


@pytest.mark.parametrize("verb", ["plan", "simulate"])
@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (("mlp", "--global-batch", "8"), "--cluster"),
        (("mlp", "--cluster", MACHINE), "--global-batch"),
        ((), "MODEL"),
    ],
)
def test_what_is_missing_is_named(
    refused: Call, verb: str, arguments: tuple[str, ...], missing: str
) -> None:
    assert missing in refused(verb, *arguments).err


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--global-batch", "0", "at least 1"),
        ("--global-batch", "-3", "at least 1"),
        ("--global-batch", "many", "valid integer"),
        ("--global-batch", "1.5", "valid integer"),
        ("--seq-len", "0", "at least 1"),
        ("--seq-len", "-1", "at least 1"),
        ("--precision", "fp9", "bf16"),
        ("--precision", "fp8", "a100-sxm4-80gb of dgx-a100-80g:1 has"),
        ("--optimizer", "sgdd", "adamw"),
        ("--mode", "dream", "train, infer"),
        ("--attention", "some", "flash"),
        ("--detail", "half", "folded or full"),
        ("--cluster", "dgx-a100-80g:0", "from 1 to"),
        ("--cluster", "dgx-a100-80g:-1", "from 1 to"),
        ("--cluster", "dgx-a100-80g:x", "from 1 to"),
        ("--cluster", "dgx-a100-80g:1?foo=1", "memory"),
        ("--cluster", "", "paraplan profiles"),
    ],
)
def test_values_out_of_range(refused: Call, option: str, value: str, expected: str) -> None:
    assert expected in refused("simulate", *SMALL, option, value).err


@pytest.mark.parametrize("arguments", [("--seq-len", "0"), ("--global-batch", "0")])
def test_trace_refuses_counts_below_one(refused: Call, arguments: tuple[str, ...]) -> None:
    assert "at least 1" in refused("trace", "gpt2", *arguments).err


def test_an_unknown_objective(refused: Call) -> None:
    assert "time, cost, devices" in refused("plan", *SMALL, "--objective", "glory").err


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("dp=3", "not a multiple of dp*microbatch = 3*1"),
        ("dp=16", "needs dp*tp*pp*cp = 16 devices; dgx-a100-80g:1 has 8"),
        ("tp=8", "does not divide num_attention_heads=12; use 1, 2, 3, 4, 6, 12"),
        ("dp=2,ep=2", "has no experts"),
        ("dp=2,ep=4", "does not divide dp*cp=2"),
        ("cp=3", "2*cp = 6"),
        ("pp=2,virtual_stages=2", "only schedule=interleaved and zero_bubble have virtual stages"),
        ("pp=2,schedule=interleaved", "give virtual_stages=2 or more"),
        ("schedule=interleaved,virtual_stages=2", "give pp=2 or more"),
        ("sequence_parallel=on", "give tp=2 or more"),
        ("pp=8,schedule=interleaved,virtual_stages=8", "can be cut"),
        ("pp=5,schedule=interleaved,virtual_stages=2", "multiple of pp=5"),
        ("dp", "write key=value"),
        ("dp=-1", "at least 1"),
        ("dp=0", "at least 1"),
        ("dp=two", "at least 1"),
        ("dp=2,dp=4", "given twice"),
        ("tpp=2", "unknown key 'tpp'"),
        ("sharding=zero3", "parameters"),
    ],
)
def test_strategies_that_cannot_be(refused: Call, strategy: str, expected: str) -> None:
    answer = refused("simulate", "gpt2", *ON_MACHINE, "--seq-len", "128", "--strategy", strategy)
    assert expected in answer.err


@pytest.mark.parametrize(
    ("text", "model", "expected"),
    [
        (None, "mine.py:build", "mine.py"),
        ("x = 1\n", "mine.py:build", "no function 'build'"),
        ("def bild():\n    pass\n", "mine.py:build", "bild"),
        ("def build():\n    raise RuntimeError('boom')\n", "mine.py:build", "boom"),
        ("def build():\n    return 3\n", "mine.py:build", "expected a torch.nn.Module"),
        ("def build(:\n", "mine.py:build", "mine.py"),
        ("raise ValueError('at import')\n", "mine.py:build", "at import"),
    ],
)
def test_user_files(
    refused: Call, tmp_path: Path, text: str | None, model: str, expected: str
) -> None:
    if text is not None:
        (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    assert expected in refused("simulate", tmp_path / model, *ON_MACHINE).err


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("hf:nope", "nope"),
        ("hf:gpt2?n_layer=x", "n_layer"),
        ("hf:/nowhere/config.json", "/nowhere/config.json"),
        ("", "no such model"),
    ],
)
def test_models_that_cannot_be_built(refused: Call, model: str, expected: str) -> None:
    assert expected in refused("simulate", model, *ON_MACHINE).err


CLUSTER = Path(__file__).parents[2] / "hardware_profiles/catalog/clusters/pcie-k20-8.toml"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("schema = 1", "schema = = 1"), "line 2"),
        (('name = "pcie-k20-8"', 'name = "x"\ncolour = "red"'), "colour"),
        (('device = "k20"', 'device = "k2000"'), "k2000"),
        (("num_nodes = 1", "num_nodes = 0"), "num_nodes"),
        (('unit = "GB/s"', 'unit = "furlong"'), "furlong"),
    ],
)
def test_cluster_files(
    refused: Call, tmp_path: Path, change: tuple[str, str], expected: str
) -> None:
    path = tmp_path / "mine.toml"
    text = CLUSTER.read_text(encoding="utf-8")
    assert change[0] in text
    path.write_text(text.replace(*change, 1), encoding="utf-8")
    answer = refused("simulate", "mlp", "--cluster", path, "--global-batch", "8")
    assert expected in answer.err
    assert "mine.toml" in answer.err


def test_missing_files(refused: Call, tmp_path: Path) -> None:
    for arguments in (
        ("simulate", tmp_path / "no.json"),
        ("report", tmp_path / "no.json"),
        ("run", tmp_path / "no.json"),
        ("compare", tmp_path / "no.json", tmp_path / "none.json"),
        ("simulate", "--cases", tmp_path / "no.jsonl"),
        ("simulate", "--cases", tmp_path),
        ("simulate", "mlp", "--cluster", tmp_path / "no.toml", "--global-batch", "8"),
    ):
        assert str(tmp_path) in refused(*arguments).err


def test_a_report_is_html_or_markdown(refused: Call, tmp_path: Path) -> None:
    assert ".html or .md" in refused("report", tmp_path / "p.json", "--out", "p.pdf").err


@pytest.mark.parametrize(
    ("option", "value"), [("--steps", "0"), ("--scale-down", "0"), ("--processes", "0")]
)
def test_run_refuses_counts_below_one(
    refused: Call, tmp_path: Path, option: str, value: str
) -> None:
    assert f"{option} is 0" in refused("run", tmp_path / "p.json", option, value).err


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_run_refuses_a_silence_that_is_no_time(refused: Call, tmp_path: Path, value: str) -> None:
    assert "--timeout is" in refused("run", tmp_path / "plan.json", "--timeout", value).err


@pytest.mark.parametrize(
    "option",
    [("--out", "x.json"), ("--scale-down", "2"), ("--steps", "5"), ("--check",), ("--resume",)],
)
def test_a_dry_run_refuses_what_it_would_ignore(
    refused: Call, tmp_path: Path, option: tuple[str, ...]
) -> None:
    told = refused("run", tmp_path / "plan.json", "--dry-run", *option).err
    assert "--dry-run counts at the plan's own size" in told


def test_calibrate_refuses_no_process(refused: Call) -> None:
    assert "--processes is 0" in refused("calibrate", "--processes", "0").err


@pytest.mark.parametrize("verb", ["plan", "simulate"])
def test_places_that_cannot_be_written(refused: Call, tmp_path: Path, verb: str) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine", encoding="utf-8")
    for out in (taken, taken / "below", "/proc/paraplan"):
        answer = refused(verb, *SMALL, "--strategy", "dp=8,microbatch=8", "--out", out)
        assert "cannot be written" in answer.err
        assert str(out) in answer.err
    assert taken.read_text(encoding="utf-8") == "mine"


def test_nothing_fits(refused: Call) -> None:
    answer = refused(
        "plan", "gpt2", "--cluster", f"{MACHINE}?memory=1GB", "--global-batch", "8",
        "--seq-len", "128", status=1,
    )  # fmt: skip
    assert "no feasible plan for gpt2" in answer.err
    assert "memory" in answer.err
    assert "the nearest, 'dp=" in answer.err
    assert "of 0.9 GiB per device" in answer.err


def test_a_fixed_part_that_cannot_be(refused: Call) -> None:
    answer = refused("plan", *SMALL, "--strategy", "dp=16", status=1)
    assert "dgx-a100-80g:1 has 8" in answer.err


def test_an_interrupt_is_told_in_one_line(refused: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_given: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("paraplan.verbs_about.show_profiles", interrupted)
    assert refused("profiles", status=130).err == "paraplan: interrupted\n"
