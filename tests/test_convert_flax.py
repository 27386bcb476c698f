"""from_flax: numbers that Flax and Haiku computed of the same weights; trees; refusals."""

from __future__ import annotations

import numpy as np
import pytest

import gatedrnn as gr

I, H = 2, 3  # noqa: E741 - as elsewhere


def numbers(shape, seed):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def flax_params(gates, input_bias, state_bias):
    """A cell's parts, of the inputs and of the state; biases for these gates."""
    params = {}
    for seed, gate in enumerate(gates):
        params["i" + gate] = {"kernel": numbers((I, H), seed)}
        params["h" + gate] = {"kernel": numbers((H, H), 10 + seed)}
        if gate in input_bias:
            params["i" + gate]["bias"] = numbers(H, 20 + seed)
        if gate in state_bias:
            params["h" + gate]["bias"] = numbers(H, 30 + seed)
    return params


FLAX = {
    "LSTMCell": flax_params("ifgo", "", "ifgo"),
    "OptimizedLSTMCell": flax_params("ifgo", "", "ifgo"),
    "GRUCell": flax_params("rzn", "rzn", "n"),
    "SimpleCell": flax_params([""], [""], []),
}
HAIKU = {
    "LSTM": {"lstm/linear": {"w": numbers((I + H, 4 * H), 1), "b": numbers(4 * H, 2)}},
    "GRU": {"gru": {"w_i": numbers((I, 3 * H), 3), "w_h": numbers((H, 3 * H), 4), "b": numbers(3 * H, 5)}},
    "VanillaRNN": {
        "vanilla_rnn/linear": {"w": numbers((I, H), 6), "b": numbers(H, 7)},
        "vanilla_rnn/linear_1": {"w": numbers((H, H), 8), "b": numbers(H, 9)},
    },
}
X = numbers((4, 1, I), 50)
# h after the last step of X: computed by flax.linen.RNN and haiku.dynamic_unroll.
LAST = {
    "LSTMCell": [-0.20818098, 0.10429532, -0.11666185],
    "OptimizedLSTMCell": [-0.20818098, 0.10429532, -0.11666185],
    "GRUCell": [-0.25956148, -0.14557226, -0.66560411],
    "SimpleCell": [-0.98149645, 0.44647035, -0.66322672],
    "haiku LSTM": [-0.30527514, 0.00326895, 0.11708582],
    "haiku GRU": [0.07872026, -0.61731809, -0.72404730],
    "haiku VanillaRNN": [2.20324492, 5.30921125, 0.00000000],
}


@pytest.mark.parametrize(("name", "params"), FLAX.items(), ids=list(FLAX))
def test_flax_own_numbers(name, params):
    modules = gr.from_flax({"encoder": {"cell": params, "other": {"kernel": np.ones((2, 2))}}})
    assert list(modules) == ["encoder/cell"]
    output, _ = modules["encoder/cell"](X)
    np.testing.assert_allclose(output[-1, 0], LAST[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "params"), HAIKU.items(), ids=list(HAIKU))
def test_haikus_own_numbers(name, params):
    outer = {f"model/{key}": value for key, value in params.items()} | {"model/head": {"w": np.ones((4, 4))}}
    (path, module), *rest = gr.from_flax(outer, form="haiku").items()
    assert not rest
    assert path == {"LSTM": "model/lstm", "GRU": "model/gru", "VanillaRNN": "model/vanilla_rnn"}[name]
    output, _ = module(X)
    np.testing.assert_allclose(output[-1, 0], LAST["haiku " + name], rtol=0, atol=1e-6)


def test_options_of_what_they_become():
    assert gr.from_flax(FLAX["GRUCell"])[""].reset_after
    assert not gr.from_flax(HAIKU["GRU"], form="haiku")["gru"].reset_after
    assert gr.from_flax(HAIKU["VanillaRNN"], form="haiku")["vanilla_rnn"].nonlinearity == "relu"
    double = {n: {k: v.astype(np.float64) for k, v in p.items()} for n, p in FLAX["GRUCell"].items()}
    assert gr.from_flax(double)[""].dtype == np.float64


def changed(name, key, value):
    params = {n: dict(p) for n, p in FLAX["LSTMCell"].items()}
    params[name][key] = value
    return params


BAD = [
    (3, {}, TypeError, "params: expected nested mappings of arrays, got 3"),
    ({}, {"form": "jax"}, ValueError, "form: expected 'flax' or 'haiku', got 'jax'"),
    ({}, {}, ValueError, "params: expected cells of Flax, got none"),
    (FLAX["LSTMCell"], {"form": "haiku"}, ValueError, "params: expected cells of Haiku, got none"),
    (
        changed("hf", "kernel", np.zeros((3, 4))),
        {},
        ValueError,
        r"params: hf/kernel: expected a matrix \(3, 3\)",
    ),
    (changed("ig", "kernel", np.zeros((5, 3))), {}, ValueError, "kernels of the same number of inputs"),
    (changed("hi", "bias", np.zeros(4)), {}, ValueError, r"hi/bias: expected 3 numbers, got shape \(4,\)"),
    (changed("hi", "bias", np.zeros(3, int)), {}, TypeError, "hi/bias: expected floating-point numbers"),
    (changed("hi", "bias", np.full(3, np.nan)), {}, ValueError, "bias_hh: expected finite numbers"),
    (
        {"lstm/linear": {"w": np.zeros((3, 12)), "b": np.zeros(12)}},
        {"form": "haiku"},
        ValueError,
        "lstm: w: expected more than 3 rows, of inputs and state",
    ),
]


@pytest.mark.parametrize(("params", "options", "error", "message"), BAD, ids=[b[3] for b in BAD])
def test_what_cannot_be_read(params, options, error, message):
    with pytest.raises(error, match=message):
        gr.from_flax(params, **options)
