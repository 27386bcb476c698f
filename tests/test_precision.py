"""Products of less than float32: every cell and option in each precision, its bits, its files, its errors."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest

import gatedrnn as gr
from gatedrnn import _core
from gatedrnn.demo import language_model
from gradients import (
    assert_close_gradients,
    assert_same_gradients,
    gradient_tolerance,
    problem,
)
from helpers import (
    CELLS,
    CELLS_AND_PROJECTION,
    HAS_FMA,
    assert_same_bits,
    build,
    directions,
    flat,
    in_pieces,
    normal,
    rows_of,
    state_of,
    truth,
)
from tolerance import tolerance

# How far a product of two numbers may be off, in parts of the largest weight times the operand. bfloat16
# rounds both by up to 2**-8 of themselves. Two pieces of bfloat16 leave 2**-17 of each, and the product of
# the smaller pieces, 2**-16, is left out. int8 rounds weights by up to 1/254 of their row's largest, operands
# by much less.
EPS = {"bfloat16": 2.0**-7, "bfloat16x3": 2.0**-15, "int8": 2.0**-7}
FOR_TRAINING = ("bfloat16", "bfloat16x3")
LEAST_HIDDEN_SIZE = 17  # narrower modules compute in float32

precisions = pytest.mark.parametrize("precision", EPS)
precisions_for_training = pytest.mark.parametrize("precision", FOR_TRAINING)
cells = pytest.mark.parametrize("cell", CELLS)
cells_and_projection = pytest.mark.parametrize("cell", CELLS_AND_PROJECTION)
needs_fma = pytest.mark.skipif(not HAS_FMA, reason="the baseline kernels promise run-to-run equality only")


def from_products(module, steps):
    """How far a state of order 1 may be off for the rounding of factors.

    A weight is at most 1/sqrt(H) and an operand of order 1, so each of the I + H products of a pre-activation
    is off by up to eps / sqrt(H), in either direction, and their sum by eps * sqrt((I + H) / H) (a random
    walk, as in `tolerance`); those of a projection by eps more. Most products are off by less than a third of
    that, which leaves room for the largest of many elements. The errors of steps and layers add up.
    """
    width, hidden = module.input_size, module.hidden_size
    if module.num_layers > 1:
        width = max(width, directions(module) * hidden)
    each = np.sqrt((width + hidden) / hidden) + bool(getattr(module, "proj_size", 0))
    return EPS[module.precision] * each * steps * module.num_layers


def check(module, cell, x, state=None, lengths=None):
    """Compare with the reference in float64, and where bits are promised with rows and steps alone."""
    result = module(x, state, lengths=lengths)
    steps = x.shape[1] if x.ndim == 3 and module.batch_first else x.shape[0]
    projection = getattr(module, "proj_size", 0)
    width = max(module.input_size, directions(module) * module.hidden_size)
    accumulations = 2 + width + module.hidden_size + projection
    for actual, expected in zip(flat(result), flat(truth(module, cell, x, state, lengths)), strict=True):
        assert actual.dtype == np.float32
        assert actual.shape == expected.shape
        scale = max(1.0, float(np.abs(expected).max()))
        allowed = scale * from_products(module, steps)
        allowed += tolerance(np.float32, cell, accumulations, steps, module.num_layers, scale)
        error = np.abs(actual - expected).max()
        assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"  # false for NaN
    if HAS_FMA:
        assert_same_bits(result, in_pieces(module, x, state, lengths))
    return result


# --- numbers --------------------------------------------------------------------------------------


@cells
@precisions
@pytest.mark.parametrize(
    ("input_size", "hidden_size", "batch"), [(17, 33, 5), (33, 17, 1), (64, 129, 3), (129, 64, 18)]
)
def test_sizes(cell, precision, input_size, hidden_size, batch):
    module = build(cell, input_size, hidden_size, precision=precision)
    check(module, cell, normal((4, batch, input_size)), state_of(module, batch))


@cells
@precisions
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_options(cell, precision, bias, bidirectional, num_layers):
    options = {"bias": bias, "bidirectional": bidirectional, "num_layers": num_layers}
    module = build(cell, 33, 17, precision=precision, **options)
    x = normal((4, 5, 33))
    check(module, cell, x, state_of(module, 5))
    check(module, cell, x, state_of(module, 5), [3, 4, 0, 1, 2])


@pytest.mark.parametrize("cell", ["lstm", "lstm_peephole", "lstm_coupled", "lstm_coupled_peephole"])
@precisions
def test_projection(cell, precision):
    module = build(cell, 17, 64, proj_size=33, num_layers=2, bidirectional=True, precision=precision)
    check(module, cell, normal((4, 5, 17)), state_of(module, 5), [4, 1, 0, 3, 2])


@cells
@precisions
def test_layouts(cell, precision):
    module = build(cell, 33, 17, batch_first=True, precision=precision)
    x = normal((5, 4, 33))
    result = check(module, cell, x)
    out = np.empty((5, 4, 34), np.float32)[..., ::2]
    assert module(x[:, ::-1][:, ::-1], out=out)[0] is out
    assert_same_bits(np.ascontiguousarray(out), result[0])
    check(module, cell, x[2])


@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before", "rnn_tanh"])
@precisions
@pytest.mark.parametrize(("input_size", "hidden_size"), [(1100, 33), (17, 600)])
def test_sums_of_several_blocks(cell, precision, input_size, hidden_size):
    module = build(cell, input_size, hidden_size, precision=precision)
    check(module, cell, normal((2, 3, input_size)), state_of(module, 3))


@pytest.mark.parametrize("batch", [2, 3, 4, 5, 6, 7, 8, 13, 16, 33, 67])
@precisions
def test_every_batch_tile(precision, batch):
    module = build("gru", 17, 33, precision=precision)
    check(module, "gru", normal((2, batch, 17)), state_of(module, batch))


@cells
@precisions
def test_the_precision_is_what_computes(cell, precision):
    """The bits are not float32's, and two pieces come closer than one."""
    x, errors = normal((4, 5, 64)), {}
    exact = flat(truth(build(cell, 64, 33), cell, x))
    for each in (None, "bfloat16", "bfloat16x3", "int8"):
        results = flat(build(cell, 64, 33, precision=each)(x))
        errors[each] = max(np.abs(a - e).max() for a, e in zip(results, exact, strict=True))
    assert errors[precision] > errors[None]
    assert errors["bfloat16x3"] < errors["bfloat16"] / 16


@cells
@precisions
def test_narrow_modules_compute_in_float32(cell, precision):
    x = normal((4, 5, 33))
    for hidden_size in (1, LEAST_HIDDEN_SIZE - 1):
        assert_same_bits(
            build(cell, 33, hidden_size, precision=precision)(x), build(cell, 33, hidden_size)(x)
        )
    wide = build(cell, 33, LEAST_HIDDEN_SIZE, precision=precision)(x)
    assert not np.array_equal(wide[0], build(cell, 33, LEAST_HIDDEN_SIZE)(x)[0])


@cells
@precisions
def test_zeros(cell, precision):
    """Rows and channels of which no number is the largest."""
    module = build(cell, 17, 33, precision=precision)
    weights = module.state_dict()
    weights["weight_ih_l0"][5] = 0
    weights["weight_hh_l0"][7] = 0
    module.load_state_dict(weights)
    x = normal((4, 5, 17))
    x[1, 2] = 0
    x[:, 4] = 0
    check(module, cell, x)


@cells
@precisions
@pytest.mark.parametrize("factor", [2.0**-40, 2.0**40])
def test_inputs_of_another_size(cell, precision, factor):
    """The errors are relative: weights that undo it give nearly the same results."""
    module = build(cell, 33, 17, precision=precision)
    weights, x = module.state_dict(), normal((4, 5, 33))
    expected = module(x)
    weights["weight_ih_l0"] /= np.float32(factor)
    module.load_state_dict(weights)
    for actual, plain in zip(flat(module(x * np.float32(factor))), flat(expected), strict=True):
        np.testing.assert_allclose(
            actual, plain, atol=from_products(module, 4) * max(1.0, np.abs(plain).max())
        )


# --- the same bits --------------------------------------------------------------------------------


@needs_fma
@cells_and_projection
@precisions
def test_row_alone_equals_row_in_any_batch(cell, precision):
    module = build(cell, 33, 65, precision=precision)
    x, state = normal((3, 67, 33)), state_of(module, 67)
    alone = [module(x[:, b : b + 1], rows_of(state, slice(b, b + 1))) for b in range(67)]
    columns = [np.concatenate(parts, axis=1) for parts in zip(*map(flat, alone), strict=True)]
    for batch in range(2, 68, 3):
        for rows in (slice(0, batch), slice(67 - batch, 67)):
            result = module(x[:, rows], rows_of(state, rows))
            for actual, expected in zip(flat(result), columns, strict=True):
                assert_same_bits(actual, expected[:, rows])


@cells_and_projection
@precisions
@pytest.mark.parametrize(
    ("input_size", "hidden_size", "batch", "steps", "options"),
    [
        (33, 17, 5, 6, {}),
        (257, 512, 1, 8, {}),
        (129, 257, 67, 4, {}),
        (64, 129, 33, 8, {"bidirectional": True, "num_layers": 2}),
        (64, 129, 2, 60, {"num_layers": 3}),
    ],
)
def test_thread_counts_agree(cell, precision, input_size, hidden_size, batch, steps, options):
    module = build(cell, input_size, hidden_size, precision=precision, **options)
    x, lengths = normal((steps, batch, input_size)), np.random.default_rng(0).integers(0, steps + 1, batch)
    with gr.num_threads(1):
        expected = module(x), module(x, lengths=lengths)
    with gr.num_threads(2):
        assert_same_bits(module(x), expected[0])
        assert_same_bits(module(x, lengths=lengths), expected[1])


@needs_fma
@cells_and_projection
@precisions
@pytest.mark.parametrize("batch", [1, 3, 17])
def test_streams_and_chunks_equal_the_whole(cell, precision, batch):
    module = build(cell, 33, 64, num_layers=2, precision=precision)
    x = normal((20, batch, 33))
    output, state = module(x)
    stream = module.stream(batch)
    assert_same_bits(np.stack([stream.step(x_t) for x_t in x]), output)
    assert_same_bits((output, stream.state), (output, state))
    first, middle = module(x[:7])
    second, end = module(x[7:], middle)
    assert_same_bits((np.concatenate([first, second]), end), (output, state))


@cells_and_projection
@precisions
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_row_stays_in_its_row(cell, precision, bad):
    module = build(cell, 17, 33, bidirectional=True, precision=precision)
    for batch in (2, 6, 32):
        x, others = normal((4, batch, 17)), np.arange(batch) != batch // 2
        poisoned = x.copy()
        poisoned[1, ~others] = bad
        for actual, expected in zip(flat(module(poisoned)), flat(module(x)), strict=True):
            assert_same_bits(
                np.ascontiguousarray(actual[:, others]), np.ascontiguousarray(expected[:, others])
            )


@cells_and_projection
@precisions
def test_nan_is_not_lost(cell, precision):
    module = build(cell, 17, 33, precision=precision)
    x, state = normal((4, 3, 17)), state_of(module, 3)
    x[1, 0, 5] = np.nan
    output, _ = module(x, state)
    assert np.isfinite(output[0]).all()
    assert np.isnan(output[1:, 0]).all()
    assert np.isfinite(output[:, 1:]).all()
    flat((x, state))[1][0, 2, 3] = np.nan
    assert np.isnan(module(x, state)[0][:, 2]).all()


@cells
@precisions
def test_padding_is_never_read(cell, precision):
    module = build(cell, 17, 33, precision=precision)
    x, lengths = normal((6, 4, 17)), [6, 2, 0, 3]
    expected = module(x, lengths=lengths)
    x[np.arange(6)[:, None] >= lengths] = np.nan
    assert_same_bits(module(x, lengths=lengths), expected)


# --- training -------------------------------------------------------------------------------------


def case(cell, precision, **options):
    """The same problem in a precision, and in float64."""
    arguments = dict(input_size=33, hidden_size=64, batch=5, steps=4, lengths=[4, 1, 0, 3, 2], **options)
    return problem(cell, dtype=np.float32, precision=precision, **arguments), problem(cell, **arguments)


@cells_and_projection
@precisions_for_training
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["one", "stack"])
def test_gradients(cell, precision, options):
    """A gradient is a sum like a state's, of products of what is as far off as the state."""
    low, exact = case(cell, precision, **options)
    relative = 2 * from_products(low.module, low.steps) + gradient_tolerance(low)
    gradients = low.gradients()
    assert all(gradient.dtype == np.float32 for gradient in gradients.values())
    assert_close_gradients(gradients, exact.gradients(), relative)


@cells_and_projection
@precisions_for_training
def test_training_has_the_bits_of_a_call(cell, precision):
    p, _ = case(cell, precision, num_layers=2)
    expected = p.results()
    for recompute in (False, True):
        assert_same_bits(p.forward(recompute=recompute)[:2], expected)
    assert_same_gradients(p.gradients(recompute=True), p.gradients())


@cells_and_projection
@precisions_for_training
@pytest.mark.parametrize(("batch", "steps"), [(1, 40), (33, 8)])
def test_gradients_of_any_number_of_threads(cell, precision, batch, steps):
    p = problem(cell, 65, 129, batch, steps, dtype=np.float32, precision=precision, num_layers=2)
    with gr.num_threads(1):
        expected = p.gradients()
    with gr.num_threads(2):
        assert_same_gradients(p.gradients(), expected)


@precisions_for_training
def test_dropout(precision):
    p = problem(
        "gru", 33, 64, 5, 4, dtype=np.float32, precision=precision, num_layers=2, dropout=0.5, dropout_seed=3
    )
    exact = problem("gru", 33, 64, 5, 4, num_layers=2, dropout=0.5, dropout_seed=3)
    relative = 4 * from_products(p.module, p.steps) + gradient_tolerance(p)  # what is kept counts twice
    assert_close_gradients(p.gradients(), exact.gradients(), relative)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_training_ends_where_float32_does(cell):
    """A language model's loss on text held out, after as many updates."""
    text = language_model.documentation_text()[:100_000]
    losses = {}
    for precision in (None, *FOR_TRAINING):
        model = language_model.CharacterModel(cell, 64, language_model.vocabulary_of(text))
        model.net.rnn.to("cpu", precision=precision)
        curve = language_model.fit(model, model.encode(text), language_model.Budget(0, epochs=2))
        losses[precision] = curve.held_out[-1][1]
    print(losses)
    assert losses["bfloat16"] == pytest.approx(losses[None], rel=0.01)
    assert losses["bfloat16x3"] == pytest.approx(losses[None], rel=0.001)


def test_a_tape_keeps_its_precision():
    p, _ = case("lstm", "bfloat16")
    expected, tape = p.gradients(), p.forward()[2]
    p.module.to("cpu")
    d_x = p.module.backward(tape, p.d_output, p.d_state_n)[0]
    assert_same_bits(d_x, expected["x"])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("inputs", "plain"), [(1, True), (16, True), (17, False)])
def test_int8_leaves_few_inputs_to_float32(cell, inputs, plain):
    """The first step from a state of zeros has no other products."""
    x = normal((1, 3, inputs))
    expected, _ = build(cell, inputs, 33)(x)
    output, _ = build(cell, inputs, 33, precision="int8")(x)
    assert np.array_equal(output, expected) == plain


@pytest.mark.parametrize("hidden_size", [7, 33])
def test_int8_is_not_for_training(hidden_size):
    """Also where the module is so narrow that it computes in float32."""
    module = gr.GRU(17, hidden_size, num_layers=2, dropout=0.5, seed=0, precision="int8")
    x, before = normal((4, 5, 17)), pickle.dumps(module._dropout_generator)
    output = module(x)
    with pytest.raises(
        ValueError, match=r"precision: expected None, 'bfloat16' or .* for training, got 'int8'"
    ):
        module.forward(x)
    assert pickle.dumps(module._dropout_generator) == before
    assert_same_bits(module(x), output)
    module.to("cpu").forward(x)


# --- where a precision comes from and goes to -----------------------------------------------------


@cells
@precisions
def test_files_and_copies(cell, precision, tmp_path):
    module = build(cell, 17, 33, num_layers=2, precision=precision)
    x = normal((4, 5, 17))
    expected = module(x)
    module.save(tmp_path / "module")
    copies = (
        gr.load(tmp_path / "module"),
        copy.copy(module),
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
    )
    for copied in copies:
        assert (copied.device, copied.precision) == ("cpu", precision)
        assert_same_bits(copied(x), expected)


@cells
@precisions
def test_copies_of_a_stream(cell, precision):
    module = build(cell, 17, 33, precision=precision)
    x = normal((4, 5, 17))
    expected, _ = module(x)
    stream = module.stream(5)
    stream.step(x[0])
    module.to("cpu")
    for copied in (copy.copy(stream), copy.deepcopy(stream), pickle.loads(pickle.dumps(stream)), stream):
        steps = [copied.step(x_t) for x_t in x[1:]]
        if HAS_FMA:
            assert_same_bits(np.stack(steps), expected[1:])


@precisions
def test_to(precision):
    """There and back: the parameters are as they were, and so are the bits."""
    module, x = build("lstm", 17, 33), normal((4, 5, 17))
    plain = module(x)
    weights = module.state_dict()
    assert module.to("cpu", precision) is module
    assert module.precision == precision
    low = module(x)
    assert not np.array_equal(low[0], plain[0])
    assert_same_bits(build("lstm", 17, 33, precision=precision)(x), low)
    for name, array in module.state_dict().items():
        assert_same_bits(array, weights[name])
    assert module.to("cpu").precision is None
    assert_same_bits(module(x), plain)


@precisions
def test_changed_parameters(precision):
    module, x = build("gru", 17, 33, precision=precision), normal((4, 5, 17))
    module(x)
    module.weight_hh_l0[...] = build("gru", 17, 33, seed=1).weight_hh_l0
    fresh = build("gru", 17, 33, precision=precision)
    fresh.load_state_dict(module.state_dict())
    assert_same_bits(module(x), fresh(x))


@pytest.mark.parametrize("precision", ["tf32", 7])
def test_a_file_of_another_precision(precision, tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    path = tmp_path / "module"
    module = build("gru", 17, 33, precision="int8")
    module.save(path)
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    config = json.loads(metadata["config"])
    assert config["precision"] == "int8"
    config["precision"] = precision
    save_file(module.state_dict(), path, metadata | {"config": json.dumps(config)})
    with pytest.raises(ValueError, match=rf"{path}: .*precision: expected 'bfloat16' .*, got {precision!r}"):
        gr.load(path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"precision": "float16"}, ValueError, "got 'float16'"),
        ({"precision": "tf32"}, ValueError, "got 'tf32'"),
        ({"precision": "float32"}, ValueError, "got 'float32'"),
        ({"precision": True}, TypeError, "got True (bool)"),
    ],
)
def test_unknown_precisions(arguments, error, message):
    for constructor in (gr.LSTM, gr.GRU, gr.RNN):
        with pytest.raises(error) as raised:
            constructor(3, 4, **arguments)
        expected = "precision: expected 'bfloat16' or 'bfloat16x3' or 'int8' on 'cpu', "
        assert str(raised.value) == expected + message
    module = build("gru", precision="bfloat16")
    with pytest.raises(error):
        module.to("cpu", **arguments)
    assert module.precision == "bfloat16"


@precisions
def test_float64_has_one_precision(precision):
    expected = f"precision: expected None for float64, got '{precision}'"
    with pytest.raises(ValueError, match=expected):
        gr.GRU(3, 33, dtype=np.float64, precision=precision)
    with pytest.raises(ValueError, match=expected):
        gr.GRU(3, 33, dtype=np.float64).to("cpu", precision)


# --- what it takes, and who computes it -----------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_packs_take_a_half_and_a_quarter(cell):
    plain = build(cell, 128, 128).packed_nbytes
    weights = sum(array.nbytes for array in build(cell, 128, 128).state_dict().values())
    assert weights <= plain + 4096 <= 1.1 * weights
    for precision, part in {"bfloat16": 1 / 2, "bfloat16x3": 1, "int8": 1 / 4}.items():
        assert (
            part * plain <= build(cell, 128, 128, precision=precision).packed_nbytes <= (part + 0.05) * plain
        )


@precisions_for_training
def test_packs_for_backward_count_once_there_are_any(precision):
    module = build("gru", 128, 128, precision=precision)
    module(normal((2, 3, 128)))
    before = module.packed_nbytes
    module.forward(normal((2, 3, 128)))
    assert 1.9 * before <= module.packed_nbytes <= 2.1 * before


def test_the_engine_says_which_formats_it_has(capsys):
    formats = gr.show_config("dict")["formats"]
    assert set(formats) == {"float32", "float64", *EPS}
    assert set(formats.values()) <= set(_core.machine()["compiled"])
    gr.show_config()
    assert f"bfloat16x3 {formats['bfloat16x3']}" in capsys.readouterr().out
