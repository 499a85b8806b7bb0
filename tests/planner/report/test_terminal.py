"""Terminal text: what it says, how wide, how long."""

import re

import pytest

from planner.plan import Plan
from planner.report.terminal import render_plan


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_it_keeps_to_its_width_and_length(full_plan: Plan, width: int) -> None:
    lines = render_plan(full_plan, width=width, color=False).splitlines()
    strategy = f" --strategy {full_plan.strategy}"
    assert strategy in lines  # whole on one line, to be copied
    assert max(len(line) for line in lines if line != strategy) <= width
    assert len(lines) <= (35 if width >= 80 else 50)


def test_it_answers_the_questions_in_plain_text(full_plan: Plan) -> None:
    text = render_plan(full_plan, width=100, color=False)
    assert "\x1b" not in text
    for told in (
        "gpt3-175b on dgx-a100-80g:128",
        "Cut every layer over the 8 GPUs of a node",
        "--strategy dp=8,tp=8,pp=16,microbatch=1,schedule=1f1b,sequence_parallel=on",
        "32.1 s   likely 29.8 – 35.0 s",
        "98,000 tokens/s",
        "MFU 48.9 %",
        "61.2 GiB of 80.0 GiB   fits",
        "$2,100/h   $5,950 per 10⁹ tokens",
        "matrix products, 74 % of the step",
        "stage 0 is out of memory at pp=8",
        "recompute=full   +4.0 % step time",
        "does not fit: needs 2.73 TiB of 80.0 GiB",
        "1.83 ×",
        "twice the memory per device → 28.9 s (10.0 % less)",
        "Assumed: expert load is balanced; input data arrives in time;",
        "and 1 more in the report",
    ):
        assert told in text, told


def test_bars_are_as_long_as_what_they_show(full_plan: Plan) -> None:
    lines = render_plan(full_plan, width=100, color=False).splitlines()
    memory = next(line for line in lines if "Memory" in line)
    assert memory.count("█") == round(32 * 61.2 / 80)
    assert memory.count("█") + memory.count("░") == 32
    time = next(line for line in lines if "Time goes" in line)
    bar = time.split()[-1]
    assert len(bar) == 32
    assert bar.count("█") == round(32 * 23.9 / 32.1)


def test_color_adds_codes_and_nothing_else(full_plan: Plan) -> None:
    colored = render_plan(full_plan, width=100, color=True)
    assert "\x1b[" in colored
    plain = "\n".join(line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", colored).splitlines())
    assert plain + "\n" == render_plan(full_plan, width=100, color=False)


def test_a_plan_that_does_not_fit_says_so(full_plan: Plan) -> None:
    over = full_plan.prediction | {"fits": False, "peak_memory_bytes": 100 * 2**30}
    text = render_plan(full_plan.model_copy(update={"prediction": over}), width=100, color=False)
    assert "100 GiB of 80.0 GiB   does not fit" in text
    assert "░" not in next(line for line in text.splitlines() if "Memory" in line)


def test_an_empty_plan_still_says_what_to_do(bare_plan: Plan) -> None:
    text = render_plan(bare_plan, width=100, color=False)
    assert "Cut every layer over 8 devices and the depth into 16 stages (1f1b)" in text
    assert "dp=8,tp=8,pp=16" in text
    for absent in ("Step time", "Memory", "Cost", "Compared", "None", "nan"):
        assert absent not in text


def test_user_text_is_not_markup(full_plan: Plan) -> None:
    told = full_plan.explanation | {"sentence": "keep [bold]x[/bold] [red]", "bottleneck": "[/]"}
    text = render_plan(full_plan.model_copy(update={"explanation": told}), width=100, color=False)
    assert "keep [bold]x[/bold] [red]" in text
