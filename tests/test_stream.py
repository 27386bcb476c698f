"""Streams: one step at a time, with the state kept inside."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import CELLS, DTYPES, assert_same_bits, build, flat, normal, state_of, truth
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


@pytest.mark.parametrize("cell", ["lstm", "lstm_peephole"])
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
    for part in arrays(stream.state):
        assert part.shape == (2, 3, 7)
        assert not part.any()
        part[...] = 9
    assert not any(part.any() for part in arrays(stream.state))


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
    other.state = kept
    for part in arrays(kept):
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
@pytest.mark.parametrize("rows", [None, 0, 2, [1], [0, 2], np.array([1, 2]), []])
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
