"""Meshes: how many ranks, how near, who shares parameters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.mesh import AXIS_ORDER, MeshShape, mesh_axes, mesh_of
from planner.strategy import parse_strategy

SIZES = st.sampled_from([1, 2, 4, 8])


@given(pp=SIZES, dp=SIZES, cp=SIZES, tp=SIZES, node=SIZES)
def test_groups_hold_their_ranks(pp: int, dp: int, cp: int, tp: int, node: int) -> None:
    mesh = MeshShape(pp=pp, dp=dp, cp=cp, tp=tp, ep=1, devices_per_node=node)
    assert mesh.stage_ranks == dp * cp * tp
    for axes, size in (
        (("tp",), tp), (("cp",), cp), (("dp",), dp), (("dp", "cp"), dp * cp),
        (("dp", "cp", "tp"), dp * cp * tp),
    ):  # fmt: skip
        group = mesh.group(*axes)
        assert group.num_ranks == size
        assert 1 <= group.ranks_per_node <= node
        assert group.ranks_per_node * group.num_nodes >= size


def test_tensor_ranks_sit_closest_and_stages_farthest() -> None:
    mesh = mesh_of(parse_strategy("dp=4,tp=8,pp=2"), devices_per_node=8)
    assert mesh.group("tp").num_nodes == 1
    assert mesh.group("dp").num_nodes == 4
    assert mesh.neighbour_group().num_nodes == 2
    assert AXIS_ORDER == ("pp", "dp", "cp", "tp")


def test_neighbours_inside_a_node() -> None:
    mesh = mesh_of(parse_strategy("pp=4,tp=2"), devices_per_node=8)
    assert mesh.neighbour_group().num_nodes == 1


@pytest.mark.parametrize(("ep", "size"), [(1, 8), (2, 4), (8, 1)])
def test_experts_are_replicated_over_what_is_left(ep: int, size: int) -> None:
    mesh = mesh_of(parse_strategy(f"dp=8,tp=2,ep={ep}"), devices_per_node=8)
    assert mesh.expert_data_group().num_ranks == size


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("", ()),
        ("dp=8", (("dp", 8),)),
        ("tp=2,pp=4,dp=3,cp=5", (("pp", 4), ("dp", 3), ("cp", 5), ("tp", 2))),
    ],
)
def test_axes_of_one_are_left_out(text: str, axes: tuple[tuple[str, int], ...]) -> None:
    assert mesh_axes(parse_strategy(text)) == axes
