"""learn_state=True: rows begin with parameters where no state is given."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest

import gatedrnn as gr
import gatedrnn.train as train
from gradients import CELLS, assert_same_gradients, make, named, parts, problem, slope
from helpers import DTYPES, assert_same_bits, directions, flat, normal, state_of

every_cell = pytest.mark.parametrize("cell", CELLS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])

# (I, H, B, T, options): tails of vectors, rows in lanes, several layers, both directions, the reverse one.
SIZES = [
    (1, 2, 1, 1, {}),
    (7, 17, 7, 5, {"num_layers": 2, "bidirectional": True}),
    (17, 33, 3, 7, {"direction": "reverse"}),
    (5, 3, 40, 4, {"num_layers": 3}),
    (3, 7, 17, 3, {"bidirectional": True, "merge": "mean"}),
]
sizes = pytest.mark.parametrize("size", SIZES, ids=str)


def refused(message, kind=ValueError):
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


def learning(cell, input_size=5, hidden_size=7, **options):
    """A module whose initial state is no zeros, and the same one without."""
    module = make(cell, input_size, hidden_size, learn_state=True, **options)
    return module, make_plain(cell, module, input_size, hidden_size, **options)


def make_plain(cell, module, input_size, hidden_size, **options):
    plain = make(cell, input_size, hidden_size, **options)
    learnt = module.state_dict()
    plain.load_state_dict({name: learnt[name] for name in plain.state_dict()})
    return plain


def names(module):
    return ("h_0", "c_0")[: 1 + isinstance(module, gr.LSTM)]


def learnt_state(module, batch):
    """The state that `batch` rows begin with, as a caller would give it; None for an unbatched x."""
    values = [module.state_dict()[name] for name in names(module)]
    if batch is not None:
        values = [np.repeat(value[:, np.newaxis], batch, axis=1) for value in values]
    return tuple(values) if len(values) > 1 else values[0]


def lengths_of(batch, steps):
    return [(3 * row) % (steps + 1) for row in range(batch)]  # the first is 0


# ---- calls ----


@every_cell
@dtypes
@sizes
def test_the_bits_of_a_given_state(cell, dtype, size):
    i, h, batch, steps, options = size
    module, plain = learning(cell, i, h, dtype=dtype, **options)
    x, lengths = normal((steps, batch, i), dtype=dtype), lengths_of(batch, steps)
    for rows in (None, lengths):
        expected = plain(x, learnt_state(module, batch), lengths=rows)
        assert_same_bits(module(x, lengths=rows), expected)
        assert_same_bits(module.forward(x, lengths=rows)[:2], expected)
    out = np.empty_like(expected[0])
    assert_same_bits(module(x, lengths=lengths, out=out)[0], out)
    expected = plain(x[:, 0], learnt_state(module, None))
    assert_same_bits(module(x[:, 0]), expected)
    state = state_of(module, batch)
    assert_same_bits(module(x, state, lengths=lengths), plain(x, state, lengths=lengths))


@dtypes
def test_a_part_of_a_pair(dtype):
    module, plain = learning("lstm_projected", 5, 17, dtype=dtype, num_layers=2)
    x, (h, c) = normal((4, 7, 5), dtype=dtype), state_of(module, 7)
    h_0, c_0 = learnt_state(module, 7)
    assert_same_bits(module(x, (h, None)), plain(x, (h, c_0)))
    assert_same_bits(module(x, (None, c)), plain(x, (h_0, c)))
    assert_same_bits(module(x, (None, None)), plain(x, (h_0, c_0)))


@every_cell
def test_a_new_module_equals_one_without(cell):
    own = {"seed": 3}
    cls = type(make(cell))
    module, plain = cls(5, 7, learn_state=True, **own), cls(5, 7, **own)
    state = module.state_dict()
    assert list(state) == [*plain.state_dict(), *names(module)]
    for name in names(module):
        assert state[name].shape == (1, 7)
        assert not state[name].any()
    assert_same_gradients({name: state[name] for name in plain.state_dict()}, plain.state_dict())
    x = normal((4, 2, 5))
    assert_same_bits(module(x), plain(x))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_shapes(size):
    i, h, _, _, options = size
    module = make("lstm_projected", i, h, learn_state=True, **options)
    tracks = module.num_layers * directions(module)
    state = module.state_dict()
    assert (state["h_0"].shape, state["c_0"].shape) == ((tracks, module.proj_size), (tracks, h))


@pytest.mark.parametrize("change", ["load", "assign", "write", "optimizer"])
def test_a_changed_state_is_seen_by_the_next_call(change):
    module, plain = learning("gru")
    x = normal((4, 2, 5))
    before = module(x)[0]
    new = normal((1, 7), seed=8)
    if change == "load":
        module.load_state_dict({"h_0": new}, strict=False)
    elif change == "assign":
        module.h_0 = new
    elif change == "write":
        array = module.parameters()["h_0"]
        module(x)
        array[...] = new
    else:
        optimizer = train.SGD(module.parameters(), lr=1.0)
        zeros = {name: np.zeros_like(value) for name, value in module.state_dict().items()}
        optimizer.step(zeros | {"h_0": module.state_dict()["h_0"] - new})
        new = module.state_dict()["h_0"]
    assert np.abs(module(x)[0] - before).max() > 0
    assert_same_bits(module(x), plain(x, np.repeat(new[:, np.newaxis], 2, axis=1)))


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "merge": "sum"}], ids=str)
def test_weights_are_not_packed_again_for_another_state(options):
    module, plain = learning("gru", **options)
    x = normal((4, 2, 5))
    module.forward(x)
    module.h_0 = module.h_0 + 1
    assert module._packed().packed_for_backward
    assert_same_bits(module(x), plain(x, learnt_state(module, 2)))
    output, _, tape = module.forward(x)
    plain_tape = plain.forward(x, learnt_state(module, 2))[2]
    gradients = module.backward(tape, output)[2]
    assert_same_bits(gradients["weight_hh_l0"], plain.backward(plain_tape, output)[2]["weight_hh_l0"])
    for each in (module, plain):
        each.weight_hh_l0 = each.weight_hh_l0 * 2
    module.h_0 = module.h_0 * 2
    assert not module._packed().packed_for_backward
    assert_same_bits(module(x), plain(x, learnt_state(module, 2)))


@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16x3", "int8"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_precision(cell, precision):
    module, plain = learning(cell, 33, 40)
    x = normal((6, 7, 33))
    expected = plain.to("cpu", precision)(x, learnt_state(module, 7))
    assert_same_bits(module.to("cpu", precision)(x), expected)


# ---- gradients ----


def summed(d_state):
    """Over the rows, one after the other."""
    if d_state.ndim == 2:
        return d_state
    total = np.zeros((d_state.shape[0], d_state.shape[2]), d_state.dtype)
    for row in range(d_state.shape[1]):
        total = total + d_state[:, row]
    return total


@every_cell
@dtypes
@sizes
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_sums_over_rows(cell, dtype, size, recompute):
    i, h, batch, steps, options = size
    module, plain = learning(cell, i, h, dtype=dtype, **options)
    for rows, lengths in ((batch, lengths_of(batch, steps)), (batch, None), (None, None)):
        x = normal((steps, i) if rows is None else (steps, batch, i), dtype=dtype)
        output, _, tape = module.forward(x, lengths=lengths, recompute=recompute)
        d_output, d_state_n = normal(output.shape, seed=3, dtype=dtype), state_of(module, rows, seed=4)
        d_x, d_state, gradients = module.backward(tape, d_output, d_state_n)
        state = learnt_state(module, rows)
        _, _, tape = plain.forward(x, state, lengths=lengths, recompute=recompute)
        e_x, e_state, e_gradients = plain.backward(tape, d_output, d_state_n)
        sums = [summed(part) for part in parts(e_state)]
        e_gradients |= dict(zip(names(module), sums, strict=True))
        assert_same_bits(d_x, e_x)
        for d, e in zip(parts(d_state), parts(e_state), strict=True):
            assert_same_bits(d, e)
        assert_same_gradients(gradients, e_gradients)
        assert list(gradients) == list(module.state_dict())


@every_cell
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "merge": "mul"}], ids=str)
def test_slopes(cell, options):
    p = problem(cell, 5, 7, 3, 5, lengths=[5, 0, 3], learn_state=True, **options)
    output, _, tape = p.module.forward(p.x, lengths=p.lengths)
    d_output = normal(output.shape, seed=9, dtype=np.float64)
    gradients = p.module.backward(tape, d_output, p.d_state_n)[2]

    class WithoutState:
        module, cell = p.module, p.cell

        def loss(self):
            results = flat(p.module(p.x, lengths=p.lengths))
            weights = (d_output, *parts(p.d_state_n))
            return sum(float(np.sum(r * w)) for r, w in zip(results, weights, strict=True))

    for name in names(p.module):
        values = p.module.parameters()[name].reshape(-1)
        for k in (0, values.size // 2, values.size - 1):
            expected = slope(WithoutState(), values, slice(k, k + 1), np.ones(1))
            np.testing.assert_allclose(gradients[name].reshape(-1)[k], expected, rtol=1e-6, atol=1e-8)


@every_cell
def test_no_gradient_where_a_state_was_given(cell):
    module, _ = learning(cell)
    x, state = normal((4, 3, 5)), state_of(module, 3)
    output, _, tape = module.forward(x, state)
    gradients = module.backward(tape, output)[2]
    assert not any(gradients[name].any() for name in names(module))
    assert gradients["weight_hh_l0"].any()
    into = {name: np.full_like(value, 2) for name, value in module.state_dict().items()}
    assert module.backward(tape, output, accumulate_into=into)[2] is into
    for name in names(module):
        assert (into[name] == 2).all()
    if isinstance(module, gr.LSTM):
        output, _, tape = module.forward(x, (state[0], None))
        _, (_, d_c), gradients = module.backward(tape, output)
        assert not gradients["h_0"].any()
        assert_same_bits(gradients["c_0"], summed(d_c))


def test_accumulated():
    module, _ = learning("lstm")
    x = normal((4, 3, 5))
    output, _, tape = module.forward(x)
    gradients = module.backward(tape, output)[2]
    into = {name: np.ones_like(value) for name, value in gradients.items()}
    module.backward(tape, output, accumulate_into=into)
    for name in ("h_0", "c_0"):
        assert_same_bits(into[name], 1 + gradients[name])
    first = np.array([into["h_0"].copy()])
    with refused("accumulate_into: h_0: expected an array, got nothing of this name"):
        module.backward(tape, output, accumulate_into={n: v for n, v in into.items() if n != "h_0"})
    wrong = into | {"h_0": np.zeros((1, 8), np.float32)}
    expected = "accumulate_into: h_0: expected a writable C-contiguous array of float32 and shape (1, 7)"
    with refused(f"{expected}, got shape (1, 8)"):
        module.backward(tape, output, accumulate_into=wrong)
    with pytest.raises(ValueError, match="memory of its own"):
        module.backward(tape, output, accumulate_into=into | {"h_0": into["c_0"]})
    assert_same_bits(into["h_0"], first[0])


@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (3, 0)])
def test_nothing_to_do(steps, batch):
    module, _ = learning("lstm")
    output, state_n, tape = module.forward(np.zeros((steps, batch, 5), np.float32))
    for part, expected in zip(state_n, learnt_state(module, batch), strict=True):
        assert_same_bits(part, expected)
    d_state = state_of(module, batch)
    gradients = module.backward(tape, output, d_state)[2]
    for name, part in zip(("h_0", "c_0"), d_state, strict=True):
        assert_same_bits(gradients[name], summed(part))


def test_threads_change_no_bit():
    module, _ = learning("gru", 17, 33, num_layers=2)
    x, lengths = normal((9, 40, 17)), lengths_of(40, 9)

    def run():
        output, state, tape = module.forward(x, lengths=lengths)
        return named(*module.backward(tape, output, state))

    expected = run()
    with gr.num_threads(2):
        assert_same_gradients(run(), expected)


# ---- streams, copies, files, training ----


@every_cell
@pytest.mark.parametrize("batch", [1, 3])
def test_streams_begin_with_it(cell, batch):
    module, _ = learning(cell, num_layers=2)
    x, initial = normal((4, batch, 5)), learnt_state(module, batch)
    stream = module.stream(batch)

    def assert_initial(state, rows=slice(None)):
        for part, expected in zip(parts(state), parts(initial), strict=True):
            assert_same_bits(part[:, rows], expected[:, rows])

    assert_initial(stream.state)
    expected, _ = module(x)
    assert_same_bits(np.stack([stream.step(x_t) for x_t in x]), expected)
    other = pickle.loads(pickle.dumps(stream))
    for each in (stream, copy.copy(stream), other):
        went_on = each.state
        each.reset([batch - 1])
        assert_initial(each.state, slice(batch - 1, None))
        assert_same_bits(parts(each.state)[0][:, : batch - 1], parts(went_on)[0][:, : batch - 1])
        each.reset()
        assert_initial(each.state)
        each.step(x[0])
        each.state = None
        assert_initial(each.state)
    module.h_0 = module.h_0 + 1  # a stream keeps its parameters
    stream.reset()
    assert_initial(stream.state)


def test_a_part_of_a_stream_s_state():
    module, _ = learning("lstm")
    stream = module.stream(2)
    h, _ = state_of(module, 2)
    stream.step(normal((2, 5)))
    stream.state = (h, None)
    assert_same_bits(stream.state[0], h)
    assert_same_bits(stream.state[1], learnt_state(module, 2)[1])


def test_copies_and_files(tmp_path):
    module, _ = learning("lstm", bidirectional=True)
    assert module.learn_state is True
    assert repr(module) == "LSTM(5, 7, bidirectional=True, learn_state=True)"
    module.save(tmp_path / "m.safetensors")
    x = normal((4, 2, 5))
    for other in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        gr.load(tmp_path / "m.safetensors"),
    ):
        assert repr(other) == repr(module)
        assert_same_bits(other(x), module(x))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_it_is_trained(cell, tmp_path):
    """A constant that only the initial state can know: the input is zero, and there are no biases."""
    module = make(cell, 3, 7, learn_state=True, bias=False)
    x, target = np.zeros((3, 2, 3), np.float32), normal((3, 1, 7), seed=5) * 0.1
    optimizer = train.Adam(module.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        output, _, tape = module.forward(x)
        loss, d_output = train.mse(output, np.broadcast_to(target, output.shape))
        losses.append(loss)
        optimizer.step(module.backward(tape, d_output)[2])
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("cls", [gr.LSTM, gr.GRU, gr.RNN])
def test_errors(cls):
    with refused("learn_state: expected True or False, got 1 (int)", TypeError):
        cls(3, 4, learn_state=1)
    module = cls(3, 4, learn_state=True)
    with pytest.raises(ValueError, match="missing keys"):
        module.load_state_dict(cls(3, 4).state_dict())
    with refused("h_0: expected shape (1, 4), got (4,)"):
        module.h_0 = np.zeros(4)
    assert not hasattr(cls(3, 4), "h_0")
