"""Against ONNX Runtime, which knows both GRUs and the LSTM with peepholes and with coupled gates."""

from __future__ import annotations

import pytest

import onnx_models
from helpers import CELLS, build, flat, normal, state_of
from tolerance import assert_close

SIZES = [(1, 1, 1), (7, 9, 15), (17, 33, 4), (129, 31, 2)]


def compare(cell, module, x, state=None, lengths=None):
    assert_close(
        flat(module(x, state, lengths=lengths)),
        flat(
            onnx_models.run(cell, module.state_dict(), x, state, lengths, bidirectional=module.bidirectional)
        ),
        cell=cell,
        accumulations=2 + module.input_size + module.hidden_size,
        steps=2 * len(x),  # both sides round
    )


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("input_size", "hidden_size", "batch"), SIZES)
def test_sizes(cell, bidirectional, input_size, hidden_size, batch):
    module = build(cell, input_size, hidden_size, bidirectional=bidirectional)
    compare(cell, module, normal((5, batch, input_size)), state_of(module, batch))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bias", [True, False])
def test_no_initial_state(cell, bias):
    module = build(cell, bias=bias)
    compare(cell, module, normal((5, 3, 5)))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_ragged(cell, bidirectional):
    """The operator's `sequence_lens` has our meaning for every length above 0."""
    module = build(cell, 9, 17, bidirectional=bidirectional)
    compare(cell, module, normal((6, 5, 9)), state_of(module, 5), [3, 6, 1, 5, 2])
