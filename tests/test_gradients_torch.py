"""Gradients against PyTorch's autograd: over torch.nn where it has the cell, over plain tensors for all."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from gradients import (
    CELLS,
    assert_close_gradients,
    gradient_tolerance,
    make,
    named,
    parts,
    plain,
    problem,
)
from helpers import directions

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]
torch = pytest.importorskip("torch")

cells = pytest.mark.parametrize("cell", CELLS)
# Those that torch.nn has.
nn_cells = pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_projected"])
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])

FLOAT64 = 1e-10  # what the library promises of float64, in parts of the largest value of each array
BOTH = 2  # sides that round


def leaf(array):
    return torch.from_numpy(array.copy()).requires_grad_()


def tensors(state):
    return tuple(map(leaf, state)) if isinstance(state, tuple) else leaf(state)


def nn_module(p):
    """The same module of torch.nn, with the same parameters."""
    m, options = p.module, {"nonlinearity": p.cell[4:]} if p.cell.startswith("rnn") else {}
    options |= {"proj_size": m.proj_size} if p.cell == "lstm_projected" else {}
    kind = getattr(torch.nn, type(m).__name__)
    theirs = kind(
        m.input_size,
        m.hidden_size,
        m.num_layers,
        bias=m.bias,
        batch_first=m.batch_first,
        bidirectional=m.bidirectional,
        dtype=getattr(torch, m.dtype.name),
        **options,
    )
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in m.state_dict().items()})
    return theirs


def backward(p, run, parameters):
    """The gradients of the problem's loss; `run(x, state)` gives output and final state as tensors."""
    x, state = leaf(p.x), tensors(p.state)
    output, state_n = run(x, state)
    results = [output, *(state_n if isinstance(state_n, tuple) else (state_n,))]
    weights = map(torch.from_numpy, (p.d_output, *parts(p.d_state_n)))
    torch.autograd.backward(results, list(weights))

    def gradient(tensor):
        return np.zeros(tensor.shape, p.module.dtype) if tensor.grad is None else tensor.grad.numpy()

    d_state = tuple(map(gradient, parts(state)))
    return named(gradient(x), d_state, {k: gradient(v) for k, v in parameters.items()})


def by_nn(p):
    """Through torch.nn, ragged rows through a packed sequence."""
    theirs, batch_first = nn_module(p), p.module.batch_first

    def run(x, state):
        if p.lengths is not None:
            x = torch.nn.utils.rnn.pack_padded_sequence(x, p.lengths, batch_first, enforce_sorted=False)
        output, state_n = theirs(x, state)
        if p.lengths is not None:
            output, _ = torch.nn.utils.rnn.pad_packed_sequence(output, batch_first, total_length=p.steps)
        return output, state_n

    return backward(p, run, dict(theirs.named_parameters()))


# --- plain tensors: the forward equations, as plainly as torch can say them -----------------------


def lstm(w, x, state):
    h, c = state
    i, f, g, o = (x @ w["weight_ih"].T + w["bias_ih"] + h @ w["weight_hh"].T + w["bias_hh"]).chunk(4, 1)
    if "weight_ci" in w:
        i, f = i + w["weight_ci"] * c, f + w["weight_cf"] * c
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    if "weight_co" in w:
        o = o + w["weight_co"] * c
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h @ w["weight_hr"].T if "weight_hr" in w else h), c


def coupled_lstm(w, x, state):
    h, c = state
    i, g, o = (x @ w["weight_ih"].T + w["bias_ih"] + h @ w["weight_hh"].T + w["bias_hh"]).chunk(3, 1)
    i = i + w["weight_ci"] * c if "weight_ci" in w else i
    c = torch.sigmoid(-i) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o + w["weight_co"] * c if "weight_co" in w else o) * torch.tanh(c)
    return (h @ w["weight_hr"].T if "weight_hr" in w else h), c


def gru(w, x, state, reset_after):
    (h,) = state
    x_r, x_z, x_n = (x @ w["weight_ih"].T + w["bias_ih"]).chunk(3, 1)
    (u_r, u_z, u_n), (b_r, b_z, b_n) = w["weight_hh"].chunk(3), w["bias_hh"].chunk(3)
    r = torch.sigmoid(x_r + h @ u_r.T + b_r)
    z = torch.sigmoid(x_z + h @ u_z.T + b_z)
    n = torch.tanh(x_n + (r * (h @ u_n.T + b_n) if reset_after else (r * h) @ u_n.T + b_n))
    return ((1 - z) * n + z * h,)


def rnn(w, x, state, activation):
    (h,) = state
    return (activation(x @ w["weight_ih"].T + w["bias_ih"] + h @ w["weight_hh"].T + w["bias_hh"]),)


STEP = {
    "lstm": lstm,
    "lstm_peephole": lstm,
    "lstm_coupled": coupled_lstm,
    "lstm_coupled_peephole": coupled_lstm,
    "gru": lambda w, x, state: gru(w, x, state, True),
    "gru_reset_before": lambda w, x, state: gru(w, x, state, False),
    "rnn_tanh": lambda w, x, state: rnn(w, x, state, torch.tanh),
    "rnn_relu": lambda w, x, state: rnn(w, x, state, torch.relu),
}


def one_direction(step, w, x, state, lengths, reverse):
    """A row past its length keeps its state and puts out zeros."""
    outputs = [None] * len(x)
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        valid = (t < lengths)[:, None]
        new = step(w, x[t], state)
        state = tuple(torch.where(valid, n, old) for n, old in zip(new, state, strict=True))
        outputs[t] = torch.where(valid, state[0], torch.zeros_like(state[0]))
    return torch.stack(outputs), state


def by_tensors(p):
    m = p.module
    parameters = {k: leaf(v) for k, v in m.state_dict().items()}
    lengths = np.full(p.x.shape[1], p.steps) if p.lengths is None else p.lengths
    lengths = torch.as_tensor(np.array(lengths))
    zeros = torch.zeros(m.weight_ih_l0.shape[0], dtype=getattr(torch, m.dtype.name))

    def run(x, state):
        final = []
        for layer in range(m.num_layers):
            outputs = []
            for reverse in range(directions(m)):
                suffix = f"_l{layer}" + "_reverse" * reverse
                w = {k.removesuffix(suffix): v for k, v in parameters.items() if k.endswith(suffix)}
                w = {"bias_ih": zeros, "bias_hh": zeros} | w
                start = tuple(s[layer * directions(m) + reverse] for s in parts(state))
                output, end = one_direction(STEP[plain(p.cell)], w, x, start, lengths, reverse)
                outputs.append(output)
                final.append(end)
            x = torch.cat(outputs, 2)
        return x, tuple(torch.stack(s) for s in zip(*final, strict=True))

    return backward(p, run, parameters)


# --- the tests ------------------------------------------------------------------------------------


def compare(p, expected):
    tight = gradient_tolerance(p) * BOTH
    assert_close_gradients(p.gradients(), expected, FLOAT64 if p.module.dtype == np.float64 else tight)


@nn_cells
@dtypes
@pytest.mark.parametrize(
    ("num_layers", "bias", "batch_first", "bidirectional"),
    list(itertools.product([1, 2], [True, False], [True, False], [True, False])),
)
def test_all_options(cell, dtype, num_layers, bias, batch_first, bidirectional):
    options = {
        "bias": bias,
        "batch_first": batch_first,
        "bidirectional": bidirectional,
        "num_layers": num_layers,
        "dtype": dtype,
    }
    for batch, lengths in [(4, None), (4, [1, 6, 2, 3]), (None, None)]:
        p = problem(cell, batch=batch, steps=6, lengths=lengths, **options)
        compare(p, by_nn(p))


@nn_cells
@dtypes
@pytest.mark.parametrize(
    ("input_size", "hidden_size", "batch"),
    [(1, 2, 1), (7, 9, 15), (17, 33, 9), (15, 129, 7), (129, 31, 17), (31, 17, 129), (33, 129, 33)],
)
def test_sizes(cell, dtype, input_size, hidden_size, batch):
    p = problem(cell, input_size, hidden_size, batch, 8, dtype=dtype)
    compare(p, by_nn(p))


@nn_cells
@dtypes
@pytest.mark.parametrize("recompute", [False, True])
def test_many_steps(cell, dtype, recompute):
    """Several blocks of (time step, row) pairs."""
    p = problem(cell, 9, 17, 15, 100, dtype=dtype, bidirectional=True)
    expected = by_nn(p)
    relative = FLOAT64 if dtype == np.float64 else gradient_tolerance(p) * BOTH
    assert_close_gradients(p.gradients(recompute=recompute), expected, relative)


@cells
@dtypes
@pytest.mark.parametrize(
    ("num_layers", "bias", "bidirectional"), list(itertools.product([1, 2], [True, False], [True, False]))
)
def test_plain_tensors(cell, dtype, num_layers, bias, bidirectional):
    """Every cell, also those that torch.nn has not, with rows of length 0."""
    options = {"bias": bias, "bidirectional": bidirectional, "num_layers": num_layers, "dtype": dtype}
    for lengths in (None, [6, 0, 1, 5]):
        p = problem(cell, batch=4, steps=6, lengths=lengths, **options)
        compare(p, by_tensors(p))


@cells
@dtypes
@pytest.mark.parametrize(
    ("input_size", "hidden_size", "batch"), [(1, 2, 1), (9, 7, 15), (17, 33, 9), (31, 129, 33), (129, 15, 7)]
)
def test_sizes_with_plain_tensors(cell, dtype, input_size, hidden_size, batch):
    p = problem(cell, input_size, hidden_size, batch, 5, dtype=dtype)
    compare(p, by_tensors(p))


@nn_cells
def test_both_of_torchs_ways_agree(cell):
    """The yardsticks themselves: torch.nn and the equations over plain tensors."""
    p = problem(cell, 9, 17, 5, 7, num_layers=2, bidirectional=True, lengths=[7, 2, 1, 7, 4])
    assert_close_gradients(by_tensors(p), by_nn(p), gradient_tolerance(p) * BOTH)


@nn_cells
@dtypes
def test_a_step_of_training_is_torchs(cell, dtype):
    """Gradient descent on a squared error: in each step the same loss, and at the end the same weights."""
    p = problem(cell, 9, 17, 5, 7, dtype=dtype, num_layers=2)
    theirs, rate, losses = nn_module(p), 0.5, []
    target = 0.1 * p.d_output
    optimizer = torch.optim.SGD(theirs.parameters(), lr=rate)
    for _ in range(5):
        optimizer.zero_grad()
        their_loss = torch.square(theirs(torch.from_numpy(p.x))[0] - torch.from_numpy(target)).mean()
        their_loss.backward()
        optimizer.step()
        output, _, tape = p.module.forward(p.x)
        error = output - target
        _, _, grads = p.module.backward(tape, 2 / error.size * error)
        for name, parameter in p.module.parameters().items():
            parameter -= rate * grads[name]
        losses.append(float(np.square(error).mean()))
        # Each step adds its gradient's error to those of the weights before.
        relative = len(losses) * BOTH * gradient_tolerance(p)
        assert abs(losses[-1] - their_loss.item()) <= relative * losses[0]
    assert losses[-1] < losses[0]
    actual = p.module.state_dict()
    expected = {k: v.numpy() for k, v in theirs.state_dict().items()}
    assert_close_gradients(actual, expected, relative)


def in_float64(p):
    """The same problem, exactly, in the wider type."""
    module = make(p.cell, p.module.input_size, p.module.hidden_size, dtype=np.float64)
    module.load_state_dict(p.module.state_dict())

    def wider(state):
        return tuple(map(np.float64, state)) if isinstance(state, tuple) else np.float64(state)

    return dataclasses.replace(
        p,
        module=module,
        x=np.float64(p.x),
        state=wider(p.state),
        d_output=np.float64(p.d_output),
        d_state_n=wider(p.d_state_n),
    )


def rms(actual, exact):
    """Root mean square error, in parts of the root mean square."""
    return float(np.sqrt(np.square(actual - exact).mean() / np.square(exact).mean()))


# Of the tables of docs/same-bits.md.
SIZES = (16, 32, 64, 128, 256, 512, 1024)


def torchs_output(p):
    with torch.no_grad():
        state = (
            tuple(map(torch.from_numpy, p.state)) if isinstance(p.state, tuple) else torch.from_numpy(p.state)
        )
        return nn_module(p)(torch.from_numpy(p.x), state)[0].numpy()


def errors_beside_torchs(cell, size):
    """Of the output and of all gradients: our error against float64 in parts of torch's.

    Errors of several arrays and draws are added up as squares, each in parts of the array's own size.
    """
    ours, theirs = np.zeros(2), np.zeros(2)
    for seed in range(3 if size <= 256 else 1):
        p = problem(cell, size, size, 16, 12, dtype=np.float32, seed=seed)
        wide = in_float64(p)
        exact = wide.results()[0]
        ours[0] += rms(p.results()[0], exact) ** 2
        theirs[0] += rms(torchs_output(p), exact) ** 2
        gradients, torchs = p.gradients(), by_nn(p)
        for name, exact in wide.gradients().items():
            ours[1] += rms(gradients[name], exact) ** 2
            theirs[1] += rms(torchs[name], exact) ** 2
    return np.sqrt(ours / theirs)


def test_errors_beside_torchs():
    """Blocks of sums are there so that errors are no larger than torch's: what docs/same-bits.md promises.

    Ours are the same everywhere, torch's differ by some percent from machine to machine.
    """
    ratios = {}
    for cell in ("gru", "lstm", "rnn_tanh"):
        ratios[cell] = np.array([errors_beside_torchs(cell, size) for size in SIZES])
        for size, (output, gradients) in zip(SIZES, ratios[cell], strict=True):
            print(f"{cell} H={size}: rms errors {output:.2f} and, of gradients, {gradients:.2f} of torch's")
    means = {cell: np.exp(np.log(r).mean(axis=0)) for cell, r in ratios.items()}
    print("in geometric mean, output and gradients:", means)
    assert all((mean <= 1.15).all() for mean in means.values())
    assert (np.exp(np.mean([np.log(mean) for mean in means.values()], axis=0)) <= 1.1).all()
    assert all((r <= 1.5).all() for r in ratios.values())
