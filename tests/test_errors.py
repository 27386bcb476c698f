"""Bad input to calls, streams and settings: a named ValueError or TypeError, and the module unharmed."""

from __future__ import annotations

import contextlib
import re
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import gatedrnn as gr
from helpers import CELLS, DTYPES, assert_same_bits, build, normal, state_of

# What a message may not contain: the names of C++ types, of the binding library, or an address.
INTERNAL = re.compile(r"std::|pybind11|py::|_object|incompatible|arg0|kwargs|0x[0-9a-f]{5}")
T, B, WIDTH, H = 4, 3, 5, 7


@contextlib.contextmanager
def refused(name, *kinds):
    """The block raises one of `kinds`; the message names the argument, what was expected and what came."""
    with pytest.raises(kinds or (ValueError, TypeError)) as caught:
        yield
    message = str(caught.value)
    assert re.search(rf"\b{name}\b", message), message
    assert "expected" in message, message
    assert "got" in message, message
    assert not INTERNAL.search(message), message


@pytest.fixture
def gru():
    return build("gru", num_layers=2)


@pytest.fixture
def lstm():
    return build("lstm", proj_size=3)


@contextlib.contextmanager
def unharmed(module):
    """Before and after the block the module gives the same bits."""
    x = normal((T, B, WIDTH))
    before = module(x)
    yield
    assert_same_bits(module(x), before)


def read_only(a):
    a.flags.writeable = False
    return a


class Refusing:
    """As a tensor that is on a device, or needs gradients."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("call .detach() first")


X = normal((T, B, WIDTH))
WRONG_ARRAYS = {
    "none": (None, TypeError),
    "text": ("text", TypeError),
    "number": (1.5, TypeError),
    "object": (object(), TypeError),
    "dictionary": ({}, TypeError),
    "integers": (X.astype(np.int64), TypeError),
    "unsigned": (np.abs(X).astype(np.uint8), TypeError),
    "bool": (X > 0, TypeError),
    "complex": (X.astype(np.complex64), TypeError),
    "objects": (X.astype(object), TypeError),
    "strings": (X.astype("U8"), TypeError),
    "records": (np.zeros((T, B), [("a", "f4")]), TypeError),
    "dates": (X.astype("M8[s]"), TypeError),
    "list of integers": (X.astype(np.int64).tolist(), TypeError),
    "list of bool": ((X > 0).tolist(), TypeError),
    "list with None": ([[None, 1.5]], TypeError),
    "list of masked arrays": ([np.ma.masked_array(x_t, x_t > 0) for x_t in X], TypeError),
    "ragged list": ([[1.5], [2.5, 3.5]], ValueError),
    "ragged arrays": ([X[0], X[1, :2]], ValueError),
    "gives no array": (Refusing(), TypeError),
}
X_ONLY = {
    "rank 0": (np.array(1, np.float32), ValueError),
    "rank 1": (X[0, 0], ValueError),
    "rank 4": (X[None], ValueError),
    "width": (X[:, :, :4], ValueError),
    "wider": (normal((T, B, 6)), ValueError),
    "no width": (X[:, :, :0], ValueError),
    "unbatched width": (X[0, :, :4], ValueError),
}


@pytest.mark.parametrize("bad", [k for k in WRONG_ARRAYS | X_ONLY if k != "none"] + ["none"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_x(bad, batch_first):
    module = build("gru", batch_first=batch_first)
    value, kind = (WRONG_ARRAYS | X_ONLY)[bad]
    with unharmed(module), refused("x", kind):
        module(value)


def test_x_with_a_mask(gru):
    """What it hides would be computed with."""
    with unharmed(gru), refused("x", TypeError):
        gru(np.ma.masked_array(X, X > 0))


STRICT = {
    "overflow": (lambda: np.errstate(over="raise"), 1e300),
    "warning": (contextlib.nullcontext, 1e300),  # tests make errors of warnings
}


@pytest.mark.parametrize("how", STRICT)
def test_numbers_beyond_the_dtype_where_they_are_errors(lstm, how):
    strict, number = STRICT[how]
    x, d_output = X.astype(np.float64), np.zeros((T, B, lstm.proj_size))
    h, c = (part.astype(np.float64) for part in state_of(lstm, B))
    for array in (x, d_output, h, c):
        array[(-1,) * array.ndim] = number
    tape, stream = lstm.forward(X)[-1], lstm.stream(B)
    calls = {
        "x": [lambda: lstm(x), lambda: lstm.forward(x), lambda: stream.step(x[-1])],
        "state": [
            lambda: lstm(X, (h, None)),
            lambda: lstm(X, (None, c)),
            lambda: setattr(stream, "state", (h, c)),
        ],
        "d_output": [lambda: lstm.backward(tape, d_output)],
        "d_state_n": [lambda: lstm.backward(tape, None, (None, c))],
    }
    for name, all_refused in calls.items():
        expected = f"^{name}.*: expected numbers in the range of float32, got .* encountered in cast"
        for call in all_refused:
            with strict(), unharmed(lstm), pytest.raises(ValueError, match=expected):
                call()


def test_numbers_beyond_the_dtype_are_infinite_else(gru):
    x = X.astype(np.float64)
    x[0, 0, 0] = 1e300
    with pytest.warns(RuntimeWarning, match="overflow"):
        output, _ = gru(x)
    x[0, 0, 0] = np.inf
    assert_same_bits(output, gru(x)[0])


@pytest.mark.parametrize("shape", [(2**50, 3, 5), (3, 2**50, 5), (2**30, 2**28, 5)])
def test_x_too_large_for_any_memory(gru, shape):
    """A stride of zero makes such an array cheap to ask for; its output is not."""
    value = np.broadcast_to(np.float32(0), shape)
    with unharmed(gru), pytest.raises((ValueError, MemoryError)) as caught:
        gru(value)
    assert not INTERNAL.search(str(caught.value))


@pytest.mark.parametrize("bad", [k for k in WRONG_ARRAYS if k != "none"])
def test_state_of_gru(gru, bad):
    value, kind = WRONG_ARRAYS[bad]
    with unharmed(gru), refused("state", kind):
        gru(X, value)


@pytest.mark.parametrize(
    "shape",
    [
        (2, 3, 8),
        (2, 2, 7),
        (1, 3, 7),
        (3, 7),
        (2, 7),
        (7,),
        (),
        (2, 3, 7, 1),
        (0, 3, 7),
        (2, 0, 7),
        (2, 3, 0),
    ],
)
def test_shape_of_state_of_gru(gru, shape):
    with unharmed(gru), refused("state", ValueError):
        gru(X, np.zeros(shape, np.float32))


def test_unbatched_x(gru):
    """Its state has no batch axis, or one of a single row; and its one length is that of x."""
    for shape in [(2, 2, H), (1, 2, H), (2, H, 1), (2, 1, 1, H), (1, H)]:
        with refused("state", ValueError):
            gru(X[:, 0], np.zeros(shape, np.float32))
    with refused("state", ValueError):  # a batch of one row is a batch
        gru(X[:, :1], np.zeros((2, H), np.float32))
    with refused("lengths", ValueError):
        gru(X[:, 0], lengths=[T])


H0, C0 = np.zeros((1, B, 3), np.float32), np.zeros((1, B, H), np.float32)


@pytest.mark.parametrize(
    "state",
    [H0, (H0,), (H0, C0, C0), (C0, H0), (H0, H0), [], (H0[0], C0), (H0, C0[:, :2]), "hc", 3, {}],
    ids=lambda s: type(s).__name__ + (f"_{len(s)}" if hasattr(s, "__len__") else ""),
)
def test_state_of_lstm(lstm, state):
    """With a projection, h and c differ in width, so the wrong order shows."""
    with unharmed(lstm), refused("state"):
        lstm(X, state)


@pytest.mark.parametrize("bad", [k for k in WRONG_ARRAYS if k != "none"])
@pytest.mark.parametrize("place", [0, 1])
def test_parts_of_state_of_lstm(lstm, bad, place):
    value, kind = WRONG_ARRAYS[bad]
    state = [H0, C0]
    state[place] = value
    with unharmed(lstm), refused("state", kind):
        lstm(X, tuple(state))


def test_pair_for_a_cell_with_one_state(gru):
    h = state_of(gru, B)
    with unharmed(gru), refused("state", TypeError):
        gru(X, (h, h))


def test_lengths_of_any_sequence(gru):
    expected = gru(X, lengths=np.arange(B))[0]
    for lengths in (range(B), list(range(B)), tuple(range(B)), [np.int8(k) for k in range(B)]):
        assert_same_bits(gru(X, lengths=lengths)[0], expected)


LENGTHS = {
    "number": (3, (TypeError, ValueError)),
    "text": ("123", (TypeError, ValueError)),
    "object": (object(), TypeError),
    "few": ([1, 2], ValueError),
    "many": ([1, 2, 3, 4], ValueError),
    "empty": ([], (ValueError, TypeError)),
    "rank 0": (np.array(3), ValueError),
    "rank 2": (np.array([[1, 2, 3]]), ValueError),
    "negative": ([1, -1, 3], ValueError),
    "too long": ([1, 2, T + 1], ValueError),
    "huge": ([1, 2, 2**62], ValueError),
    "huge unsigned": (np.array([1, 2, 2**64 - 1], np.uint64), ValueError),
    "beyond 64 bits": ([1, 2, 2**70], ValueError),
    "unsigned beyond": ([2**63, 1, 2], ValueError),
    "beyond, with one of NumPy's": ([np.int64(1), 2**70, 2], ValueError),
    "masked": (np.ma.masked_array([1, 2, 3], [True, False, False]), TypeError),
    "floats": ([1.0, 2.0, 3.0], TypeError),
    "float array": (np.array([1.0, 2.0, 3.0], np.float32), TypeError),
    "nan": ([1, 2, np.nan], TypeError),
    "bool": (np.array([True, False, True]), TypeError),
    "complex": (np.array([1j, 2, 3]), TypeError),
    "strings": (["1", "2", "3"], TypeError),
    "objects": (np.array([1, 2, 3], object), TypeError),
    "none inside": ([1, None, 3], TypeError),
    "ragged": ([[1], [2, 3], 4], (TypeError, ValueError)),
    "ragged arrays": ([np.array([1]), np.array([2, 3]), 4], (TypeError, ValueError)),
    "gives no array": (Refusing(), TypeError),
    "list of masked": ([np.ma.masked_array(1, True), 2, 3], TypeError),
}


def array_likes(array):
    """The same numbers in all the forms that NumPy reads as numbers of this kind."""
    import ctypes

    from_ctypes = np.ctypeslib.as_array(np.ctypeslib.as_ctypes(array))
    explicit = array.view(array.dtype.newbyteorder("<" if sys.byteorder == "little" else ">"))
    kind = ctypes.c_float if array.dtype == np.float32 else ctypes.c_int64

    class Interface:
        __array_interface__ = array.__array_interface__

    class Protocol:
        def __array__(self, dtype=None, copy=None):
            return array

    return {
        "list": array.tolist(),
        "tuple of arrays": tuple(array) if array.ndim > 1 else tuple(array.tolist()),
        "the other byte order": array.astype(array.dtype.newbyteorder("S")),
        "ctypes": np.ctypeslib.as_ctypes(array),
        "array of ctypes": from_ctypes,
        "named byte order": explicit,
        "multiprocessing": np.frombuffer((kind * array.size)(*array.ravel()), explicit.dtype).reshape(
            array.shape
        ),
        "buffer": memoryview(array),
        "interface": Interface(),
        "protocol": Protocol(),
    } | ({"long double": array.astype(np.longdouble)} if array.dtype == np.float32 else {})


@pytest.mark.parametrize("form", array_likes(X))
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_whatever_numpy_reads_as_floating_point_numbers(cell, form):
    module = build(cell)
    states = state_of(module, B)
    pair = isinstance(states, tuple)

    def like(array):
        return array_likes(array)[form]

    def state_like(state):
        if not pair:
            return state.tolist() if form.startswith("tuple") else like(state)
        return tuple(like(part) for part in state)

    lengths = np.array([4, 1, 3])
    expected = module(X, states, lengths=lengths)
    assert_same_bits(
        module(like(X), state_like(states), lengths=like(lengths) if form != "long double" else lengths),
        expected,
    )
    assert_same_bits(module(like(X[:, 0].copy())), module(X[:, 0]))

    _, _, tape = module.forward(X, states)
    d_output, d_state_n = normal((T, B, H), seed=5), state_of(module, B, seed=6)
    expected = module.backward(tape, d_output, d_state_n)
    _, _, tape = module.forward(like(X), state_like(states))
    actual = module.backward(tape, like(d_output), state_like(d_state_n))
    assert_same_bits((actual[0], actual[1]), (expected[0], expected[1]))
    for name, gradient in expected[2].items():
        assert_same_bits(actual[2][name], gradient)

    stream, other = module.stream(B), module.stream(B)
    stream.state, other.state = states, state_like(states)
    assert_same_bits(other.step(like(X[0])), stream.step(X[0]))
    other.reset(like(np.array([0, 2])) if form != "long double" else [0, 2])
    stream.reset([0, 2])
    assert_same_bits(other.step(like(X[1])), stream.step(X[1]))


def test_tensors_and_data_frames():
    torch = pytest.importorskip("torch")
    module = build("gru")
    expected = module(X, lengths=[4, 1, 3])
    assert_same_bits(module(torch.from_numpy(X), lengths=torch.tensor([4, 1, 3])), expected)
    assert_same_bits(module.stream(B).step(torch.from_numpy(X[0])), module.stream(B).step(X[0]))
    with unharmed(module), refused("x", TypeError):
        module(torch.from_numpy(X).requires_grad_())
    with unharmed(module), refused("x", TypeError):
        module(torch.from_numpy(X).bfloat16())
    with unharmed(module), refused("x", TypeError):
        module(torch.from_numpy(X).long())
    pandas = pytest.importorskip("pandas")
    assert_same_bits(module(pandas.DataFrame(X[:, 0])), module(X[:, 0]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_named_byte_order_is_that_of_the_machine(dtype):
    """As arrays of ctypes, shared memory and HDF5 files have it: usable in place, for results too."""
    order = "<" if sys.byteorder == "little" else ">"
    named = np.dtype(dtype).newbyteorder(order)
    module = build("gru", dtype=dtype)

    def zeros(shape):
        array = np.zeros(shape, dtype).view(named)
        assert array.dtype.isnative
        return array

    x = zeros((T, B, WIDTH))
    x[...] = X
    out = zeros((T, B, H))
    expected = module(x.astype(dtype))
    output, _ = module(x, out=out)
    assert output is out
    np.testing.assert_array_equal(out, expected[0])
    step = zeros((B, H))
    assert module.stream(B).step(x[0], out=step) is step
    np.testing.assert_array_equal(step, expected[0][0])
    _, _, tape = module.forward(x)
    places = {name: zeros(value.shape) for name, value in module.state_dict().items()}
    module.backward(tape, out, accumulate_into=places)
    for name, gradient in module.backward(tape, out)[2].items():
        np.testing.assert_array_equal(places[name], gradient)


@pytest.mark.parametrize("order", ["<", ">"])
def test_parameters_of_either_byte_order(order):
    module, other = build("lstm"), build("lstm", seed=1)
    values = other.state_dict()
    module.load_state_dict({name: value.astype(f"{order}f4") for name, value in values.items()})
    assert_same_bits(module(X), other(X))


@pytest.mark.parametrize("bad", LENGTHS)
@pytest.mark.parametrize("batch_first", [True, False])
def test_lengths(bad, batch_first):
    module = build("gru", batch_first=batch_first)
    value, kind = LENGTHS[bad]
    with unharmed(module), refused("lengths", *(kind if isinstance(kind, tuple) else (kind,))):
        module(X.swapaxes(0, 1) if batch_first else X, lengths=value)


OUT = {
    "text": ("text", TypeError),
    "list": ([[0.0]], TypeError),
    "object": (object(), TypeError),
    "double": (np.zeros((T, B, H)), TypeError),
    "half": (np.zeros((T, B, H), np.float16), TypeError),
    "integers": (np.zeros((T, B, H), np.int32), TypeError),
    "objects": (np.zeros((T, B, H), object), TypeError),
    "big endian": (np.zeros((T, B, H), ">f4"), TypeError),
    "width": (np.zeros((T, B, H + 1), np.float32), ValueError),
    "steps": (np.zeros((T + 1, B, H), np.float32), ValueError),
    "rows": (np.zeros((T, 1, H), np.float32), ValueError),
    "rank 2": (np.zeros((T, H), np.float32), ValueError),
    "rank 4": (np.zeros((1, T, B, H), np.float32), ValueError),
    "empty": (np.zeros((0, B, H), np.float32), ValueError),
    "read-only": (read_only(np.zeros((T, B, H), np.float32)), ValueError),
    "onto itself": (
        np.lib.stride_tricks.as_strided(np.zeros(H, np.float32), (T, B, H), (0, 0, 4)),
        ValueError,
    ),
    "rows overlap": (
        np.lib.stride_tricks.as_strided(np.zeros(99, np.float32), (T, B, H), (84, 4, 4)),
        ValueError,
    ),
}


@pytest.mark.parametrize("bad", OUT)
def test_out(gru, bad):
    value, kind = OUT[bad]
    before = value.copy() if isinstance(value, np.ndarray) else None
    with unharmed(gru), refused("out", kind):
        gru(X, out=value)
    if before is not None:
        np.testing.assert_array_equal(value, before)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_out_may_not_share_memory_with_x_or_state(cell, bidirectional):
    module = build(cell, 10, 5 if bidirectional else 10, bidirectional=bidirectional)
    memory = normal(T * B * 10 + 10)
    for start in (0, 10):
        x, out = memory[: T * B * 10].reshape(T, B, 10), memory[start:][: T * B * 10].reshape(T, B, 10)
        before = memory.copy()
        with refused("out", ValueError):
            module(x, out=out)
        np.testing.assert_array_equal(memory, before)

    x = normal((T, B, 10))
    state = state_of(module, B)
    h = state[0] if isinstance(state, tuple) else state
    out = np.zeros((T, B, 10), np.float32)
    inside = out.reshape(-1)[: h.size].reshape(h.shape)
    with refused("out", ValueError):
        module(x, (inside, state[1]) if isinstance(state, tuple) else inside, out=out)
    assert not out.any()


def test_bad_state_leaves_out_alone(gru):
    out = np.full((T, B, H), 3, np.float32)
    with refused("lengths", ValueError):
        gru(X, lengths=[1, 2, 9], out=out)
    with refused("state", ValueError):
        gru(X, np.zeros((1, 2, 3), np.float32), out=out)
    assert (out == 3).all()


def test_no_such_argument(gru):
    """Only x and state go by place; the others have to be named, and must exist."""
    for call in (
        lambda: gru(),
        lambda: gru(X, None, [1, 2, 3]),
        lambda: gru(X, length=[1, 2, 3]),
    ):
        with unharmed(gru), pytest.raises(TypeError) as caught:
            call()
        assert not INTERNAL.search(str(caught.value))


# --- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, -1, 1.0, "1", None, True, [1], 2**62, 2**70])
def test_batch_size(gru, bad):
    with unharmed(gru), pytest.raises((ValueError, TypeError, MemoryError)) as caught:
        gru.stream(bad)
    assert not INTERNAL.search(str(caught.value))
    if not isinstance(caught.value, MemoryError):
        assert "batch_size" in str(caught.value)


@pytest.mark.parametrize("cell", CELLS)
def test_no_stream_of_a_bidirectional_module(cell):
    with pytest.raises(ValueError, match="bidirectional"):
        build(cell, bidirectional=True).stream()


STEP_X = {
    "rank 0": (np.array(1, np.float32), ValueError),
    "rank 3": (X, ValueError),
    "rows": (X[0, :2], ValueError),
    "no rows": (X[0, :0], ValueError),
    "width": (X[0, :, :4], ValueError),
    "one row": (X[0, 0], ValueError),
}


@pytest.mark.parametrize("bad", WRONG_ARRAYS | STEP_X)
def test_step(gru, bad):
    value, kind = (WRONG_ARRAYS | STEP_X)[bad]
    stream = gru.stream(B)
    stream.step(X[0])
    before = stream.state
    with refused("x", kind):
        stream.step(value)
    assert_same_bits(stream.state, before)


@pytest.mark.parametrize("bad", OUT)
def test_out_of_step(gru, bad):
    value, kind = OUT[bad]
    if isinstance(value, np.ndarray) and value.ndim == 3 and value.shape != (T, B, H):
        value = value[:1]
    elif isinstance(value, np.ndarray) and value.ndim == 3:
        value = value[0]
    stream = gru.stream(B)
    before = stream.state
    with refused("out", kind):
        stream.step(X[0], out=value)
    assert_same_bits(stream.state, before)


def test_out_of_step_may_not_share_memory_with_x():
    module = build("gru", H, H)
    memory = normal((B, H))
    stream = module.stream(B)
    with refused("out", ValueError):
        stream.step(memory, out=memory)


@pytest.mark.parametrize("bad", [k for k in WRONG_ARRAYS if k != "none"])
def test_state_of_stream(gru, bad):
    value, kind = WRONG_ARRAYS[bad]
    stream = gru.stream(B)
    stream.step(X[0])
    before = stream.state
    with refused("state", kind):
        stream.state = value
    assert_same_bits(stream.state, before)


@pytest.mark.parametrize("shape", [(2, 2, 7), (2, 3, 8), (1, 3, 7), (3, 7), (2, 7), ()])
def test_shape_of_state_of_stream(gru, shape):
    with refused("state", ValueError):
        gru.stream(B).state = np.zeros(shape, np.float32)


def test_bad_pair_changes_neither_part(lstm):
    """h is good, c is not: both stay."""
    stream = lstm.stream(B)
    stream.step(X[0])
    before = stream.state
    with refused("state", ValueError):
        stream.state = (H0, C0[:, :1])
    with refused("state"):
        stream.state = H0
    for now, old in zip(stream.state, before, strict=True):
        assert_same_bits(now, old)


@pytest.mark.parametrize(
    "rows",
    [
        3,
        -1,
        [0, 3],
        [-1],
        2**70,
        1.0,
        [1.0],
        "0",
        [[0]],
        np.array([True, False]),
        [True, False, True, False],
        [[True, False, True]],
        np.zeros(0, bool),
        True,
        np.True_,
        np.array(True),
        np.ma.masked_array([True, False, True], [True, False, False]),
        [1.0, 0.0, 1.0],
        [None],
        object(),
        [[0], [1, 2]],
    ],
)
def test_rows_of_reset(gru, rows):
    stream = gru.stream(B)
    stream.step(X[0])
    before = stream.state
    with refused("rows"):
        stream.reset(rows)
    assert_same_bits(stream.state, before)


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, -1, 1.5, "2", None, True, [2], 2**31, 2**70, np.nan])
def test_number_of_threads(bad):
    before = gr.get_num_threads()
    with pytest.raises((ValueError, TypeError), match=r"\bn\b|num_threads") as caught:
        gr.set_num_threads(bad)
    assert not INTERNAL.search(str(caught.value))
    with pytest.raises((ValueError, TypeError)), gr.num_threads(bad):
        pass
    assert gr.get_num_threads() == before


# --- any shapes at all ----------------------------------------------------------------------------

shapes = st.lists(st.integers(0, 6), max_size=4).map(tuple)
# Shapes near the right ones, so that some calls are good ones.
near = st.one_of(shapes, st.tuples(st.integers(0, 6), st.integers(0, 4), st.just(WIDTH)))


@hypothesis.settings(max_examples=300, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    cell=st.sampled_from(CELLS),
    batch_first=st.booleans(),
    x_shape=near,
    h_shape=st.one_of(st.none(), shapes, st.tuples(st.just(1), st.integers(0, 4), st.just(H))),
    lengths=st.one_of(st.none(), st.lists(st.integers(-1, 7), max_size=4)),
)
def test_any_shapes(cell, batch_first, x_shape, h_shape, lengths):
    """A call with any shapes works where our own small rule says so, and is refused by name where not."""
    module = build(cell, batch_first=batch_first)
    state = None if h_shape is None else np.zeros(h_shape, np.float32)
    if state is not None and cell.startswith("lstm"):
        state = (state, state)
    wrong = []
    if len(x_shape) not in (2, 3) or x_shape[-1] != WIDTH:
        wrong = ["x"]
    else:
        rows = x_shape[:-1] if len(x_shape) == 2 else (x_shape[:2][:: -1 if batch_first else 1])
        steps, batch = (rows[0], None) if len(x_shape) == 2 else rows
        fitting = [(1, H), (1, 1, H)] if batch is None else [(1, batch, H)]
        if h_shape is not None and h_shape not in fitting:
            wrong.append("state")
        if lengths is not None and (
            batch is None or len(lengths) != batch or not all(0 <= n <= steps for n in lengths)
        ):
            wrong.append("lengths")
    x = np.zeros(x_shape, np.float32)
    if wrong:
        with refused("|".join(wrong), ValueError, TypeError):
            module(x, state, lengths=lengths)
    else:
        output, state_n = module(x, state, lengths=lengths)
        assert output.shape == (*x_shape[:-1], H)
        for part in state_n if isinstance(state_n, tuple) else (state_n,):
            assert part.shape == ((1, H) if batch is None else (1, batch, H))
