"""Case files: what is refused, in one line that names file, case and key; what is shipped."""

from pathlib import Path

import pytest

from hardware_profiles import load_cluster
from planner.validation.case_file import CaseFileError, load_groups, read_group

GROUP = """\
schema = 2
group = "paper"
family = "gpu-transformer"
source = "A paper, table 1"
tolerance = 0.1
why = "a test"
[defaults]
cluster = "dgx-a100-80g:1"
global_batch = 8
"""
CASE = """\
[[case]]
id = "one"
model = "gpt2"
strategy = "dp=8"
step_time_s = 1.5
"""


def test_a_case_inherits_the_defaults_and_overrides_them() -> None:
    group = read_group(GROUP + CASE + "global_batch = 16\nmemory_gib = 2\nmemory_kind = 'device'\n",
                       name="paper")  # fmt: skip
    (case,) = group.cases
    assert case.options == {
        "model": "gpt2", "cluster": "dgx-a100-80g:1", "global_batch": 16, "strategy": "dp=8"
    }  # fmt: skip
    assert (case.step_time_s, case.memory_bytes, case.memory_kind) == (1.5, 2 * 2**30, "device")
    assert (case.role, case.is_complete, case.fits, case.free) == ("judge", True, None, ())
    assert case.name == "paper:one"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (GROUP.replace("schema = 2", "schema = 1") + CASE, ("schema is 1", "expected 2")),
        (GROUP.replace('"paper"', '"other"') + CASE, ("group is 'other'",)),
        (GROUP.replace("gpu-transformer", "gpus") + CASE, ("'family' is 'gpus'", "gpu-moe")),
        (GROUP.replace("tolerance = 0.1\n", "") + CASE, ("'tolerance' is missing",)),
        (GROUP.replace("0.1", "-0.1") + CASE, ("'tolerance' is -0.1", "above 0")),
        (GROUP + "speed = 1\n" + CASE, ("[defaults]", "unknown key 'speed'")),
        (GROUP + CASE + "published = 1.0\n", ("case 'one'", "unknown key 'published'")),
        (GROUP + CASE.replace("1.5", '"fast"'), ("case 'one'", "'step_time_s' is 'fast'")),
        (GROUP + CASE.replace("1.5", "true"), ("'step_time_s' is True", "a number")),
        (GROUP + CASE.replace("1.5", "0.0"), ("'step_time_s' is 0.0", "above 0")),
        (GROUP + CASE.replace("step_time_s = 1.5\n", ""), ("case 'one'", "nothing measured")),
        (GROUP + CASE + "fits = false\n", ("'fits' is false", "keep one")),
        (GROUP + CASE + "memory_gib = 3\n", ("'memory_kind'", "give both")),
        (GROUP + CASE + "memory_gib = 3\nmemory_kind = 'peak'\n", ("'memory_kind' is 'peak'",)),
        (GROUP + CASE + "outlier = ' '\n", ("case 'one'", "'outlier' is empty")),
        (GROUP + CASE + "outlier = true\n", ("'outlier' is True", "expected text")),
        (GROUP + CASE + "role = 'fit'\n", ("'role' is 'fit'", "calibrate")),
        (GROUP + CASE + "free = ['mbs']\n", ("free has 'mbs'", "microbatch")),
        (GROUP + CASE.replace('model = "gpt2"\n', ""), ("case 'one'", "'model' is missing")),
        (GROUP + CASE.replace('id = "one"\n', ""), ("case number 1", "'id' is missing")),
        (GROUP + CASE + CASE, ("case 'one'", "2 times")),
        (GROUP + "[[case]\n", ("not TOML",)),
    ],
)
def test_mistakes_are_one_line_with_file_case_and_key(text: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(CaseFileError) as caught:
        read_group(text, name="paper")
    message = str(caught.value)
    assert message.startswith("paper.toml: ")
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_groups_are_chosen_by_name_and_family(tmp_path: Path) -> None:
    (tmp_path / "paper.toml").write_text(GROUP + CASE)
    (tmp_path / "slices.toml").write_text(
        (GROUP + CASE).replace('"paper"', '"slices"').replace("gpu-transformer", "tpu")
    )
    assert [g.name for g in load_groups(tmp_path)] == ["paper", "slices"]
    assert [g.name for g in load_groups(tmp_path, family="tpu")] == ["slices"]
    assert [g.name for g in load_groups(tmp_path, group="paper")] == ["paper"]
    for wrong in ({"group": "other"}, {"family": "other"}, {"group": "paper", "family": "tpu"}):
        with pytest.raises(CaseFileError):
            load_groups(tmp_path, **wrong)


def test_one_malformed_file_does_not_hide_another_group(tmp_path: Path) -> None:
    (tmp_path / "paper.toml").write_text(GROUP + CASE)
    (tmp_path / "broken.toml").write_text("schema = ")
    assert len(load_groups(tmp_path, group="paper")) == 1
    with pytest.raises(CaseFileError, match=r"broken\.toml"):
        load_groups(tmp_path)


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(CaseFileError, match="no folder with case files"):
            load_groups(folder)


def test_shipped_cases_reach_from_one_device_to_thousands() -> None:
    groups = load_groups()
    timed = [
        case
        for group in groups
        for case in group.cases
        if case.step_time_s is not None and case.is_complete and case.role == "judge"
    ]
    devices = {
        load_cluster(cluster).device.name.split("-")[0]
        for cluster in {str(case.options["cluster"]) for case in timed}
    }
    assert len(timed) >= 120
    assert devices >= {"v100", "a100", "h100"}
    assert {group.family for group in groups} >= {"gpu-transformer", "gpu-moe", "gpu-cnn"}
    assert any(case.memory_bytes is not None for group in groups for case in group.cases)
