"""The same bits always: whatever the batch, the place in it, the threads, kernels, chunks and layout."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import gatedrnn as gr
from helpers import (
    CELLS_AND_PROJECTION,
    DTYPES,
    HAS_FMA,
    assert_same_bits,
    build,
    flat,
    normal,
    rows_of,
    state_of,
)

cells = pytest.mark.parametrize("cell", CELLS_AND_PROJECTION)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
# What the contract promises only where there is FMA. Without it the numbers must still be right.
needs_fma = pytest.mark.skipif(not HAS_FMA, reason="the baseline kernels promise run-to-run equality only")


# --- batch and position ---------------------------------------------------------------------------


@needs_fma
@cells
@dtypes
@pytest.mark.parametrize(("input_size", "hidden_size"), [(9, 33), (16, 7), (3, 2)])
def test_row_alone_equals_row_in_any_batch(cell, dtype, input_size, hidden_size):
    module = build(cell, input_size, hidden_size, dtype=dtype)
    x, state = normal((3, 67, input_size), dtype=dtype), state_of(module, 67)
    alone = [module(x[:, b : b + 1], rows_of(state, slice(b, b + 1))) for b in range(67)]
    columns = [np.concatenate(parts, axis=1) for parts in zip(*map(flat, alone), strict=True)]
    for batch in range(2, 68):
        for rows in (slice(0, batch), slice(67 - batch, 67), slice(batch - 1, None, -1)):
            result = module(x[:, rows], rows_of(state, rows))
            for actual, expected in zip(flat(result), columns, strict=True):
                assert_same_bits(actual, expected[:, rows])


@needs_fma
@cells
@pytest.mark.parametrize("batch", [2, 5, 16, 33, 67])
def test_row_alone_equals_row_in_any_batch_of_a_large_module(cell, batch):
    """Large enough for other plans: more threads, inputs projected ahead, weights beyond a cache."""
    module = build(cell, 129, 385)
    x, state = normal((4, batch, 129)), state_of(module, batch)
    result = module(x, state)
    for b in {0, 1, batch // 2, batch - 1}:
        one = slice(b, b + 1)
        for whole, alone in zip(flat(result), flat(module(x[:, one], rows_of(state, one))), strict=True):
            assert_same_bits(whole[:, one], alone)


@needs_fma
@cells
@dtypes
def test_ragged_batch_in_any_order(cell, dtype):
    module = build(cell, 17, 33, dtype=dtype, bidirectional=True, num_layers=2)
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 31, 23)
    x, state = normal((30, 23, 17), dtype=dtype), state_of(module, 23)
    result = module(x, state, lengths=lengths)
    order = rng.permutation(23)
    shuffled = module(x[:, order], rows_of(state, order), lengths=lengths[order])
    for actual, expected in zip(flat(shuffled), flat(result), strict=True):
        assert_same_bits(actual, expected[:, order])


@needs_fma
@cells
@dtypes
@pytest.mark.parametrize("batch", [16, 37, 200])
def test_fewer_units_than_lanes(cell, dtype, batch):
    """Large batches of the smallest modules are computed in another layout than a row alone."""
    module = build(cell, 3, 2, dtype=dtype, bidirectional=True, num_layers=2)
    rng = np.random.default_rng(batch)
    lengths = rng.integers(0, 8, batch)
    x, state = normal((7, batch, 3), dtype=dtype), state_of(module, batch)
    d_output, results = normal((7, batch, module(x)[0].shape[-1]), seed=1, dtype=dtype), []
    for threads in (1, 2, 3):
        with gr.num_threads(threads):
            output, state_n, tape = module.forward(x, state, lengths=lengths)
            d_x, d_state, gradients = module.backward(tape, d_output)
            results.append([*flat((output, state_n)), *flat((d_x, d_state)), *gradients.values()])
            assert_same_bits(module(x, state, lengths=lengths), (output, state_n))
    for result in results[1:]:
        for several, one in zip(result, results[0], strict=True):
            assert_same_bits(several, one)
    for b in range(0, batch, 7):
        row = slice(b, b + 1)
        output, state_n, tape = module.forward(x[:, row], rows_of(state, row), lengths=lengths[row])
        d_x, d_state, _ = module.backward(tape, d_output[:, row])
        alone = [*flat((output, state_n)), *flat((d_x, d_state))]
        for mine, together in zip(alone, results[0], strict=False):
            assert_same_bits(mine, together[:, row])


@cells
@dtypes
def test_run_to_run(cell, dtype):
    module = build(cell, 65, 129, dtype=dtype, bidirectional=True)
    x = normal((20, 7, 65), dtype=dtype)
    first = module(x)
    for _ in range(5):
        assert_same_bits(module(x), first)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@cells
@dtypes
def test_bad_row_stays_in_its_row(cell, dtype, bad):
    module = build(cell, 17, 33, dtype=dtype, bidirectional=True)
    for batch in (2, 6, 13, 32):
        x, state = normal((4, batch, 17), dtype=dtype), state_of(module, batch)
        expected = module(x, state)
        others = np.arange(batch) != batch // 2
        poisoned = x.copy()
        poisoned[1, ~others] = bad
        actual = module(poisoned, state)
        for a, e in zip(flat(actual), flat(expected), strict=True):
            assert_same_bits(np.ascontiguousarray(a[:, others]), np.ascontiguousarray(e[:, others]))


@cells
@dtypes
def test_nan_is_not_lost(cell, dtype):
    """A NaN in the input or the state is in all later outputs of its row, never a number that looks right."""
    module = build(cell, 17, 33, dtype=dtype)
    x, state = normal((4, 3, 17), dtype=dtype), state_of(module, 3)
    x[1, 0, 5] = np.nan
    output, _ = module(x, state)
    assert np.isfinite(output[0]).all()
    assert np.isnan(output[1:, 0]).all()
    assert np.isfinite(output[:, 1:]).all()
    flat((x, state))[1][0, 2, 3] = np.nan
    assert np.isnan(module(x, state)[0][:, 2]).all()


# --- threads and kernels --------------------------------------------------------------------------

# (I, H, B, T, options): one row, few rows, many rows, long and short; the large ones are worth many threads
THREADED = [
    (9, 17, 5, 6, {}),
    (512, 512, 1, 8, {}),
    (65, 385, 3, 8, {}),
    (128, 257, 67, 4, {}),
    (31, 64, 256, 16, {}),
    (65, 257, 2, 8, {"bidirectional": True, "num_layers": 2}),
    (65, 64, 1, 400, {"bidirectional": True}),
    (65, 64, 1, 700, {"num_layers": 2}),
    (65, 64, 2, 400, {"num_layers": 3}),
]


@cells
@dtypes
@pytest.mark.parametrize(("input_size", "hidden_size", "batch", "steps", "options"), THREADED)
def test_thread_counts_agree(cell, dtype, input_size, hidden_size, batch, steps, options):
    module = build(cell, input_size, hidden_size, dtype=dtype, **options)
    x = normal((steps, batch, input_size), dtype=dtype)
    lengths = np.random.default_rng(0).integers(0, steps + 1, batch)
    with gr.num_threads(1):
        expected = module(x), module(x, lengths=lengths)
    for threads in (2, 3, 4):
        with gr.num_threads(threads):
            assert_same_bits(module(x), expected[0])
            assert_same_bits(module(x, lengths=lengths), expected[1])


@cells
def test_these_shapes_are_split_in_every_way(cell):
    """The test above would say nothing if all its shapes ran on one thread."""
    splits = set()
    for input_size, hidden_size, batch, steps, options in THREADED:
        plan = build(cell, input_size, hidden_size, **options)._packed().plan
        plans = [plan(steps, batch, threads) for threads in (2, 3, 4)]
        splits |= {k for p in plans for k in p if k.endswith("_groups") and p[k] > 1}
    assert splits == {"layer_groups", "direction_groups", "row_groups", "unit_groups"}


# --- time -----------------------------------------------------------------------------------------


@needs_fma
@cells
@dtypes
@pytest.mark.parametrize("batch", [1, 3, 17])
def test_chunks_of_time_equal_the_whole(cell, dtype, batch):
    module = build(cell, 9, 17, dtype=dtype, num_layers=2)
    steps = 60
    x, state = normal((steps, batch, 9), dtype=dtype), state_of(module, batch)
    lengths = np.random.default_rng(0).integers(0, steps + 1, batch)
    whole, whole_ragged = module(x, state), module(x, state, lengths=lengths)
    for seed in range(4):
        cuts = np.sort(np.random.default_rng(seed).integers(0, steps + 1, 5))
        parts, ragged_parts, now, ragged = [], [], state, state
        for start, stop in zip([0, *cuts], [*cuts, steps], strict=True):
            output, now = module(x[start:stop], now)
            parts.append(output)
            left = np.clip(lengths - start, 0, stop - start)
            output, ragged = module(x[start:stop], ragged, lengths=left)
            ragged_parts.append(output)
        assert_same_bits((np.concatenate(parts), now), whole)
        assert_same_bits((np.concatenate(ragged_parts), ragged), whole_ragged)


@needs_fma
@cells
@dtypes
@pytest.mark.parametrize(("hidden_size", "batch"), [(7, 1), (33, 1), (257, 1), (33, 5), (64, 33)])
def test_stream_of_steps_equals_the_whole(cell, dtype, hidden_size, batch):
    module = build(cell, 9, hidden_size, dtype=dtype, num_layers=2)
    x = normal((12, batch, 9), dtype=dtype)
    stream = module.stream(batch)
    steps = np.stack([stream.step(x_t) for x_t in x])
    assert_same_bits((steps, stream.state), module(x))


# --- layout ---------------------------------------------------------------------------------------


def unaligned(a):
    """A copy that starts one byte off any alignment."""
    copy = np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    copy[...] = a
    assert not copy.flags.aligned
    return copy


def off_by_one_element(a):
    """A copy aligned for its type but for no vector."""
    copy = np.empty(a.size + 17, a.dtype)
    start = next(k for k in range(17) if (copy.ctypes.data + k * a.itemsize) % 64 == a.itemsize)
    view = copy[start : start + a.size].reshape(a.shape)
    view[...] = a
    return view


def poison(shape, dtype):
    """What lies between and beside the elements of a view, and must never be read."""
    return np.full(shape, np.nan if dtype.kind == "f" else -99, dtype)


def every_other(a):
    wide = poison([2 * n for n in a.shape], a.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in a.shape)]
    view[...] = a
    return view


def reversed_strides(a):
    flip = tuple(slice(None, None, -1) for _ in a.shape)
    return np.ascontiguousarray(a[flip])[flip]


def transposed(a):
    return np.ascontiguousarray(a.T).T


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def column_of_wider(a):
    wide = poison((*a.shape[:-1], a.shape[-1] + 3), a.dtype)
    wide[..., 1:-2] = a
    return wide[..., 1:-2]


LAYOUTS = [
    unaligned,
    off_by_one_element,
    every_other,
    reversed_strides,
    transposed,
    read_only,
    column_of_wider,
]


@cells
@dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch_first", [True, False])
def test_layout_of_inputs_changes_nothing(cell, dtype, layout, batch_first):
    module = build(cell, 17, 33, dtype=dtype, batch_first=batch_first, bidirectional=True)
    x, state = normal((4, 4, 17), dtype=dtype), state_of(module, 4)
    lengths = np.array([4, 1, 0, 3])
    laid_out = tuple(layout(s) for s in state) if isinstance(state, tuple) else layout(state)
    actual = module(layout(x), laid_out, lengths=layout(lengths))
    assert_same_bits(actual, module(x, state, lengths=lengths))
    np.testing.assert_array_equal(layout(x), x)


@cells
@dtypes
def test_broadcast_input(cell, dtype):
    """A stride of zero: one row shown to the whole batch."""
    module = build(cell, dtype=dtype)
    x = normal((4, 1, 5), dtype=dtype)
    repeated = np.broadcast_to(x, (4, 3, 5))
    assert_same_bits(module(repeated), module(repeated.copy()))


@cells
@dtypes
@pytest.mark.parametrize(
    "layout", [off_by_one_element, every_other, reversed_strides, transposed, column_of_wider]
)
@pytest.mark.parametrize("batch_first", [True, False])
def test_out_of_any_layout(cell, dtype, layout, batch_first):
    """`out` is filled, returned itself, and nothing beside it is written."""
    module = build(cell, 9, 17, dtype=dtype, batch_first=batch_first, bidirectional=True, num_layers=2)
    x, state = normal((4, 4, 9), dtype=dtype), state_of(module, 4)
    expected = module(x, state, lengths=[4, 0, 2, 3])
    out = layout(np.full_like(expected[0], 7))
    base = out if out.base is None else out.base
    before = base.tobytes()
    output, state_n = module(x, state, lengths=[4, 0, 2, 3], out=out)
    assert output is out
    assert_same_bits((output, state_n), expected)
    out[...] = 7
    assert base.tobytes() == before


@cells
@dtypes
def test_out_unbatched_and_empty(cell, dtype):
    module = build(cell, dtype=dtype)
    for shape in [(4, 5), (0, 5), (0, 3, 5), (4, 0, 5)]:
        x = normal(shape, dtype=dtype)
        expected = module(x)
        out = np.full_like(expected[0], 7)
        output, state_n = module(x, out=out)
        assert output is out
        assert_same_bits((output, state_n), expected)


# --- denormals ------------------------------------------------------------------------------------


def denormals_survive():
    tiny = np.float32(1e-38) * np.float32(0.1)  # half of float32's smallest normal number, times a tenth
    return tiny > 0 and np.array([1e-310]) * np.array([0.5]) > 0


@cells
@dtypes
@pytest.mark.parametrize("threads", [1, 3])
def test_flush_to_zero_ends_with_the_call(cell, dtype, threads):
    assert denormals_survive()
    module = build(cell, 65, 129, dtype=dtype, bidirectional=True)
    stream = build(cell, dtype=dtype).stream()
    with gr.num_threads(threads):
        module(normal((6, 40, 65), dtype=dtype))
        assert denormals_survive()
        with pytest.raises(ValueError, match="x"):
            module(normal((6, 40, 64), dtype=dtype))
        assert denormals_survive()
        stream.step(normal(5, dtype=dtype))
        assert denormals_survive()


def test_flush_to_zero_ends_with_the_call_in_other_threads():
    """Each thread has its own flags: one that called the module, and one that is born from it afterwards."""
    module = build("lstm", 65, 129)
    x = normal((6, 40, 65))
    survived = []

    def work():
        survived.append(denormals_survive())
        module(x)
        survived.append(denormals_survive())
        child = threading.Thread(target=lambda: survived.append(denormals_survive()))
        child.start()
        child.join()

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert survived == [True] * 9


@cells
@dtypes
def test_denormal_inputs(cell, dtype):
    """They are worth as much as zeros, which is to say nothing, and never become anything else."""
    module = build(cell, 17, 33, dtype=dtype, bias=False)
    tiny = np.finfo(dtype).smallest_subnormal * normal((4, 3, 17), dtype=dtype).round()
    assert np.count_nonzero(tiny) > tiny.size // 2
    for result in flat(module(tiny)):
        assert np.abs(result).max() <= np.finfo(dtype).smallest_normal  # false for NaN
    assert_same_bits(module(tiny), module(np.zeros_like(tiny)))
