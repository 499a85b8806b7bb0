"""Which splits an operator offers."""

import pytest

from planner.layouts.choices import candidate_labels
from planner.layouts.sizes import carries, local_sizes


def offered(graph, name, *, size=4, microbatch_size=8, context=1, **options):
    return candidate_labels(
        graph, graph.operator(name), axis_size=size,
        sizes=local_sizes(graph, microbatch_size=microbatch_size, context_parallel_size=context),
        **options,
    )  # fmt: skip


def test_product_offers_all_of_its_indices(builders):
    assert offered(builders["gpt"](), "fc1") == ("b", "s", "ffn", "h", None)


def test_attention_offers_no_keys_and_no_width_of_heads(builders):
    assert offered(builders["gpt"](), "attention") == ("b", "s", "heads", None)


def test_norm_does_not_offer_what_it_couples(builders):
    assert offered(builders["gpt"](), "norm1") == ("b", "s", None)


def test_halo_is_not_offered(builders):
    assert offered(builders["alexnet"](), "conv1") == ("b", "c2", "c1", None)


def test_loss_offers_classes_for_an_exchange_of_row_statistics(builders):
    assert "v" in offered(builders["gpt"](), "loss")


@pytest.mark.parametrize(
    ("size", "microbatch_size", "context", "expected"),
    [
        (1, 8, 1, (None,)),
        (16, 8, 1, ("s", "heads", None)),
        (32, 8, 1, ("s", None)),
        (4, 8, 512, ("b", "heads", None)),
        (3, 3, 1, ("b", None)),
    ],
)
def test_only_divisible_extents_are_offered(builders, size, microbatch_size, context, expected):
    graph = builders["gpt"]()
    found = offered(graph, "attention", size=size, microbatch_size=microbatch_size, context=context)
    assert found == expected


def test_batch_can_be_forbidden(builders):
    assert "b" not in offered(builders["gpt"](), "fc1", allow_batch=False)


@pytest.mark.parametrize(("option", "expected"), [(True, ("s",)), (False, (None,))])
def test_sequence_parallel_forces_or_forbids_positions(builders, option, expected):
    graph = builders["gpt"]()
    for name in ("norm1", "add1", "norm2", "add2"):
        assert offered(graph, name, allow_batch=False, sequence_parallel=option) == expected
    assert "s" not in offered(graph, "fc1", allow_batch=False, sequence_parallel=option)


def test_tensor_parallelism_leaves_no_weight_whole(builders):
    graph = builders["gpt"]()
    for name in ("q", "proj", "fc1", "fc2", "head", "embedding"):
        assert None not in offered(graph, name, allow_batch=False, sequence_parallel=False)


def test_element_wise_between_experts_may_follow_them(builders):
    graph = builders["experts"]()
    assert "e" in offered(graph, "gelu")
    assert "e" not in offered(graph, "norm")
    assert carries(graph.operator("gelu"), ("b", "s", "top", "ffn"), "e")
    assert carries(graph.operator("up"), ("b", "s", "top", "h"), "e")
    assert not carries(graph.operator("router"), ("h", "r"), "e")
