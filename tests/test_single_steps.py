"""LSTMCell, GRUCell and RNNCell: the bits of the modules' steps, gradients, parameters, errors."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import gatedrnn as gr
from helpers import CELLS, CLASSES, DTYPES, assert_same_bits, build, normal

CELL_CLASSES = {gr.LSTM: gr.LSTMCell, gr.GRU: gr.GRUCell, gr.RNN: gr.RNNCell}
SUFFIX = "_l0"

each_cell = pytest.mark.parametrize("name", CELLS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
precisions = pytest.mark.parametrize("precision", ["bfloat16", "bfloat16x3", "int8"])


def pair(name, input_size=5, hidden_size=7, **options):
    """A cell and a module of one layer, of the same parameters."""
    module: Any = build(name, input_size, hidden_size, **options)
    cls, own = CLASSES[name]
    cell: Any = CELL_CLASSES[cls](input_size, hidden_size, **own, **options)
    cell.load_state_dict({key.removesuffix(SUFFIX): value for key, value in module.state_dict().items()})
    return cell, module


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def like_state(cell, arrays):
    return tuple(arrays) if isinstance(cell, gr.LSTMCell) else arrays[0]


def states(cell, batch, seed=1):
    """A random h, or pair of h and c."""
    count = 2 if isinstance(cell, gr.LSTMCell) else 1
    shape = (batch, cell.hidden_size) if batch else (cell.hidden_size,)
    return like_state(cell, [normal(shape, seed=seed + i, dtype=cell.dtype) for i in range(count)])


def as_layer(state):
    """A cell's state as that of a module."""
    return tuple(part[np.newaxis] for part in state) if isinstance(state, tuple) else state[np.newaxis]


# --- calls ----------------------------------------------------------------------------------------


@each_cell
@each_dtype
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(1, 1), (5, 7), (33, 17), (31, 129)])
def test_steps_have_the_bits_of_a_sequence(name, dtype, bias, sizes):
    cell, module = pair(name, *sizes, dtype=dtype, bias=bias)
    x, state = normal((4, 9, sizes[0]), dtype=dtype), states(cell, 9)
    output, state_n = module(x, as_layer(state))
    for t in range(4):
        state = cell(x[t], state)
        assert_same_bits(parts(state)[0], output[t])
    for ours, theirs in zip(parts(state), parts(state_n), strict=True):
        assert_same_bits(ours, theirs[0])


@each_cell
@precisions
def test_precisions(name, precision):
    cell, module = pair(name, 33, 65, precision=precision)
    x = normal((3, 2, 33))
    output, _ = module(x)
    state = None
    for t in range(3):
        state = cell(x[t], state)
        assert_same_bits(parts(state)[0], output[t])
    assert cell.precision == precision
    assert cell.to("cpu").precision is None


@each_cell
def test_a_row_by_itself(name):
    cell, _ = pair(name)
    x, state = normal((3, 5)), states(cell, 3)
    together = cell(x, state)
    for row in range(3):
        alone = cell(x[row], like_state(cell, [part[row] for part in parts(state)]))
        for a, b in zip(parts(alone), parts(together), strict=True):
            assert_same_bits(a, b[row])


def test_arguments_need_not_be_arrays():
    cell, _ = pair("gru")
    x, h = normal((2, 5)), normal((2, 7))
    assert_same_bits(cell(x.tolist(), h.tolist()), cell(x, h))
    assert_same_bits(cell(x[:, ::-1], h[::-1]), cell(x[:, ::-1].copy(), h[::-1].copy()))
    assert_same_bits(cell(x), cell(x, np.zeros((2, 7), np.float32)))
    lstm, _ = pair("lstm")
    assert_same_bits(lstm(x, (h, None))[1], lstm(x, [h, np.zeros_like(h)])[1])


# --- gradients ------------------------------------------------------------------------------------


@each_cell
@each_dtype
def test_gradients_of_a_loop_are_those_of_a_sequence(name, dtype):
    """But for the order of the sums over steps, those by the parameters."""
    cell, module = pair(name, 9, 17, dtype=dtype)
    steps, batch = 5, 3
    x, state = normal((steps, batch, 9), dtype=dtype), states(cell, batch)
    d_output = normal((steps, batch, 17), seed=5, dtype=dtype)
    d_state = states(cell, batch, seed=7)

    output, _, tape = module.forward(x, as_layer(state))
    expected_x, expected_state, expected = module.backward(tape, d_output, as_layer(d_state))

    tapes = []
    for t in range(steps):
        state, step_tape = cell.forward(x[t], state)
        assert_same_bits(parts(state)[0], output[t])
        tapes.append(step_tape)
    gradients = {key: np.zeros_like(value) for key, value in cell.state_dict().items()}
    d_x = np.empty_like(x)
    for t in reversed(range(steps)):
        arriving = [parts(d_state)[0] + d_output[t], *parts(d_state)[1:]]
        d_x[t], d_state, returned = cell.backward(
            tapes[t], like_state(cell, arriving), accumulate_into=gradients
        )
        assert returned is gradients
    # A sum's terms and its order: eps times their number covers both.
    close = dict(rtol=0, atol=float(np.finfo(dtype).eps) * 64 * steps * batch)
    np.testing.assert_allclose(d_x, expected_x, **close)
    for ours, theirs in zip(parts(d_state), parts(expected_state), strict=True):
        np.testing.assert_allclose(ours, theirs[0], **close)
    assert [key + SUFFIX for key in gradients] == list(expected)
    for key, value in gradients.items():
        np.testing.assert_allclose(value, expected[key + SUFFIX], **close)


@each_cell
def test_gradients_by_central_differences(name):
    cell, _ = pair(name, 3, 4, dtype=np.float64)
    x, state, weights = normal((2, 3), dtype=np.float64), states(cell, 2), states(cell, 2, seed=9)

    def loss():
        return sum(float((a * b).sum()) for a, b in zip(parts(cell(x, state)), parts(weights), strict=True))

    _, tape = cell.forward(x, state)
    d_x, d_state, gradients = cell.backward(tape, weights)
    parameters = cell.parameters()
    step, error = 1e-6, 1e-8  # what a difference of third order and rounding leave, with some room
    for array, gradient in [
        (x, d_x),
        *zip(parts(state), parts(d_state), strict=True),
        *((parameters[key], gradients[key]) for key in gradients),
    ]:
        for index in np.ndindex(*array.shape):
            before = array[index]
            array[index] = before + step
            above = loss()
            array[index] = before - step
            below = loss()
            array[index] = before
            assert abs((above - below) / (2 * step) - gradient[index]) < error


def test_without_a_gradient_of_c():
    cell, _ = pair("lstm")
    x, d_h = normal((2, 5)), normal((2, 7), seed=3)
    tape = cell.forward(x)[1]
    first = cell.backward(tape, (d_h, None))
    second = cell.backward(tape, (d_h, np.zeros_like(d_h)))
    assert_same_bits(first[0], second[0])
    assert_same_bits(first[1][1], second[1][1])


def test_int8_is_not_for_training():
    cell, _ = pair("gru", 5, 33, precision="int8")
    with pytest.raises(ValueError, match="precision: expected None"):
        cell.forward(normal((1, 5)))


# --- parameters, copies ---------------------------------------------------------------------------


def test_names_and_shapes():
    shapes = {key: value.shape for key, value in gr.LSTMCell(3, 4, peephole=True).state_dict().items()}
    assert shapes == {
        "weight_ih": (16, 3),
        "weight_hh": (16, 4),
        "bias_ih": (16,),
        "bias_hh": (16,),
        "weight_ci": (4,),
        "weight_cf": (4,),
        "weight_co": (4,),
    }
    assert list(gr.GRUCell(3, 4, bias=False).state_dict()) == ["weight_ih", "weight_hh"]


@each_cell
def test_initial_parameters_are_the_modules(name):
    cls, own = CLASSES[name]
    cell, module = CELL_CLASSES[cls](3, 4, seed=5, **own), cls(3, 4, seed=5, **own)
    for key, value in cell.state_dict().items():
        assert_same_bits(value, module.state_dict()[key + SUFFIX])


def test_a_change_of_parameters_takes_effect():
    cell, _ = pair("gru")
    x = normal((2, 5))
    before = cell(x)
    cell.weight_hh[...] = 0
    cell.weight_ih = np.zeros_like(cell.weight_ih)
    cell.bias_ih[...] = cell.bias_hh[...] = 0
    assert_same_bits(cell(x), np.zeros_like(before))


@each_cell
def test_copies_and_pickles(name):
    cell, _ = pair(name, precision="bfloat16")
    x = normal((2, 5))
    expected = cell(x)
    for made in (copy.deepcopy(cell), copy.copy(cell), pickle.loads(pickle.dumps(cell))):
        assert type(made) is type(cell)
        assert repr(made) == repr(cell)
        assert made.precision == "bfloat16"
        for a, b in zip(parts(made(x)), parts(expected), strict=True):
            assert_same_bits(a, b)
        made.weight_hh[...] = 0
    for a, b in zip(parts(cell(x)), parts(expected), strict=True):
        assert_same_bits(a, b)


def test_repr():
    assert repr(gr.LSTMCell(3, 4)) == "LSTMCell(3, 4)"
    assert repr(gr.GRUCell(3, 4, False, reset_after=False, dtype=np.float64)) == (
        "GRUCell(3, 4, bias=False, dtype='float64', reset_after=False)"
    )
    assert repr(gr.RNNCell(3, 4, nonlinearity="relu")) == "RNNCell(3, 4, nonlinearity='relu')"


def test_a_subclass_has_attributes_of_its_own():
    class Decoder(gr.GRUCell):
        def __init__(self):
            super().__init__(5, 7, seed=0)
            self.vocabulary = ["a", "b"]

    decoder = Decoder()
    assert_same_bits(decoder(normal((1, 5))), gr.GRUCell(5, 7, seed=0)(normal((1, 5))))
    with pytest.raises(AttributeError, match="hidden_size: fixed"):
        decoder.hidden_size = 3


# --- errors ---------------------------------------------------------------------------------------

X, H = normal((2, 5)), normal((2, 7))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c: c["gru"](X[:, :4]), ValueError, r"x: expected \(B, 5\) or \(5,\), got \(2, 4\)"),
        (lambda c: c["gru"](X[None]), ValueError, r"x: expected \(B, 5\) or \(5,\), got \(1, 2, 5\)"),
        (lambda c: c["gru"](None), TypeError, "x: expected an array of floating-point numbers"),
        (lambda c: c["gru"]([[1.0], [1.0, 2.0]]), ValueError, "x: expected an array of floating-point"),
        (lambda c: c["gru"](X.astype(int)), TypeError, "x: expected an array of floating-point numbers"),
        (lambda c: c["gru"](X, H[:1]), ValueError, r"state: expected \(2, 7\), got \(1, 7\)"),
        (lambda c: c["gru"](X[0], H), ValueError, r"state: expected \(7,\), got \(2, 7\)"),
        (lambda c: c["gru"](X, H.astype(int)), TypeError, "state: expected an array of floating-point"),
        (lambda c: c["lstm"](X, H), TypeError, r"state: expected a pair \(h, c\)"),
        (lambda c: c["lstm"](X, (H, H, H)), ValueError, r"state: expected a pair \(h, c\)"),
        (lambda c: c["lstm"](X, (H, H[:, 1:])), ValueError, r"state: c: expected \(2, 7\), got \(2, 6\)"),
        (lambda c: c["gru"].backward(None, H), TypeError, "tape: expected what forward returned"),
        (lambda c: c["gru"].backward(c["lstm"].forward(X)[1], H), ValueError, "tape: "),
        (lambda c: c["gru"].backward(c["gru"].forward(X)[1], H[:1]), ValueError, "d_state_n: "),
        (
            lambda c: c["gru"].backward(c["gru"].forward(X)[1], H, accumulate_into=[]),
            TypeError,
            "accumulate_into: expected a dictionary",
        ),
        (lambda c: c["gru"].load_state_dict({}), ValueError, "missing keys .*weight_ih"),
        (lambda c: c["gru"].load_state_dict([]), TypeError, "d: expected a mapping"),
        (lambda c: setattr(c["gru"], "weight_ih", H), ValueError, r"weight_ih: expected shape \(21, 5\)"),
        (lambda _: gr.GRUCell(0, 4), ValueError, "input_size: expected at least 1"),
        (lambda _: gr.GRUCell(3, 1 << 40), ValueError, "input_size, hidden_size: expected sizes that fit"),
        (lambda _: gr.RNNCell(3, 4, nonlinearity="elu"), ValueError, "nonlinearity: expected 'tanh' or"),
        (lambda _: gr.LSTMCell(3, 4, dtype=np.float64, precision="int8"), ValueError, "precision: expected"),
    ],
)
def test_errors(call, error, message):
    cells = {name: pair(name)[0] for name in ("gru", "lstm")}
    with pytest.raises(error, match=message):
        call(cells)
