"""How a plan shrinks to the processes at hand, and how stages are dealt out again."""

import pytest
from plans import plan_of

from executor.errors import RunError
from executor.shape import shape_of_run, shrink_axes, stage_starts


@pytest.mark.parametrize(
    ("axes", "processes", "wanted"),
    [
        ([("pp", 16), ("dp", 64), ("tp", 8)], 8, {"pp": 2, "dp": 2, "tp": 2}),
        ([("pp", 16), ("dp", 64), ("tp", 8)], 4, {"pp": 2, "dp": 1, "tp": 2}),
        ([("dp", 64)], 8, {"dp": 8}),
        ([("pp", 3), ("tp", 2)], 8, {"pp": 3, "tp": 2}),
        ([("dp", 9), ("tp", 2)], 8, {"dp": 3, "tp": 2}),
        ([("dp", 2), ("tp", 2)], 4, {"dp": 2, "tp": 2}),
    ],
)
def test_axes_shrink_to_divisors_and_never_beyond_the_processes(axes, processes, wanted):
    found = dict(shrink_axes(axes, num_processes=processes))
    assert found == wanted
    assert all(size % found[axis] == 0 for axis, size in axes)


def test_tensor_axis_keeps_dividing_the_heads():
    assert dict(shrink_axes([("tp", 8)], num_processes=8, tensor_limits=[12])) == {"tp": 4}


def test_an_unchanged_plan_keeps_its_batch_and_says_nothing():
    shape = shape_of_run(plan_of("dp=2,tp=2,microbatch=2"), num_processes=8, sequence_length=16)
    assert shape.notes == ()
    assert (shape.global_batch_size, shape.num_microbatches, shape.num_processes) == (8, 2, 4)


def test_a_shrunk_pipeline_still_fills_its_stages():
    plan = plan_of("pp=4,dp=8,microbatch=1,schedule=interleaved,virtual_stages=2", batch=512,
                   chain=tuple(f"b.{i}" for i in range(8)))  # fmt: skip
    shape = shape_of_run(plan, num_processes=4, sequence_length=16)
    assert dict(shape.axes) == {"pp": 2, "dp": 2}
    assert shape.num_stages == 4
    assert shape.num_microbatches % 2 == 0
    assert any("global batch" in note for note in shape.notes)


def test_a_pipeline_that_vanishes_leaves_a_plain_schedule():
    plan = plan_of("pp=2,dp=2,microbatch=1,schedule=interleaved,virtual_stages=2")
    shape = shape_of_run(plan, num_processes=1, sequence_length=16)
    assert (shape.axes, shape.num_stages, shape.virtual_stages) == ((), 1, 1)


@pytest.mark.parametrize("num_items", range(4, 30))
@pytest.mark.parametrize("plan_items", [(7, 7), (1, 20, 3), (2, 2, 2, 2), (50, 1)])
@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
def test_stages_cover_the_chain_and_none_is_empty(plan_items, num_items, num_stages):
    starts = stage_starts(plan_items, num_items=num_items, num_stages=num_stages)
    assert starts[0] == 0
    assert all(low < high for low, high in zip(starts, [*starts[1:], num_items], strict=True))


def test_more_stages_than_modules_are_refused():
    with pytest.raises(RunError, match="4 pipeline stages for a chain of 3 modules"):
        stage_starts([1, 1, 1, 1], num_items=3, num_stages=4)
