"""direction="reverse" and merge=: against forward modules on flipped arrays, NumPy by hand, and PyTorch."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re

import numpy as np
import pytest

import gatedrnn as gr
from gatedrnn import _storage
from gradients import CELLS, assert_same_gradients, assert_slopes, make, named, problem
from helpers import DTYPES, assert_same_bits, build, flat, normal, state_of
from tolerance import assert_close

every_cell = pytest.mark.parametrize("cell", CELLS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])

# (I, H, B, T, ragged): tails of vectors, several tiles, and rows in lanes.
SIZES = [
    (1, 2, 1, 1, False),
    (7, 17, 7, 5, True),
    (17, 33, 3, 7, True),
    (5, 3, 40, 9, True),
    (3, 7, 17, 4, False),
]
sizes = pytest.mark.parametrize("size", SIZES, ids=str)


def refused(message, kind=ValueError):
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


def some_lengths(batch, steps):
    return [(5 * row + steps) % (steps + 1) for row in range(batch)]


def flipped(array, lengths=None, *, batch_first=False):
    """Each row turned round in time within its own length."""
    if array.ndim == 2 or lengths is None:
        return np.flip(array, 1 if batch_first and array.ndim == 3 else 0).copy()
    result = array.copy()
    rows, turned = (result, array) if batch_first else (result.swapaxes(0, 1), array.swapaxes(0, 1))
    for row, length in enumerate(lengths):
        rows[row, :length] = turned[row, :length][::-1]
    return result


def turned_pair(cell, input_size, hidden_size, **options):
    """The same parameters in a module of each direction."""
    reverse = make(cell, input_size, hidden_size, direction="reverse", **options)
    forward = make(cell, input_size, hidden_size, **options)
    assert_same_gradients(reverse.state_dict(), forward.state_dict())
    return reverse, forward


# ---- direction ----


@every_cell
@dtypes
@sizes
@pytest.mark.parametrize("layers", [1, 3])
def test_reverse_has_the_bits_of_flipped_arrays(cell, dtype, size, layers):
    i, h, batch, steps, ragged = size
    reverse, forward = turned_pair(cell, i, h, num_layers=layers, dtype=dtype)
    x = normal((steps, batch, i), dtype=dtype)
    state = state_of(reverse, batch)
    lengths = some_lengths(batch, steps) if ragged else None
    output, state_n = reverse(x, state, lengths=lengths)
    expected, expected_n = forward(flipped(x, lengths), state, lengths=lengths)
    assert_same_bits((output, state_n), (flipped(expected, lengths), expected_n))
    into = np.empty((steps, 2 * batch, output.shape[2]), dtype)[:, ::2]
    assert reverse(x, state, lengths=lengths, out=into)[0] is into
    assert_same_bits(into, output)


@every_cell
@dtypes
@sizes
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_have_the_bits_of_flipped_arrays(cell, dtype, size, recompute):
    i, h, batch, steps, ragged = size
    reverse, forward = turned_pair(cell, i, h, num_layers=2, dtype=dtype)
    x, state = normal((steps, batch, i), dtype=dtype), state_of(reverse, batch)
    lengths = some_lengths(batch, steps) if ragged else None
    output, state_n, tape = reverse.forward(x, state, lengths=lengths, recompute=recompute)
    assert_same_bits((output, state_n), reverse(x, state, lengths=lengths))
    d_output, d_state_n = normal(output.shape, seed=3, dtype=dtype), state_of(reverse, batch, seed=4)
    got = named(*reverse.backward(tape, d_output, d_state_n))
    _, _, tape = forward.forward(flipped(x, lengths), state, lengths=lengths, recompute=recompute)
    expected = named(*forward.backward(tape, flipped(d_output, lengths), d_state_n))
    expected["x"] = flipped(expected["x"], lengths)
    assert_same_gradients(got, expected)


@every_cell
def test_unbatched_and_batch_first(cell):
    reverse, forward = turned_pair(cell, 7, 17, batch_first=True, num_layers=2)
    x, state = normal((5, 3, 7)), state_of(reverse, 5)
    lengths = [3, 0, 1, 2, 3]
    expected, expected_n = forward(flipped(x, lengths, batch_first=True), state, lengths=lengths)
    expected = flipped(expected, lengths, batch_first=True)
    assert_same_bits(reverse(x, state, lengths=lengths), (expected, expected_n))
    expected, expected_n = forward(x[0, ::-1])
    assert_same_bits(reverse(x[0]), (expected[::-1], expected_n))


@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16x3", "int8"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_precision(cell, precision):
    reverse, forward = turned_pair(cell, 33, 40, num_layers=2)
    x, lengths = normal((6, 7, 33)), some_lengths(7, 6)
    plain = forward(flipped(x, lengths), lengths=lengths)
    expected = forward.to("cpu", precision)(flipped(x, lengths), lengths=lengths)
    assert np.abs(plain[0] - expected[0]).max() > 0
    got = reverse.to("cpu", precision)(x, lengths=lengths)
    assert_same_bits(got, (flipped(expected[0], lengths), expected[1]))


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("hidden", [3, 130])
def test_threads_change_no_bit(threads, hidden):
    module = build("lstm", 17, hidden, num_layers=3, direction="reverse")
    x, lengths = normal((12, 70, 17)), some_lengths(70, 12)
    expected = module(x, lengths=lengths)
    with gr.num_threads(threads):
        assert_same_bits(module(x, lengths=lengths), expected)


@pytest.mark.parametrize("cell", ["lstm", "lstm_projected", "gru", "rnn_tanh", "rnn_relu"])
@dtypes
def test_reverse_against_torch(cell, dtype):
    torch = pytest.importorskip("torch")
    module = build(cell, 7, 17, direction="reverse", dtype=dtype)
    own = {"proj_size": module.proj_size} if cell == "lstm_projected" else {}
    own |= {"nonlinearity": cell.removeprefix("rnn_")} if cell.startswith("rnn") else {}
    theirs = getattr(torch.nn, type(module).__name__)(7, 17, **own).double()
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in module.state_dict().items()})
    x = normal((9, 3, 7), dtype=dtype)
    with torch.no_grad():
        output, state = theirs(torch.from_numpy(x.astype(np.float64)).flip(0))
    states = state if isinstance(state, tuple) else (state,)
    expected = [output.flip(0).numpy(), *(part.numpy() for part in states)]
    assert_close(
        flat(module(x)), expected, cell=cell.removesuffix("_projected"), accumulations=35, steps=9, layers=1
    )


def test_a_row_starts_at_its_own_end():
    module = gr.RNN(1, 1, nonlinearity="relu", bias=False, direction="reverse")
    module.load_state_dict({"weight_ih_l0": np.ones((1, 1)), "weight_hh_l0": np.ones((1, 1))})
    x = np.array([[1, 10], [2, 20], [3, np.nan]], np.float32)[:, :, np.newaxis]
    output, state = module(x, lengths=[3, 2])
    assert output[:, :, 0].tolist() == [[6, 30], [5, 20], [3, 0]]
    assert state[0, :, 0].tolist() == [6, 30]


def test_copies_and_files(tmp_path):
    module = gr.LSTM(3, 5, 2, direction="reverse", seed=0)
    assert module.direction == "reverse"
    assert repr(module) == "LSTM(3, 5, num_layers=2, direction='reverse')"
    assert "weight_ih_l0_reverse" not in module.state_dict()
    module.save(tmp_path / "m.safetensors")
    x = normal((4, 2, 3))
    for other in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        gr.load(tmp_path / "m.safetensors"),
    ):
        assert repr(other) == repr(module)
        assert_same_bits(other(x), module(x))


def test_files_and_pickles_from_before(tmp_path, monkeypatch):
    """They do not say anything of these arguments."""
    module = gr.GRU(3, 5, bidirectional=True, seed=0)
    later = {"direction", "merge", "learn_state"} & module._options.keys()
    options = {name: value for name, value in module._options.items() if name not in later}
    _storage.save(tmp_path / "m.safetensors", "GRU", options, None, module.state_dict())
    rebuild, arguments = module.__reduce__()[:2]
    x = normal((4, 2, 3))
    for other in (gr.load(tmp_path / "m.safetensors"), rebuild(type(module), options, *arguments[2:])):
        assert repr(other) == repr(module)
        assert_same_bits(other(x), module(x))


def test_a_file_with_a_wrong_direction_is_refused(tmp_path):
    module = gr.GRU(3, 5, seed=0)
    options = module._options | {"direction": "sideways"}
    _storage.save(tmp_path / "m.safetensors", "GRU", options, None, module.state_dict())
    with pytest.raises(ValueError, match="direction: expected 'forward' or 'reverse', got 'sideways'"):
        gr.load(tmp_path / "m.safetensors")


def test_tapes_of_the_other_direction_are_refused():
    reverse, forward = turned_pair("gru", 3, 5)
    output, _, tape = reverse.forward(normal((4, 2, 3)))
    with refused("tape: expected one that this module's forward returned, got one of another module"):
        forward.backward(tape, output)


@pytest.mark.parametrize("cls", [gr.LSTM, gr.GRU, gr.RNN])
def test_direction_errors(cls):
    with refused("direction: expected 'forward' or 'reverse', got 'backward'"):
        cls(3, 4, direction="backward")
    with refused("direction: expected 'forward' or 'reverse', got True (bool)", TypeError):
        cls(3, 4, direction=True)
    with refused("direction: expected 'forward' with bidirectional=True, got 'reverse'"):
        cls(3, 4, bidirectional=True, direction="reverse")
    with refused("stream: expected a module with direction='forward', got direction='reverse'"):
        cls(3, 4, direction="reverse").stream()
    with pytest.raises(TypeError):
        cls(3, 4, 1, True, False, 0.0, False, 0, "reverse")  # keywords only


# ---- merge ----

MERGES = ("sum", "mul", "mean")
every_merge = pytest.mark.parametrize("merge", MERGES)


def by_hand(merge, output):
    width = output.shape[-1] // 2
    a, b = output[..., :width], output[..., width:]
    return {"sum": a + b, "mul": a * b, "mean": (a + b) / 2}[merge]


def merged_pair(cell, input_size, hidden_size, merge, **options):
    """The same parameters in a module that merges, and in one that does not."""
    merging = make(cell, input_size, hidden_size, bidirectional=True, merge=merge, **options)
    return merging, make(cell, input_size, hidden_size, bidirectional=True, **options)


@every_cell
@dtypes
@sizes
@every_merge
def test_merge_by_hand(cell, dtype, size, merge):
    i, h, batch, steps, ragged = size
    merging, plain = merged_pair(cell, i, h, merge, num_layers=2, dtype=dtype)
    x, state = normal((steps, batch, i), dtype=dtype), state_of(plain, batch)
    lengths = some_lengths(batch, steps) if ragged else None
    output, state_n = plain(x, state, lengths=lengths)
    expected = by_hand(merge, output), state_n
    assert_same_bits(merging(x, state, lengths=lengths), expected)
    assert_same_bits(merging.forward(x, state, lengths=lengths)[:2], expected)
    out = np.full((steps, 2 * batch, expected[0].shape[2]), 9, dtype)
    assert_same_bits(merging(x, state, lengths=lengths, out=out[:, ::2])[0], expected[0])
    assert (out[:, 1::2] == 9).all()


@every_cell
@every_merge
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_of_merge(cell, merge, recompute):
    p = problem(cell, 5, 7, 3, 5, lengths=[5, 0, 3], num_layers=2, bidirectional=True, merge=merge)
    p = dataclasses.replace(p, d_output=normal((5, 3, p.results()[0].shape[2]), seed=9, dtype=np.float64))
    assert_slopes(p, elements=3, gradients=p.gradients(recompute=recompute))


class OfItsOwn(np.ndarray):
    """An array whose product is another one than NumPy's."""

    def __mul__(self, other):
        raise AssertionError("not NumPy's product")


@dtypes
@every_merge
@pytest.mark.parametrize("shape", [(5, 7, 4), (7, 4)], ids=str)
def test_merged_gradients_are_those_of_the_halves(dtype, merge, shape):
    merging, plain = merged_pair("lstm", 4, 17, merge, dtype=dtype, batch_first=True)
    x = normal(shape, dtype=dtype)
    output, _, tape = plain.forward(x)
    d = normal((*shape[:-1], 17), seed=2, dtype=dtype)
    a, b = output[..., :17], output[..., 17:]
    halves = {"sum": (d, d), "mul": (d * b, d * a), "mean": (d / 2, d / 2)}[merge]
    expected = named(*plain.backward(tape, np.concatenate(halves, axis=-1)))
    merged_output, _, merged_tape = merging.forward(x)
    merged_output[...] = 0  # which is the caller's now
    assert_same_gradients(named(*merging.backward(merged_tape, d)), expected)
    assert_same_gradients(named(*merging.backward(merged_tape, d.tolist())), expected)
    assert_same_gradients(named(*merging.backward(merged_tape, d.view(OfItsOwn))), expected)
    into = {name: np.zeros_like(value) for name, value in merging.state_dict().items()}
    for _ in range(2):
        merging.backward(merged_tape, d, accumulate_into=into)
    for name, value in into.items():
        np.testing.assert_array_equal(value, 2 * expected[name])
    zeros = named(*merging.backward(merged_tape, None))
    assert not any(np.abs(value).max() for value in zeros.values())
    kept = output.nbytes if merge == "mul" else 0
    assert merged_tape.nbytes == tape.nbytes + kept


@every_merge
def test_merge_with_numpy_that_raises(merge):
    """NumPy's own operations are as quiet as the engine's."""
    merging, plain = merged_pair("rnn_relu", 3, 5, merge)
    x = normal((4, 2, 3)) * np.array([1e-22, 1e38], np.float32)[:, np.newaxis]
    for module in (merging, plain):
        module.bias_ih_l0 = module.bias_hh_l0 = np.zeros(5)
        module.bias_ih_l0_reverse = module.bias_hh_l0_reverse = np.zeros(5)
    with np.errstate(all="ignore"):
        expected = by_hand(merge, plain(x)[0])
    with np.errstate(all="raise"):
        output, _, tape = merging.forward(x)
        merging.backward(tape, output)
        assert_same_bits(merging(x)[0], output)
    np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_merge_in_a_precision(precision):
    merging, plain = merged_pair("gru", 33, 40, "mean")
    x = normal((6, 7, 33))
    expected = by_hand("mean", plain.to("cpu", precision)(x)[0])
    assert_same_bits(merging.to("cpu", precision)(x)[0], expected)


def test_a_merging_module_changes_and_moves():
    merging, plain = merged_pair("gru", 3, 5, "sum")
    x = normal((4, 2, 3))
    merging(x)
    for module in (merging, plain):
        module.weight_hh_l0 = module.weight_hh_l0 * 2
    assert_same_bits(merging(x)[0], by_hand("sum", plain(x)[0]))
    assert merging.packed_nbytes == plain.packed_nbytes


def test_copies_and_files_of_merging_modules(tmp_path):
    module = gr.GRU(3, 5, bidirectional=True, merge="mul", seed=0)
    assert module.merge == "mul"
    assert repr(module) == "GRU(3, 5, bidirectional=True, merge='mul')"
    module.save(tmp_path / "m.safetensors")
    x = normal((4, 2, 3))
    for other in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        gr.load(tmp_path / "m.safetensors"),
    ):
        assert repr(other) == repr(module)
        assert_same_bits(other(x), module(x))


def test_merge_errors():
    with refused("merge: expected 'concat' or 'sum' or 'mul' or 'mean', got 'ave'"):
        gr.GRU(3, 4, bidirectional=True, merge="ave")
    with refused("merge: expected 'concat' with bidirectional=False, got 'sum'"):
        gr.GRU(3, 4, merge="sum")
    module = gr.GRU(3, 4, bidirectional=True, merge="mul")
    x = normal((5, 2, 3))
    with refused("x: expected (T, B, 3) or (T, 3), got (5, 2, 4)"):
        module(normal((5, 2, 4)), out=np.empty((5, 2, 4), np.float32))
    with refused("x: expected (T, B, 3) or (T, 3), got (3,)"):
        module(normal(3), out=np.empty(4, np.float32))
    with refused("out: expected a writable NumPy array of float32 and shape (5, 2, 4), got shape (5, 2, 8)"):
        module(x, out=np.empty((5, 2, 8), np.float32))
    with refused("out: expected memory of its own, got an array that overlaps an input"):
        memory = np.zeros((5, 2, 4), np.float32)
        module(memory[..., :3], out=memory)
    out = np.full((5, 2, 4), 7, np.float32)
    with refused("lengths: expected 2 integers in 0 .. 5, got 6 at position 0"):
        module(x, out=out, lengths=[6, 1])
    assert (out == 7).all()
    _, _, tape = module.forward(x)
    with refused("d_output: expected (5, 2, 4), got (5, 2, 8)"):
        module.backward(tape, np.zeros((5, 2, 8), np.float32))
    for other in (gr.GRU(3, 4, bidirectional=True, merge="mul"), gr.GRU(3, 4, bidirectional=True)):
        with refused("tape: expected one that this module's forward returned, got one of another module"):
            module.backward(other.forward(x)[2], np.zeros((5, 2, 4), np.float32))
