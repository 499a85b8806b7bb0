"""Recurrent layers of gated units beside those of long short-term memory."""

from planner.models.lstm import build
from planner.models.sizes import LstmSize


def cell_parameters(*, gated_units):
    size = LstmSize(num_layers=1, hidden_size=64, vocab_size=64, gated_units=gated_units)
    return sum(weight.numel() for weight in build("lstm", size).blocks[0].cells.parameters())


def test_three_gates_have_three_quarters_of_the_weights_of_four():
    assert cell_parameters(gated_units=False) == 4 * (2 * 64 * 64 + 2 * 64)
    assert cell_parameters(gated_units=True) == 3 * (2 * 64 * 64 + 2 * 64)
