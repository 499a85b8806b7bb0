"""Samples cut along their positions: attention goes round, and all else is as in one process."""

import queue
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from dry_runs import dry_run_here, plan_for
from plans import TINY_GPT, plan_of
from torch.nn.functional import scaled_dot_product_attention

from executor import ring_attention
from executor.attention_kernels import attend, attend_backward
from executor.context_parallel import check_splits_positions
from executor.errors import RunError
from executor.recording import Recorder
from executor.ring_attention import Ring, own_positions
from executor.run import run_plan
from planner.models.resolve import resolve_model

GPT = "gpt3-1.3b?num_layers=4&tied=true"
LLAMA = (
    "hf:llama?num_hidden_layers=2&hidden_size=32&intermediate_size=48&num_attention_heads=4"
    "&num_key_value_heads=2&vocab_size=64"
)
MIXTRAL = (
    "hf:mixtral?num_hidden_layers=2&hidden_size=32&intermediate_size=48&num_attention_heads=4"
    "&num_key_value_heads=2&vocab_size=64&num_local_experts=4&num_experts_per_tok=2"
)
TIMEOUT_S = 30.0
GRADIENT_DIFFERENCE = 1e-6
"""As in test_equality: sums in another order differ by some 1e-8."""


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("strategy", "model"),
    [
        ("cp=2,microbatch=4,recompute=selective", TINY_GPT),
        ("dp=2,cp=2,ep=2,microbatch=2,sharding=gradients", MIXTRAL),
        ("cp=2,tp=2,microbatch=4,sequence_parallel=on", TINY_GPT),
    ],
)
def test_cut_positions_train_as_in_one_process(strategy, model):
    result = run_plan(plan_of(strategy, model=model), timeout_s=TIMEOUT_S, steps=2)
    assert result.passed
    assert result.max_gradient_difference < GRADIENT_DIFFERENCE
    assert result.losses[0] != result.losses[1]
    # of each layer and microbatch: keys once forward, keys and their gradients backward
    layers, microbatches = (2, 2) if model == MIXTRAL else (4, 2)
    assert result.collectives_issued["cp"]["send_recv"]["count"] == 3 * layers * microbatches


class ThreadRing(Ring):
    """A place in a ring whose ranks are threads."""

    def __init__(self, rank, mail):
        super().__init__(group=None, recorder=Recorder())
        object.__setattr__(self, "place", (rank, mail))

    @property
    def size(self):
        return len(self.place[1])

    @property
    def rank(self):
        return self.place[0]

    def pass_on(self, tensor):
        rank, mail = self.place
        mail[(rank + 1) % self.size].put(tensor.clone())
        return lambda: mail[rank].get(timeout=TIMEOUT_S)


def in_threads(size, call):
    """Return what ``call`` gives with each place of a ring, all at once."""
    mail = [queue.Queue() for _ in range(size)]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: call(ThreadRing(rank, mail)), range(size)))


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize(("size", "key_heads", "width"), [(2, 4, 8), (3, 2, 8), (3, 4, 6)])
def test_parts_of_a_ring_are_attention_of_the_whole(is_causal, size, key_heads, width):
    torch.manual_seed(0)
    length = 24
    whole = [
        torch.randn(2, heads, length, last, requires_grad=True)
        for heads, last in ((4, 8), (key_heads, 8), (key_heads, width))
    ]
    gradient = torch.randn(2, 4, length, width)
    wanted = scaled_dot_product_attention(*whole, is_causal=is_causal, enable_gqa=True)
    wanted.backward(gradient)

    def own(ring):
        here = own_positions(length, size=size, rank=ring.rank)
        parts = [tensor.detach()[:, :, here].requires_grad_() for tensor in whole]
        out = ring.attention(*parts, is_causal=is_causal)
        out.backward(gradient[:, :, here])
        return here, [out.detach(), *(part.grad for part in parts)]

    for here, found in in_threads(size, own):
        expected = [wanted.detach(), *(tensor.grad for tensor in whole)]
        for mine, all_of_it in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, all_of_it[:, :, here], rtol=1e-5, atol=1e-5)


def test_both_kernels_give_the_same(monkeypatch):
    torch.manual_seed(1)
    query, key, value, gradient = (torch.randn(2, 4, 12, 8) for _ in range(4))
    found = []
    for is_fused in (True, False):
        monkeypatch.setattr("executor.attention_kernels._is_fused", lambda *_, f=is_fused: f)
        out, log_sum = attend(query, key, value, is_causal=True, scale=0.3)
        back = attend_backward(
            gradient, query, key, value, out=out, log_sum=log_sum, is_causal=True, scale=0.3
        )
        found.append((out, log_sum, *back))
    for fused, plain in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model", "strategy"),
    [
        (GPT, "dp=2,cp=4,microbatch=1,sharding=parameters"),
        (GPT, "pp=2,cp=2,tp=2,microbatch=1,schedule=1f1b,sequence_parallel=on,recompute=full"),
        (LLAMA, "dp=2,cp=2,microbatch=1"),
        (MIXTRAL, "dp=2,cp=2,ep=4,microbatch=1,sharding=optimizer"),
    ],
)
def test_a_dry_run_counts_the_ring(model, strategy):
    result = dry_run_here(plan_for(model, strategy))
    assert result.differences == ()
    for rank in result.ranks:
        assert rank.issued["cp", "send"] == rank.issued["cp", "recv"]


@pytest.mark.filterwarnings("ignore")
def test_a_ring_that_sends_gradients_twice_is_named(monkeypatch):
    once = ring_attention.Ring.pass_on

    def twice(ring, tensor):
        once(ring, tensor)
        return once(ring, tensor)

    monkeypatch.setattr(ring_attention.Ring, "pass_on", twice)
    result = dry_run_here(plan_for(GPT, "cp=2,microbatch=1"))
    assert {line.split(":")[1] for line in result.differences} == {
        " axis cp, send", " axis cp, recv",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "length", "reason"),
    [
        ("vit-large?num_layers=1", 16, "only the shipped gpt, llama and bert models"),
        ("bert-base?num_layers=1&num_predictions=4", 16, "its head reads the first positions"),
        ("hf:vit?num_hidden_layers=1", 16, "vit is not known to mix positions in attention alone"),
        ("hf:mistral?num_hidden_layers=1&hidden_size=32&num_attention_heads=4&sliding_window=8"
         "&num_key_value_heads=2&vocab_size=64", 16, "attention sees 8 of 16 positions"),
    ],
)  # fmt: skip
def test_models_that_mix_positions_elsewhere_are_refused(model, length, reason):
    with torch.device("meta"):
        built = resolve_model(model).build()
    with pytest.raises(RunError, match=rf"cp=2 cannot be run: {reason}.*; plan with cp=1"):
        check_splits_positions(built, name=model, size=2, length=length)


def test_attention_that_a_ring_cannot_do_is_refused():
    ring = ThreadRing(0, [queue.Queue(), queue.Queue()])
    tensors = [torch.zeros(1, 1, 4, 2)] * 3
    with pytest.raises(RunError, match="set the model's attention dropout to 0"):
        ring.attention(*tensors, dropout_p=0.1)
    with pytest.raises(RunError, match="with a mask cannot go round .* plan with cp=1"):
        ring.attention(*tensors, torch.zeros(4, 4))


def test_a_sequence_that_does_not_cut_into_pieces_is_refused():
    with pytest.raises(RunError, match="sequence of 18 does not divide into 4 pieces"):
        run_plan(plan_of("cp=2,microbatch=4", sequence=18))
