"""What a dry run refuses, and how it is told."""

import json

import pytest
from dry_runs import GPT, dry_run_here, plan_for

from executor import dry_run_fake
from executor.checks import check_hardware
from executor.dry_run import dry_run
from executor.dry_run_counts import Count, added, counts_from_json, counts_to_json
from executor.dry_run_text import dry_run_text, dry_run_to_json
from executor.errors import RunError
from paraplan.cli import run_command_line
from planner.plan import plan_to_json

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_command_prints_the_promised_names(tmp_path, capsys):
    path = tmp_path / "plan.json"
    path.write_text(plan_to_json(plan_for(GPT, "dp=2,microbatch=4")))
    assert run_command_line(["run", str(path), "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["matches"] is True
    assert told["num_processes"] == 2
    assert told["collectives_issued"] == told["collectives_simulated"]
    assert told["collectives_issued"]["dp"]["all_reduce"]["count"] == 1


def test_a_difference_ends_with_exit_status_1(tmp_path, capsys, monkeypatch):
    path = tmp_path / "plan.json"
    path.write_text(plan_to_json(plan_for(GPT, "dp=2,microbatch=4")))
    monkeypatch.setattr("executor.dry_run.simulated_on", lambda step, *, pipeline_rank: {})
    with pytest.raises(SystemExit, match="1"):
        run_command_line(["run", str(path), "--dry-run"])
    out = capsys.readouterr().out
    assert "torch does NOT issue what the simulator says" in out
    assert "rank 0: axis dp, all_reduce: torch issued 1 with" in out


def test_the_table_lists_known_differences(monkeypatch):
    result = dry_run_here(plan_for(GPT, "dp=2,microbatch=4,sharding=optimizer"))
    text = dry_run_text(result)
    assert "known: dp all_gather +4" in text
    assert text.endswith("torch issues what the simulator says")
    rank = dry_run_to_json(result)["ranks"][0]
    assert (
        sum(entry["count"] for entry in rank["known_differences"]) == 4 + 4
    )  # 5 units and one bucket


def test_a_torch_without_a_private_name_is_refused_by_its_name(monkeypatch):
    monkeypatch.setattr(dry_run_fake, "_STAGE_METHODS", ("_no_such_method",))
    with pytest.raises(RunError, match=r"lacks _no_such_method, .* expected torch 2\.13"):
        dry_run(plan_for(GPT, "dp=2,microbatch=4"))


def test_this_torch_has_all_that_a_dry_run_needs():
    dry_run_fake.check_torch_can_fake()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device_kind": "tpu"}, "no backend for a tpu"),
        ({"device_kind": "gpu"}, "0 CUDA devices for 3 ranks"),
    ],
)
def test_ranks_without_the_plans_devices_are_refused(monkeypatch, change, message):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    plan = plan_for(GPT, "dp=2,microbatch=4")
    cluster = plan.cluster.model_copy(update=change)
    with pytest.raises(RunError, match=message):
        check_hardware(plan.model_copy(update={"cluster": cluster}))


def test_counts_survive_json_and_add_up():
    counts = {("tp", "all_reduce"): Count(count=2, num_bytes=8.0)}
    assert counts_from_json(counts_to_json(counts)) == counts
    back = (("tp", "all_reduce"), Count(count=-2, num_bytes=-8.0))
    assert added([*counts.items(), back]) == {}
