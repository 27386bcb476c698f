"""gatedrnn.torch against torch.nn: results, gradients, parameters, dropout, ragged rows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import gatedrnn as gr
from helpers import assert_same_bits

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("one_torch_thread")]
torch = pytest.importorskip("torch")
from torch.nn.utils.rnn import (  # noqa: E402
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

import gatedrnn.torch as gt  # noqa: E402
from gatedrnn.torch import _ops  # noqa: E402
from torch_modules import (  # noqa: E402
    CELLS,
    HIDDEN,
    INPUT,
    NUMPY,
    compare,
    dtypes,
    every_cell,
    leaves,
    ours,
    pair,
    parts,
    random,
    run,
    state_of,
    torch_with_lengths,
    torchs_cells,
)

# ---- the same numbers ----


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@torchs_cells
@dtypes
@pytest.mark.parametrize(
    ("num_layers", "bias", "batch_first", "bidirectional"),
    list(itertools.product([1, 2], [True, False], [True, False], [True, False])),
)
def test_results_and_gradients_are_torchs(cell, dtype, num_layers, bias, batch_first, bidirectional):
    options = {
        "num_layers": num_layers,
        "bias": bias,
        "batch_first": batch_first,
        "bidirectional": bidirectional,
    }
    module, theirs = pair(cell, dtype=dtype, **options)
    x = random(4, 6, INPUT, dtype=dtype)
    batch, steps = (4, 6) if batch_first else (6, 4)
    for inputs, state in [(x, None), (x, state_of(module, batch)), (x[1], state_of(module)), (x[1], None)]:
        compare(cell, module, run(module, inputs, state), run(theirs, inputs, state), 6, batch)
    lengths = [1, steps, 2, 3, 4, 1][:batch]
    actual = run(module, x, state_of(module, batch), lengths=lengths)
    expected = run(theirs, x, state_of(module, batch), compute=torch_with_lengths(theirs, lengths, steps))
    compare(cell, module, actual, expected, steps, batch)


@every_cell
@dtypes
def test_bits_are_those_of_the_numpy_api(cell, dtype):
    """Also for the cells that torch has not; gradients included."""
    module = ours(cell, num_layers=2, bidirectional=True, dtype=dtype)
    constructor, own = NUMPY[type(module)], CELLS[cell][2]
    twin = constructor(
        INPUT, HIDDEN, 2, bidirectional=True, dtype=np.dtype(str(dtype).removeprefix("torch.")), **own
    )
    twin.load_state_dict(module.state_dict())
    x, state, lengths = random(4, 3, INPUT, dtype=dtype), state_of(module, 3), [2, 4, 0]
    output, state_n = module(x, leaves(state), lengths=lengths)
    results = [output, *parts(state_n)]
    d_results = [random(*r.shape, seed=seed, dtype=dtype) for seed, r in enumerate(results)]
    torch.autograd.backward(results, d_results)

    arrays = [part.numpy() for part in parts(state)]
    state = tuple(arrays) if len(arrays) == 2 else arrays[0]
    expected_output, expected_state_n, tape = twin.forward(x.numpy(), state, lengths=lengths)
    d_state_n = tuple(d.numpy() for d in d_results[1:])
    _, _, gradients = twin.backward(
        tape, d_results[0].numpy(), d_state_n if len(d_state_n) == 2 else d_state_n[0]
    )
    for actual, expected in zip(results, [expected_output, *parts(expected_state_n)], strict=True):
        assert_same_bits(actual.detach().numpy(), np.asarray(expected))
    for name, parameter in module.named_parameters():
        assert_same_bits(parameter.grad.numpy(), gradients[name])
    assert_same_bits(
        module.eval()(x, lengths=lengths)[0].detach().numpy(), twin(x.numpy(), lengths=lengths)[0]
    )


GRADCHECKS = {
    "plain": ({}, (3, 2), None),
    "two layers in both directions": ({"num_layers": 2, "bidirectional": True}, (2, 2), None),
    "batch first, no bias": ({"batch_first": True, "bias": False}, (2, 3), None),
    "unbatched": ({}, (3,), None),
    "lengths": ({"bidirectional": True}, (3, 3), [1, 3, 0]),
    "dropout": ({"num_layers": 2, "dropout": 0.5}, (2, 2), None),
}


@every_cell
@pytest.mark.parametrize("case", GRADCHECKS)
def test_gradcheck(cell, case):
    options, shape, lengths = GRADCHECKS[case]
    own = {"proj_size": 2} if cell == "lstm_projected" else {}
    module = ours(cell, 2, 3, dtype=torch.float64, **(options | own))
    x = leaves(random(*shape, 2, dtype=torch.float64))
    batch = shape[:0] if len(shape) == 1 else shape[:1] if module.batch_first else shape[1:]
    state = leaves(state_of(module, *batch))
    names = [name for name, _ in module.named_parameters()]

    def compute(x, *rest):
        torch.manual_seed(5)  # the same values dropped each time
        parameters = dict(zip(names, rest[len(parts(state)) :], strict=True))
        hx = rest[:2] if isinstance(state, tuple) else rest[0]
        output, state_n = torch.func.functional_call(module, parameters, (x, hx), {"lengths": lengths})
        return output, *parts(state_n)

    assert torch.autograd.gradcheck(compute, (x, *parts(state), *module.parameters()))


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_training_loop_is_that_of_torch(name):
    """20 steps of Adam from the same parameters give the same losses.

    A loss is a mean over T*B outputs, each of pre-activations of 2 + I + H terms: the square root of that
    many roundings, as in `tolerance`. The parameters take such errors along, so those of the steps add up.
    """
    steps, batch, features, hidden, updates = 10, 8, 16, 32, 20
    inputs, targets = random(steps, batch, features), random(steps, batch, 1, seed=1)

    def train(constructor):
        torch.manual_seed(0)
        rnn, head = constructor(features, hidden, num_layers=2), torch.nn.Linear(hidden, 1)
        optimizer = torch.optim.Adam([*rnn.parameters(), *head.parameters()])
        losses = []
        for _ in range(updates):
            optimizer.zero_grad()
            loss = (head(rnn(inputs)[0]) - targets).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return np.array(losses)

    expected, actual = train(getattr(torch.nn, name)), train(getattr(gt, name))
    learned = expected[0] - expected[-1]
    roundings = np.sqrt(steps * batch + 2 + features + hidden)
    allowed = updates * np.finfo(np.float32).eps * roundings * expected[0]
    assert np.abs(actual - expected).max() <= allowed < 1e-3 * learned


# ---- parameters ----


@torchs_cells
@pytest.mark.parametrize(("bias", "bidirectional"), list(itertools.product([True, False], [True, False])))
def test_parameters_are_torchs(cell, bias, bidirectional):
    """The same names, order, shapes and, with the same seed, numbers; dictionaries go both ways."""
    options = CELLS[cell][2] | {"num_layers": 2, "bias": bias, "bidirectional": bidirectional}
    torch.manual_seed(3)
    theirs = CELLS[cell][1](INPUT, HIDDEN, **options)
    module = ours(cell, seed=3, **options)
    for mine, others in [
        (module.state_dict(), theirs.state_dict()),
        (dict(module.named_parameters()), dict(theirs.named_parameters())),
    ]:
        assert list(mine) == list(others)
        assert all(torch.equal(mine[name], others[name]) for name in others)
    assert [len(group) for group in module.all_weights] == [len(group) for group in theirs.all_weights]
    assert all(a is b for a, b in zip(itertools.chain(*module.all_weights), module.parameters(), strict=True))
    theirs.reset_parameters()
    assert str(module.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    module.reset_parameters()
    theirs.load_state_dict(module.state_dict())
    x = random(4, 3, INPUT)
    assert torch.allclose(module(x)[0], theirs(x)[0], atol=1e-6)


def test_state_dict_of_a_numpy_module():
    twin = gr.GRU(INPUT, HIDDEN, reset_after=False, seed=0)
    module = ours("gru_reset_before")
    module.load_state_dict({name: torch.from_numpy(array) for name, array in twin.state_dict().items()})
    x = random(4, 3, INPUT)
    assert_same_bits(module(x)[0].detach().numpy(), twin(x.numpy())[0])
    twin.load_state_dict(ours("gru_reset_before", seed=4).state_dict())
    assert_same_bits(ours("gru_reset_before", seed=4)(x)[0].detach().numpy(), twin(x.numpy())[0])


@pytest.mark.parametrize(
    "arguments",
    [(5, 7), (5, 7, 2, False, True, 0.5, True), (5, 7, 2, False, True, 0.5, True, 0, "cpu", torch.float64)],
)
def test_constructor_takes_torchs_arguments_by_position(arguments):
    module, theirs = gt.LSTM(*arguments), torch.nn.LSTM(*arguments)
    assert repr(module) == repr(theirs)
    assert [p.dtype for p in module.parameters()] == [p.dtype for p in theirs.parameters()]
    for name in (
        "batch_first",
        "bias",
        "bidirectional",
        "dropout",
        "hidden_size",
        "input_size",
        "num_layers",
    ):
        assert getattr(module, name) == getattr(theirs, name)
    if len(arguments) == 7:
        assert repr(gt.GRU(*arguments)) == repr(torch.nn.GRU(*arguments))
        arguments = (*arguments[:3], "relu", *arguments[3:])
        assert gt.RNN(*arguments).nonlinearity == torch.nn.RNN(*arguments).nonlinearity == "relu"


def test_repr():
    assert repr(gt.LSTM(5, 7, proj_size=3, peephole=True)) == "LSTM(5, 7, proj_size=3, peephole=True)"
    assert repr(gt.LSTM(5, 7, coupled=True)) == "LSTM(5, 7, coupled=True)"
    assert repr(gt.GRU(5, 7, reset_after=False)) == "GRU(5, 7, reset_after=False)"
    assert repr(gt.RNN(5, 7, nonlinearity="relu")) == "RNN(5, 7, nonlinearity='relu')"


def test_dtype_is_torchs_default():
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert gt.GRU(INPUT, HIDDEN).weight_ih_l0.dtype == torch.float64
    finally:
        torch.set_default_dtype(before)


# ---- dropout ----


def test_dropout():
    module = ours("rnn_relu", HIDDEN, 200, num_layers=2, dropout=0.25)
    x = random(50, 4, HIDDEN)
    torch.manual_seed(0)
    first, second = module(x)[0], module(x)[0]
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(module(x)[0], first)
    with torch.no_grad():  # training mode decides, not gradients
        torch.manual_seed(0)
        assert torch.equal(module(x)[0], first)
    assert not _ops._recorded or first.grad_fn is not None
    plain = ours("rnn_relu", HIDDEN, 200, num_layers=2)
    assert torch.equal(module.eval()(x)[0], plain(x)[0])
    assert not torch.equal(first, plain(x)[0])
    with pytest.warns(UserWarning, match=r"dropout=0\.5 has no effect with num_layers=1"):
        gt.GRU(INPUT, HIDDEN, dropout=0.5)


def test_dropped_share():
    """Layer 1 of identity weights shows layer 0's output: what is left of it is divided by 1 - p."""
    p, width = 0.25, 64
    module = gt.RNN(1, width, 2, "relu", bias=False, dropout=p)
    with torch.no_grad():
        module.weight_ih_l0.fill_(1)
        module.weight_ih_l1.copy_(torch.eye(width))
        module.weight_hh_l0.zero_()
        module.weight_hh_l1.zero_()
        torch.manual_seed(0)
        output = module(torch.ones(50, 4, 1))[0]
    kept = output != 0
    assert torch.equal(output[kept], torch.full_like(output[kept], np.float32(1 / (1 - p))))
    deviation = np.sqrt(p * (1 - p) / output.numel())
    assert abs(float(kept.double().mean()) - (1 - p)) < 5 * deviation


# ---- rows of different lengths ----


def data_and_state(module, packed, state):
    """Call with a packed sequence as `run` wants it: from data to data."""

    def compute(data, state):
        output, state_n = module(PackedSequence(data, *packed[1:]), state)
        assert isinstance(output, PackedSequence)
        for actual, expected in zip(output[1:], packed[1:], strict=True):
            assert actual is expected
        return output.data, state_n

    return run(module, packed.data, state, compute=compute)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@torchs_cells
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda x: pack_padded_sequence(x, [2, 5, 1, 4], enforce_sorted=False),
        lambda x: pack_padded_sequence(x, [5, 4, 4, 1]),
        lambda x: pack_padded_sequence(x, [5, 5, 5, 5]),
        lambda x: pack_sequence([x[:3, 0], x[:3, 1], x[:2, 2]]),
        lambda x: pack_padded_sequence(
            x.transpose(0, 1), [2, 5, 1, 4], batch_first=True, enforce_sorted=False
        ),
    ],
    ids=["unsorted", "sorted", "full", "pack_sequence", "batch_first"],
)
def test_packed_sequence(cell, bidirectional, make):
    module, theirs = pair(cell, num_layers=2, bidirectional=bidirectional, dtype=torch.float64)
    packed = make(random(5, 4, INPUT, dtype=torch.float64))
    batch = int(packed.batch_sizes[0])
    for state in (None, state_of(module, batch)):
        actual, expected = data_and_state(module, packed, state), data_and_state(theirs, packed, state)
        compare(cell, module, actual, expected, 5, batch)
    expected = data_and_state(module, packed, None)[0][0]
    with torch.no_grad():
        assert_same_bits(module(packed)[0].data.numpy(), expected)


@pytest.mark.parametrize("batch_first", [True, False])
def test_packed_sequence_is_lengths(batch_first):
    module = ours("gru_reset_before", bidirectional=True, batch_first=batch_first)
    x, lengths = random(4, 4, INPUT), [2, 4, 1, 3]
    packed = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
    output, h_n = module(packed)
    padded, _ = pad_packed_sequence(output, batch_first)
    expected, expected_h_n = module(x, lengths=lengths)
    assert torch.equal(padded, expected)
    assert torch.equal(h_n, expected_h_n)


@pytest.mark.parametrize(
    "given",
    [[2, 4, 0], (2, 4, 0), np.array([2, 4, 0]), torch.tensor([2, 4, 0]), torch.tensor([2, 4, 0]).int()],
    ids=["list", "tuple", "array", "int64", "int32"],
)
def test_lengths_of_any_kind(given):
    module = ours("lstm")
    x, state = random(4, 3, INPUT), state_of(module, 3)
    x[2:, 0] = np.nan  # padding is never computed with
    output, (h_n, c_n) = module(x, state, lengths=given)
    assert not output[2:, 0].any()
    assert not output[:, 2].any()
    assert torch.equal(h_n[:, 2], state[0][:, 2])
    assert torch.equal(output[:2, 0], module(x[:2, 0], (state[0][:, 0], state[1][:, 0]))[0])
    assert torch.equal(c_n[:, 1], module(x[:, 1], (state[0][:, 1], state[1][:, 1]))[1][1])


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0)])
def test_nothing_to_do(shape):
    module = ours("gru")
    x, h = leaves(random(*shape, INPUT)), leaves(state_of(module, shape[1]))
    output, h_n = module(x, h)
    assert output.shape == (*shape, HIDDEN)
    (output.sum() + h_n.sum()).backward()
    assert x.grad.shape == x.shape
    assert not module.weight_ih_l0.grad.any()
    if not shape[0]:
        assert torch.equal(h_n, h)
        assert torch.equal(h.grad, torch.ones_like(h))
