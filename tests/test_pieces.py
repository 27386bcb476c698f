"""`mask` and `resets`: the bits of the pieces of rows run by themselves, forward and backward."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

import gatedrnn as gr
from gradients import (
    Problem,
    assert_close_gradients,
    assert_same_gradients,
    assert_slopes,
    gradient_tolerance,
    named,
    parts,
    problem,
)
from helpers import (
    CELLS_AND_PROJECTION,
    DTYPES,
    assert_same_bits,
    build,
    directions,
    flat,
    normal,
    rows_of,
    state_of,
)

cells = pytest.mark.parametrize("cell", CELLS_AND_PROJECTION)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
both_outputs = pytest.mark.parametrize("mask_output", ["zeros", "previous"])

# (I, H, B, T): a sample of 1, 7, 17, 33 in every position; few units with many rows have these in the lanes
SIZES = [(1, 7, 17, 9), (7, 2, 33, 7), (17, 33, 1, 33), (33, 17, 7, 17), (5, 3, 17, 11), (7, 17, 3, 1)]


@dataclasses.dataclass(frozen=True)
class Marks:
    """The arguments of a call, (T, B) each, or None."""

    mask: np.ndarray | None = None
    resets: np.ndarray | None = None
    lengths: list[int] | None = None

    def arguments(self, batch_first=False):
        def laid_out(flags):
            return flags.T if flags is not None and batch_first else flags

        return {"mask": laid_out(self.mask), "resets": laid_out(self.resets), "lengths": self.lengths}


def random_marks(steps, batch, *, seed=0, skipped=0.3, reset=0.2, lengths=True):
    rng = np.random.default_rng(seed)
    return Marks(
        rng.random((steps, batch)) >= skipped,
        rng.random((steps, batch)) < reset,
        rng.integers(0, steps, batch, endpoint=True).tolist() if lengths else None,
    )


KINDS = {
    "mask": lambda t, b: dataclasses.replace(random_marks(t, b, lengths=False), resets=None),
    "resets": lambda t, b: dataclasses.replace(random_marks(t, b, lengths=False), mask=None),
    "both": lambda t, b: random_marks(t, b, lengths=False),
    "lengths": random_marks,
    "most_skipped": lambda t, b: random_marks(t, b, skipped=0.9),
    "left_padding": lambda t, b: Marks(np.arange(t)[:, np.newaxis] >= np.arange(b) % (t + 1)),
    "all_skipped": lambda t, b: Marks(np.zeros((t, b), bool), random_marks(t, b).resets),
    "none_skipped": lambda t, b: Marks(np.ones((t, b), bool), np.zeros((t, b), bool)),
    "every_step_reset": lambda t, b: Marks(None, np.ones((t, b), bool)),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@dataclasses.dataclass(frozen=True)
class Piece:
    """Steps of a row between two borders, and whether the row's states are its own, by direction."""

    row: int
    times: list[int]
    begins: tuple[bool, bool]
    ends: tuple[bool, bool]


def pieces_of(marks, steps, batch):
    """All pieces of all rows, empty ones too."""
    pieces = []
    for row in range(batch):
        length = steps if marks.lengths is None else marks.lengths[row]
        at_start = marks.resets is not None and length > 0 and bool(marks.resets[0, row])
        borders = [t for t in range(1, length) if marks.resets is not None and marks.resets[t, row]]
        edges = [0, *borders, length]
        for i, (begin, end) in enumerate(itertools.pairwise(edges)):
            times = [t for t in range(begin, end) if marks.mask is None or marks.mask[t, row]]
            first, last = i == 0, i == len(edges) - 2
            pieces.append(Piece(row, times, (first and not at_start, last), (last, first)))
    return pieces


def tracks_of(module, flags):
    """By direction to by track, as an array of 0 and 1 that broadcasts with a state's row."""
    of_layer = flags[: directions(module)]
    return np.array(of_layer * module.num_layers).reshape(-1, 1, 1)


def chosen(module, state, flags):
    """A state's row where the flags say so, zeros elsewhere."""
    if state is None:
        return None
    tracks = tracks_of(module, flags)
    picked = tuple(np.where(tracks, part, 0).astype(part.dtype) for part in parts(state))
    return picked if isinstance(state, tuple) else picked[0]


def by_hand(module, x, state, marks, mask_output="zeros"):
    """Each piece a call of its own; time first."""
    steps, batch = x.shape[:2]
    state = zeros_like_state(module, batch) if state is None else state
    output = np.zeros((steps, batch, output_width(module)), x.dtype)
    state_n = tuple(np.zeros_like(part) for part in parts(state))
    for piece in pieces_of(marks, steps, batch):
        one = slice(piece.row, piece.row + 1)
        y, end = module(x[piece.times, one], chosen(module, rows_of(state, one), piece.begins))
        output[piece.times, one] = y
        for whole, part in zip(state_n, parts(end), strict=True):
            whole[:, one] += np.where(tracks_of(module, piece.ends), part, 0)
    if mask_output == "previous":
        for row, t, column, source in repeats(module, marks, steps, batch):
            output[t, row, column] = output[source, row, column]
    return output, state_n if isinstance(state, tuple) else state_n[0]


def repeats(module, marks, steps, batch):
    """(row, step, columns, step whose output is repeated there)."""
    width = output_width(module) // directions(module)
    pieces = pieces_of(marks, steps, batch)
    for row in range(batch):
        valid = sorted(t for piece in pieces if piece.row == row for t in piece.times)
        length = steps if marks.lengths is None else marks.lengths[row]
        for t in set(range(length)) - set(valid):
            before, after = [v for v in valid if v < t], [v for v in valid if v > t]
            if before:
                yield row, t, slice(width), before[-1]
            if after and module.bidirectional:
                yield row, t, slice(width, 2 * width), after[0]


def output_width(module):
    return directions(module) * (getattr(module, "proj_size", 0) or module.hidden_size)


def zeros_like_state(module, batch):
    state = state_of(module, batch)
    zeros = tuple(np.zeros_like(part) for part in parts(state))
    return zeros if isinstance(state, tuple) else zeros[0]


def with_nan(x, marks):
    """x with NaN wherever a step is skipped."""
    x = x.copy()
    valid = np.zeros(x.shape[:2], bool)
    for piece in pieces_of(marks, *x.shape[:2]):
        valid[piece.times, piece.row] = True
    x[~valid] = np.nan
    return x


# --- forward --------------------------------------------------------------------------------------


@cells
@dtypes
@kinds
def test_bits_of_the_pieces(cell, dtype, kind):
    for input_size, hidden_size, batch, steps in SIZES:
        module = build(cell, input_size, hidden_size, dtype=dtype)
        marks = KINDS[kind](steps, batch)
        x = with_nan(normal((steps, batch, input_size), dtype=dtype), marks)
        for state in (None, state_of(module, batch)):
            result = module(x, state, **marks.arguments())
            assert_same_bits(result, by_hand(module, x, state, marks))
            assert_same_bits(module.forward(x, state, **marks.arguments())[:2], result)


@cells
@both_outputs
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("hidden_size", [3, 17])
def test_stacks(cell, mask_output, bidirectional, hidden_size):
    module = build(cell, 7, hidden_size, num_layers=3, bidirectional=bidirectional)
    for kind in KINDS.values():
        marks = kind(11, 17)
        x, state = with_nan(normal((11, 17, 7)), marks), state_of(module, 17)
        result = module(x, state, mask_output=mask_output, **marks.arguments())
        assert_same_bits(result, by_hand(module, x, state, marks, mask_output))
        taped = module.forward(x, state, mask_output=mask_output, **marks.arguments())
        assert_same_bits(taped[:2], result)


@both_outputs
def test_layouts(mask_output):
    module = build("gru", 7, 17, bidirectional=True)
    first = build("gru", 7, 17, bidirectional=True, batch_first=True)
    marks = random_marks(11, 5)
    x, state = normal((11, 5, 7)), state_of(module, 5)
    output, state_n = by_hand(module, x, state, marks, mask_output)
    expected = output.swapaxes(0, 1), state_n
    given = marks.arguments(batch_first=True)
    assert_same_bits(first(x.swapaxes(0, 1), state, mask_output=mask_output, **given), expected)
    room = np.full((5, 22, 34), 9, np.float32)[:, ::2]
    first(x.swapaxes(0, 1), state, mask_output=mask_output, out=room, **given)
    assert_same_bits(room, expected[0])
    lists = {
        name: None if flags is None else flags.tolist()
        for name, flags in vars(marks).items()
        if name != "lengths"
    }
    assert_same_bits(
        module(x, state, lengths=marks.lengths, mask_output=mask_output, **lists), (output, state_n)
    )


def test_unbatched():
    module = build("lstm", 7, 17, num_layers=2)
    marks = random_marks(11, 1, lengths=False)
    x, state = normal((11, 1, 7)), state_of(module, 1)
    expected = [array.squeeze(1) for array in flat(module(x, state, **marks.arguments()))]
    one = {name: flags[:, 0] for name, flags in marks.arguments().items() if flags is not None}
    result = module(x[:, 0], tuple(part[:, 0] for part in state), **one)
    for actual, wanted in zip(flat(result), expected, strict=True):
        assert_same_bits(actual, wanted)


@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (5, 0), (0, 0)])
def test_nothing(steps, batch):
    module = build("lstm", num_layers=2, bidirectional=True)
    x, state = normal((steps, batch, 5)), state_of(module, batch)
    flags = np.zeros((steps, batch), bool)
    output, state_n, tape = module.forward(x, state, mask=flags, resets=flags)
    assert output.shape == (steps, batch, 14)
    assert_same_bits((output, state_n), (np.zeros_like(output), state))
    d_x, d_state, gradients = module.backward(tape, None, state)
    assert d_x.shape == x.shape
    assert_same_bits((d_x, d_state), (d_x, state))
    assert not any(gradient.any() for gradient in gradients.values())


def test_no_steps_of_a_single_row():
    module = build("gru")
    output, state_n = module(normal((0, 5)), mask=[], resets=[])
    assert output.shape == (0, 7)
    assert not state_n.any()


@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16x3", "int8"])
def test_precisions(precision):
    module = build("lstm", 33, 33, num_layers=2, bidirectional=True).to("cpu", precision=precision)
    marks = random_marks(9, 7)
    x, state = with_nan(normal((9, 7, 33)), marks), state_of(module, 7)
    assert_same_bits(module(x, state, **marks.arguments()), by_hand(module, x, state, marks))


@pytest.mark.parametrize("hidden_size", [3, 33])
def test_threads_change_no_bit(hidden_size):
    module = build("lstm", 33, hidden_size, num_layers=2, bidirectional=True)
    marks = random_marks(65, 33)
    x, state = normal((65, 33, 33)), state_of(module, 33)
    results = []
    for threads in (1, 2, 3):
        with gr.num_threads(threads):
            output, state_n, tape = module.forward(x, state, mask_output="previous", **marks.arguments())
            again = module(x, state, mask_output="previous", **marks.arguments())
            gradients = named(*module.backward(tape, output, state_n))
        results.append([*flat((output, state_n)), *flat(again), *gradients.values()])
    for other in results[1:]:
        for actual, expected in zip(other, results[0], strict=True):
            assert_same_bits(actual, expected)


def test_marks_that_say_nothing_change_nothing():
    module = build("gru", 7, 17, num_layers=2)
    x = normal((9, 5, 7))
    plain = module(x)
    assert_same_bits(module(x, mask_output="previous"), plain)
    assert_same_bits(module(x, mask=np.ones((9, 5), bool), mask_output="previous"), plain)


# --- backward -------------------------------------------------------------------------------------


def ragged(module, x, state, marks, d_output, d_state_n, **options):
    """The gradients of calls whose rows are the pieces, longest first, put where they belong."""
    steps, batch = x.shape[:2]
    pieces = sorted(pieces_of(marks, steps, batch), key=lambda piece: -len(piece.times))
    most = max(32, 4096 // module.hidden_size, batch)
    by_x = np.zeros_like(x)
    by_state = tuple(np.zeros_like(part) for part in parts(state))
    gradients = {name: np.zeros_like(value) for name, value in module.state_dict().items()}
    for first in range(0, max(1, len(pieces)), most):
        some, before = pieces[first : first + most], gradients if first else None
        gradients = add_ragged(module, some, x, state, d_output, d_state_n, by_x, by_state, before, **options)
    return named(by_x, by_state if isinstance(state, tuple) else by_state[0], gradients)


def add_ragged(module, pieces, x, state, d_output, d_state_n, by_x, by_state, accumulate_into, **options):
    """One such call."""
    longest = max((len(piece.times) for piece in pieces), default=0)

    def rows(array):
        padded = np.zeros((longest, len(pieces), array.shape[-1]), array.dtype)
        for i, piece in enumerate(pieces):
            padded[: len(piece.times), i] = array[piece.times, piece.row]
        return padded

    def states(state, which):
        one = [chosen(module, rows_of(state, slice(p.row, p.row + 1)), getattr(p, which)) for p in pieces]
        joined = tuple(np.concatenate(arrays, axis=1) for arrays in zip(*map(parts, one), strict=True))
        return joined if isinstance(state, tuple) else joined[0]

    lengths = [len(piece.times) for piece in pieces]
    _, _, tape = module.forward(rows(x), states(state, "begins"), lengths=lengths, **options)
    d_x, d_state, gradients = module.backward(
        tape, rows(d_output), states(d_state_n, "ends"), accumulate_into=accumulate_into
    )
    for i, piece in enumerate(pieces):
        by_x[piece.times, piece.row] = d_x[: len(piece.times), i]
        for whole, part in zip(by_state, parts(d_state), strict=True):
            whole[:, piece.row] += np.where(tracks_of(module, piece.begins)[:, 0], part[:, i], 0)
    return gradients


def gathered(module, marks, d_output, mask_output):
    """The gradients of outputs, those of repeated ones added to the step they come from."""
    if mask_output == "zeros":
        return d_output
    total = d_output.copy()
    for row, t, column, source in sorted(repeats(module, marks, *d_output.shape[:2]), key=lambda r: r[:2]):
        total[source, row, column] += d_output[t, row, column]
    return total


@cells
@dtypes
@both_outputs
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_of_the_ragged_call(cell, dtype, mask_output, recompute):
    for (input_size, hidden_size, batch, steps), (name, kind) in zip(SIZES * 2, KINDS.items(), strict=False):
        two = name in ("both", "lengths", "left_padding", "every_step_reset")
        module = build(
            cell, input_size, hidden_size, dtype=dtype, num_layers=1 + two, bidirectional=name != "mask"
        )
        marks = kind(steps, batch)
        x = with_nan(normal((steps, batch, input_size), dtype=dtype), marks)
        d_output = normal((steps, batch, output_width(module)), dtype=dtype)
        state, d_state_n = state_of(module, batch), state_of(module, batch, seed=7)
        _, _, tape = module.forward(
            x, state, recompute=recompute, mask_output=mask_output, **marks.arguments()
        )
        actual = named(*module.backward(tape, d_output, d_state_n))
        d_output = gathered(module, marks, d_output, mask_output)
        assert_same_gradients(actual, ragged(module, x, state, marks, d_output, d_state_n))


@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16x3"])
def test_gradients_in_precisions(precision):
    module = build("lstm", 33, 33, num_layers=2, bidirectional=True).to("cpu", precision=precision)
    marks = random_marks(17, 7)
    x, d_output = with_nan(normal((17, 7, 33)), marks), normal((17, 7, 66), seed=3)
    state, d_state_n = state_of(module, 7), state_of(module, 7, seed=7)
    _, _, tape = module.forward(x, state, **marks.arguments())
    actual = named(*module.backward(tape, d_output, d_state_n))
    assert_same_gradients(actual, ragged(module, x, state, marks, d_output, d_state_n))


@cells
def test_gradients_are_sums_over_the_pieces(cell):
    """Beside each piece's own, of float64, added up."""
    p = problem(cell, 7, 17, 5, 17, dtype=np.float32)
    marks = random_marks(17, 5)
    _, _, tape = p.module.forward(p.x, p.state, **marks.arguments())
    actual = p.module.backward(tape, p.d_output, p.d_state_n)[2]
    twin = build(cell, 7, 17, dtype=np.float64)
    twin.load_state_dict(p.module.state_dict())
    expected = {name: np.zeros_like(value) for name, value in twin.state_dict().items()}
    for piece in pieces_of(marks, 17, 5):
        one = slice(piece.row, piece.row + 1)
        _, _, alone = twin.forward(p.x[piece.times, one], chosen(twin, rows_of(p.state, one), piece.begins))
        d_state_n = chosen(twin, rows_of(p.d_state_n, one), piece.ends)
        twin.backward(alone, p.d_output[piece.times, one], d_state_n, accumulate_into=expected)
    assert_close_gradients(actual, expected, gradient_tolerance(p))


@both_outputs
@pytest.mark.parametrize("cell", ["lstm_projected", "gru", "gru_reset_before", "rnn_tanh", "lstm_peephole"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_slopes(cell, mask_output, batch_first):
    marks = random_marks(6, 4, seed=3)
    given = problem(cell, 3, 4, 4, 6, num_layers=2, bidirectional=True, batch_first=batch_first)
    marked = Marked(
        **{field.name: getattr(given, field.name) for field in dataclasses.fields(given)},
        marks={**marks.arguments(batch_first), "mask_output": mask_output},
    )
    assert_slopes(marked)


@dataclasses.dataclass(frozen=True)
class Marked(Problem):
    """A problem with masks and resets."""

    marks: dict | None = None

    def forward(self, **options):
        return self.module.forward(
            self.x, self.state, **self.marks, dropout_seed=self.dropout_seed, **options
        )

    def results(self):
        return self.forward()[:2]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("hidden_size", [3, 17])
def test_dropout_depends_on_the_caller_s_places(recompute, hidden_size):
    """What is dropped of a step is what a plain call drops of it, whatever the pieces."""
    ones = build("rnn_relu", 1, hidden_size, num_layers=2, bias=False)
    zero = {name: np.zeros_like(value) for name, value in ones.state_dict().items()}
    eye = np.eye(hidden_size, dtype=np.float32)
    ones.load_state_dict({**zero, "weight_ih_l0": np.ones((hidden_size, 1)), "weight_ih_l1": eye})
    module = gr.RNN(1, hidden_size, 2, nonlinearity="relu", bias=False, dropout=0.5)
    module.load_state_dict(ones.state_dict())
    x = np.ones((9, 17, 1), np.float32)
    marks = random_marks(9, 17)
    plain = module.forward(x, dropout_seed=5)[0]
    output, _, tape = module.forward(
        x, mask=marks.mask, resets=marks.resets, dropout_seed=5, recompute=recompute
    )
    assert_same_bits(output, plain * marks.mask[:, :, np.newaxis])
    assert 0 < np.count_nonzero(plain) < plain.size
    d_x, _, _ = module.backward(tape, np.ones_like(output))
    assert_same_bits(d_x[:, :, 0], output.sum(-1))


def test_dropout_slopes():
    given = problem("lstm", 3, 4, 4, 6, num_layers=2, bidirectional=True, dropout=0.4, dropout_seed=3)
    fields = {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
    marked = Marked(**fields, marks=random_marks(6, 4, seed=3).arguments())
    assert_slopes(marked)


def test_gradients_accumulate_and_the_input_s_can_be_left_out():
    module = build("gru", 7, 17, num_layers=2)
    marks = random_marks(9, 5)
    x = normal((9, 5, 7))
    output, _, tape = module.forward(x, **marks.arguments())
    _, d_state, gradients = module.backward(tape, output)
    into = {name: np.ones_like(gradient) for name, gradient in gradients.items()}
    d_x, again, _ = module.backward(tape, output, accumulate_into=into, input_gradient=False)
    assert d_x is None
    assert_same_bits(again, d_state)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(into[name], 1 + gradient, rtol=0, atol=1e-5)


def test_a_gradient_stays_as_it_is():
    """Repeated outputs add to a copy of it."""
    module = build("gru", 7, 17)
    marks = random_marks(9, 5)
    output, _, tape = module.forward(normal((9, 5, 7)), mask_output="previous", **marks.arguments())
    d_output = normal(output.shape, seed=3)
    before = d_output.copy()
    module.backward(tape, d_output)
    assert_same_bits(d_output, before)


@pytest.mark.parametrize("hidden_size", [3, 33])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_tape_is_no_larger_than_a_plain_one(hidden_size, recompute):
    """Though one row is a long piece, and the others are many short ones."""
    module = build("lstm", 7, hidden_size, num_layers=2, dropout=0.1)
    steps, batch = 500, 33
    x = normal((steps, batch, 7))
    resets = np.ones((steps, batch), bool)
    resets[:, 0] = False
    plain = module.forward(x, recompute=recompute)[2].nbytes
    # What begins a piece is kept beside: h, and c.
    beginnings = 2 * module.num_layers * steps * batch * hidden_size * x.itemsize
    assert module.forward(x, resets=resets, recompute=recompute)[2].nbytes < 1.1 * plain + beginnings
    skewed = np.zeros((steps, batch), bool)
    skewed[:, 0] = True
    assert module.forward(x, mask=skewed, recompute=recompute)[2].nbytes < 1.1 * plain


# --- streams --------------------------------------------------------------------------------------


@cells
@dtypes
@pytest.mark.parametrize("batch", [1, 17])
def test_a_stream_s_steps_are_a_call_s(cell, dtype, batch):
    for hidden_size in (3, 17):
        module = build(cell, 7, hidden_size, num_layers=2, dtype=dtype)
        marks = random_marks(11, batch, lengths=False)
        x = with_nan(normal((11, batch, 7), dtype=dtype), marks)
        stream = module.stream(batch)
        stream.state = state = state_of(module, batch)
        outputs = [
            stream.step(x_t, resets=resets, mask=mask)
            for x_t, resets, mask in zip(x, marks.resets, marks.mask, strict=True)
        ]
        assert_same_bits((np.stack(outputs), stream.state), module(x, state, **marks.arguments()))


def test_a_stream_s_single_rows():
    module = build("gru", 7, 17)
    stream, other = module.stream(), module.stream()
    x = normal((4, 7))
    out = np.empty(17, np.float32)
    stream.step(x[0])
    assert stream.step(x[1], out, resets=[True], mask=[True]) is out
    assert_same_bits(out, other.step(x[1]))
    assert not stream.step(x[2], mask=np.array([False])).any()
    assert_same_bits(stream.state, other.state)
    stream.step(x[2], resets=[True], mask=[False])
    assert not stream.state.any()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mask": [1, 0]}, TypeError, "mask: expected booleans of shape (2,), got list of int64"),
        ({"resets": [True]}, ValueError, "resets: expected booleans of shape (2,), got shape (1,)"),
        (
            {"mask": np.ones((2, 1), bool)},
            ValueError,
            "mask: expected booleans of shape (2,), got shape (2, 1)",
        ),
    ],
)
def test_what_a_stream_refuses(arguments, error, message):
    stream = build("lstm").stream(2)
    stream.step(normal((2, 5)))
    before = stream.state
    with pytest.raises(error) as caught:
        stream.step(normal((2, 5)), **arguments)
    assert str(caught.value) == message
    for actual, expected in zip(stream.state, before, strict=True):
        assert_same_bits(actual, expected)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["__call__", "forward"])
@pytest.mark.parametrize("name", ["mask", "resets"])
@pytest.mark.parametrize(
    ("flags", "error", "got"),
    [
        (np.ones((9, 3)), TypeError, "dtype float64"),
        (np.ones((9, 3), np.uint8), TypeError, "dtype uint8"),
        ([[1] * 3] * 9, TypeError, "list of int64"),
        (True, ValueError, "shape ()"),
        (np.ones((3, 9), bool), ValueError, "shape (3, 9)"),
        (np.ones(9, bool), ValueError, "shape (9,)"),
        (np.ones((9, 3, 1), bool), ValueError, "shape (9, 3, 1)"),
        ("yes", TypeError, "str of <U3"),
    ],
    ids=str,
)
def test_what_is_refused(call, name, flags, error, got):
    module = build("gru")
    out = np.full((9, 3, 7), 5, np.float32)
    with pytest.raises(error) as caught:
        getattr(module, call)(
            normal((9, 3, 5)), **{name: flags}, **({"out": out} if call == "__call__" else {})
        )
    assert str(caught.value) == f"{name}: expected booleans of shape (9, 3), got {got}"
    assert (out == 5).all()


def test_masked_arrays_are_refused():
    module = build("gru")
    flags = np.ma.masked_array(np.ones((9, 3), bool), mask=np.zeros((9, 3), bool))
    with pytest.raises(TypeError, match=r"^mask: expected booleans without a mask, got MaskedArray$"):
        module(normal((9, 3, 5)), mask=flags)


@pytest.mark.parametrize("call", ["__call__", "forward"])
def test_words_for_skipped_outputs(call):
    run = getattr(build("gru"), call)
    with pytest.raises(ValueError, match=r"^mask_output: expected 'zeros' or 'previous', got 'last'$"):
        run(normal((9, 3, 5)), mask_output="last")
    with pytest.raises(TypeError, match=r"^mask_output: expected 'zeros' or 'previous', got None$"):
        run(normal((9, 3, 5)), mask_output=None)


def test_shapes_follow_the_layout():
    first = build("gru", batch_first=True)
    with pytest.raises(ValueError, match=r"^mask: expected booleans of shape \(3, 9\), got shape \(9, 3\)$"):
        first(normal((3, 9, 5)), mask=np.ones((9, 3), bool))
    with pytest.raises(ValueError, match=r"^resets: expected booleans of shape \(9,\), got shape \(9, 1\)$"):
        first(normal((9, 5)), resets=np.ones((9, 1), bool))
