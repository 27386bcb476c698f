"""gatedrnn.torch's LSTMCell, GRUCell and RNNCell against torch.nn's."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest

import gatedrnn as gr
from helpers import assert_same_bits

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("one_torch_thread")]
torch = pytest.importorskip("torch")

import gatedrnn.torch as gt  # noqa: E402

INPUT, HIDDEN, BATCH = 9, 17, 3
# Names, and arguments of both.
CELLS = [
    ("LSTMCell", {}),
    ("LSTMCell", {"bias": False}),
    ("GRUCell", {}),
    ("GRUCell", {"bias": False}),
    ("RNNCell", {}),
    ("RNNCell", {"nonlinearity": "relu"}),
]
each_cell = pytest.mark.parametrize(("name", "options"), CELLS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def pair(name, options, dtype=torch.float32):
    """Ours and torch.nn's of the same parameters."""
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(INPUT, HIDDEN, dtype=dtype, **options)
    ours = getattr(gt, name)(INPUT, HIDDEN, dtype=dtype, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def states(name, *rows, dtype=torch.float32):
    """A random state before the step that wants a gradient."""
    count = 2 if name == "LSTMCell" else 1
    made = [random(*rows, HIDDEN, dtype=dtype, seed=1 + i).requires_grad_() for i in range(count)]
    return tuple(made) if count == 2 else made[0]


def tolerance(dtype, steps=1):
    """A sum's terms, and steps on each other, each off by eps."""
    return dict(rtol=0, atol=torch.finfo(dtype).eps * 8 * (INPUT + HIDDEN) * steps)


@each_cell
@dtypes
@pytest.mark.parametrize("rows", [(BATCH,), ()], ids=["batch", "row"])
def test_a_step(name, options, dtype, rows):
    ours, theirs = pair(name, options, dtype)
    x = random(*rows, INPUT, dtype=dtype)
    for before in (None, states(name, *rows, dtype=dtype)):
        for a, b in zip(parts(ours(x, before)), parts(theirs(x, before)), strict=True):
            torch.testing.assert_close(a, b, **tolerance(dtype))
            assert a.shape == (*rows, HIDDEN)


@each_cell
@dtypes
def test_gradients_through_a_loop(name, options, dtype):
    steps, results = 4, []
    for cell in pair(name, options, dtype):
        x, first = random(steps, BATCH, INPUT, dtype=dtype).requires_grad_(), states(name, BATCH, dtype=dtype)
        state, loss = first, 0.0
        for t in range(steps):
            state = cell(x[t], state)
            loss = loss + (parts(state)[0] * random(BATCH, HIDDEN, dtype=dtype, seed=20 + t)).sum()
        sum(part.square().sum() for part in (loss.reshape(1), *parts(state))).backward()
        results.append([x.grad, *(part.grad for part in parts(first)), *(p.grad for p in cell.parameters())])
    for a, b in zip(*results, strict=True):
        largest = max(1.0, float(b.abs().max()))
        torch.testing.assert_close(a / largest, b / largest, **tolerance(dtype, steps))


@each_cell
def test_the_bits_of_the_numpy_cell(name, options):
    cell, _ = pair(name, options)
    numpys = getattr(gr, name)(INPUT, HIDDEN, **options)
    numpys.load_state_dict(cell.state_dict())
    x, before = random(BATCH, INPUT), states(name, BATCH)
    arrays = tuple(part.detach().numpy() for part in parts(before))
    expected = numpys(x.numpy(), arrays if name == "LSTMCell" else arrays[0])
    with torch.no_grad():
        for a, b in zip(parts(cell(x, before)), parts(expected), strict=True):
            assert_same_bits(a.numpy(), b)


@each_cell
def test_state_dictionaries_and_copies(name, options):
    ours, theirs = pair(name, options)
    theirs.load_state_dict(ours.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    stream = io.BytesIO()
    torch.save(ours.state_dict(), stream)
    stream.seek(0)
    ours.load_state_dict(torch.load(stream))
    x = random(BATCH, INPUT)
    for a, b in zip(parts(copy.deepcopy(ours)(x)), parts(ours(x)), strict=True):
        assert torch.equal(a, b)


@each_cell
def test_the_same_seed_draws_the_same_parameters(name, options):
    torch.manual_seed(3)
    ours = getattr(gt, name)(INPUT, HIDDEN, **options)
    torch.manual_seed(3)
    theirs = getattr(torch.nn, name)(INPUT, HIDDEN, **options)
    for (a, p), (b, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert a == b
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_bfloat16(name):
    cell = getattr(gt, name)(INPUT, 33)
    x = random(BATCH, INPUT)
    with torch.autocast("cpu", torch.bfloat16):
        assert parts(cell(x))[0].dtype == torch.bfloat16
    cell = cell.bfloat16()
    after = cell(x.bfloat16(), cell(x.bfloat16()))
    assert parts(after)[0].dtype == torch.bfloat16
    parts(after)[0].float().sum().backward()
    assert all(p.grad.dtype == torch.bfloat16 for p in cell.parameters())


def test_a_compiled_loop(compiled):
    cell = gt.GRUCell(INPUT, HIDDEN)
    x = random(3, BATCH, INPUT)

    def run(x):
        h = None
        for step in x:
            h = cell(step, h)
        return h

    eager = run(x)
    assert torch.equal(compiled(run)(x), eager)


def test_other_forms_of_cells():
    assert repr(gt.LSTMCell(3, 4, peephole=True)) == "LSTMCell(3, 4, peephole=True)"
    assert (
        repr(gt.GRUCell(3, 4, bias=False, reset_after=False))
        == "GRUCell(3, 4, bias=False, reset_after=False)"
    )
    assert repr(gt.RNNCell(3, 4, nonlinearity="relu")) == "RNNCell(3, 4, nonlinearity='relu')"
    ours = gt.GRUCell(INPUT, HIDDEN, reset_after=False)
    numpys = gr.GRUCell(INPUT, HIDDEN, reset_after=False)
    numpys.load_state_dict(ours.state_dict())
    x = random(BATCH, INPUT)
    np.testing.assert_array_equal(ours(x).detach().numpy(), numpys(x.numpy()))


X = random(2, INPUT)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: gt.GRUCell(INPUT, 4)(X[:, 1:]),
            ValueError,
            r"input: expected \(B, 9\) or \(9,\), got \(2, 8\)",
        ),
        (
            lambda: gt.GRUCell(INPUT, 4)(X[None]),
            ValueError,
            r"input: expected \(B, 9\) or \(9,\), got \(1, 2, 9\)",
        ),
        (lambda: gt.GRUCell(INPUT, 4)(X.numpy()), TypeError, "input: expected a tensor"),
        (lambda: gt.GRUCell(INPUT, 4)(X.double()), TypeError, "input: expected torch.float32"),
        (lambda: gt.GRUCell(INPUT, 9)(X, X[:1]), ValueError, r"hx: expected \(2, 9\), got \(1, 9\)"),
        (lambda: gt.LSTMCell(INPUT, 9)(X, X), TypeError, r"hx: expected a pair \(h, c\) of tensors"),
        (lambda: gt.LSTMCell(INPUT, 9)(X, (X, X[:1])), ValueError, r"hx: c: expected \(2, 9\), got \(1, 9\)"),
        (lambda: gt.LSTMCell(INPUT, 9)(X, (X, None)), TypeError, "hx: c: expected a tensor, got None"),
        (lambda: gt.RNNCell(INPUT, 9, nonlinearity="elu"), ValueError, "nonlinearity: expected"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
