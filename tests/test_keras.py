"""Against Keras, on the same weights: functions, masks with gaps, reverse layers, merged directions."""

from __future__ import annotations

import os

import numpy as np
import pytest

import gatedrnn as gr
from helpers import normal

os.environ.setdefault("KERAS_BACKEND", "torch")
pytestmark = [
    pytest.mark.peers,
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore"),  # its own, of the libraries under it
]
keras = pytest.importorskip("keras")

TOLERANCE = 2e-6  # both round
I, H, B, T = 5, 9, 4, 7  # noqa: E741 (the usual names)
LAYERS = {"LSTM": (gr.LSTM, {}), "GRU": (gr.GRU, {}), "SimpleRNN": (gr.RNN, {})}
layers = pytest.mark.parametrize("name", LAYERS)


def reordered(columns, name):
    """Keras' gates, the last axis, in our order; as rows."""
    if name != "GRU":
        return columns.T
    z, r, n = np.split(columns, 3, axis=-1)
    return np.concatenate([r, z, n], axis=-1).T


def parameters(weights, name, suffix="_l0"):
    """Ours of a layer's kernel, recurrent kernel and bias."""
    kernel, recurrent, bias = weights
    ours = {"weight_ih" + suffix: reordered(kernel, name), "weight_hh" + suffix: reordered(recurrent, name)}
    biases = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
    for key, value in zip(("bias_ih", "bias_hh"), biases, strict=True):
        ours[key + suffix] = reordered(value[None], name)[:, 0]
    return ours


def random_weights(layer, seed=0):
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.uniform(-0.5, 0.5, w.shape).astype(np.float32) for w in layer.get_weights()])
    return layer.get_weights()


def pair(name, options, ours=None, **ours_too):
    """A layer of Keras, and a module with its weights."""
    layer = getattr(keras.layers, name)(H, return_sequences=True, return_state=True, **options)
    layer.build((B, T, I))
    constructor, own = LAYERS[name]
    module = constructor(I, H, batch_first=True, **own, **(ours or {}), **ours_too)
    module.load_state_dict(parameters(random_weights(layer), name))
    return layer, module


def run(layer, x, **arguments):
    output, *states = layer(x, **arguments)
    return [np.asarray(keras.ops.convert_to_numpy(array)) for array in (output, *states)]


def ours(module, x, **arguments):
    output, state = module(x, **arguments)
    return [output, *(part[0] for part in (state if isinstance(state, tuple) else (state,)))]


def assert_alike(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=TOLERANCE, rtol=0)


# Keras' name of a function, and ours.
FUNCTIONS = {
    "relu": "relu",
    "elu": "elu",
    "softsign": "softsign",
    "softplus": "softplus",
    "hard_sigmoid": "hardsigmoid",  # relu6(x + 3) / 6 from Keras 3 on
    "linear": "linear",
}


@layers
@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions(name, function):
    gates = {"LSTM": "gh", "GRU": "n", "SimpleRNN": "h"}[name]
    options = {"activation": function}
    if name != "SimpleRNN":
        options["recurrent_activation"] = "hard_sigmoid"
    functions = dict.fromkeys(gates, FUNCTIONS[function])
    functions |= dict.fromkeys({"LSTM": "ifo", "GRU": "rz", "SimpleRNN": ""}[name], "hardsigmoid")
    layer, module = pair(name, options, activations=functions)
    x = normal((B, T, I))
    assert_alike(ours(module, x), run(layer, x))


@pytest.mark.parametrize("reset_after", [True, False])
def test_both_grus(reset_after):
    layer, module = pair("GRU", {"reset_after": reset_after}, reset_after=reset_after)
    x = normal((B, T, I))
    assert_alike(ours(module, x), run(layer, x))


@layers
def test_go_backwards(name):
    """Keras leaves the outputs in the order in which it made them."""
    layer, module = pair(name, {"go_backwards": True}, direction="reverse")
    x = normal((B, T, I))
    output, *states = run(layer, x)
    assert_alike(ours(module, x), [output[:, ::-1], *states])


@layers
@pytest.mark.parametrize(("zeros", "mask_output"), [(True, "zeros"), (False, "previous")])
def test_masks_with_gaps(name, zeros, mask_output):
    layer, module = pair(name, {"zero_output_for_mask": zeros})
    x, mask = normal((B, T, I)), np.random.default_rng(1).random((B, T)) < 0.6
    mask[0] = [False, False, True, True, False, True, False]
    assert_alike(ours(module, x, mask=mask, mask_output=mask_output), run(layer, x, mask=mask))


@layers
@pytest.mark.parametrize(
    ("mode", "merge"), [("concat", "concat"), ("sum", "sum"), ("mul", "mul"), ("ave", "mean")]
)
def test_bidirectional(name, mode, merge):
    layer = keras.layers.Bidirectional(getattr(keras.layers, name)(H, return_sequences=True), merge_mode=mode)
    layer.build((B, T, I))
    weights = random_weights(layer)
    constructor, own = LAYERS[name]
    module = constructor(I, H, batch_first=True, bidirectional=True, merge=merge, **own)
    both = parameters(weights[:3], name), parameters(weights[3:], name, "_l0_reverse")
    module.load_state_dict(both[0] | both[1])
    x = normal((B, T, I))
    output = np.asarray(keras.ops.convert_to_numpy(layer(x)))
    np.testing.assert_allclose(module(x)[0], output, atol=2 * TOLERANCE, rtol=0)
