"""Streams: one step at a time, with the state kept inside."""

from __future__ import annotations

import copy
import os
import pickle

import numpy as np
import pytest

from helpers import (
    CELLS,
    CELLS_AND_PROJECTION,
    DTYPES,
    assert_same_bits,
    build,
    flat,
    normal,
    run_python,
    state_of,
    truth,
)
from tolerance import assert_close

cells = pytest.mark.parametrize("cell", CELLS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def arrays(state):
    return list(state) if isinstance(state, tuple) else [state]


def feed(stream, x):
    return np.stack([stream.step(x_t) for x_t in x])


@cells
@dtypes
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_steps_against_the_reference(cell, dtype, batch, bias):
    module = build(cell, 9, 17, dtype=dtype, num_layers=2, bias=bias)
    x = normal((7, batch, 9), dtype=dtype)
    stream = module.stream(batch)
    assert stream.batch_size == batch
    result = feed(stream, x), stream.state
    assert_close(flat(result), flat(truth(module, cell, x)), cell=cell, accumulations=36, steps=7, layers=2)


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.startswith("lstm")])
@dtypes
def test_projection(cell, dtype):
    module = build(cell, 9, 17, dtype=dtype, num_layers=2, proj_size=3)
    x = normal((7, 4, 9), dtype=dtype)
    stream = module.stream(4)
    result = feed(stream, x), stream.state
    assert result[0].shape == (7, 4, 3)
    assert_close(flat(result), flat(truth(module, cell, x)), cell=cell, accumulations=48, steps=7, layers=2)


@cells
def test_unbatched_step(cell):
    module = build(cell)
    x = normal((4, 1, 5))
    one, batch = module.stream(), module.stream()
    for x_t in x:
        y = one.step(x_t[0])
        assert y.shape == (7,)
        assert_same_bits(y, batch.step(x_t)[0])
    for a, b in zip(arrays(one.state), arrays(batch.state), strict=True):
        assert_same_bits(a, b)


@cells
def test_state_begins_at_zero_and_is_a_copy(cell):
    stream = build(cell, num_layers=2).stream(3)
    first = arrays(stream.state)
    for part in first:
        assert part.shape == (2, 3, 7)
        assert not part.any()
    stream.step(normal((3, 5)))
    assert not any(part.any() for part in first)
    assert all(part.any() for part in arrays(stream.state))


@cells
@pytest.mark.parametrize("size", [7, 3000])  # one as NumPy allocates it, one in memory that is used again
def test_writing_into_the_state_is_an_error_and_not_lost(cell, size):
    stream = build(cell, hidden_size=size).stream(3)
    for part in arrays(stream.state):
        with pytest.raises(ValueError, match="read-only"):
            part[:, 1] = 0
        part.copy()[:, 1] = 0


@cells
@dtypes
def test_state_can_be_taken_and_put_back(cell, dtype):
    module = build(cell, dtype=dtype, num_layers=2)
    x = normal((8, 3, 5), dtype=dtype)
    stream = module.stream(3)
    feed(stream, x[:4])
    kept = stream.state
    expected = feed(stream, x[4:]), stream.state

    stream.state = kept
    assert_same_bits((feed(stream, x[4:]), stream.state), expected)

    other = module.stream(3)
    mine = tuple(part.copy() for part in arrays(kept))
    other.state = mine if isinstance(kept, tuple) else mine[0]
    for part in mine:
        part[...] = 9  # the stream has its own copy
    assert_same_bits((feed(other, x[4:]), other.state), expected)


@cells
def test_state_goes_between_calls_and_streams(cell):
    module = build(cell, num_layers=2)
    x, state = normal((8, 3, 5)), state_of(module, 3)
    stream = module.stream(3)
    stream.state = state
    feed(stream, x[:4])
    whole = module(x, state)
    output, state_n = module(x[4:], stream.state)
    for a, e in zip(flat((output, state_n)), [whole[0][4:], *arrays(whole[1])], strict=True):
        assert_same_bits(a, np.ascontiguousarray(e))


@cells
def test_a_lone_row_goes_between_calls_and_streams_without_its_axis(cell):
    """A call with an unbatched x and a stream of one row take both forms; each returns its own."""
    module = build(cell, num_layers=2)
    x = normal((8, 5))
    whole = module(x)
    _, state = module(x[:4])
    stream = module.stream()
    stream.state = state
    assert_same_bits(feed(stream, x[4:]), whole[0][4:])
    assert all(part.shape == (2, 1, 7) for part in arrays(stream.state))
    again = module.stream()
    feed(again, x[:4])
    output, state_n = module(x[4:], again.state)
    assert_same_bits((output, state_n), (whole[0][4:], whole[1]))
    assert all(part.shape == (2, 7) for part in arrays(state_n))
    _, _, tape = module.forward(x, again.state)
    expected = module.backward(tape, None, state_n)
    batched = module.backward(tape, None, stream.state)
    for actual, wanted in zip(arrays(batched[1]), arrays(expected[1]), strict=True):
        assert_same_bits(actual, wanted)


@cells
@pytest.mark.parametrize(
    "rows",
    [
        None,
        0,
        2,
        [1],
        [0, 2],
        np.array([1, 2]),
        [],
        np.array([True, False, True]),
        [False, True, False],
        (False, False, False),
    ],
)
def test_reset(cell, rows):
    module = build(cell, num_layers=2)
    x = normal((4, 3, 5))
    stream = module.stream(3)
    feed(stream, x)
    before = arrays(stream.state)
    stream.reset(rows)
    chosen = np.zeros(3, bool)
    chosen[slice(None) if rows is None else rows] = True
    for now, old in zip(arrays(stream.state), before, strict=True):
        assert not now[:, chosen].any()
        np.testing.assert_array_equal(now[:, ~chosen], old[:, ~chosen])
    if rows is None:
        assert_same_bits(feed(stream, x), feed(module.stream(3), x))


@cells
def test_state_none_is_zeros(cell):
    stream = build(cell, num_layers=2).stream(3)
    stream.step(normal((3, 5)))
    stream.state = None
    assert not any(part.any() for part in arrays(stream.state))


@cells
def test_out_of_step(cell):
    module = build(cell)
    x = normal((2, 3, 5))
    expected = feed(module.stream(3), x)
    stream = module.stream(3)
    for x_t, y in zip(x, expected, strict=True):
        wide = np.full((3, 14), 7, np.float32)
        out = wide[:, ::2]
        assert stream.step(x_t, out=out) is out
        np.testing.assert_array_equal(out, y)
        assert (wide[:, 1::2] == 7).all()


@cells
def test_weights_are_those_at_creation(cell):
    module = build(cell)
    x = normal((6, 3, 5))
    expected = module(x)
    stream = module.stream(3)
    first = feed(stream, x[:3])
    module.load_state_dict(build(cell, seed=1).state_dict())
    assert not np.array_equal(module(x)[0], expected[0])
    assert_same_bits((np.concatenate([first, feed(stream, x[3:])]), stream.state), expected)
    for value in module.parameters().values():
        value[...] = 0
    assert_same_bits(feed(module.stream(3), x), module(x)[0])


def test_stream_outlives_its_module():
    module = build("gru")
    x = normal((6, 1, 5))
    expected = module(x)
    stream = module.stream()
    del module
    assert_same_bits((feed(stream, x), stream.state), expected)


@cells
def test_results_belong_to_the_caller(cell):
    module = build(cell)
    x = normal((3, 1, 5))
    stream = module.stream()
    first = stream.step(x[0])
    kept = first.copy()
    stream.step(x[1])
    np.testing.assert_array_equal(first, kept)
    first[...] = 9
    reference = module.stream()
    feed(reference, x[:2])
    assert_same_bits(stream.step(x[2]), reference.step(x[2]))


@cells
def test_nan_ends_with_reset(cell):
    module = build(cell)
    x = normal((3, 2, 5))
    stream = module.stream(2)
    stream.step(np.full((2, 5), np.nan, np.float32))
    stream.reset(1)
    fresh = module.stream(2)
    for x_t in x:
        y, expected = stream.step(x_t), fresh.step(x_t)
        assert np.isnan(y[0]).all()
        assert_same_bits(y[1], expected[1])


# --- copies and pickles ---------------------------------------------------------------------------

COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": lambda stream, protocol=protocol: pickle.loads(pickle.dumps(stream, protocol))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


@pytest.mark.parametrize("cell", CELLS_AND_PROJECTION)
@dtypes
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_goes_on_by_itself(cell, dtype, how):
    """With the parameters of the moment that its original was made, and with nothing of its later steps."""
    module = build(cell, dtype=dtype, num_layers=2)
    x = normal((9, 3, 5), dtype=dtype)
    expected = feed(module.stream(3), x)
    stream = module.stream(3)
    feed(stream, x[:4])
    module.load_state_dict(build(cell, dtype=dtype, num_layers=2, seed=1).state_dict())
    copied = COPIES[how](stream)
    assert type(copied) is type(stream)
    assert copied.batch_size == 3
    stream.reset()
    assert_same_bits(feed(copied, x[4:]), expected[4:])
    assert_same_bits(feed(stream, x), expected)


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_copies(how):
    module = build("lstm")
    x = normal((6, 2, 5))
    expected = feed(module.stream(2), x)
    stream = module.stream(2)
    for x_t, y in zip(x, expected, strict=True):
        stream = COPIES[how](stream)
        assert_same_bits(stream.step(x_t), y)


@pytest.mark.parametrize("how", ["in place", "load_state_dict", "attribute"])
def test_parameters_of_a_pickle_are_those_of_the_stream(how):
    """Also those written by hand before it was made, and whatever is written after."""
    module = build("gru", bias=False)
    x = normal((4, 1, 5))
    weights = module.parameters()
    weights["weight_hh_l0"][...] *= 2
    expected = feed(module.stream(), x)
    stream = module.stream()
    other = build("gru", bias=False, seed=3).state_dict()
    if how == "in place":
        for name, array in weights.items():
            array[...] = other[name]
    elif how == "load_state_dict":
        module.load_state_dict(other)
    else:
        for name, array in other.items():
            setattr(module, name, array)
    assert_same_bits(feed(pickle.loads(pickle.dumps(stream)), x), expected)
    assert_same_bits(feed(pickle.loads(pickle.dumps(module.stream())), x), feed(module.stream(), x))


def test_streams_that_are_pickled_together_share_the_parameters():
    module = build("gru", 64, 64)
    parameters = sum(value.nbytes for value in module.state_dict().values())
    streams = [module.stream(2) for _ in range(10)]
    x = normal((3, 2, 64))
    for number, stream in enumerate(streams):
        stream.step(x[number % 3])
    pickled = pickle.dumps(streams)
    assert len(pickled) < 1.5 * parameters
    for stream, original in zip(pickle.loads(pickled), streams, strict=True):
        assert_same_bits(stream.step(x[0]), original.step(x[0]))


def test_an_object_that_holds_a_stream_is_copied_with_it():
    module = build("lstm")
    x = normal((3, 5))
    holder = {"module": module, "stream": module.stream(), "list": [module.stream()]}
    holder["stream"].step(x[0])
    for copied in (copy.deepcopy(holder), pickle.loads(pickle.dumps(holder))):
        assert_same_bits(copied["stream"].step(x[1]), copy.copy(holder["stream"]).step(x[1]))
        assert not any(part.any() for part in copied["list"][0].state)


def test_a_pickle_goes_on_in_another_process(tmp_path):
    module = build("lstm", num_layers=2)
    x = normal((6, 2, 5))
    expected = feed(module.stream(2), x)
    stream = module.stream(2)
    feed(stream, x[:3])
    (tmp_path / "stream").write_bytes(pickle.dumps((stream, x[3:])))
    code = """
import json, pickle, sys
from pathlib import Path
stream, x = pickle.loads((Path(sys.argv[1]) / "stream").read_bytes())
print(json.dumps([stream.step(x_t).tobytes().hex() for x_t in x]))
"""
    assert run_python(code, tmp_path) == [y.tobytes().hex() for y in expected[3:]]


# --- fork -----------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_fork_while_another_thread_steps_a_stream(cell):
    """In the child the stream is free, and its state is one that it had between two steps."""
    code = """
import json, os, sys, threading
import numpy as np
from helpers import build, normal
import gatedrnn as gr

gr.set_num_threads(1)
module = build(sys.argv[1], 64, 512)
x = normal((2, 64))
states, stream = {}, module.stream(2)
for _ in range(400):  # all that the state may be
    state = stream.state
    h = state[0] if isinstance(state, tuple) else state
    states[h.tobytes()] = state[1].tobytes() if isinstance(state, tuple) else b""
    stream.step(x)

class Always:
    def __init__(self):
        self.stream, self.ended = module.stream(2), False
    def run(self):
        for _ in range(399):
            self.stream.step(x)
        self.ended = True

met = 0
for _ in range(60):
    always = Always()
    thread = threading.Thread(target=always.run)
    thread.start()
    met_now = False
    while not met_now and not always.ended:
        try:
            always.stream.state
        except RuntimeError:  # in use
            met_now = True
    child = os.fork()
    if child == 0:
        status = 1
        try:
            state = always.stream.state
            h, c = (state[0], state[1].tobytes()) if isinstance(state, tuple) else (state, b"")
            assert states[h.tobytes()] == c, "half of a step"
            expected = module.stream(2)
            expected.state = state
            for _ in range(3):
                assert np.array_equal(always.stream.step(x), expected.step(x))
            always.stream.reset(0)
            status = 0
        finally:
            os._exit(status)
    met += met_now
    assert os.waitpid(child, 0)[1] == 0
    thread.join()
    if met >= 10:
        break
print(json.dumps(met))
"""
    assert run_python(code, cell, timeout=300) > 0, "no step was met by a fork"
