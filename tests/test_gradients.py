"""Gradients against differences, and what backward promises: the same bits, recomputing, tapes, dropout."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest

import gatedrnn as gr
from gradients import (
    CELLS,
    RELATIVE,
    assert_close_gradients,
    assert_same_gradients,
    assert_slopes,
    gradient_tolerance,
    make,
    named,
    parts,
    problem,
)
from helpers import CELLS as BASE_CELLS
from helpers import DTYPES, FMA_ISAS, assert_same_bits, directions, normal, rows_of, run_python, state_of
from test_bits import LAYOUTS

cells = pytest.mark.parametrize("cell", CELLS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
recomputes = pytest.mark.parametrize("recompute", [False, True])

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
LENGTHS = [5, 0, 3, 1]


def zeros_of(state):
    return tuple(map(np.zeros_like, state)) if isinstance(state, tuple) else np.zeros_like(state)


# --- against differences --------------------------------------------------------------------------


@cells
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
def test_every_element(cell, num_layers, bidirectional, bias, lengths):
    options = {"num_layers": num_layers, "bidirectional": bidirectional, "bias": bias}
    p = problem(cell, batch=4, lengths=lengths, **options)
    assert_slopes(p, elements=None if num_layers == 1 else 20)


@cells
@pytest.mark.parametrize(("input_size", "hidden_size", "batch"), SIZES)
def test_sizes(cell, input_size, hidden_size, batch):
    if cell.endswith("projected"):
        hidden_size = max(hidden_size, 2)  # a projection is narrower than what it projects
    assert_slopes(problem(cell, input_size, hidden_size, batch, 3))


@cells
@pytest.mark.parametrize("batch", [4, None], ids=["batch_first", "unbatched"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
def test_other_layouts(cell, batch, lengths):
    options = {"batch_first": True, "bidirectional": True, "num_layers": 2}
    assert_slopes(problem(cell, batch=batch, lengths=lengths if batch else None, **options))


@cells
@pytest.mark.parametrize("bidirectional", [True, False])
def test_one_step(cell, bidirectional):
    """Where there is neither a step before nor one after."""
    assert_slopes(problem(cell, steps=1, bidirectional=bidirectional), elements=None)


@cells
def test_three_layers(cell):
    assert_slopes(problem(cell, 3, 5, num_layers=3, bidirectional=True, lengths=[2, 5, 4]))


@cells
@recomputes
def test_many_pairs(cell, recompute):
    """More (time step, row) pairs than one block holds, with rows that end in each of them."""
    p = problem(cell, 3, 7, 129, 15, lengths=[15, 0, 14, *[15, 7, 8] * 42])
    assert_slopes(p, elements=2, gradients=p.gradients(recompute=recompute))


@pytest.mark.parametrize("name", ["x", "h_0", "weight_ih_l0", "bias_hh_l1_reverse", "weight_hh_l1"])
def test_a_wrong_gradient_is_noticed(name):
    """Off by three times what is allowed, in any array: else all tests above would be worthless."""
    p = problem("gru", num_layers=2, bidirectional=True)
    good = p.gradients()
    assert_slopes(p, gradients=good)
    wrong = {**good, name: good[name] * (1 + 3 * RELATIVE)}
    with pytest.raises(AssertionError, match=name):
        assert_slopes(p, elements=None, gradients=wrong)
    with pytest.raises(AssertionError, match=name):
        assert_close_gradients(wrong, good, RELATIVE)
    with pytest.raises(AssertionError, match=name):
        assert_same_gradients({**good, name: np.nextafter(good[name], np.inf)}, good)
    assert gradient_tolerance(p) < RELATIVE


# --- forward --------------------------------------------------------------------------------------


@cells
@dtypes
@recomputes
@pytest.mark.parametrize("batch_first", [True, False])
def test_forward_has_the_bits_of_a_call(cell, dtype, recompute, batch_first):
    """Also with several layers and both directions, ragged, unbatched, with strides, and with many steps."""
    options = {"dtype": dtype, "batch_first": batch_first}
    module = make(cell, 17, 33, num_layers=2, bidirectional=True, **options)
    x, state = normal((4, 4, 17), dtype=dtype), state_of(module, 4)
    for arguments, lengths in [
        ((x,), None),
        ((x, state), [4, 0, 3, 1]),
        ((x[::-1, ::-1], state), None),
        ((x[0], state_of(module, None)), None),
    ]:
        output, state_n, tape = module.forward(*arguments, lengths=lengths, recompute=recompute)
        assert_same_bits((output, state_n), module(*arguments, lengths=lengths))
        assert tape.nbytes > 0
    long = make(cell, 5, 9, **options)
    x = normal((300, 300, 5), dtype=dtype)[:, :7] if not batch_first else normal((7, 300, 5), dtype=dtype)
    assert_same_bits(long.forward(x, recompute=recompute)[:2], long(x))


@cells
@dtypes
def test_forward_without_a_state_starts_from_zeros(cell, dtype):
    p = problem(cell, dtype=dtype, bidirectional=True)
    zeros = dataclasses.replace(p, state=zeros_of(p.state))
    without = dataclasses.replace(p, state=None)
    assert_same_bits(without.forward()[:2], zeros.forward()[:2])
    assert_same_gradients(without.gradients(), zeros.gradients())


# --- nothing to do --------------------------------------------------------------------------------


@cells
def test_no_rows_of_very_many_steps(cell):
    """Nothing is to be done, so nobody walks through the steps."""
    module = make(cell, 5, 7, num_layers=2, bidirectional=True)
    steps = 10**13
    output, _, tape = module.forward(np.zeros((steps, 0, 5), np.float32))
    d_x, _, gradients = module.backward(tape, np.zeros(output.shape, np.float32))
    assert output.shape[:2] == d_x.shape[:2] == (steps, 0)
    assert not any(g.any() for g in gradients.values())


@cells
@dtypes
@recomputes
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (4, 0), (0, 0), (0, None)])
def test_no_steps_or_no_rows(cell, dtype, recompute, batch_first, steps, batch):
    """The state passes through, and so does its gradient; the parameters had no part in anything."""
    options = {"batch_first": batch_first, "bidirectional": True, "num_layers": 2}
    p = problem(cell, 5, 7, batch, steps, dtype=dtype, **options)
    d_x, d_state, parameters = p.module.backward(p.forward(recompute=recompute)[2], p.d_output, p.d_state_n)
    assert_same_bits(d_x, np.empty(p.x.shape, dtype))
    assert_same_bits((d_x, d_state), (d_x, p.d_state_n))
    assert all(not g.any() for g in parameters.values())
    assert {k: g.shape for k, g in parameters.items()} == {
        k: v.shape for k, v in p.module.state_dict().items()
    }
    ones = {k: np.ones_like(v) for k, v in parameters.items()}
    p.gradients(accumulate_into=ones)
    assert all((g == 1).all() for g in ones.values())


@cells
def test_all_lengths_zero(cell):
    p = problem(cell, lengths=[0, 0, 0], num_layers=2, bidirectional=True)
    got = p.gradients()
    for name, expected in zip(("h_0", "c_0"), parts(p.d_state_n), strict=False):
        assert_same_bits(got.pop(name), expected)
    assert all(not g.any() for g in got.values())


# --- rows -----------------------------------------------------------------------------------------


@cells
@dtypes
def test_padding_is_never_read(cell, dtype):
    """NaN past the lengths, in x and in d_output: the same gradients, and that of x is 0 there."""
    options = {"dtype": dtype, "bidirectional": True, "num_layers": 2}
    p = problem(cell, 9, 17, 4, 6, lengths=[4, 0, 6, 1], **options)
    padding = np.arange(6)[:, None] >= np.array(p.lengths)
    expected = p.gradients()
    assert not expected["x"][padding].any()
    for a in (p.x, p.d_output):
        a[padding] = np.nan
    assert_same_gradients(p.gradients(), expected)
    assert_same_gradients(p.gradients(recompute=True), expected)


@cells
@dtypes
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_row_stays_in_its_row(cell, dtype, bad):
    """What is wrong with one row's d_output is in its own gradients, and no other row's."""
    p = problem(cell, 9, 33, 9, 5, dtype=dtype, bidirectional=True, num_layers=2)
    expected = p.gradients()
    p.d_output[2, 4] = bad
    actual = p.gradients()
    others = np.arange(9) != 4
    assert not np.isfinite(actual["x"][:, 4]).all()
    for name in ("x", "h_0", "c_0"):
        if name in expected:
            assert_same_bits(actual[name][:, others].copy(), expected[name][:, others].copy())
    assert not np.isfinite(actual["weight_ih_l0"]).all()


@cells
@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_batch_is_the_sum_of_its_rows(cell, bidirectional):
    """Each row alone, cut to its length, has the gradients that it has in a ragged batch."""
    p = problem(cell, 9, 17, 5, 8, lengths=[3, 8, 0, 1, 6], bidirectional=bidirectional, num_layers=2)
    total = {k: np.zeros_like(v) for k, v in p.module.state_dict().items()}
    together = p.gradients()
    for row, length in enumerate(p.lengths):
        one = slice(row, row + 1)
        alone = dataclasses.replace(
            p,
            x=p.x[:length, one],
            state=rows_of(p.state, one),
            lengths=None,
            d_output=p.d_output[:length, one],
            d_state_n=rows_of(p.d_state_n, one),
        ).gradients(accumulate_into=total)
        for name, whole in together.items():
            if name not in total:
                expected = whole[:length, one] if name == "x" else whole[:, one]
                assert_close_gradients({name: alone[name]}, {name: expected}, gradient_tolerance(p))
    summed = {k: together[k] for k in total}
    assert_close_gradients(total, summed, gradient_tolerance(p))


# --- the same bits --------------------------------------------------------------------------------

# (I, H, B, T, options): shared out by rows, by units, by both, to gradient threads; one block and several;
# and on one thread.
THREADED = [
    (9, 17, 5, 6, {}),
    (31, 64, 64, 16, {}),
    (65, 257, 1, 12, {}),
    (9, 385, 2, 24, {}),
    (129, 65, 1, 1600, {}),  # so long that gradients beside the steps pay on AArch64, too
    (33, 129, 33, 40, {"bidirectional": True, "num_layers": 2, "dropout": 0.25}),
]


@cells
@dtypes
@recomputes
@pytest.mark.parametrize(("input_size", "hidden_size", "batch", "steps", "options"), THREADED)
def test_thread_counts_agree(cell, dtype, recompute, input_size, hidden_size, batch, steps, options):
    lengths = np.random.default_rng(0).integers(1, steps + 1, batch)
    p = problem(
        cell, input_size, hidden_size, batch, steps, lengths=lengths, dtype=dtype, dropout_seed=1, **options
    )
    with gr.num_threads(1):
        expected = p.gradients(recompute=recompute)
    for threads in (2, 3):
        with gr.num_threads(threads):
            assert_same_gradients(p.gradients(recompute=recompute), expected)


@cells
def test_these_shapes_are_split_in_every_way(cell):
    """The test above would say nothing if all its shapes ran on one thread."""
    splits = set()
    for input_size, hidden_size, batch, steps, options in THREADED:
        network = make(cell, input_size, hidden_size, **options)._packed()
        for threads in (2, 3):
            plan = network.plan(steps, batch, threads, backward=True)
            splits |= {split for split in ("row_groups", "unit_groups") if plan[split] > 1}
            splits |= {"gradient_threads"} if plan["gradient_threads"] > 0 else set()
    assert splits == {"row_groups", "unit_groups", "gradient_threads"}


DIGESTS = "import gradients, json; print(json.dumps(gradients.digests()))"
BEST = FMA_ISAS[-1] if FMA_ISAS else "baseline"


@pytest.fixture(scope="module")
def best_digests():
    return run_python(DIGESTS, isa=BEST)


@pytest.mark.parametrize("isa", FMA_ISAS or ["baseline"])
def test_kernels_agree(isa, best_digests):
    """Every FMA instruction set here has the bits of the best one, hence of all others; so does a second run.

    A machine with none has only its baseline kernels, which must give the same numbers in a second run.
    """
    assert run_python(DIGESTS, isa=isa) == best_digests
    assert len(set(best_digests.values())) == len(best_digests)
    assert {name.split()[0] for name in best_digests} == set(CELLS)


@cells
@dtypes
@pytest.mark.parametrize("lengths", [None, [150, 0, 149, 31, 64, 1, 150]], ids=["full", "ragged"])
def test_recomputing_changes_no_bit(cell, dtype, lengths):
    options = {"bidirectional": True, "num_layers": 2, "dropout": 0.5}
    p = problem(cell, 9, 17, 7, 150, lengths=lengths, dtype=dtype, dropout_seed=4, **options)
    assert_same_gradients(p.gradients(recompute=True), p.gradients())
    assert_same_bits(p.forward(recompute=True)[:2], p.forward()[:2])


@cells
@dtypes
@recomputes
def test_a_tape_may_be_used_twice(cell, dtype, recompute):
    p = problem(cell, 9, 17, 7, 40, dtype=dtype, num_layers=2)
    _, _, tape = p.forward(recompute=recompute)
    first = named(*p.module.backward(tape, p.d_output, p.d_state_n))
    other = named(*p.module.backward(tape, -p.d_output))
    assert_same_gradients(named(*p.module.backward(tape, p.d_output, p.d_state_n)), first)
    assert not np.array_equal(other["x"], first["x"])


@cells
@dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch_first", [True, False])
def test_strides_change_nothing(cell, dtype, layout, batch_first):
    """NaN lies between and beside the elements of most of these views."""
    options = {"dtype": dtype, "batch_first": batch_first, "bidirectional": True}
    p = problem(cell, 9, 17, 4, 4, lengths=np.array([4, 1, 0, 3]), **options)
    laid_out = dataclasses.replace(
        p,
        x=layout(p.x),
        state=tuple(map(layout, p.state)) if isinstance(p.state, tuple) else layout(p.state),
        lengths=layout(p.lengths),
        d_output=layout(p.d_output),
        d_state_n=tuple(map(layout, p.d_state_n)) if isinstance(p.d_state_n, tuple) else layout(p.d_state_n),
    )
    expected = p.gradients()
    assert_same_gradients(laid_out.gradients(), expected)
    assert_same_gradients(laid_out.gradients(recompute=True), expected)


@cells
@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 1), (1,), (2,)])
def test_broadcast_d_output(cell, axes):
    """Strides of zero, such as the gradient of a mean has."""
    p = problem(cell)
    values = p.d_output.mean(axis=axes, keepdims=True)
    broadcast = dataclasses.replace(p, d_output=np.broadcast_to(values, p.d_output.shape))
    copied = dataclasses.replace(p, d_output=broadcast.d_output.copy())
    assert_same_gradients(broadcast.gradients(), copied.gradients())


@cells
@dtypes
@pytest.mark.parametrize("given", [np.float16, np.float32, np.float64])
def test_other_floats_are_converted(cell, dtype, given):
    p = problem(cell, dtype=dtype)
    other = dataclasses.replace(
        p,
        d_output=p.d_output.astype(given),
        d_state_n=tuple(s.astype(given) for s in p.d_state_n)
        if isinstance(p.d_state_n, tuple)
        else p.d_state_n.astype(given),
    )
    exact = dataclasses.replace(
        p,
        d_output=other.d_output.astype(dtype),
        d_state_n=tuple(s.astype(dtype) for s in other.d_state_n)
        if isinstance(p.d_state_n, tuple)
        else other.d_state_n.astype(dtype),
    )
    assert_same_gradients(other.gradients(), exact.gradients())


# --- arguments of backward ------------------------------------------------------------------------


@cells
@dtypes
def test_none_is_zeros(cell, dtype):
    """No d_output, no d_state_n, and of an LSTM's pair one part only."""
    p = problem(cell, dtype=dtype, num_layers=2, bidirectional=True, lengths=[5, 0, 2])
    _, _, tape = p.forward()
    no_output, no_state = np.zeros_like(p.d_output), zeros_of(p.d_state_n)
    pairs = [((None, p.d_state_n), (no_output, p.d_state_n)), ((p.d_output,), (p.d_output, no_state))]
    if isinstance(p.d_state_n, tuple):
        (h, c), (no_h, no_c) = p.d_state_n, no_state
        pairs += [
            ((p.d_output, (h, None)), (p.d_output, (h, no_c))),
            ((p.d_output, (None, c)), (p.d_output, (no_h, c))),
            ((p.d_output, [None, None]), (p.d_output, no_state)),
        ]
    for given, meant in pairs:
        actual, expected = named(*p.module.backward(tape, *given)), named(*p.module.backward(tape, *meant))
        for name, e in expected.items():
            np.testing.assert_array_equal(actual[name], e)  # but for the sign of a zero
            assert np.abs(e).max() > 0
    assert all(not g.any() for g in named(*p.module.backward(tape, None)).values())


@cells
@dtypes
@recomputes
def test_without_the_gradient_of_x(cell, dtype, recompute):
    p = problem(cell, dtype=dtype, num_layers=2, bidirectional=True, lengths=[5, 0, 2])
    expected = {**p.gradients(), "x": None}
    actual = p.gradients(recompute=recompute, input_gradient=False)
    assert actual.pop("x") is expected.pop("x") is None
    assert_same_gradients(actual, expected)


@cells
@dtypes
@pytest.mark.parametrize("threads", [1, 2])
def test_accumulating_adds(cell, dtype, threads):
    """To what is there, in the caller's own arrays; the other results have the same bits."""
    p = problem(cell, 33, 65, 16, 30, dtype=dtype, num_layers=2)
    with gr.num_threads(threads):
        first = p.module.backward(p.forward()[2], -2 * p.d_output)[2]
        d_x, d_state, second = p.module.backward(p.forward()[2], p.d_output, p.d_state_n)
        into = {k: v.copy() for k, v in first.items()}
        arrays = dict(into)
        added = p.module.backward(p.forward()[2], p.d_output, p.d_state_n, accumulate_into=into)
    assert added[2] is into
    assert all(into[k] is a for k, a in arrays.items())
    assert_same_bits((added[0], added[1]), (d_x, d_state))
    sums = {k: first[k] + second[k] for k in first}
    assert_close_gradients(into, sums, gradient_tolerance(p))
    assert all(not np.array_equal(into[k], first[k]) for k in first)


@cells
def test_accumulating_into_zeros_is_new_arrays(cell):
    p = problem(cell, 9, 17, 5, 30, num_layers=2)
    into = {k: np.zeros_like(v) for k, v in p.module.state_dict().items()}
    got = p.gradients(accumulate_into=into)
    expected = p.gradients()
    for name, e in expected.items():
        np.testing.assert_array_equal(got[name], e)


@cells
def test_results_belong_to_the_caller(cell):
    """They share memory with nothing, and the next backward leaves them alone."""
    p = problem(cell, num_layers=2)
    first = p.gradients()
    kept = {k: v.copy() for k, v in first.items()}
    dataclasses.replace(p, d_output=2 * p.d_output).gradients()
    assert_same_gradients(first, kept)
    inputs = [p.x, p.d_output, *parts(p.state), *parts(p.d_state_n), *p.module.parameters().values()]
    for array in first.values():
        assert array.flags.writeable
        assert array.flags.c_contiguous
        assert not any(np.shares_memory(array, i) for i in inputs)
        array[...] = 9
    assert_same_gradients(p.gradients(), kept)


# --- tapes ----------------------------------------------------------------------------------------

VALUES_PER_STEP = {
    "lstm": 5,
    "lstm_peephole": 5,
    "lstm_coupled": 4,
    "lstm_coupled_peephole": 4,
    "gru": 4,
    "gru_reset_before": 3,
    "rnn_tanh": 0,
    "rnn_relu": 0,
}


@pytest.mark.parametrize("cell", BASE_CELLS)
@dtypes
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["one", "four"])
def test_size_of_a_tape(cell, dtype, options):
    """What each step of a cell keeps, the outputs, and what does not grow with the steps."""
    p = problem(cell, 5, 64, 4, 1000, dtype=dtype, **options)
    tracks = p.module.num_layers * directions(p.module)
    kept = VALUES_PER_STEP[cell] * tracks * 1000 * 4 * 64
    outputs = p.module.num_layers * p.d_output.size
    states = 2 * tracks * 4 * 64  # h and c before the first step
    line = 64  # what an array may lose to alignment
    most = (kept + outputs + states) * np.dtype(dtype).itemsize + 4 * tracks * line
    assert p.forward()[2].nbytes <= most


@pytest.mark.parametrize("cell", [cell for cell, values in VALUES_PER_STEP.items() if values > 0])
def test_recomputing_needs_less_memory(cell):
    p = problem(cell, 64, 64, 4, 1000, dtype=np.float32)
    assert p.forward(recompute=True)[2].nbytes <= 0.3 * p.forward()[2].nbytes


class Subclass(np.ndarray):
    """As memory maps are."""


OVERWRITTEN = {
    "as it is": lambda x: x,
    "strided": lambda x: np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1),
    "features apart": lambda x: np.repeat(x, 2, axis=2)[:, :, ::2],
    "another dtype": lambda x: x.astype(np.float64 if x.dtype == np.float32 else np.float32),
    "not aligned": lambda x: np.frombuffer(bytearray(b"-" + x.tobytes()), x.dtype, offset=1).reshape(x.shape),
    "a subclass": lambda x: x.copy().view(Subclass),
    "unbatched": lambda x: x[:, 0].copy(),
    "batch first": lambda x: np.ascontiguousarray(x.swapaxes(0, 1)),
}


@cells
@recomputes
@pytest.mark.parametrize("form", OVERWRITTEN)
def test_what_is_written_after_forward_changes_nothing(cell, recompute, form):
    """A batch's buffers may be filled again before backward: x, the state, the lengths, and the results."""
    module = make(cell, 5, 7, num_layers=2, batch_first=form == "batch first", dtype=np.float32)
    batch = None if form == "unbatched" else 3
    x = OVERWRITTEN[form](np.random.default_rng(0).standard_normal((6, 3, 5)).astype(np.float32))
    lengths = None if batch is None else np.array([6, 2, 4])
    state = state_of(module, batch)
    output, state_n, tape = module.forward(x, state, lengths=lengths, recompute=recompute)
    d_output = np.ones_like(output)
    expected = named(*module.backward(tape, d_output, state_n))
    d_state_n = tuple(part.copy() for part in parts(state_n))
    d_state_n = d_state_n if isinstance(state_n, tuple) else d_state_n[0]
    for array in (x, output, *parts(state), *parts(state_n)):
        array[...] = np.nan
    if lengths is not None:
        lengths[...] = -1
    assert_same_gradients(named(*module.backward(tape, d_output, d_state_n)), expected)


@cells
@recomputes
@pytest.mark.parametrize("how", ["in place", "load_state_dict", "attribute"])
def test_a_tape_keeps_its_weights(cell, recompute, how):
    """Parameters that change between forward and backward change the next forward only."""
    p = problem(cell, 9, 17, 3, 40, num_layers=2)
    expected = p.gradients()
    _, _, tape = p.forward(recompute=recompute)
    if how == "in place":
        for parameter in p.module.parameters().values():
            parameter *= 0.5
    elif how == "load_state_dict":
        p.module.load_state_dict({k: v / 2 for k, v in p.module.state_dict().items()})
    else:
        p.module.weight_hh_l0 = p.module.state_dict()["weight_hh_l0"] / 2
    assert_same_gradients(named(*p.module.backward(tape, p.d_output, p.d_state_n)), expected)
    after = p.gradients()
    assert not np.array_equal(after["x"], expected["x"])
    assert_same_gradients(named(*p.module.backward(tape, p.d_output, p.d_state_n)), expected)


@cells
def test_tapes_of_several_updates(cell):
    """Packs of old weights give their memory to new ones only when no tape wants them any more."""
    p = problem(cell, 9, 17, 3, 10, num_layers=2)
    parameters = p.module.parameters()
    tapes, expected = [], []
    for update in range(6):
        tapes.append(p.forward()[2])
        fresh = dataclasses.replace(p, module=copy.copy(p.module))
        expected.append(fresh.gradients())
        for parameter in parameters.values():
            parameter *= 0.9
        if update % 2:
            tapes[update // 2] = None
    for tape, gradients in zip(tapes, expected, strict=True):
        if tape is not None:
            assert_same_gradients(named(*p.module.backward(tape, p.d_output, p.d_state_n)), gradients)
    assert sum(tape is None for tape in tapes) == 3


@cells
@recomputes
def test_a_tape_keeps_x_alive(cell, recompute):
    """Forward made no copy of it, and nobody else holds it; other forwards want memory meanwhile."""
    p = problem(cell, 31, 17, 9, 40)
    expected = p.gradients()
    _, _, tape = p.module.forward(p.x.copy(), p.state, recompute=recompute)
    for seed in range(5):
        p.module.forward(normal(p.x.shape, seed=seed, dtype=np.float64))
    assert_same_gradients(named(*p.module.backward(tape, p.d_output, p.d_state_n)), expected)


@cells
@recomputes
def test_many_tapes_at_once(cell, recompute):
    """Forward on all, then backward in another order: none disturbs another."""
    problems = [problem(cell, batch=b, steps=t, seed=0) for b, t in [(1, 9), (7, 2), (3, 30), (2, 1), (1, 9)]]
    module = problems[0].module
    problems = [dataclasses.replace(p, module=module, x=k * p.x) for k, p in enumerate(problems)]
    expected = [p.gradients() for p in problems]
    tapes = [p.forward(recompute=recompute)[2] for p in problems]
    for k in (3, 0, 4, 1, 2):
        p = problems[k]
        assert_same_gradients(named(*module.backward(tapes[k], p.d_output, p.d_state_n)), expected[k])


# --- truncated backpropagation through time -------------------------------------------------------


def chunks_of(p, size):
    """The problem cut along its steps, each piece starting from the state that the one before ended with."""
    state, pieces = p.state, []
    for start in range(0, p.steps, size):
        piece = slice(start, start + size)
        part = dataclasses.replace(
            p,
            x=p.x[piece],
            state=state,
            lengths=None if p.lengths is None else np.clip(np.array(p.lengths) - start, 0, size),
            d_output=p.d_output[piece],
        )
        _, state, tape = part.forward()
        pieces.append((part, tape))
    return pieces


@cells
@dtypes
@pytest.mark.parametrize("lengths", [None, [60, 0, 31, 20]], ids=["full", "ragged"])
def test_truncated_backpropagation(cell, dtype, lengths):
    """Piece by piece, the state carried over as a constant: what one call on that piece alone gives."""
    p = problem(cell, 9, 17, 4, 60, dtype=dtype, num_layers=2, lengths=lengths)
    pieces = chunks_of(p, 20)
    for part, tape in pieces:
        fresh = make(cell, 9, 17, dtype=dtype, num_layers=2)
        copied = tuple(s.copy() for s in parts(part.state))
        alone = dataclasses.replace(
            part, module=fresh, state=copied if isinstance(part.state, tuple) else copied[0]
        )
        actual = named(*p.module.backward(tape, part.d_output, p.d_state_n))
        assert_same_gradients(actual, alone.gradients())


@cells
@dtypes
@pytest.mark.parametrize("lengths", [None, [60, 0, 31, 20]], ids=["full", "ragged"])
def test_pieces_chained_are_the_whole(cell, dtype, lengths):
    """Backward through the pieces from the last, each handing its d_state to the one before."""
    p = problem(cell, 9, 17, 4, 60, dtype=dtype, num_layers=2, lengths=lengths)
    d_state, into, d_x = p.d_state_n, {k: np.zeros_like(v) for k, v in p.module.state_dict().items()}, []
    for part, tape in reversed(chunks_of(p, 20)):
        piece, d_state, _ = p.module.backward(tape, part.d_output, d_state, accumulate_into=into)
        d_x.insert(0, piece)
    chained = named(np.concatenate(d_x), d_state, into)
    assert_close_gradients(chained, p.gradients(), gradient_tolerance(p))


# --- dropout --------------------------------------------------------------------------------------


@cells
@pytest.mark.parametrize("bidirectional", [True, False])
@recomputes
def test_dropout_against_differences(cell, bidirectional, recompute):
    p = problem(
        cell, lengths=[5, 2, 3], num_layers=3, bidirectional=bidirectional, dropout=0.4, dropout_seed=5
    )
    assert_slopes(p, elements=4, gradients=p.gradients(recompute=recompute))


@cells
@dtypes
def test_dropout_is_reproducible(cell, dtype):
    """The seed and the place decide: the same seed the same bits, whatever came between; another, others."""
    p = problem(cell, 9, 17, 4, 6, dtype=dtype, num_layers=2, dropout=0.5, dropout_seed=1)
    expected, first = p.gradients(), p.forward()[:2]
    other = dataclasses.replace(p, dropout_seed=2)
    assert not np.array_equal(other.forward()[0], first[0])
    assert not np.array_equal(other.gradients()["x"], expected["x"])
    assert_same_bits(p.forward()[:2], first)
    assert_same_gradients(p.gradients(), expected)


@pytest.mark.parametrize("kind", [gr.LSTM, gr.GRU, gr.RNN])
def test_seed_of_the_module_starts_a_sequence(kind):
    """Without a seed each forward draws its own; modules made with the same seed draw the same ones."""
    x = normal((6, 4, 9))
    one, same, other = (kind(9, 17, num_layers=2, dropout=0.5, seed=seed) for seed in (3, 3, 4))
    other.load_state_dict(one.state_dict())
    firsts = [one.forward(x)[0] for _ in range(4)]
    for expected in firsts:
        same(x)  # a call draws nothing
        assert_same_bits(same.forward(x)[0], expected)
    outputs = [*firsts, *(other.forward(x)[0] for _ in range(4))]
    assert len({o.tobytes() for o in outputs}) == 8


@cells
def test_dropout_has_no_part_in_calls(cell):
    """Nor with one layer, between which and the next nothing is; nor at a rate of 0."""
    x = normal((6, 4, 9))
    module, without = make(cell, 9, 17, num_layers=2, dropout=0.5), make(cell, 9, 17, num_layers=2)
    assert_same_bits(module(x), without(x))
    assert_same_bits(without.forward(x, dropout_seed=1)[:2], without(x))
    module.forward(x)
    assert_same_bits(module(x), without(x))
    assert not np.array_equal(module.forward(x)[0], module(x)[0])
    with pytest.warns(UserWarning, match="num_layers=1"):
        single = make(cell, 9, 17, dropout=0.5)
    assert_same_bits(single.forward(x)[:2], single(x))


def mask_shower(width, rate, num_layers=2, **options):
    """Layers that put out 1 wherever they see anything, on top of one that puts out 1 everywhere.

    So the output is 0 where the last dropout dropped a value, and else 1 / (1 - rate).
    """
    module = gr.RNN(
        1, width, nonlinearity="relu", num_layers=num_layers, dropout=rate, dtype=np.float64, **options
    )
    values = {k: np.zeros_like(v) for k, v in module.state_dict().items()}
    values["bias_ih_l0"][:] = 1
    for layer in range(1, num_layers):
        values[f"weight_ih_l{layer}"][:] = np.eye(width)
    module.load_state_dict(values)
    return module


def assert_fraction(kept, rate):
    """As many as expected, within five standard deviations: one failure in two million seeds."""
    expected, deviation = kept.size * (1 - rate), np.sqrt(kept.size * rate * (1 - rate))
    assert abs(np.count_nonzero(kept) - expected) <= 5 * deviation


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_share_of_what_is_dropped(rate):
    """Overall, in no relation to neighbours in any direction, nor to another seed; and exactly scaled."""
    module = mask_shower(33, rate)
    x = np.zeros((65, 31, 1))
    masks = []
    for seed in (0, 1, 2**64 - 1):
        output = module.forward(x, dropout_seed=seed)[0]
        kept = output != 0
        assert set(np.unique(output)) == {0, 1 / (1 - rate)}
        masks.append(kept)
        assert_fraction(kept, rate)
        for axis in range(3):  # two independent values are both kept with the square of the chance
            first, second = (
                np.take(kept, range(start, stop), axis)
                for start, stop in ((0, kept.shape[axis] - 1), (1, kept.shape[axis]))
            )
            assert_fraction(first & second, 1 - (1 - rate) ** 2)
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert_fraction(masks[a] & masks[b], 1 - (1 - rate) ** 2)


def test_layers_drop_different_values():
    """With two dropouts in a row a value is left where both left it."""
    one, two = mask_shower(33, 0.5), mask_shower(33, 0.5, num_layers=3)
    x = np.zeros((40, 30, 1))
    first, both = (m.forward(x, dropout_seed=7)[0] != 0 for m in (one, two))
    assert (first >= both).all()
    assert_fraction(both, 0.75)


@pytest.mark.parametrize("lengths", [None, [4, 0, 2]])
def test_gradient_passes_where_the_value_did(lengths):
    """The layers add nothing of their own here, so the first bias has the sum of what was let through."""
    module = mask_shower(9, 0.5)
    output, _, tape = module.forward(np.zeros((4, 3, 1)), lengths=lengths, dropout_seed=1)
    d_output = np.arange(4 * 3 * 9, dtype=np.float64).reshape(4, 3, 9)
    _, _, got = module.backward(tape, d_output)
    np.testing.assert_array_equal(got["bias_ih_l0"], (output * d_output).sum(axis=(0, 1)))


@cells
def test_everything_dropped(cell):
    """A probability of 1: the second layer sees zeros and hands nothing down, and nothing becomes NaN."""
    p = problem(cell, num_layers=2, dropout=1.0, dropout_seed=0)
    (output, _), got = p.forward()[:2], dataclasses.replace(p, d_state_n=None).gradients()
    upper = {k.replace("_l1", "_l0"): v for k, v in p.module.state_dict().items() if k.endswith("_l1")}
    alone = make(cell, output.shape[-1], 7, dtype=np.float64)
    alone.load_state_dict(upper)
    second = tuple(s[1:] for s in p.state) if isinstance(p.state, tuple) else p.state[1:]
    assert_same_bits(output, alone(np.zeros_like(output), second)[0])
    for name, g in got.items():
        assert np.isfinite(g).all()
        if name == "x" or name.endswith("_l0"):
            assert not g.any()


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_gradients_of_a_million_equal_steps(cell):
    """Silence, or a sensor at rest: added one by one, a million equal terms drift by a percent."""
    steps, rows = 1000, 1000
    module, wide = (make(cell, 2, 4, dtype=dtype) for dtype in (np.float32, np.float64))
    wide.load_state_dict(module.state_dict())
    gradients = []
    for m, batch in ((wide, 1), (module, rows)):
        tape = m.forward(np.full((steps, batch, 2), 0.25, m.dtype))[2]
        d_output = np.full((steps, batch, 4), np.float32(1 / (steps * rows)), m.dtype)
        gradients.append(m.backward(tape, d_output, input_gradient=False)[2])
    exact = {name: rows * g for name, g in gradients[0].items()}  # all rows are alike
    assert_close_gradients(gradients[1], exact, 1e-5)
