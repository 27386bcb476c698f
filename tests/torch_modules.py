"""Modules of gatedrnn.torch beside torch's, and what tests of both need."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import gatedrnn as gr
from helpers import CELLS_AND_PROJECTION, assert_same_bits, normal
from tolerance import assert_close

torch = pytest.importorskip("torch")
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402

import gatedrnn.torch as gt  # noqa: E402

# By the engine's names: ours, torch's where there is one, and the arguments that ours needs for it.
CELLS = {
    "lstm": (gt.LSTM, torch.nn.LSTM, {}),
    "lstm_peephole": (gt.LSTM, None, {"peephole": True}),
    "lstm_coupled": (gt.LSTM, None, {"coupled": True}),
    "lstm_coupled_peephole": (gt.LSTM, None, {"coupled": True, "peephole": True}),
    "lstm_projected": (gt.LSTM, torch.nn.LSTM, {"proj_size": 4}),
    "gru": (gt.GRU, torch.nn.GRU, {}),
    "gru_reset_before": (gt.GRU, None, {"reset_after": False}),
    "rnn_tanh": (gt.RNN, torch.nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (gt.RNN, torch.nn.RNN, {"nonlinearity": "relu"}),
}
assert set(CELLS) == set(CELLS_AND_PROJECTION)
NUMPY = {gt.LSTM: gr.LSTM, gt.GRU: gr.GRU, gt.RNN: gr.RNN}
every_cell = pytest.mark.parametrize("cell", CELLS)
torchs_cells = pytest.mark.parametrize("cell", [cell for cell, classes in CELLS.items() if classes[1]])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])

INPUT, HIDDEN = 5, 7


def ours(cell, input_size=INPUT, hidden_size=HIDDEN, *, seed=0, **options):
    torch.manual_seed(seed)
    constructor, _, own = CELLS[cell]
    return constructor(input_size, hidden_size, **(own | options))


def pair(cell, input_size=INPUT, hidden_size=HIDDEN, *, seed=0, **options):
    """The same module twice: ours, and torch's."""
    torch.manual_seed(seed)
    _, constructor, own = CELLS[cell]
    theirs = constructor(input_size, hidden_size, **own, **options)
    module = ours(cell, input_size, hidden_size, seed=seed + 1, **options)
    module.load_state_dict(theirs.state_dict())
    return module, theirs


def random(*shape, seed=0, dtype=torch.float32):
    return torch.from_numpy(normal(shape, seed=seed, dtype=np.float64)).to(dtype)


def tracks(module):
    return module.num_layers * (1 + module.bidirectional)


def state_of(module, *batch, seed=1):
    dtype = next(module.parameters()).dtype
    h = random(tracks(module), *batch, module.proj_size or module.hidden_size, seed=seed, dtype=dtype)
    if not isinstance(module, (gt.LSTM, torch.nn.LSTM)):
        return h
    return h, random(tracks(module), *batch, module.hidden_size, seed=seed + 1, dtype=dtype)


def parts(state):
    return [] if state is None else list(state) if isinstance(state, tuple) else [state]


def leaves(state):
    """Copies of a state, or of an input, that require gradients."""
    if isinstance(state, tuple):
        return tuple(leaves(part) for part in state)
    return None if state is None else state.detach().clone().requires_grad_()


def loss_of(results):
    """A scalar in which every number has a weight of its own."""
    return sum(
        (result * random(*result.shape, seed=seed, dtype=result.dtype)).sum()
        for seed, result in enumerate(results)
    )


def run(module, x, state=None, *, compute=None, lengths=None):
    """Results, and the gradients of `loss_of` them by x, the state and the parameters, as arrays."""
    module.zero_grad()
    x, state = leaves(x), leaves(state)
    call = module if compute is None else compute
    output, state_n = call(x, state) if lengths is None else call(x, state, lengths=lengths)
    results = [output, *parts(state_n)]
    loss_of(results).backward()
    gradients = [tensor.grad for tensor in (x, *parts(state), *module.parameters())]
    return [tensor.detach().numpy() for tensor in results], [gradient.numpy() for gradient in gradients]


def torch_with_lengths(theirs, lengths, steps):
    """torch's module as a function of padded rows, by way of a packed sequence."""

    def compute(x, state):
        packed = pack_padded_sequence(x, lengths, theirs.batch_first, enforce_sorted=False)
        output, state_n = theirs(packed, state)
        return pad_packed_sequence(output, theirs.batch_first, total_length=steps)[0], state_n

    return compute


def compare(cell, module, actual, expected, steps, batch):
    """Both sides round, on the way there and back; a gradient of a weight adds over steps and rows too."""
    cell = "lstm" if cell == "lstm_projected" else cell
    width = max(module.input_size, 2 * module.hidden_size) + module.hidden_size + module.proj_size
    for mine, others, accumulations, passes in [
        (actual[0], expected[0], 2 + width, 1),
        (actual[1], expected[1], 2 + width + steps * batch, 2),
    ]:
        assert_close(
            mine,
            others,
            cell=cell,
            accumulations=accumulations,
            steps=2 * passes * steps,
            layers=module.num_layers,
        )


def same_bits(actual, expected):
    for mine, others in zip(itertools.chain(*actual), itertools.chain(*expected), strict=True):
        assert_same_bits(mine, others)


def operator_arguments(module, x, *, lengths=None, mask=None, resets=None, repeats=False, state=True):
    h, c = (*parts(leaves(state_of(module, x.shape[1]))), None)[:2] if state else (None, None)
    stack = [*module._stack, module._cache.number]
    return (x, h, c, list(module.parameters()), lengths, mask, resets, repeats, False, False, *stack)
