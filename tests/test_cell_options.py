"""activations=, clip= and cell_clip=: against the reference, ONNX Runtime, differences; the bits; errors."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import gatedrnn as gr
import onnx_models
from gatedrnn import _core
from gradients import (
    assert_close_gradients,
    assert_same_gradients,
    assert_slopes,
    gradient_tolerance,
    problem,
)
from helpers import CELLS, CLASSES, DTYPES, assert_same_bits, build, check, flat, in_pieces, normal, state_of
from tolerance import assert_close

cells = pytest.mark.parametrize("cell", CELLS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)

# With parameters that are not the defaults, and keep gates within 0..1 or so.
FUNCTIONS = [
    "sigmoid",
    "tanh",
    "relu",
    ("hard_sigmoid", 0.3, 0.4),
    ("leaky_relu", 0.2),
    ("elu", 0.7),
    "softsign",
    "softplus",
    ("scaled_tanh", 0.8, 1.3),
    ("affine", 0.6, -0.1),
    ("thresholded_relu", 0.25),
]
SIZES = [(1, 1, 1), (7, 9, 15), (9, 7, 129), (17, 33, 4), (129, 31, 2), (5, 129, 33), (3, 4, 40)]


def gates(cell):
    general = "rnn_general" if cell.startswith("rnn") else f"{cell}_general"
    return [gate for gate, _ in _core.cells()[general][3]]


def mixed(cell, first=0):
    """One function for each gate, from the `first` on."""
    return {gate: FUNCTIONS[(first + 2 * i) % len(FUNCTIONS)] for i, gate in enumerate(gates(cell))}


def limits(cell):
    return {"clip": 0.5, **({"cell_clip": 0.4} if cell.startswith("lstm") else {})}


# --- values ---------------------------------------------------------------------------------------


@cells
@dtypes
@pytest.mark.parametrize("function", FUNCTIONS, ids=str)
def test_each_function_at_each_gate(cell, dtype, function):
    for gate in gates(cell):
        module = build(cell, 5, 17, dtype=dtype, activations={gate: function}, clip=1.0)
        check(module, cell, normal((6, 3, 5), dtype=dtype), state_of(module, 3))


@cells
@dtypes
@pytest.mark.parametrize(("input_size", "hidden_size", "batch"), SIZES)
def test_sizes(cell, dtype, input_size, hidden_size, batch):
    options = {"activations": mixed(cell, hidden_size), **limits(cell)}
    module = build(cell, input_size, hidden_size, dtype=dtype, num_layers=2, bidirectional=True, **options)
    lengths = np.arange(batch) % 6
    check(module, cell, normal((5, batch, input_size), dtype=dtype), state_of(module, batch), lengths)


@dtypes
def test_with_a_projection(dtype):
    module = build(
        "lstm_projected", 5, 33, dtype=dtype, activations={"g": "relu", "h": "softsign"}, cell_clip=0.3
    )
    check(module, "lstm", normal((7, 3, 5), dtype=dtype), state_of(module, 3))


@cells
def test_clips_act(cell):
    """Else the tests above would say nothing of them."""
    x = 3 * normal((5, 3, 5))
    for name, limit in limits(cell).items():
        clipped, free = (
            build(cell, **{name: limit}),
            build(cell, activations={gates(cell)[-1]: ("scaled_tanh",)}),
        )
        assert np.abs(clipped(x)[0] - free(x)[0]).max() > 1e-3


@cells
def test_the_usual_functions_by_name_are_the_cell_itself(cell):
    usual = {gate: "sigmoid" if gate in "ifozr" else "tanh" for gate in gates(cell)}
    if cell == "rnn_relu":
        usual = {"h": "relu"}
    module = build(cell, activations=usual)
    assert module.activations is None
    assert_same_bits(module(normal((5, 3, 5))), build(cell)(normal((5, 3, 5))))


@cells
def test_general_mathematics_of_the_usual_functions(cell):
    """A clip that nothing reaches brings the other kernels, whose roundings differ."""
    module, plain = build(cell, 9, 33, clip=1e6), build(cell, 9, 33)
    x, state = normal((5, 3, 9)), state_of(plain, 3)
    assert_close(flat(module(x, state)), flat(plain(x, state)), cell=cell, accumulations=44, steps=2 * 5)


def test_onnx_order():
    listed = gr.LSTM(3, 4, activations=("relu", ["elu", 0.5], "softsign"))
    assert listed.activations == {
        "i": "relu", "f": "relu", "g": ("elu", 0.5), "o": "relu", "h": "softsign"
    }  # fmt: skip
    assert gr.LSTM(3, 4, coupled=True, activations=("relu", "elu", "softsign")).activations == {
        "i": "relu", "g": ("elu", 1.0), "o": "relu", "h": "softsign"
    }  # fmt: skip
    assert gr.GRU(3, 4, activations=["tanh", "relu"]).activations == {"r": "tanh", "z": "tanh", "n": "relu"}
    assert gr.RNN(3, 4, activations=["linear"]).activations == {"h": ("affine", 1.0, 0.0)}
    assert gr.RNN(3, 4, activations=["hardsigmoid"]).activations == {"h": ("hard_sigmoid", 1 / 6, 0.5)}


def test_both_hard_sigmoids():
    """Keras 2's and ONNX', and torch.nn's and Keras 3's: what they have been confused with."""
    one = {"weight_ih_l0": np.ones((1, 1)), "weight_hh_l0": np.zeros((1, 1))}
    x = np.linspace(-4, 4, 33, dtype=np.float32)[None, :, None]
    for name, expected in {
        "hard_sigmoid": np.clip(0.2 * x[0] + 0.5, 0, 1),
        "hardsigmoid": np.clip(x[0] + 3, 0, 6) / 6,
    }.items():
        module = gr.RNN(1, 1, bias=False, activations=[name])
        module.load_state_dict(one)
        np.testing.assert_allclose(module(x)[0][0], expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", FUNCTIONS, ids=str)
def test_accuracy_of_functions(dtype, function):
    """Over their whole range, special values, and where they are small."""
    import reference

    name, *parameters = [function] if isinstance(function, str) else function
    module = gr.RNN(1, 1, bias=False, dtype=dtype, activations=[function], clip=1e30)
    module.load_state_dict({"weight_ih_l0": np.ones((1, 1)), "weight_hh_l0": np.zeros((1, 1))})
    small = 2.0 ** -np.arange(1, 30)
    x = np.concatenate([np.linspace(-120, 120, 4001), np.linspace(-2, 2, 4001), small, -small]).astype(dtype)
    y = module(x[None, :, None])[0][0, :, 0]
    exact = reference.FUNCTIONS[name](x.astype(np.longdouble), *map(dtype, parameters))
    scale = np.abs(exact)
    if name in ("affine", "hard_sigmoid"):  # where two terms cancel
        scale = np.maximum(scale, 0.5)
    smallest = np.finfo(dtype).tiny  # below that numbers lose their digits, and what comes near it is cut off
    assert (np.abs(y - exact) - 2 * smallest <= 4 * np.finfo(dtype).eps * scale).all()
    special = module(np.array([np.inf, -np.inf, np.nan], dtype)[None, :, None])[0][0, :, 0]
    if name != "thresholded_relu":
        assert np.isnan(special[2])
    assert not np.isnan(special[:2]).any()


# --- the bits -------------------------------------------------------------------------------------


@cells
@dtypes
def test_rows_and_steps_alone(cell, dtype):
    for hidden_size, batch in [(7, 40), (33, 3)]:
        module = build(cell, 5, hidden_size, dtype=dtype, activations=mixed(cell), **limits(cell))
        x, state = normal((6, batch, 5), dtype=dtype), state_of(module, batch)
        assert_same_bits(module(x, state), in_pieces(module, x, state))
        stream = module.stream(batch)
        stream.state = state
        assert_same_bits(np.stack([stream.step(step) for step in x]), module(x, state)[0])


@cells
@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16x3", "int8"])
def test_formats(cell, precision):
    """Products are of the format, and the mathematics after them as ever."""
    module = build(cell, 17, 33, activations=mixed(cell), **limits(cell)).to("cpu", precision)
    x, state = normal((6, 5, 17)), state_of(module, 5)
    assert_same_bits(module(x, state), in_pieces(module, x, state))
    exact = build(cell, 17, 33, activations=mixed(cell), **limits(cell))
    error = np.abs(module(x, state)[0] - exact(x, state)[0]).max()
    assert 0 < error < {"bfloat16": 0.05, "bfloat16x3": 1e-4, "int8": 0.05}[precision]


@cells
@pytest.mark.parametrize("recompute", [False, True])
def test_forward_and_threads(cell, recompute):
    p = problem(cell, 9, 33, 17, 20, dtype=np.float32, activations=mixed(cell), num_layers=2, **limits(cell))
    assert_same_bits(p.forward(recompute=recompute)[:2], p.results())
    with gr.num_threads(1):
        alone = p.gradients(recompute=recompute), p.results()
    with gr.num_threads(2):
        assert_same_gradients(p.gradients(), alone[0])
        assert_same_bits(p.results(), alone[1])


# --- gradients ------------------------------------------------------------------------------------


@cells
@pytest.mark.parametrize("first", range(len(FUNCTIONS)))
def test_slopes(cell, first):
    """Within a clip, or some of these would let states grow without end."""
    options = {"activations": mixed(cell, first), "clip": 0.8}
    assert_slopes(problem(cell, num_layers=2, bidirectional=True, **options), elements=4)


@cells
@pytest.mark.parametrize("functions", [("scaled_tanh", 0.9, 1.2), "sigmoid", "tanh"], ids=str)
def test_slopes_of_smooth_functions(cell, functions):
    """Where differences tell a millionth."""
    options = {"activations": dict.fromkeys(gates(cell), functions)}
    assert_slopes(problem(cell, lengths=[5, 0, 3], **options))


@cells
@pytest.mark.parametrize(("input_size", "hidden_size", "batch"), [(3, 4, 40), (7, 33, 5), (5, 1, 1)])
def test_slopes_within_clips(cell, input_size, hidden_size, batch):
    options = {"activations": mixed(cell, 3), **limits(cell)}
    assert_slopes(problem(cell, input_size, hidden_size, batch, 4, lengths=None, **options), elements=4)


def test_slopes_with_a_projection():
    assert_slopes(problem("lstm_peephole_projected", activations={"h": "softplus"}, cell_clip=0.3))


@cells
def test_float32_gradients(cell):
    options = {"activations": mixed(cell, 1), **limits(cell)}
    p = problem(cell, 9, 33, 5, 6, dtype=np.float32, **options)
    exact = problem(cell, 9, 33, 5, 6, **options)
    exact.module.load_state_dict(p.module.state_dict())
    exact = copy.copy(exact)
    for name in ("x", "state", "d_output", "d_state_n"):
        value = getattr(p, name)
        wide = (
            tuple(a.astype(np.float64) for a in value)
            if isinstance(value, tuple)
            else value.astype(np.float64)
        )
        object.__setattr__(exact, name, wide)
    assert_close_gradients(p.gradients(), exact.gradients(), gradient_tolerance(p))


# --- ONNX Runtime ---------------------------------------------------------------------------------

# It has all of these functions, under names such as HardSigmoid.
ONNX_NAMES = {name: "".join(map(str.capitalize, name.split("_"))) for name in _core.activations()}


@cells
@pytest.mark.parametrize("clip", [None, 0.6])
@pytest.mark.parametrize("function", FUNCTIONS, ids=str)
def test_onnx_runtime(cell, clip, function):
    count = 3 if cell.startswith("lstm") else 2 if cell.startswith("gru") else 1
    usual = ["sigmoid", "tanh", "tanh"]
    for place in range(count):
        functions = [*usual[:place], function, *usual[place + 1 :]][:count]
        listed = [f if isinstance(f, tuple) else (f,) for f in functions]
        attributes = {
            "activations": [ONNX_NAMES[name] for name, *_ in listed],
            "activation_alpha": [f[1] for f in listed if len(f) > 1],
            "activation_beta": [f[2] for f in listed if len(f) > 2],
            **({"clip": clip} if clip else {}),
        }
        module = build(cell, 5, 9, activations=functions, clip=clip)
        x, state = normal((4, 3, 5)), state_of(module, 3)
        theirs = onnx_models.run(cell, module.state_dict(), x, state, **attributes)
        assert_close(flat(module(x, state)), flat(theirs), cell=cell, accumulations=16, steps=2 * 4)


# --- what modules do with them --------------------------------------------------------------------


@cells
def test_files_copies_and_pickles(cell, tmp_path):
    module = build(cell, activations=mixed(cell, 3), **limits(cell))
    x = normal((5, 3, 5))
    module.save(tmp_path / "m")
    for other in (gr.load(tmp_path / "m"), pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert other.activations == module.activations
        assert repr(other) == repr(module)
        assert_same_bits(other(x), module(x))
    assert (
        eval(repr(module), {"LSTM": gr.LSTM, "GRU": gr.GRU, "RNN": gr.RNN}).activations == module.activations
    )


@cells
def test_cells_of_one_step(cell):
    constructor, own = CLASSES[cell]
    options = {"activations": mixed(cell, 5), **limits(cell)}
    module = build(cell, **options)
    one = getattr(gr, constructor.__name__ + "Cell")(5, 7, **own, **options)
    one.load_state_dict({name.removesuffix("_l0"): value for name, value in module.state_dict().items()})
    x, state = normal((3, 5)), state_of(module, 3)
    before = tuple(s[0] for s in state) if isinstance(state, tuple) else state[0]
    after = one(x, before)
    assert_same_bits(after[0] if isinstance(after, tuple) else after, module(x[None], state)[0][0])


def test_nobody_changes_them():
    module = gr.GRU(2, 3, activations={"n": "relu"})
    module.activations["n"] = "tanh"
    assert module.activations == {"n": "relu"}
    with pytest.raises(AttributeError, match="activations: fixed"):
        module.activations = None


BAD = [
    ({"activations": "relu"}, TypeError, "activations: expected names by gate, or a list"),
    ({"activations": 3}, TypeError, "activations: expected names by gate, or a list"),
    ({"activations": ["relu"]}, ValueError, "activations: expected 3 of them, for ifo, g, h, got 1"),
    (
        {"activations": {"n": "relu"}},
        ValueError,
        "activations: expected some of the gates 'i', 'f', 'g', 'o', 'h'",
    ),
    ({"activations": {"g": "gelu"}}, ValueError, r"activations\['g'\]: expected one of sigmoid, tanh, relu"),
    ({"activations": {"g": None}}, TypeError, r"activations\['g'\]: expected a name"),
    ({"activations": {"g": ()}}, TypeError, r"activations\['g'\]: expected a name"),
    ({"activations": {"g": ("relu", 1)}}, ValueError, "expected at most 0 parameters of 'relu', got 1"),
    ({"activations": {"g": ("elu", "1")}}, TypeError, "expected numbers as parameters"),
    ({"activations": {"g": ("elu", np.inf)}}, ValueError, "expected finite parameters"),
    ({"clip": 0}, ValueError, "clip: expected a finite number above 0, or None, got 0"),
    ({"clip": np.nan}, ValueError, "clip: expected a finite number above 0"),
    ({"clip": "1"}, TypeError, "clip: expected a number or None"),
    ({"clip": True}, TypeError, "clip: expected a number or None"),
    ({"cell_clip": -1.0}, ValueError, "cell_clip: expected a finite number above 0"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=str)
def test_errors(options, error, message):
    with pytest.raises(error, match=message):
        gr.LSTM(3, 4, **options)
    with pytest.raises(error, match=message):
        gr.LSTMCell(3, 4, **options)
