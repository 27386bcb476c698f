"""`numpy.seterr(all="raise")`, and "warn": what underflows is harmless, and nobody hears of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gatedrnn as gr
from gatedrnn import train
from helpers import DTYPES, assert_same_bits, build, normal
from test_errors import refused

strict = pytest.mark.parametrize("kind", ["raise", "warn"])  # tests turn warnings into errors
dtypes = pytest.mark.parametrize("dtype", DTYPES)
T, B, C = 4, 3, 5
LABELS = np.random.default_rng(0).integers(0, C, (T, B))


def small(shape, dtype, seed=0):
    """Numbers whose squares and products underflow."""
    return normal(shape, seed=seed, dtype=dtype) * np.sqrt(np.finfo(dtype).tiny) * dtype(1e-3)


def least(shape, dtype):
    return np.full(shape, np.finfo(dtype).smallest_subnormal, dtype)


def trained(dtype, inputs, scale):
    """All that a training step has."""
    gru = gr.GRU(C, 7, dtype=dtype, seed=0)
    net = train.Modules(
        table=train.Embedding(C, C, dtype=dtype, seed=1),
        rnn=gru,
        head=train.Linear(7, C, dtype=dtype, seed=2),
    )
    optimizer = train.AdamW(net.parameters())
    embedded, table_tape = net.table.forward(LABELS)
    hidden, _, tape = net.rnn.forward(embedded * 0 + inputs)
    logits, head_tape = net.head.forward(hidden)
    loss, d_logits = train.softmax_cross_entropy(logits * scale, LABELS)
    d_hidden, d_head = net.head.backward(head_tape, d_logits)
    d_x, _, d_rnn = net.rnn.backward(tape, d_hidden)
    grads = net.gradients(table=net.table.backward(table_tape, d_x)[1], rnn=d_rnn, head=d_head)
    norm = train.clip_grad_norm(grads, 1e-6)
    optimizer.step(grads)
    return {"loss": np.array(loss), "norm": np.array(norm), **net.state_dict()}


@strict
@dtypes
def test_a_training_step(kind, dtype):
    results = []
    inputs, scale = small((T, B, C), dtype), dtype(1000)
    for told in ("ignore", kind):
        with np.errstate(all=told):
            results.append(trained(dtype, inputs, scale))
    for name, array in results[0].items():
        assert_same_bits(results[1][name], array)


@strict
@dtypes
@pytest.mark.parametrize("loss", ["softmax", "mse", "binary"])
@pytest.mark.parametrize("masked", [False, True])
def test_losses(kind, dtype, loss, masked):
    confident = np.where(np.arange(C) == LABELS[..., None], 1e4, 0).astype(dtype)
    inputs = [confident, -confident, small((T, B, C), dtype), least((T, B, C), dtype)]
    targets = {
        "softmax": [LABELS],
        "mse": [np.zeros((T, B, C)), np.full((T, B, C), 5e-324), small((T, B, C), dtype, seed=1)],
        "binary": [confident > 0, np.full((T, B, C), 5e-324), np.full((T, B, C), 1e-60)],
    }
    function = {
        "softmax": train.softmax_cross_entropy,
        "mse": train.mse,
        "binary": train.binary_cross_entropy,
    }[loss]
    mask = train.mask_of([2, 4, 0], T) if masked else None
    for x in inputs:
        for target in targets[loss]:
            expected = function(x, target, mask)
            with np.errstate(all=kind):
                value, d_x = function(x, target, mask)
            assert value == expected[0]
            assert_same_bits(d_x, expected[1])


@strict
@dtypes
def test_layers(kind, dtype):
    linear, table = train.Linear(C, 7, dtype=dtype, seed=0), train.Embedding(C, 7, dtype=dtype, seed=0)
    for layer in (linear, table):
        layer.load_state_dict({name: small(p.shape, dtype) for name, p in layer.state_dict().items()})
    x, d_y = small((T, B, C), dtype, seed=1), small((T, B, 7), dtype, seed=2)
    results = []
    for told in ("ignore", kind):
        with np.errstate(all=told):
            y, tape = linear.forward(x)
            d_x, grads = linear.backward(tape, d_y)
            rows, table_tape = table.forward(LABELS)
            _, d_table = table.backward(table_tape, d_y)
        results.append((y, linear(x), d_x, rows, *grads.values(), *d_table.values()))
    for actual, expected in zip(*results, strict=True):
        assert_same_bits(actual, expected)


@strict
def test_schedules(kind):
    least_rate = 5e-324
    schedules = [
        train.schedules.step(1.0, 1),
        train.schedules.cosine(least_rate, 100, warmup=50),
        train.schedules.constant(least_rate),
    ]
    for schedule in schedules:
        for step in (0, 7, 60, 500):
            with np.errstate(all=kind):
                rate = schedule(np.int64(step))
            assert rate == schedule(step)
            assert type(rate) is float


@strict
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_conversions(kind, cell):
    """Numbers that float32 has none for become 0, or the nearest that it has."""
    module = build(cell)
    x, h = normal((T, B, 5), dtype=np.float64), normal((1, B, 7), dtype=np.float64)
    for array in (x, h):
        array[..., 0], array[..., 1] = 1e-60, 1e-42
    state = h if cell == "gru" else (h, h)
    d_output = np.full((T, B, 7), 1e-42)
    single = [array.astype(np.float32) for array in (x, h, d_output)]
    single_state = single[1] if cell == "gru" else (single[1], single[1])
    expected = module(single[0], single_state)
    stream, other = module.stream(B), module.stream(B)
    with np.errstate(all=kind):
        assert_same_bits(module(x, state), expected)
        output, _, tape = module.forward(x, state)
        d_x = module.backward(tape, d_output)[0]
        stream.state = state
        other.state = single_state
        assert_same_bits(stream.step(x[0]), other.step(single[0][0]))
    assert_same_bits(output, expected[0])
    assert_same_bits(d_x, module.backward(module.forward(single[0], single_state)[2], single[2])[0])


@strict
def test_conversions_still_refuse_what_is_too_large(kind):
    module = build("gru")
    for value in (1e60, -1e300):
        x = normal((T, B, 5), dtype=np.float64)
        x[0, 0, :2] = 1e-60, value
        with np.errstate(all=kind), refused("x", ValueError):
            module(x)
        assert np.geterr()["under"] == "ignore"


@strict
def test_parameters_from_elsewhere(kind):
    module, layer = build("gru"), train.Linear(3, 4)
    for each in (module, layer):
        values = {name: np.full(value.shape, 1e-60) for name, value in each.state_dict().items()}
        with np.errstate(all=kind):
            each.load_state_dict(values)
        assert not any(value.any() for value in each.state_dict().values())


@strict
def test_a_whole_run(kind):
    layer = train.Linear(2, 1, seed=0)
    optimizer = train.Adam(layer.parameters())

    def loss_and_gradients(x):
        y, tape = layer.forward(x)
        loss, d_y = train.mse(y, y)
        return loss, layer.backward(tape, d_y + np.float32(1e-40))[1]

    def run():
        return train.fit(
            layer,
            optimizer,
            loss_and_gradients,
            lambda rng: [small((5, 2), np.float32)] * 3,
            epochs=2,
            validate=lambda: 0.5,
            max_norm=1.0,
            schedule=train.schedules.cosine(1e-3, 6),
            progress=False,
        )

    with np.errstate(all=kind):
        history = run()
    assert math.isfinite(history.loss[-1])
    assert optimizer.steps == 6
