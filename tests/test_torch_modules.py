"""gatedrnn.torch against torch.nn: results, gradients, compilation, and all that a module has to survive."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import pickle
import sys
import threading

import numpy as np
import pytest

import gatedrnn as gr
from helpers import CELLS_AND_PROJECTION, assert_same_bits, normal, run_python
from tolerance import assert_close

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch")
import torch.utils._pytree as pytree  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402
from torch._subclasses.schema_check_mode import SchemaCheckMode  # noqa: E402
from torch.nn.utils.rnn import (  # noqa: E402
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

import gatedrnn.torch as gt  # noqa: E402
from gatedrnn.torch import _ops  # noqa: E402

# By the engine's names: ours, torch's where there is one, and the arguments that ours needs for it.
CELLS = {
    "lstm": (gt.LSTM, torch.nn.LSTM, {}),
    "lstm_peephole": (gt.LSTM, None, {"peephole": True}),
    "lstm_projected": (gt.LSTM, torch.nn.LSTM, {"proj_size": 4}),
    "gru": (gt.GRU, torch.nn.GRU, {}),
    "gru_reset_before": (gt.GRU, None, {"reset_after": False}),
    "rnn_tanh": (gt.RNN, torch.nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (gt.RNN, torch.nn.RNN, {"nonlinearity": "relu"}),
}
assert set(CELLS) == set(CELLS_AND_PROJECTION)
NUMPY = {gt.LSTM: gr.LSTM, gt.GRU: gr.GRU, gt.RNN: gr.RNN}
every_cell = pytest.mark.parametrize("cell", CELLS)
torchs_cells = pytest.mark.parametrize("cell", [cell for cell, classes in CELLS.items() if classes[1]])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])

INPUT, HIDDEN = 5, 7


@pytest.fixture(autouse=True)
def _one_torch_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ours(cell, input_size=INPUT, hidden_size=HIDDEN, *, seed=0, **options):
    torch.manual_seed(seed)
    constructor, _, own = CELLS[cell]
    return constructor(input_size, hidden_size, **(own | options))


def pair(cell, input_size=INPUT, hidden_size=HIDDEN, *, seed=0, **options):
    """The same module twice: ours, and torch's."""
    torch.manual_seed(seed)
    _, constructor, own = CELLS[cell]
    theirs = constructor(input_size, hidden_size, **own, **options)
    module = ours(cell, input_size, hidden_size, seed=seed + 1, **options)
    module.load_state_dict(theirs.state_dict())
    return module, theirs


def random(*shape, seed=0, dtype=torch.float32):
    return torch.from_numpy(normal(shape, seed=seed, dtype=np.float64)).to(dtype)


def tracks(module):
    return module.num_layers * (1 + module.bidirectional)


def state_of(module, *batch, seed=1):
    dtype = next(module.parameters()).dtype
    h = random(tracks(module), *batch, module.proj_size or module.hidden_size, seed=seed, dtype=dtype)
    if not isinstance(module, (gt.LSTM, torch.nn.LSTM)):
        return h
    return h, random(tracks(module), *batch, module.hidden_size, seed=seed + 1, dtype=dtype)


def parts(state):
    return [] if state is None else list(state) if isinstance(state, tuple) else [state]


def leaves(state):
    """Copies of a state, or of an input, that require gradients."""
    if isinstance(state, tuple):
        return tuple(leaves(part) for part in state)
    return None if state is None else state.detach().clone().requires_grad_()


def loss_of(results):
    """A scalar in which every number has a weight of its own."""
    return sum(
        (result * random(*result.shape, seed=seed, dtype=result.dtype)).sum()
        for seed, result in enumerate(results)
    )


def run(module, x, state=None, *, compute=None, lengths=None):
    """Results, and the gradients of `loss_of` them by x, the state and the parameters, as arrays."""
    module.zero_grad()
    x, state = leaves(x), leaves(state)
    call = module if compute is None else compute
    output, state_n = call(x, state) if lengths is None else call(x, state, lengths=lengths)
    results = [output, *parts(state_n)]
    loss_of(results).backward()
    gradients = [tensor.grad for tensor in (x, *parts(state), *module.parameters())]
    return [tensor.detach().numpy() for tensor in results], [gradient.numpy() for gradient in gradients]


def torch_with_lengths(theirs, lengths, steps):
    """torch's module as a function of padded rows, by way of a packed sequence."""

    def compute(x, state):
        packed = pack_padded_sequence(x, lengths, theirs.batch_first, enforce_sorted=False)
        output, state_n = theirs(packed, state)
        return pad_packed_sequence(output, theirs.batch_first, total_length=steps)[0], state_n

    return compute


def compare(cell, module, actual, expected, steps, batch):
    """Both sides round, on the way there and back; a gradient of a weight adds over steps and rows too."""
    cell = "lstm" if cell == "lstm_projected" else cell
    width = max(module.input_size, 2 * module.hidden_size) + module.hidden_size + module.proj_size
    for mine, others, accumulations, passes in [
        (actual[0], expected[0], 2 + width, 1),
        (actual[1], expected[1], 2 + width + steps * batch, 2),
    ]:
        assert_close(
            mine,
            others,
            cell=cell,
            accumulations=accumulations,
            steps=2 * passes * steps,
            layers=module.num_layers,
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


# ---- torch.compile, and the operators ----


@pytest.fixture
def compiled():
    """A function that compiles without breaks in the graph."""
    torch._dynamo.reset()
    yield lambda function, **options: torch.compile(function, fullgraph=True, backend="aot_eager", **options)
    torch._dynamo.reset()


def same_bits(actual, expected):
    for mine, others in zip(itertools.chain(*actual), itertools.chain(*expected), strict=True):
        assert_same_bits(mine, others)


@every_cell
def test_compiled_is_eager(cell, compiled):
    module = ours(cell, num_layers=2, bidirectional=True, batch_first=True)
    compute = compiled(lambda x, state, lengths=None: module(x, state, lengths=lengths))
    x, state = random(3, 4, INPUT), state_of(module, 3)
    expected = run(module, x, state)
    same_bits(run(module, x, state, compute=compute), expected)
    with torch.no_grad():
        for parameter in module.parameters():  # the graph holds no numbers of theirs
            parameter.mul_(-0.5)
    changed = run(module, x, state)
    assert not np.array_equal(changed[0][0], expected[0][0])
    same_bits(run(module, x, state, compute=compute), changed)
    with torch.no_grad():
        assert_same_bits(compute(x, state)[0].numpy(), changed[0][0])
    assert not _ops._recorded


@pytest.mark.parametrize("lengths", [[2, 4, 0], torch.tensor([2, 4, 0])], ids=["list", "tensor"])
def test_compiled_lengths(lengths, compiled):
    module = ours("gru")
    x = random(4, 3, INPUT)
    compute = compiled(lambda x, state: module(x, state, lengths=lengths))
    same_bits(run(module, x, compute=compute), run(module, x, lengths=[2, 4, 0]))


def test_compiled_for_any_number_of_steps(compiled):
    module = ours("lstm")
    compute = compiled(module, dynamic=True)
    for steps, batch in [(4, 3), (7, 2), (9, 5)]:
        x, state = random(steps, batch, INPUT), state_of(module, batch)
        same_bits(run(module, x, state, compute=compute), run(module, x, state))


def test_compiled_packed_sequence(compiled):
    module = ours("lstm", bidirectional=True)
    packed = pack_padded_sequence(random(4, 3, INPUT), [2, 4, 1], enforce_sorted=False)
    compute = compiled(module)

    def both(data, state):
        output, state_n = compute(PackedSequence(data, *packed[1:]), state)
        return output.data, state_n

    def eager(data, state):
        output, state_n = module(PackedSequence(data, *packed[1:]), state)
        return output.data, state_n

    same_bits(
        run(module, packed.data, state_of(module, 3), compute=both),
        run(module, packed.data, state_of(module, 3), compute=eager),
    )


def test_compiled_dropout_is_seeded_by_torch(compiled):
    module = ours("gru", num_layers=2, dropout=0.5)
    compute, x = compiled(module), random(4, 3, INPUT)

    def seeded(function):
        def compute(x, state):
            torch.manual_seed(3)
            return function(x, state)

        return compute

    same_bits(run(module, x, compute=seeded(compute)), run(module, x, compute=seeded(module)))


def test_compiled_modules_have_their_own_weights(compiled):
    """In one graph, and by one compiled function after another."""
    first, second = ours("gru", HIDDEN, seed=0), ours("gru", HIDDEN, seed=1)
    x = random(4, 3, HIDDEN)
    expected = second(first(x)[0])[0]
    assert torch.equal(compiled(lambda x: second(first(x)[0])[0])(x), expected)
    either = compiled(lambda module, x: module(x)[0])
    for module in (first, second, first):
        assert torch.equal(either(module, x), module(x)[0])


def operator_arguments(module, x, *, lengths=None, state=True):
    h, c = (*parts(leaves(state_of(module, x.shape[1]))), None)[:2] if state else (None, None)
    stack = [*module._stack, module._pack.number]
    return (x, h, c, list(module.parameters()), lengths, False, False, *stack)


@pytest.mark.parametrize("cell", ["lstm_projected", "gru_reset_before"])
@pytest.mark.parametrize("lengths", [None, torch.tensor([1, 4, 0])], ids=["full", "lengths"])
def test_opcheck(cell, lengths):
    """Schemas, fake kernels and derivatives say the truth."""
    torch._dynamo.reset()
    module = ours(cell, num_layers=2, bidirectional=True)
    recorded = operator_arguments(module, leaves(random(4, 3, INPUT)), lengths=lengths)
    torch.library.opcheck(torch.ops.gatedrnn.record.default, (*recorded, 0.5, torch.tensor(17)))
    torch.library.opcheck(torch.ops.gatedrnn.record.default, (*recorded, 0.0, None))
    module.requires_grad_(False)
    plain = operator_arguments(module, random(4, 3, INPUT), lengths=lengths, state=False)
    torch.library.opcheck(torch.ops.gatedrnn.run.default, plain)

    output, h_n, c_n, token = torch.ops.gatedrnn.record(*plain, 0.0, None)
    d_c_n = torch.ones_like(c_n) if module._stack.is_lstm else None
    for input_gradient in (True, False):
        arguments = (token, plain[0], plain[3], torch.ones_like(output), torch.ones_like(h_n), d_c_n)
        arguments = (*arguments, input_gradient, [3], *module._stack[:3])
        torch.library.opcheck(
            torch.ops.gatedrnn.backward.default, arguments, test_utils="test_autograd_registration"
        )
        # The rest as opcheck does, but for copying the token, which is no tape then.
        with SchemaCheckMode():
            real = torch.ops.gatedrnn.backward(*arguments)
        with FakeTensorMode() as mode:
            stand_ins = pytree.tree_map_only(torch.Tensor, mode.from_tensor, arguments)
            fake = torch.ops.gatedrnn.backward(*stand_ins)
        for a, b in zip(pytree.tree_leaves(real), pytree.tree_leaves(fake), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            assert a.stride() == b.stride() or a.numel() == 0


def test_export():
    module = ours("lstm", num_layers=2).eval().requires_grad_(False)
    steps = torch.export.Dim("steps")
    program = torch.export.export(module, (random(4, 3, INPUT),), dynamic_shapes=({0: steps},))
    called = [str(node.target) for node in program.graph.nodes if "gatedrnn" in str(node.target)]
    assert called == ["gatedrnn.run.default"]
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    x = random(9, 3, INPUT)
    expected, (h_n, c_n) = module(x)
    output, (h, c) = torch.export.load(file).module()(x)
    assert torch.equal(output, expected)
    assert torch.equal(h, h_n)
    assert torch.equal(c, c_n)


def test_graph_outlives_the_numbers_of_its_modules():
    """A number of no module, or of another's, makes no difference."""
    module, other = ours("gru"), ours("gru", seed=1)
    x = random(4, 3, INPUT)
    expected = module(x)[0]
    other(x)
    *arguments, _ = operator_arguments(module, x, state=False)
    for number in (0, other._pack.number, module._pack.number):
        assert torch.equal(torch.ops.gatedrnn.run(*arguments, number)[0], expected)


def test_fake_and_meta_tensors():
    with FakeTensorMode():
        output, (h_n, c_n) = gt.LSTM(INPUT, HIDDEN, 2, bidirectional=True, proj_size=3)(
            torch.empty(4, 6, INPUT)
        )
    assert (output.shape, h_n.shape, c_n.shape) == ((4, 6, 6), (4, 6, 3), (4, 6, HIDDEN))
    output, h_n = gt.GRU(INPUT, HIDDEN, device="meta", batch_first=True)(
        torch.empty(4, 6, INPUT, device="meta")
    )
    assert (output.shape, h_n.shape) == ((4, 6, HIDDEN), (1, 4, HIDDEN))
    assert output.is_meta


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
    assert repr(gt.GRU(5, 7, reset_after=False)) == "GRU(5, 7, reset_after=False)"
    assert repr(gt.RNN(5, 7, nonlinearity="relu")) == "RNN(5, 7, nonlinearity='relu')"


def test_dtype_is_torchs_default():
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert gt.GRU(INPUT, HIDDEN).weight_ih_l0.dtype == torch.float64
    finally:
        torch.set_default_dtype(before)


# ---- changed parameters ----


def step_of(make_optimizer):
    def change(module):
        module(random(4, 3, INPUT))[0].square().sum().backward()
        make_optimizer(module.parameters()).step()

    return change


def no_grad(change):
    def changed(module):
        with torch.no_grad():
            change(module)

    return changed


def replace(module):
    module.weight_hh_l0 = torch.nn.Parameter(module.weight_hh_l0.detach() * 2)


def transpose_data(module):
    module.weight_hh_l0.data = module.weight_hh_l0.data.t()


def through_numpy(module):
    module.weight_hh_l0.detach().numpy()[3, 2] += 1


def in_inference_mode(module):
    with torch.inference_mode():
        module.weight_ih_l0.mul_(2)


def average(module):
    for parameter, other in zip(module.parameters(), ours("rnn_tanh", seed=9).parameters(), strict=True):
        parameter.data.mul_(0.99).add_(other.data, alpha=0.01)


def there_and_back(module):
    """To another type and back: the same versions, and maybe the same addresses, but rounded numbers."""
    with torch.no_grad():
        module.weight_ih_l0.mul_(1)  # of a version that the next lines do not change
        module(random(1, 1, INPUT))
    module.bfloat16()
    module.float()


def other_state():
    return ours("rnn_tanh", seed=9).state_dict()


CHANGES = {
    "SGD": step_of(lambda parameters: torch.optim.SGD(parameters, lr=0.1)),
    "Adam": step_of(lambda parameters: torch.optim.Adam(parameters, foreach=False)),
    "Adam foreach": step_of(lambda parameters: torch.optim.Adam(parameters, foreach=True)),
    "Adam fused": step_of(lambda parameters: torch.optim.Adam(parameters, fused=True)),
    "SGD fused": step_of(lambda parameters: torch.optim.SGD(parameters, lr=0.1, fused=True)),
    "write": no_grad(lambda module: module.weight_hh_l0[2, 3].add_(1)),
    "load_state_dict": lambda module: module.load_state_dict(other_state()),
    "assigning load": lambda module: module.load_state_dict(
        ours("rnn_tanh", seed=9).state_dict(), assign=True
    ),
    "reset": lambda module: module.reset_parameters(),
    "replace": replace,
    "one value of data": lambda module: module.weight_hh_l0.data[2, 3].add_(1),
    "data": lambda module: setattr(module.weight_ih_l0, "data", module.weight_ih_l0.data + 1),
    "transposed data": transpose_data,
    "average": average,
    "through NumPy": through_numpy,
    "inference mode": in_inference_mode,
    "there and back": there_and_back,
}


@pytest.mark.parametrize("compute", ["eager", "operator"])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(change, compute):
    """A call computes with the parameters of its time, and packs them only when they changed."""
    module = ours("rnn_tanh")
    x = random(4, 3, INPUT)

    def call(module):
        if compute == "eager":
            return module(x)[0].detach()
        with torch.no_grad():
            return torch.ops.gatedrnn.run(*operator_arguments(module, x, state=False))[0]

    before = call(module)
    pack = module._pack._packed
    assert torch.equal(call(module), before)
    assert module._pack._packed is pack
    CHANGES[change](module)
    fresh = ours("rnn_tanh", seed=5)
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(call(module), call(fresh))
    assert module._pack._packed is not pack
    assert not torch.equal(call(module), before)
    module.flatten_parameters()  # which torch.nn's modules need here and there
    assert torch.equal(call(module), call(fresh))


def test_other_dtype():
    module = ours("lstm")
    x = random(4, 3, INPUT)
    single = module(x)[0]
    double = module.to(torch.float64)(x.double())[0]
    assert double.dtype == torch.float64
    assert torch.allclose(single.double(), double, atol=1e-6)
    assert torch.equal(module.float()(x)[0], single)


def test_parameters_made_in_inference_mode():
    """They have no version counter."""
    with torch.inference_mode():
        module = gt.GRU(INPUT, HIDDEN)
        x = random(4, 3, INPUT)
        before = module(x)[0]
        assert torch.equal(module(x)[0], before)
        module.weight_hh_l0[1, 1] += 1
        assert not torch.equal(module(x)[0], before)


def test_reparametrized():
    """torch puts plain tensors, computed anew in each call, in the place of parameters."""
    from torch.nn.utils.parametrizations import weight_norm

    module, theirs = pair("gru")
    for each in (module, theirs):
        weight_norm(each, "weight_hh_l0")
        with torch.no_grad():
            each.parametrizations.weight_hh_l0.original0.mul_(1.5)
    assert list(module.state_dict()) == list(theirs.state_dict())
    x = random(4, 3, INPUT)
    compare("gru", module, run(module, x), run(theirs, x), 4 + HIDDEN, 3)


def test_shared_parameter():
    module, theirs = pair("gru", HIDDEN)
    for each in (module, theirs):
        each.weight_ih_l0 = each.weight_hh_l0
    x = random(4, 3, HIDDEN)
    compare("gru", module, run(module, x), run(theirs, x), 4, 3)


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies(copied):
    module = ours("gru_reset_before", num_layers=2)
    x = random(4, 3, INPUT)
    expected = module(x)[0]
    twin = copied(module)
    assert torch.equal(twin(x)[0], expected)
    assert repr(twin) == repr(module)
    if copied is not copy.copy:  # which shares the parameters, as for any module
        with torch.no_grad():
            twin.weight_hh_l1.zero_()
        assert torch.equal(module(x)[0], expected)
        assert not torch.equal(twin(x)[0], expected)


def test_saved_whole():
    module = ours("lstm")
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    x = random(4, 3, INPUT)
    assert torch.equal(torch.load(file, weights_only=False)(x)[0], module(x)[0])


def test_many_threads_after_a_change():
    """All find the pack outdated at once, and all compute with the new weights."""
    module = ours("gru", 16, 64)
    x = random(3, 2, 16)
    rounds, count = 20, 4
    barrier = threading.Barrier(count + 1)
    results = [[] for _ in range(count)]

    def work(mine):
        for _ in range(rounds):
            barrier.wait()
            mine.append(module(x)[0].detach())
            barrier.wait()

    threads = [threading.Thread(target=work, args=(mine,)) for mine in results]
    for thread in threads:
        thread.start()
    expected = []
    for seed in range(rounds):
        module.load_state_dict(ours("gru", 16, 64, seed=seed).state_dict())
        expected.append(ours("gru", 16, 64, seed=seed)(x)[0].detach())
        barrier.wait()
        barrier.wait()
    for thread in threads:
        thread.join()
    for mine in results:
        assert all(torch.equal(a, b) for a, b in zip(mine, expected, strict=True))


def test_backward_in_many_threads():
    module = ours("lstm", 16, 32, num_layers=2)
    x = random(5, 3, 16)
    weights = list(module.parameters())
    expected = torch.autograd.grad(module(x)[0].sum(), weights)
    results = []

    def work():
        for _ in range(10):
            results.append(torch.autograd.grad(module(x)[0].sum(), weights))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, expected, strict=True))


# ---- memory ----


def address(array):
    return array.__array_interface__["data"][0]


def test_nothing_is_copied(monkeypatch):
    """The engine reads x, the state and the parameters where they are, and its results are the tensors."""
    seen = {}

    class Spy:
        packed_for_backward = True

        def __init__(self, network):
            self.network = network

        def record(self, x, state, *rest):
            seen["inputs"] = [x, *state]
            output, state_n, _ = result = self.network.record(x, state, *rest)
            seen["results"] = [output, *state_n]
            return result

        def backward(self, tape, d_output, d_state_n, gradients, *rest):
            seen["d_output"] = d_output
            d_x, d_state = result = self.network.backward(tape, d_output, d_state_n, gradients, *rest)
            seen["gradients"] = [d_x, *d_state, *gradients.values()]
            return result

    module = ours("lstm")
    x, state = leaves(random(4, 3, INPUT)[:, ::2]), leaves(state_of(module, 2))  # strides of x kept
    packed = module._pack.get(module._stack, list(module.parameters()), True)
    assert packed.addresses == [parameter.data_ptr() for parameter in module.parameters()]
    module._pack._packed = packed._replace(network=Spy(packed.network))
    output, state_n = module(x, state)
    d_output = random(4, 2, HIDDEN)
    output.backward(d_output)
    for arrays, tensors in [
        (seen["inputs"], [x, *state]),
        (seen["results"], [output, *state_n]),
        ([seen["d_output"]], [d_output]),
        (seen["gradients"], [tensor.grad for tensor in (x, *state, *module.parameters())]),
    ]:
        assert [address(array) for array in arrays] == [tensor.data_ptr() for tensor in tensors]


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted by Linux")
def test_training_settles_without_new_memory():
    """A step after an update touches no new memory for its tape, though the allocator here keeps none."""
    code = """
import json, resource
import torch
import gatedrnn.torch as gt

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

module, x = gt.LSTM(16, 64), torch.randn(200, 16, 16)
optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
counts = []
for _ in range(6):
    optimizer.zero_grad()
    before = faults()
    output, _ = module(x)
    counts.append(faults() - before)
    output.sum().backward()
    optimizer.step()
print(json.dumps([counts, 5 * output.nbytes // resource.getpagesize()]))
"""
    counts, pages = run_python(code, environment={"MALLOC_MMAP_THRESHOLD_": "65536"})
    assert counts[0] > pages, "the measurement itself is broken"
    assert max(counts[3:]) < pages


@pytest.mark.parametrize("way", ["eager", "compiled"])
def test_tapes_go_with_the_graph(way, compiled):
    """1000 forwards leave nothing behind; without the help of the garbage collector."""
    module = ours("gru")
    call, x = compiled(module) if way == "compiled" else module, random(2, 1, INPUT)
    assert not _ops._recorded
    for _ in range(1000):
        call(x)
    assert not _ops._recorded
    kept = [call(x)[0] for _ in range(5)]
    assert len(_ops._recorded) == 5
    del kept[1:]
    assert len(_ops._recorded) == 1
    loss = kept[0].sum()
    loss.backward(retain_graph=True)
    assert len(_ops._recorded) == 1
    loss.backward()
    assert not _ops._recorded  # although the loss and its graph live on
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("way", ["eager", "compiled"])
@pytest.mark.parametrize("reason", ["no_grad", "inference_mode", "frozen"])
def test_no_tape_without_need(reason, way, compiled):
    module = ours("lstm", num_layers=2)
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(reason)
    module.requires_grad_(reason != "frozen")
    call = compiled(module) if way == "compiled" else module
    with context() if context else contextlib.nullcontext():
        output, (h_n, c_n) = call(random(4, 3, INPUT))
    assert not _ops._recorded
    assert not any(result.requires_grad for result in (output, h_n, c_n))


@pytest.mark.parametrize("wanted", ["x", "h", "weight_hh_l0"])
def test_only_wanted_gradients(wanted, monkeypatch):
    """A single one wanted is right, the others stay None, and that by x is not computed for nothing."""
    module = ours("gru", num_layers=2)
    x, h = random(4, 3, INPUT), state_of(module, 3)
    tensors = {"x": leaves(x), "h": leaves(h), **dict(module.named_parameters())}
    module(tensors["x"], tensors["h"])[0].sum().backward()
    expected = tensors[wanted].grad.clone()
    module.zero_grad(set_to_none=True)

    asked = []
    differentiate = _ops._differentiate
    monkeypatch.setattr(
        _ops, "_differentiate", lambda *arguments: asked.append(arguments[-1]) or differentiate(*arguments)
    )
    tensors = {"x": x.clone(), "h": h.clone(), **dict(module.named_parameters())}
    for name, tensor in tensors.items():
        tensor.requires_grad_(name == wanted)
    module(tensors["x"], tensors["h"])[0].sum().backward()
    assert torch.equal(tensors[wanted].grad, expected)
    assert [name for name, tensor in tensors.items() if tensor.grad is not None] == [wanted]
    assert asked == [wanted == "x"]


@pytest.mark.parametrize("used", ["output", "h", "c"])
def test_single_result_used(used):
    module, theirs = pair("lstm")
    gradients = []
    for each in (module, theirs):
        output, (h_n, c_n) = each(random(4, 3, INPUT))
        {"output": output, "h": h_n, "c": c_n}[used].square().sum().backward()
        gradients.append([parameter.grad.numpy() for parameter in each.parameters()])
    compare("lstm", module, ([], gradients[0]), ([], gradients[1]), 4, 3)


# ---- what autograd asks for ----


def test_second_derivatives_are_refused():
    module = ours("gru")
    x = leaves(random(4, 3, INPUT))
    direct = module(x)[0]
    through_operator = torch.ops.gatedrnn.record(*operator_arguments(module, x, state=False), 0.0, None)[0]
    first = torch.autograd.grad(module(x)[0].sum(), x)[0]
    for output in (direct, through_operator):
        (gradient,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        assert torch.equal(gradient, first)
        with pytest.raises(NotImplementedError, match="has first derivatives only"):
            gradient.sum().backward()


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own use of it
def test_transforms_and_forward_mode_are_refused():
    module = ours("gru")
    x = random(4, 3, INPUT)
    for transformed in (
        torch.func.grad(lambda x: module(x)[0].sum()),
        torch.func.vmap(lambda x: module(x)[0]),
        lambda x: torch.func.jvp(lambda x: module(x)[0], (x,), (x,)),
    ):
        with pytest.raises(NotImplementedError, match=r"transforms of torch\.func"):
            transformed(x)
    forward_ad = torch.autograd.forward_ad
    with torch.no_grad(), forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        module(forward_ad.make_dual(x, x))


def test_input_written_before_backward_is_refused():
    module = ours("gru")
    x = random(4, 3, INPUT)
    output, _ = module(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_results_and_parameters_may_be_written_before_backward():
    """The tape has what it needs: gradients are those of the parameters that forward had."""
    module = ours("lstm")
    x, weights = random(4, 3, INPUT), list(module.parameters())
    expected = torch.autograd.grad(module(x)[0].sum(), weights)
    output, (h_n, c_n) = module(x)
    loss = output.sum()
    with torch.no_grad():
        for tensor in (output, h_n, c_n, *weights):
            tensor.zero_()
    assert all(map(torch.equal, torch.autograd.grad(loss, weights), expected))


def test_activation_checkpointing():
    """Forward is computed again in backward, with the same values dropped."""
    module = ours("gru", num_layers=2, dropout=0.5)
    x, weights = random(4, 3, INPUT), list(module.parameters())
    torch.manual_seed(1)
    expected = torch.autograd.grad(module(x)[0].square().sum(), weights)
    torch.manual_seed(1)
    output = torch.utils.checkpoint.checkpoint(lambda x: module(x)[0], x, use_reentrant=False)
    assert not _ops._recorded
    assert all(map(torch.equal, torch.autograd.grad(output.square().sum(), weights), expected))
    assert not _ops._recorded


def test_copied_tape_is_refused():
    module = ours("gru")
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor):
        output, _ = module(random(4, 3, INPUT))
    with pytest.raises(RuntimeError, match=r"tape of this call is gone, .*saved_tensors_hooks"):
        output.sum().backward()


def test_autocast():
    """Other modules' low precision is taken, and computed with in the parameters' own."""
    module, linear = ours("lstm"), torch.nn.Linear(INPUT, INPUT)
    x, state = random(4, 3, INPUT), state_of(module, 3)
    with torch.autocast("cpu", torch.bfloat16):
        low = linear(x)
        assert low.dtype == torch.bfloat16
        output, _ = module(low, state)
    assert output.dtype == torch.float32
    assert torch.equal(output, module(low.float(), state)[0])
    output.sum().backward()
    assert linear.weight.grad.dtype == torch.float32


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


# ---- errors ----


def packed():
    return pack_sequence([random(4, INPUT), random(2, INPUT)])


ERRORS = {
    "too few axes": (lambda m: m(random(INPUT)), ValueError, "input: expected (T, B, 5) or (T, 5), got (5,)"),
    "features": (
        lambda m: m(random(4, 3, 6)),
        ValueError,
        "input: expected (T, B, 5) or (T, 5), got (4, 3, 6)",
    ),
    "no axes": (lambda m: m(torch.tensor(1.0)), ValueError, "input: expected (T, B, 5) or (T, 5), got ()"),
    "type of input": (
        lambda m: m(random(4, 3, INPUT).double()),
        TypeError,
        "input: expected torch.float32 like the parameters, got torch.float64",
    ),
    "integers": (
        lambda m: m(torch.ones(4, 3, INPUT, dtype=torch.int64)),
        TypeError,
        "input: expected torch.float32 like the parameters, got torch.int64",
    ),
    "an array": (
        lambda m: m(normal((4, 3, INPUT))),
        TypeError,
        "input: expected a tensor or a PackedSequence, got an array of shape (4, 3, 5) and dtype float32",
    ),
    "another device": (
        lambda m: m.to("meta")(random(4, 3, INPUT)),
        ValueError,
        "weight_ih_l0: expected a tensor on the CPU, got one on meta",
    ),
    "low precision": (
        lambda m: m.half()(random(4, 3, INPUT).half()),
        TypeError,
        "weight_ih_l0: expected torch.float32 or torch.float64, got torch.float16",
    ),
    "a parameter of another type": (
        lambda m: setattr(m.bias_hh_l0, "data", m.bias_hh_l0.data.double()) or m(random(4, 3, INPUT)),
        TypeError,
        "bias_hh_l0: expected torch.float32 like the first parameter, got torch.float64",
    ),
    "a parameter of another shape": (
        lambda m: setattr(m, "bias_hh_l0", torch.nn.Parameter(random(3))) or m(random(4, 3, INPUT)),
        ValueError,
        "bias_hh_l0: expected shape (28,), got (3,)",
    ),
    "state": (
        lambda m: m(random(4, 3, INPUT), random(1, 3, HIDDEN)),
        TypeError,
        "hx: expected a pair (h, c) of tensors, got an object of type Tensor",
    ),
    "half a state": (
        lambda m: m(random(4, 3, INPUT), (random(1, 3, HIDDEN), None)),
        TypeError,
        "hx: c: expected a tensor, got None",
    ),
    "the other half": (
        lambda m: m(random(4, 3, INPUT), (None, random(1, 3, HIDDEN))),
        TypeError,
        "hx: expected a pair (h, c) of tensors, got an object of type tuple",
    ),
    "shape of h": (
        lambda m: m(random(4, 3, INPUT), (random(1, 4, HIDDEN), random(1, 3, HIDDEN))),
        ValueError,
        "hx: h: expected (1, 3, 7), got (1, 4, 7)",
    ),
    "unbatched state": (
        lambda m: m(random(4, INPUT), (random(1, 1, HIDDEN), random(1, 1, HIDDEN))),
        ValueError,
        "hx: h: expected (1, 7), got (1, 1, 7)",
    ),
    "type of c": (
        lambda m: m(random(4, 3, INPUT), (random(1, 3, HIDDEN), random(1, 3, HIDDEN).double())),
        TypeError,
        "hx: c: expected torch.float32 like the parameters, got torch.float64",
    ),
    "lengths": (
        lambda m: m(random(4, 3, INPUT), lengths=[1, 5, 2]),
        ValueError,
        "lengths: expected 3 integers in 0 .. 4, got 5 at position 1",
    ),
    "type of lengths": (
        lambda m: m(random(4, 3, INPUT), lengths=torch.tensor([1.0, 2.0, 3.0])),
        TypeError,
        "lengths: expected 3 integers in 0 .. 4, got dtype float32",
    ),
    "unbatched lengths": (
        lambda m: m(random(4, INPUT), lengths=[4]),
        ValueError,
        "lengths: expected None for an unbatched input, got an object of type list",
    ),
    "packed and lengths": (
        lambda m: m(packed(), lengths=[4, 2]),
        ValueError,
        "lengths: expected None with a PackedSequence, which has its own",
    ),
    "packed features": (
        lambda m: m(pack_sequence([random(4, 6)])),
        ValueError,
        "input: expected packed rows (N, 5), got (4, 6)",
    ),
    "packed state": (
        lambda m: m(packed(), (random(1, 3, HIDDEN), random(1, 3, HIDDEN))),
        ValueError,
        "hx: h: expected (1, 2, 7), got (1, 3, 7)",
    ),
    "constructor": (lambda _: gt.GRU(5, 0), ValueError, "hidden_size: expected at least 1, got 0"),
    "projection": (
        lambda _: gt.LSTM(5, 7, proj_size=7),
        ValueError,
        "proj_size: expected less than hidden_size=7, got 7",
    ),
    "dtype": (
        lambda _: gt.RNN(5, 7, dtype=torch.bfloat16),
        ValueError,
        "dtype: expected torch.float32 or torch.float64, got torch.bfloat16",
    ),
    "size": (
        lambda _: gt.GRU(5, 1 << 40),
        ValueError,
        "input_size, hidden_size, num_layers: expected sizes that fit in memory, got about 2**85 bytes",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    call, kind, message = ERRORS[case]
    with pytest.raises(kind) as raised:
        call(ours("lstm"))
    assert str(raised.value) == message
    assert not _ops._recorded


def test_batch_first_in_errors():
    with pytest.raises(ValueError, match=r"input: expected \(B, T, 5\) or \(T, 5\), got \(4, 3, 6\)"):
        ours("gru", batch_first=True)(random(4, 3, 6))


def test_missing_torch():
    """The package needs no torch; the module says how to get it."""
    code = """
import json, sys
sys.modules["torch"] = None
import gatedrnn
try:
    import gatedrnn.torch
except ImportError as error:
    print(json.dumps(str(error)))
"""
    message = run_python(code)
    assert message.startswith("gatedrnn.torch needs PyTorch (")
    assert message.endswith("): 'pip install torch'")
    assert run_python("import gatedrnn, json, sys; print(json.dumps('torch' in sys.modules))") is False
