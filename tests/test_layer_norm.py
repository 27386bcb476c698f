"""layer_norm=: against the reference, public numbers and differences; the bits; files; errors."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import gatedrnn as gr
import reference
from gradients import (
    assert_close_gradients,
    assert_same_gradients,
    assert_slopes,
    problem,
)
from helpers import CLASSES, DTYPES, assert_same_bits, build, flat, in_pieces, normal, state_of, truth

FORMS = [
    ("lstm", "products"),
    ("gru", "products"),
    ("lstm", "gates"),
    ("lstm_peephole", "gates"),
    ("lstm_coupled", "gates"),
    ("lstm_coupled_peephole", "gates"),
]
forms = pytest.mark.parametrize(("cell", "form"), FORMS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
SIZES = [(1, 1, 1), (7, 9, 15), (9, 7, 129), (17, 33, 4), (129, 31, 2), (5, 129, 33), (3, 4, 40)]


def others(cell):
    """Other functions and clips, which go together with a norm."""
    functions = (
        {"r": "hard_sigmoid", "n": "softsign"} if cell == "gru" else {"o": "hard_sigmoid", "h": "softsign"}
    )
    return {"activations": functions, "clip": 1.5, **({} if cell == "gru" else {"cell_clip": 0.6})}


def assert_close(actual, expected, dtype, amount=200):
    """Within `amount` roundings of values of order one, which norms make as large as they like."""
    for a, e in zip(flat(actual), flat(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=amount * np.finfo(dtype).eps)


# --- values ---------------------------------------------------------------------------------------


@forms
@dtypes
@pytest.mark.parametrize(("input_size", "hidden_size", "batch"), SIZES)
def test_sizes(cell, form, dtype, input_size, hidden_size, batch):
    module = build(
        cell,
        input_size,
        hidden_size,
        dtype=dtype,
        num_layers=2,
        bidirectional=True,
        layer_norm=form,
        layer_norm_eps=1e-3,
    )
    x, state, lengths = (
        normal((5, batch, input_size), dtype=dtype),
        state_of(module, batch),
        np.arange(batch) % 6,
    )
    result = module(x, state, lengths=lengths)
    assert all(a.dtype == dtype for a in flat(result))
    assert_close(result, truth(module, cell, x, state, lengths), dtype)


@forms
@dtypes
def test_with_other_options(cell, form, dtype):
    module = build(cell, 5, 17, dtype=dtype, layer_norm=form, layer_norm_eps=1e-3, **others(cell))
    x, state = normal((6, 3, 5), dtype=dtype), state_of(module, 3)
    assert_close(module(x, state), truth(module, cell, x, state), dtype)


@pytest.mark.parametrize("form", ["products", "gates"])
@dtypes
def test_with_a_projection(form, dtype):
    module = build("lstm_projected", 5, 33, dtype=dtype, layer_norm=form)
    x, state = normal((7, 3, 5), dtype=dtype), state_of(module, 3)
    assert_close(module(x, state), truth(module, "lstm", x, state), dtype)


@forms
def test_without_biases(cell, form):
    module = build(cell, 5, 17, layer_norm=form, bias=False)
    assert not [name for name in module.state_dict() if name.startswith("bias")]
    x, state = normal((6, 3, 5)), state_of(module, 3)
    assert_close(module(x, state), truth(module, cell, x, state), np.float32)


def test_parameters_of_a_new_module():
    """Weights of norms are ones, as those of torch.nn.LayerNorm."""
    lstm = gr.LSTM(3, 4, layer_norm="products", seed=0)
    shapes = {name: value.shape for name, value in lstm.state_dict().items() if "_ln" in name}
    assert shapes == {
        "weight_ln_ih_l0": (16,),
        "weight_ln_hh_l0": (16,),
        "weight_ln_c_l0": (4,),
        "bias_ln_c_l0": (4,),
    }
    assert (lstm.weight_ln_ih_l0 == 1).all()
    assert (lstm.weight_ln_c_l0 == 1).all()
    assert not lstm.bias_ln_c_l0.any()
    assert set(gr.GRU(3, 4, layer_norm="products").state_dict()) >= {"weight_ln_ih_l0", "weight_ln_hh_l0"}
    gates = gr.LSTM(3, 4, layer_norm="gates", coupled=True)
    assert gates.weight_ln_l0.shape == (12,)
    assert (gates.weight_ln_l0 == 1).all()


def test_moments_are_what_they_are_called():
    """A product that is the same for all units is normalised to 0, whatever its size; eps keeps it so."""
    module = gr.LSTM(1, 5, layer_norm="gates", layer_norm_eps=1e-8)
    values = {name: np.zeros(value.shape) for name, value in module.state_dict().items()}
    values |= {"weight_ih_l0": np.full((20, 1), 3.0), "weight_ln_l0": np.ones(20)}
    module.load_state_dict(values)
    assert not module(np.full((2, 1, 1), 1e3, np.float32))[0].any()


def test_large_mean():
    """The variance is that of the distances from the mean: no digits are lost beside a large one."""
    module = build("lstm", 1, 33, layer_norm="gates", dtype=np.float32)
    values = module.state_dict()
    values["weight_ih_l0"] = (1000 + normal((132, 1), seed=3)).astype(np.float32)
    values["weight_hh_l0"] = np.zeros((132, 33), np.float32)
    module.load_state_dict(values)
    x = np.ones((1, 1, 1), np.float32)
    assert_close(module(x), truth(module, "lstm", x), np.float32)


# --- public numbers -------------------------------------------------------------------------------

# Of NNAPI's and TFLite's tests of their LSTM (lstm_test.cc in tensorflow/lite/kernels).
W = {
    "i": [
        0.5, 0.6, 0.7, -0.8, -0.9, 0.1, 0.2, 0.3, -0.4, 0.5,
        -0.8, 0.7, -0.6, 0.5, -0.4, -0.5, -0.4, -0.3, -0.2, -0.1,
    ],
    "f": [
        -0.6, -0.1, 0.3, 0.2, 0.9, -0.5, -0.2, -0.4, 0.3, -0.8,
        -0.4, 0.3, -0.5, -0.4, -0.6, 0.3, -0.4, -0.6, -0.5, -0.5,
    ],
    "g": [
        -0.4, -0.3, -0.2, -0.1, -0.5, 0.5, -0.2, -0.3, -0.2, -0.6,
        0.6, -0.1, -0.4, -0.3, -0.7, 0.7, -0.9, -0.5, 0.8, 0.6,
    ],
    "o": [
        -0.8, -0.4, -0.2, -0.9, -0.1, -0.7, 0.3, -0.3, -0.8, -0.2,
        0.6, -0.2, 0.4, -0.7, -0.3, -0.5, 0.1, 0.5, -0.6, -0.4,
    ],
}  # fmt: skip
R = {
    "i": [-0.2, -0.3, 0.4, 0.1, -0.5, 0.9, -0.2, -0.3, -0.7, 0.05, -0.2, -0.6],
    "f": [-0.5, -0.3, -0.5, -0.2, 0.6, 0.4, 0.9, 0.3, -0.1, 0.2, 0.5, 0.2],
    "g": [-0.3, 0.2, 0.1, -0.3, 0.8, -0.08, -0.2, 0.3, 0.8, -0.6, -0.1, 0.2],
    "o": [0.3, -0.1, 0.1, -0.2, -0.5, -0.7, -0.2, -0.6, -0.1, -0.4, -0.7, -0.2],
}
BIAS = {
    "i": [0.03, 0.15, 0.22, 0.38],
    "f": [0.1, -0.3, -0.2, 0.1],
    "g": [-0.05, 0.72, 0.25, 0.08],
    "o": [0.05, -0.01, 0.2, 0.1],
}
PEEPHOLE = {"i": [0.05, 0.1, 0.25, 0.15], "f": [-0.02, -0.15, -0.25, -0.03], "o": [0.1, -0.1, -0.5, 0.05]}
WEIGHT_LN = {
    "i": [0.1, 0.2, 0.3, 0.5],
    "f": [0.2, 0.2, 0.4, 0.3],
    "g": [0.7, 0.2, 0.3, 0.8],
    "o": [0.6, 0.2, 0.2, 0.5],
}
PROJECTION = [-0.1, 0.2, 0.01, -0.2, 0.1, 0.5, 0.3, 0.08, 0.07, 0.2, -0.4, 0.2]
X = [
    [[0.7, 0.8, 0.1, 0.2, 0.3], [0.3, 0.2, 0.9, 0.8, 0.1]],
    [[0.8, 0.1, 0.2, 0.4, 0.5], [0.1, 0.5, 0.2, 0.4, 0.2]],
    [[0.2, 0.7, 0.7, 0.1, 0.7], [0.6, 0.9, 0.2, 0.5, 0.7]],
]
Y = [
    [[0.0244077, 0.128027, -0.00170918], [-0.00692428, 0.0848741, 0.063445]],
    [[0.0137642, 0.140751, 0.0395835], [-0.00403912, 0.139963, 0.072681]],
    [[-0.00459231, 0.155278, 0.0837377], [0.00752706, 0.161903, 0.0561371]],
]
Y_COUPLED = [
    [[0.02129706, 0.140816242, 0.0112733059], [-0.0226350538, 0.0916948169, 0.0769175813]],
    [[0.0132302344, 0.152308047, 0.0346313119], [-0.0269966982, 0.149707705, 0.094149217]],
    [[-0.0123688057, 0.165790111, 0.0893077999], [-0.0103429332, 0.173016444, 0.0720508844]],
]


def public_lstm(coupled):
    """TFLite's coupled gates are f and 1 - f = i = s(-a_f): our i has f's weights with the other sign."""
    gates = "fgo" if coupled else "ifgo"

    def joined(values, shape, signed=True):
        return np.concatenate(
            [np.reshape(values[g], shape) * (-1 if coupled and signed and g == "f" else 1) for g in gates]
        ).astype(np.float32)

    module = gr.LSTM(
        5, 4, proj_size=3, peephole=True, coupled=coupled, layer_norm="gates", layer_norm_eps=1e-8
    )
    peephole = PEEPHOLE | ({"i": np.negative(PEEPHOLE["f"])} if coupled else {})
    module.load_state_dict(
        {
            "weight_ih_l0": joined(W, (4, 5)),
            "weight_hh_l0": joined(R, (4, 3)),
            "bias_ih_l0": joined(BIAS, 4),
            "bias_hh_l0": np.zeros(4 * len(gates), np.float32),
            "weight_hr_l0": np.reshape(PROJECTION, (3, 4)).astype(np.float32),
            **{f"weight_c{g}_l0": np.float32(peephole[g]) for g in ("io" if coupled else "ifo")},
            "weight_ln_l0": joined(WEIGHT_LN, 4, signed=False),
        }
    )
    return module


@pytest.mark.parametrize(("coupled", "expected"), [(False, Y), (True, Y_COUPLED)])
def test_public_numbers(coupled, expected):
    output, _ = public_lstm(coupled)(np.float32(X))
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-6)


# --- the bits -------------------------------------------------------------------------------------


@forms
@dtypes
def test_rows_and_steps_alone(cell, form, dtype):
    for hidden_size, batch in [(7, 40), (33, 3)]:
        module = build(cell, 5, hidden_size, dtype=dtype, layer_norm=form)
        x, state = normal((6, batch, 5), dtype=dtype), state_of(module, batch)
        assert_same_bits(module(x, state), in_pieces(module, x, state))
        stream = module.stream(batch)
        stream.state = state
        assert_same_bits(np.stack([stream.step(step) for step in x]), module(x, state)[0])


@forms
@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16x3", "int8"])
def test_formats(cell, form, precision):
    """Products are of the format, and the mathematics after them as ever."""
    module = build(cell, 17, 33, layer_norm=form).to("cpu", precision)
    x, state = normal((6, 5, 17)), state_of(module, 5)
    assert_same_bits(module(x, state), in_pieces(module, x, state))
    error = np.abs(module(x, state)[0] - build(cell, 17, 33, layer_norm=form)(x, state)[0]).max()
    assert 0 < error < {"bfloat16": 0.1, "bfloat16x3": 1e-3, "int8": 0.1}[precision]


@forms
@pytest.mark.parametrize("recompute", [False, True])
def test_forward_and_threads(cell, form, recompute):
    p = problem(cell, 9, 65, 17, 20, dtype=np.float32, num_layers=2, layer_norm=form)
    assert_same_bits(p.forward(recompute=recompute)[:2], p.results())
    with gr.num_threads(1):
        alone = p.gradients(recompute=recompute), p.results()
    with gr.num_threads(2):
        assert_same_gradients(p.gradients(), alone[0])
        assert_same_bits(p.results(), alone[1])


@forms
def test_masks_and_episodes(cell, form):
    module = build(cell, 5, 17, layer_norm=form)
    x, mask = normal((7, 3, 5)), np.ones((7, 3), bool)
    mask[2:4, 1] = mask[5, 0] = False
    output, _ = module(x, mask=mask)
    for row in range(3):
        alone, _ = module(x[mask[:, row], row])
        assert_same_bits(output[mask[:, row], row], alone)
    resets = np.zeros((7, 3), bool)
    resets[3, 2] = True
    output, _ = module(x, resets=resets)
    assert_same_bits(output[3:, 2], module(x[3:, 2])[0])


# --- gradients ------------------------------------------------------------------------------------


@forms
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"num_layers": 2, "bidirectional": True},
        {"direction": "reverse", "learn_state": True},
    ],
    ids=str,
)
def test_slopes(cell, form, options):
    assert_slopes(problem(cell, lengths=[5, 1, 3], layer_norm=form, layer_norm_eps=1e-2, **options))


@forms
@pytest.mark.parametrize(("input_size", "hidden_size", "batch"), [(3, 4, 40), (7, 33, 5), (5, 3, 1)])
def test_slopes_at_sizes(cell, form, input_size, hidden_size, batch):
    p = problem(cell, input_size, hidden_size, batch, 4, layer_norm=form, layer_norm_eps=1e-2)
    assert_slopes(p, elements=4)


@forms
def test_slopes_with_other_options(cell, form):
    p = problem(cell, layer_norm=form, layer_norm_eps=1e-2, **others(cell))
    assert_slopes(p, elements=4)


@pytest.mark.parametrize("form", ["products", "gates"])
def test_slopes_with_a_projection(form):
    assert_slopes(problem("lstm_projected", layer_norm=form, layer_norm_eps=1e-2))


@forms
def test_float32_gradients(cell, form):
    p = problem(cell, 9, 33, 5, 6, dtype=np.float32, layer_norm=form)
    exact = problem(cell, 9, 33, 5, 6, layer_norm=form)
    exact.module.load_state_dict(p.module.state_dict())
    for name in ("x", "state", "d_output", "d_state_n"):
        value = getattr(p, name)
        wide = tuple(map(np.float64, value)) if isinstance(value, tuple) else np.float64(value)
        object.__setattr__(exact, name, wide)
    assert_close_gradients(p.gradients(), exact.gradients(), 1e-4)


# --- what modules do with it ----------------------------------------------------------------------


@forms
def test_files_copies_and_pickles(cell, form, tmp_path):
    module = build(cell, layer_norm=form, layer_norm_eps=1e-3)
    x = normal((5, 3, 5))
    module.save(tmp_path / "m")
    for other in (gr.load(tmp_path / "m"), pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert other.layer_norm == form
        assert other.layer_norm_eps == 1e-3
        assert repr(other) == repr(module)
        assert_same_bits(other(x), module(x))


@forms
def test_cells_of_one_step(cell, form):
    constructor, own = CLASSES[cell]
    module = build(cell, layer_norm=form)
    one = getattr(gr, constructor.__name__ + "Cell")(5, 7, **own, layer_norm=form)
    one.load_state_dict({name.removesuffix("_l0"): value for name, value in module.state_dict().items()})
    x, state = normal((3, 5)), state_of(module, 3)
    before = tuple(s[0] for s in state) if isinstance(state, tuple) else state[0]
    after = one(x, before)
    assert_same_bits(after[0] if isinstance(after, tuple) else after, module(x[None], state)[0][0])


@forms
def test_training(cell, form):
    """A few steps of gradient descent make the loss smaller, whatever the scale of the inputs."""
    module = build(cell, 5, 9, layer_norm=form)
    x, target = 100 * normal((8, 4, 5)), normal((8, 4, 9), seed=5) / 4
    losses = []
    for _ in range(100):
        output, _, tape = module.forward(x)
        losses.append(float(((output - target) ** 2).mean()))
        _, _, gradients = module.backward(tape, 2 * (output - target) / output.size)
        module.load_state_dict(
            {name: value - 0.3 * gradients[name] for name, value in module.state_dict().items()}
        )
    assert losses[-1] < 0.9 * losses[0]


BAD = [
    (
        gr.LSTM,
        {"layer_norm": "all"},
        ValueError,
        "layer_norm: expected 'products' or 'gates' or None, got 'all'",
    ),
    (gr.LSTM, {"layer_norm": True}, TypeError, "layer_norm: expected"),
    (
        gr.LSTM,
        {"layer_norm": "products", "peephole": True},
        ValueError,
        "layer_norm: expected None or 'gates' with peephole=True, got 'products'",
    ),
    (
        gr.LSTM,
        {"layer_norm": "products", "coupled": True},
        ValueError,
        "layer_norm: expected None or 'gates' with coupled=True, got 'products'",
    ),
    (
        gr.GRU,
        {"layer_norm": "gates"},
        ValueError,
        "layer_norm: expected None or 'products' for a GRU, got 'gates'",
    ),
    (
        gr.GRU,
        {"layer_norm": "products", "reset_after": False},
        ValueError,
        "layer_norm: expected None with reset_after=False, got 'products'",
    ),
    (gr.LSTM, {"layer_norm_eps": 0}, ValueError, "layer_norm_eps: expected a finite number above 0, got 0"),
    (gr.LSTM, {"layer_norm_eps": None}, TypeError, "layer_norm_eps: expected a number, got None"),
    (gr.RNN, {"layer_norm": "gates"}, TypeError, "layer_norm"),
]


@pytest.mark.parametrize(("constructor", "options", "error", "message"), BAD, ids=str)
def test_errors(constructor, options, error, message):
    with pytest.raises(error, match=message):
        constructor(3, 4, **options)
    cell = getattr(gr, constructor.__name__ + "Cell")
    with pytest.raises(error, match=message):
        cell(3, 4, **options)


def test_the_reference_normalizes():
    """Else the tests above would say little."""
    options = reference.Options(layer_norm_eps=0)
    values = options.normalized(normal((3, 50), dtype=np.float64))
    np.testing.assert_allclose(values.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(values.std(axis=1), 1, atol=1e-12)
