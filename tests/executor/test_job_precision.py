"""bf16 in a job: every split computes in it, and to the same losses but for its rounding."""

import pytest
from jobs import counting, train
from plans import plan_of

from executor.job_log import read_log

ROUNDING = 4e-3
"""bf16 keeps 8 bits: one rounding is up to 2**-8 of a number. Plain SGD carries it on as it is;
Adam's division would turn the sign of a gradient near zero into a step of full size."""
SUMMED_OTHERWISE = 1e-5
"""More than splits differ in fp32."""
ENDS_IN_A_PRODUCT = """
import torch
from torch import nn

def model():
    return nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4))

def inputs(batch_size, sequence_length):
    return torch.randn(batch_size, 8)

def targets(batch_size, sequence_length):
    return torch.randn(batch_size, 4)

def loss(output, targets):
    return (output.float() - targets).square().mean()
"""


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Losses of one process in fp32 and in bf16."""
    found = []
    for precision in ("fp32", "bf16"):
        folder = tmp_path_factory.mktemp(precision)
        found.append(in_precision("one", folder, precision))
    return found


def in_precision(name, folder, precision):
    """Return losses and norms of gradients."""
    train(name, folder, dataset=counting(folder), checkpoint_dir="", save_every=0,
          precision=precision, optimizer="sgd", clip_norm=10.0)  # fmt: skip
    records = read_log(folder / "job.jsonl")
    return [r.loss for r in records], [r.gradient_norm for r in records]


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["tp", "fsdp", "interleaved"])
def test_bf16_is_computed_and_equals_one_process(single, tmp_path, name):
    (fp32, _), (bf16, norms) = single
    found, found_norms = in_precision(name, tmp_path, "bf16")
    assert found == pytest.approx(bf16, rel=ROUNDING)
    assert found_norms == pytest.approx(norms, rel=ROUNDING)
    assert max(abs(a - b) for a, b in zip(found, fp32, strict=True)) > SUMMED_OTHERWISE


@pytest.mark.distributed
def test_stages_that_end_in_a_product_hand_on_what_the_next_expects(tmp_path):
    path = tmp_path / "products.py"
    path.write_text(ENDS_IN_A_PRODUCT)
    losses = {}
    for strategy in ("dp=1,microbatch=4", "pp=2,microbatch=4,schedule=1f1b"):
        plan = plan_of(strategy, model=f"{path}:model", chain=("0", "1", "2", "3"),
                       optimizer="sgd", sequence=1)  # fmt: skip
        losses[strategy] = train("", tmp_path, plan=plan, steps=3, checkpoint_dir="", save_every=0,
                                 precision="bf16").losses  # fmt: skip
    one, two = losses.values()
    assert two == pytest.approx(one, rel=ROUNDING)
