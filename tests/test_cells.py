"""Every cell, form and dtype against the NumPy reference, at sizes that fit no vector width."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import CELLS, DTYPES, HAS_FMA, assert_same_bits, build, check, flat, normal, state_of, truth
from tolerance import assert_close, tolerance

# (I, H, B): a sample of 1, 7, 9, 15, 17, 31, 33, 129 in every position
SIZES = [
    (1, 1, 1),
    (7, 9, 15),
    (9, 7, 129),
    (15, 17, 1),
    (17, 15, 9),
    (31, 33, 7),
    (33, 31, 17),
    (129, 1, 31),
    (1, 129, 33),
    (129, 129, 1),
]
cells = pytest.mark.parametrize("cell", CELLS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
LSTMS = ("lstm", "lstm_peephole", "lstm_coupled", "lstm_coupled_peephole")


def check_bits(module, x, state=None, lengths=None):
    """The plain scalar loops, which keep the order of operations, give the same bits where there is FMA."""
    if HAS_FMA:
        scalar = module._packed().reference(x, state, lengths, module.batch_first)
        assert_same_bits(module(x, state, lengths=lengths), scalar)


def check_both(module, cell, x, state=None, lengths=None):
    check_bits(module, x, state, lengths)
    return check(module, cell, x, state, lengths)


@cells
@dtypes
@pytest.mark.parametrize(("input_size", "hidden_size", "batch"), SIZES)
def test_sizes(cell, dtype, input_size, hidden_size, batch):
    module = build(cell, input_size, hidden_size, dtype=dtype)
    x = normal((5, batch, input_size), dtype=dtype)
    check_both(module, cell, x, state_of(module, batch))


@cells
@dtypes
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_options(cell, dtype, bias, bidirectional, num_layers):
    options = {"bias": bias, "bidirectional": bidirectional, "num_layers": num_layers}
    module = build(cell, 9, 17, dtype=dtype, **options)
    x = normal((6, 5, 9), dtype=dtype)
    check_both(module, cell, x, state_of(module, 5))
    check_both(module, cell, x, state_of(module, 5), [3, 6, 0, 1, 5])


@cells
@dtypes
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 6, 7, 8, 13, 16, 33, 67])
def test_every_batch_tile(cell, dtype, batch):
    module = build(cell, 17, 33, dtype=dtype)
    check_both(module, cell, normal((3, batch, 17), dtype=dtype))


@cells
@pytest.mark.parametrize("hidden_size", [*range(1, 20), 31, 32, 33, 47, 48, 49, 64, 65])
def test_every_hidden_tail(cell, hidden_size):
    module = build(cell, 3, hidden_size)
    check_both(module, cell, normal((3, 2, 3)), state_of(module, 2))


@cells
@dtypes
def test_many_steps(cell, dtype):
    """Long enough for several blocks of time, with rows that end in different ones."""
    module = build(cell, 7, 9, dtype=dtype, bidirectional=True)
    x = normal((700, 6, 7), dtype=dtype)
    check_both(module, cell, x)
    check_both(module, cell, x, state_of(module, 6), [700, 1, 64, 333, 0, 512])


@cells
@dtypes
def test_wide_layers(cell, dtype):
    """Weights larger than a first-level cache, and an input much wider than the hidden state."""
    module = build(cell, 515, 257, dtype=dtype)
    check_both(module, cell, normal((2, 3, 515), dtype=dtype), state_of(module, 3))


@cells
def test_zero_initial_state_is_the_default(cell):
    module = build(cell, bidirectional=True)
    x = normal((4, 3, 5))
    zeros = state_of(module, 3)
    zeros = tuple(np.zeros_like(s) for s in zeros) if isinstance(zeros, tuple) else np.zeros_like(zeros)
    assert_same_bits(module(x), module(x, zeros))


@cells
@dtypes
@pytest.mark.parametrize("lengths", [None, [4, 0, 2, 3]])
def test_batch_first(cell, dtype, lengths):
    time_first = build(cell, dtype=dtype, bidirectional=True, num_layers=2)
    batch_first = build(cell, dtype=dtype, bidirectional=True, num_layers=2, batch_first=True)
    x = normal((4, 4, 5), dtype=dtype)
    state = state_of(time_first, 4)
    output, state_n = check_both(batch_first, cell, x.swapaxes(0, 1), state, lengths)
    assert_same_bits((output.swapaxes(0, 1), state_n), time_first(x, state, lengths=lengths))


@cells
@dtypes
@pytest.mark.parametrize("batch_first", [True, False])
def test_unbatched(cell, dtype, batch_first):
    module = build(cell, dtype=dtype, bidirectional=True, num_layers=2, batch_first=batch_first)
    x = normal((4, 5), dtype=dtype)
    output, _ = check_both(module, cell, x, state_of(module, None))
    assert output.shape == (4, 14)
    check_both(module, cell, x)


@cells
@pytest.mark.parametrize("kind", [list, tuple, np.int32, np.int64, np.uint8, np.intp])
def test_kinds_of_lengths(cell, kind):
    module = build(cell)
    x = normal((4, 3, 5))
    lengths = kind([2, 4, 0]) if kind in (list, tuple) else np.array([2, 4, 0], kind)
    assert_same_bits(module(x, lengths=lengths), module(x, lengths=np.array([2, 4, 0])))


@cells
@dtypes
@pytest.mark.parametrize("bidirectional", [True, False])
def test_ragged_rows_are_the_rows_alone(cell, dtype, bidirectional):
    """Each row equals itself cut to its length; past it there are zeros, whatever the padding holds."""
    module = build(cell, dtype=dtype, bidirectional=bidirectional, num_layers=2)
    lengths = np.array([5, 0, 3, 9, 1])
    x = normal((9, 5, 5), dtype=dtype)
    x[np.arange(9)[:, None] >= lengths] = np.nan
    state = state_of(module, 5)
    output, state_n = check_both(module, cell, x, state, lengths)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        start = tuple(s[:, one] for s in state) if isinstance(state, tuple) else state[:, one]
        alone = module(x[:length, one], start)
        end = tuple(s[:, one] for s in state_n) if isinstance(state_n, tuple) else state_n[:, one]
        assert_same_bits((output[:length, one], end), alone)
        assert not output[length:, row].any()


@cells
@dtypes
@pytest.mark.parametrize("bidirectional", [True, False])
def test_length_zero_returns_the_initial_state(cell, dtype, bidirectional):
    module = build(cell, dtype=dtype, bidirectional=bidirectional, num_layers=2)
    state = state_of(module, 3)
    output, state_n = module(normal((4, 3, 5), dtype=dtype), state, lengths=[0, 0, 0])
    assert_same_bits((output, state_n), (np.zeros((4, 3, 7 * (1 + bidirectional)), dtype), state))


@cells
def test_full_lengths_change_nothing(cell):
    module = build(cell, bidirectional=True, num_layers=2)
    x = normal((6, 3, 5))
    assert_same_bits(module(x, lengths=[6, 6, 6]), module(x))


@cells
@dtypes
@pytest.mark.parametrize("shape", [(0, 3, 5), (4, 0, 5), (0, 0, 5), (0, 5)])
@pytest.mark.parametrize("batch_first", [True, False])
def test_no_steps_or_no_rows(cell, dtype, shape, batch_first):
    """Empty arrays of the right shape; with no steps the state comes back as it went in."""
    module = build(cell, dtype=dtype, bidirectional=True, num_layers=2, batch_first=batch_first)
    batch = None if len(shape) == 2 else shape[0 if batch_first else 1]
    steps = shape[1 if batch_first and batch is not None else 0]
    state = state_of(module, batch)
    output, state_n = check(module, cell, np.empty(shape, dtype), state)
    assert output.shape == (*shape[:-1], 14)
    if steps == 0:
        assert_same_bits((output, state_n), (np.empty((*shape[:-1], 14), dtype), state))
    if batch is not None:
        assert_same_bits(module(np.empty(shape, dtype), state, lengths=[0] * batch), (output, state_n))


@pytest.mark.parametrize("cell", LSTMS)
@dtypes
@pytest.mark.parametrize(("hidden_size", "proj_size"), [(7, 1), (9, 7), (33, 17), (17, 16), (129, 31)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_projection(cell, dtype, hidden_size, proj_size, bidirectional):
    options = {"proj_size": proj_size, "bidirectional": bidirectional, "num_layers": 2}
    module = build(cell, 9, hidden_size, dtype=dtype, **options)
    x = normal((5, 3, 9), dtype=dtype)
    output, (h, c) = check_both(module, cell, x, state_of(module, 3), [5, 0, 3])
    assert output.shape == (5, 3, proj_size * (1 + bidirectional))
    assert h.shape[2] == proj_size
    assert c.shape[2] == hidden_size
    check_both(module, cell, x)
    check_both(module, cell, x[:, 0])


@pytest.mark.parametrize("name", ["weight_ci_l0", "weight_cf_l0", "weight_co_l0"])
def test_each_peephole_matters(name):
    """Two steps, as the first sees no old c; and with zero weights the cell is the plain one."""
    module = build("lstm_peephole")
    x = normal((2, 3, 5))
    before = module(x)[0]
    values = module.state_dict()
    values[name][:] = 0
    module.load_state_dict(values)
    assert not np.array_equal(module(x)[0], before)

    zeros = {k: v * 0 if k.startswith("weight_c") else v for k, v in values.items()}
    module.load_state_dict(zeros)
    plain = build("lstm")
    plain.load_state_dict({k: v for k, v in zeros.items() if not k.startswith("weight_c")})
    check(module, "lstm_peephole", x)
    check(plain, "lstm", x)
    np.testing.assert_allclose(module(x)[0], plain(x)[0], rtol=0, atol=8 * np.finfo(np.float32).eps)


@cells
def test_dropout_is_for_training_only(cell):
    x = normal((4, 3, 5))
    assert_same_bits(build(cell, num_layers=2, dropout=0.5)(x), build(cell, num_layers=2)(x))


@pytest.mark.parametrize("cell", [c for c in CELLS if c != "rnn_relu"])
@dtypes
def test_large_values_saturate(cell, dtype):
    """Pre-activations far beyond every exponent's range: finite, and what the reference says."""
    module = build(cell, dtype=dtype)
    x = normal((3, 4, 5), dtype=dtype) * dtype(1e6)
    output, _ = check(module, cell, x)
    assert np.isfinite(output).all()
    assert np.abs(output).max() <= 1


@cells
@dtypes
@pytest.mark.parametrize("size", [1e3, 1e30])
def test_large_states(cell, dtype, size):
    """A state far outside of what the cell itself produces: no overflow on the way, and the right numbers."""
    module = build(cell, dtype=dtype)
    state = state_of(module, 4)
    state = tuple(s * dtype(size) for s in state) if isinstance(state, tuple) else state * dtype(size)
    check_both(module, cell, normal((3, 4, 5), dtype=dtype), state)


@cells
def test_results_belong_to_the_caller(cell):
    """What a call returned is not changed by the next one, and changing it changes no input."""
    module = build(cell)
    x, state = normal((4, 3, 5)), state_of(module, 3)
    first = module(x, state)
    kept = [a.copy() for a in flat(first)]
    module(x + 1, state)
    for a, k in zip(flat(first), kept, strict=True):
        np.testing.assert_array_equal(a, k)
        assert a.flags.writeable
        assert a.flags.c_contiguous
        assert not np.shares_memory(a, x)
        a[...] = 9
    empty = np.empty((0, 3, 5), np.float32)
    for a, s in zip(flat(module(empty, state))[1:], flat((x, state))[1:], strict=True):
        assert not np.shares_memory(a, s)


@dtypes
@pytest.mark.parametrize("batch_first", [False, True])
def test_large_arrays_begin_with_a_cache_line(dtype, batch_first):
    """Whole vectors then lie on one line each."""
    module = build("lstm", 48, 64, dtype=dtype, batch_first=batch_first)
    x = normal((33, 17, 48), dtype=dtype)
    called, _ = module(x)
    output, _, tape = module.forward(x)
    d_x, _, gradients = module.backward(tape, output)
    for array in (called, output, d_x, gradients["weight_ih_l0"], gradients["weight_hh_l0"]):
        assert array.ctypes.data % 64 == 0
        assert array.flags.c_contiguous
        assert array.flags.writeable


@cells
@dtypes
@pytest.mark.parametrize("given", [np.float16, np.float32, np.float64])
def test_other_floats_are_converted(cell, dtype, given):
    module = build(cell, dtype=dtype)
    x, state = normal((4, 3, 5)), state_of(module, 3)
    converted = tuple(s.astype(given) for s in state) if isinstance(state, tuple) else state.astype(given)
    exact = tuple(s.astype(dtype) for s in converted) if isinstance(state, tuple) else converted.astype(dtype)
    assert_same_bits(module(x.astype(given), converted), module(x.astype(given).astype(dtype), exact))


def test_state_may_be_a_list():
    module = build("lstm")
    x = normal((4, 3, 5))
    h, c = state_of(module, 3)
    assert_same_bits(module(x, [h, c]), module(x, (h, c)))


@pytest.mark.parametrize("cell", CELLS)
def test_reference_in_two_precisions(cell):
    """The yardstick itself: the reference in float64 and in longdouble differ by float64's roundings only."""
    module = build(cell, 17, 33, num_layers=2, bidirectional=True)
    x = normal((9, 4, 17))
    double = flat(truth(module, cell, x, dtype=np.float64))
    assert_close(
        double,
        flat(truth(module, cell, x, dtype=np.longdouble)),
        cell=cell,
        accumulations=101,
        steps=9,
        layers=2,
    )


def test_yardstick_rejects():
    """A comparison that cannot fail would make all others worthless."""
    ones = np.ones((3, 4), np.float32)
    allowed = tolerance(np.float32, "gru", 10, steps=2)
    same = {"cell": "gru", "accumulations": 10, "steps": 2}
    assert_close(ones + allowed / 2, ones, **same)
    for wrong in (ones + 2 * allowed, ones * np.nan, ones * np.inf, ones[:2]):
        with pytest.raises(AssertionError):
            assert_close(np.asarray(wrong, np.float32), ones, **same)
    for wrong in (np.nextafter(ones, np.float32(2)), ones.astype(np.float64), ones[:2]):
        with pytest.raises(AssertionError):
            assert_same_bits(wrong, ones)
    with pytest.raises(AssertionError):
        assert_same_bits(np.float32([-0.0]), np.float32([0.0]))
    assert allowed < 1e-4
