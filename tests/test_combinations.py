"""What options mean together: directions, learnt states, masks and episodes, functions, merged outputs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import gatedrnn as gr
from gradients import assert_close_gradients, named
from helpers import CELLS, assert_same_bits, build, flat, normal, state_of
from test_cell_options import limits, mixed

cells = pytest.mark.parametrize("cell", CELLS)
SIZES = [(7, 40), (33, 3)]  # rows in lanes, and units


def flags(shape, probability, seed):
    return np.random.default_rng(seed).random(shape) < probability


def with_states(module, seed=5):
    """Learnt states that are not zeros."""
    values = module.state_dict()
    learnt = {
        name: normal(v.shape, seed=seed, dtype=v.dtype)
        for name, v in values.items()
        if name in ("h_0", "c_0")
    }
    module.load_state_dict({**values, **learnt})
    return module


def pair_of(state):
    return state if isinstance(state, tuple) else (state,)


def pieces_by_hand(module, x, mask, resets):
    """Each row's episodes one after the other, each a call of its own, without their skipped steps.

    In one direction, forward. Skipped steps have zeros. Returns the output and each row's last state.
    """
    steps, batch = x.shape[:2]
    output, states = np.zeros((steps, batch, module.hidden_size), module.dtype), []
    for row in range(batch):
        borders = [0, *(t for t in range(1, steps) if resets[t, row]), steps]
        for begin, end in itertools.pairwise(borders):
            times = [t for t in range(begin, end) if mask[t, row]]
            y, state = module(x[times, row])
            output[times, row] = y
        states.append(pair_of(state))
    return output, tuple(np.stack(part, axis=1) for part in zip(*states, strict=True))


@cells
@pytest.mark.parametrize(("hidden_size", "batch"), SIZES)
def test_episodes_begin_with_learnt_states(cell, hidden_size, batch):
    module = with_states(build(cell, 5, hidden_size, learn_state=True, num_layers=2))
    x, mask, resets = normal((9, batch, 5)), flags((9, batch), 0.7, 1), flags((9, batch), 0.3, 2)
    resets[0] = True  # as it begins in any case
    output, state = module(x, mask=mask, resets=resets)
    expected, expected_state = pieces_by_hand(module, x, mask, resets)
    assert_same_bits(output, expected)
    for part, expected_part in zip(pair_of(state), expected_state, strict=True):
        assert_same_bits(part, expected_part)
    # A given state is the row's before its first step, and no other's.
    given = state_of(module, batch)
    resets[0] = False
    begun, _ = module(x, given, mask=mask, resets=resets)
    for row in range(batch):
        border = next((t for t in range(1, 9) if resets[t, row]), 9)
        times = np.flatnonzero(mask[:border, row])
        own = tuple(s[:, row] for s in pair_of(given))
        alone, _ = module(x[times, row], own if len(own) > 1 else own[0])
        assert_same_bits(begun[times, row], alone)
        assert_same_bits(begun[border:, row], output[border:, row])


@cells
def test_streams_begin_episodes_with_learnt_states(cell):
    module = with_states(build(cell, 5, 9, learn_state=True))
    x, resets = normal((8, 3, 5)), flags((8, 3), 0.4, 3)
    stream = module.stream(3)
    outputs = np.stack([stream.step(step, resets=begin) for step, begin in zip(x, resets, strict=True)])
    expected, state = module(x, resets=resets)
    assert_same_bits(outputs, expected)
    for part, expected_part in zip(pair_of(stream.state), pair_of(state), strict=True):
        assert_same_bits(part, expected_part)


@cells
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_gradients_of_learnt_states_in_episodes(cell, bidirectional, given):
    """Slopes by differences of every element of them."""
    module = with_states(build(cell, 3, 4, learn_state=True, dtype=np.float64, bidirectional=bidirectional))
    shape = (6, 3)
    x = normal((*shape, 3), dtype=np.float64)
    marks = {"mask": flags(shape, 0.8, 1), "resets": flags(shape, 0.3, 7)}
    state = state_of(module, 3) if given else None
    output, state_n, tape = module.forward(x, state, **marks)
    d_output = normal(output.shape, seed=8, dtype=np.float64)
    d_state = tuple(normal(s.shape, seed=9, dtype=np.float64) for s in pair_of(state_n))
    d_state = d_state if isinstance(state_n, tuple) else d_state[0]
    _, _, gradients = module.backward(tape, d_output, d_state)

    def loss():
        results = flat(module(x, state, **marks))
        return sum(float((r * w).sum()) for r, w in zip(results, (d_output, *pair_of(d_state)), strict=True))

    parameters, step = module.parameters(), 1e-5
    for name in ("h_0", "c_0"):
        if name not in parameters:
            continue
        values, expected = parameters[name].reshape(-1), []
        for i, before in enumerate(values.copy()):
            values[i] = before + step
            above = loss()
            values[i] = before - step
            expected.append((above - loss()) / (2 * step))
            values[i] = before
        np.testing.assert_allclose(gradients[name].reshape(-1), expected, rtol=1e-5, atol=1e-7)
        assert np.abs(expected).max() > 1e-3


@cells
@pytest.mark.parametrize(("hidden_size", "batch"), SIZES)
def test_reverse_with_masks_and_episodes(cell, hidden_size, batch):
    """As time flipped by hand: a border before step t is one before step T - t there."""
    steps = 8
    reverse = build(cell, 5, hidden_size, direction="reverse", num_layers=2)
    forward = build(cell, 5, hidden_size, num_layers=2)
    x, state = normal((steps, batch, 5)), state_of(forward, batch)
    mask, resets = flags((steps, batch), 0.7, 1), flags((steps, batch), 0.3, 2)
    flipped = np.zeros_like(resets)
    flipped[1:] = resets[:0:-1]
    for mask_output in ("zeros", "previous"):
        ours = reverse(x, state, mask=mask, resets=resets, mask_output=mask_output)
        theirs = forward(x[::-1], state, mask=mask[::-1], resets=flipped, mask_output=mask_output)
        assert_same_bits(ours, (theirs[0][::-1], theirs[1]))

    def gradients(module, x, d_output, **marks):
        _, _, tape = module.forward(x, state, mask_output="previous", **marks)
        return named(*module.backward(tape, d_output))

    d_output = normal((steps, batch, hidden_size), seed=4)
    ours = gradients(reverse, x, d_output, mask=mask, resets=resets)
    theirs = gradients(forward, x[::-1], d_output[::-1], mask=mask[::-1], resets=flipped)
    theirs["x"] = theirs["x"][::-1]
    # Sums over pieces, and over the steps that repeat an output, have another order.
    assert_close_gradients(ours, theirs, 2e-6)


@cells
@pytest.mark.parametrize("merge", ["sum", "mul", "mean"])
def test_merge_with_masks_and_episodes(cell, merge):
    merged = build(cell, 5, 9, bidirectional=True, merge=merge, dtype=np.float64)
    apart = build(cell, 5, 9, bidirectional=True, dtype=np.float64)
    x = normal((6, 4, 5), dtype=np.float64)
    marks = {"mask": flags((6, 4), 0.7, 1), "resets": flags((6, 4), 0.3, 2), "mask_output": "previous"}
    both, state = apart(x, **marks)
    one, other = both[..., :9], both[..., 9:]
    expected = {"sum": one + other, "mul": one * other, "mean": (one + other) / 2}[merge]
    out = np.full(expected.shape, np.nan)
    result = merged(x, out=out, **marks)
    assert result[0] is out
    assert_same_bits(result, (expected, state))
    d_output = normal(expected.shape, seed=4, dtype=np.float64)
    factors = {"sum": (1, 1), "mul": (other, one), "mean": (0.5, 0.5)}[merge]
    d_both = np.concatenate([d_output * factor for factor in factors], axis=-1)
    ours = named(*merged.backward(merged.forward(x, **marks)[2], d_output))
    theirs = named(*apart.backward(apart.forward(x, **marks)[2], d_both))
    assert_close_gradients(ours, theirs, 1e-13)


@cells
@pytest.mark.parametrize(("hidden_size", "batch"), SIZES)
def test_functions_with_masks_and_episodes(cell, hidden_size, batch):
    """And a lower precision, and gradients that are the same however many threads there are."""
    options = {"activations": mixed(cell, 2), **limits(cell)}
    module = build(cell, 17, hidden_size, **options)
    x, mask, resets = normal((9, batch, 17)), flags((9, batch), 0.7, 1), flags((9, batch), 0.3, 2)
    for precision in (None, "bfloat16"):
        module.to("cpu", precision)
        output, state = module(x, mask=mask, resets=resets)
        expected, expected_state = pieces_by_hand(module, x, mask, resets)
        assert_same_bits(output, expected)
        for part, expected_part in zip(pair_of(state), expected_state, strict=True):
            assert_same_bits(part, expected_part)
    results = []
    for threads in (1, 2):
        with gr.num_threads(threads):
            _, _, tape = module.forward(x, mask=mask, resets=resets)
            results.append(named(*module.backward(tape, output)))
    for name, gradient in results[0].items():
        assert_same_bits(results[1][name], gradient)


@pytest.mark.peers
@pytest.mark.usefixtures("one_torch_thread")
def test_all_of_it_in_pytorch():
    torch = pytest.importorskip("torch")
    gatedrnn_torch = pytest.importorskip("gatedrnn.torch")
    functions = {"clip": 0.7, "activations": {"g": "softsign"}}
    options = {"learn_state": True, "bidirectional": True, "merge": "mul", **functions}
    theirs = gatedrnn_torch.LSTM(5, 9, **options)
    with torch.no_grad():
        theirs.h_0.normal_()
        theirs.c_0.normal_()
    ours = gr.LSTM(5, 9, **options)
    ours.load_state_dict(theirs.state_dict())
    x, mask, resets = normal((6, 4, 5)), flags((6, 4), 0.7, 1), flags((6, 4), 0.3, 2)
    output, _, tape = ours.forward(x, mask=mask, resets=resets)
    gradients = ours.backward(tape, np.ones_like(output))[2]
    for compiled in (False, True):
        call = torch.compile(theirs, backend="aot_eager") if compiled else theirs
        theirs.zero_grad()
        y, _ = call(torch.from_numpy(x), mask=torch.from_numpy(mask), resets=torch.from_numpy(resets))
        assert_same_bits(y.detach().numpy(), output)
        y.sum().backward()
        for name, parameter in theirs.named_parameters():
            assert_same_bits(parameter.grad.numpy(), gradients[name])
