"""Second derivatives, torch.func and gradients of several vectors at a time, beside torch.nn's."""

from __future__ import annotations

import gc

import pytest

pytestmark = [
    pytest.mark.peers,
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),  # torch's own use of it
    pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning"),
]
torch = pytest.importorskip("torch")
from torch import func  # noqa: E402
from torch.nn.utils.rnn import PackedSequence, pack_sequence  # noqa: E402

import gatedrnn.torch as gt  # noqa: E402
from gatedrnn.torch import _ops  # noqa: E402
from torch_modules import (  # noqa: E402
    HIDDEN,
    INPUT,
    leaves,
    loss_of,
    ours,
    pair,
    parts,
    random,
    state_of,
    torch_with_lengths,
    torchs_cells,
)

FORMS = ["padded", "unbatched", "packed", "lengths"]
forms = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(autouse=True)
def no_tape_is_left():
    yield
    gc.collect()
    assert len(_ops._recorded) == 0


def call_of(module, form):
    """A module as a function of x and its state, and an x."""
    dtype = next(module.parameters()).dtype
    if form == "unbatched":
        return module, random(4, INPUT, dtype=dtype), ()
    if form == "packed":
        like = pack_sequence([random(4, INPUT), random(2, INPUT), random(2, INPUT)])

        def packed(x, state=None):
            output, state_n = module(PackedSequence(x, like.batch_sizes), state)
            return output.data, state_n

        return packed, random(8, INPUT, dtype=dtype), (3,)
    x = random(*((3, 4) if module.batch_first else (4, 3)), INPUT, dtype=dtype)
    if form == "padded":
        return module, x, (3,)
    if type(module).__module__.startswith("torch."):
        return torch_with_lengths(module, torch.tensor([2, 4, 1]), 4), x, (3,)
    return lambda x, state=None: module(x, state, lengths=[2, 4, 1]), x, (3,)


def second_derivatives(module, form):
    """Of a function of gradients, by everything."""
    call, x, batch = call_of(module, form)
    x, state = leaves(x), leaves(state_of(module, *batch))
    output, state_n = call(x, state)
    sources = [x, *parts(state), *module.parameters()]
    first = torch.autograd.grad(loss_of([output.sin(), *parts(state_n)]), sources, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), sources)
    return [*first, *second]


def assert_alike(actual, expected, atol=1e-9):
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=atol)


# ---- second derivatives ----


@torchs_cells
@forms
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}, {"bias": False}], ids=str
)
def test_second_derivatives(cell, form, options):
    module, theirs = pair(cell, dtype=torch.float64, **options)
    expected = second_derivatives(theirs, form)
    assert_alike(second_derivatives(module, form), expected)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_second_derivatives_in_float32_and_of_rows_without_steps(cell):
    module, theirs = pair(cell)
    expected = [t.float() for t in second_derivatives(theirs.double(), "padded")]
    assert_alike(second_derivatives(module, "padded"), expected, 1e-4)
    module = module.double()
    x = random(4, 3, INPUT, dtype=torch.float64).requires_grad_()
    state = leaves(state_of(module, 3))

    def function(x, *state):
        given = state if len(state) == 2 else state[0]
        output, state_n = module(x, given, lengths=[0, 4, 2])
        return output, *parts(state_n)

    assert torch.autograd.gradgradcheck(function, (x, *parts(state)))


def test_third_derivatives():
    module, theirs = pair("gru", dtype=torch.float64)
    results = []
    for each in (module, theirs):
        x = leaves(random(4, 3, INPUT, dtype=torch.float64))
        value = each(x)[0].sin().sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            value = gradient.square().sum()
        results.append([gradient])
    assert_alike(*results)


@pytest.mark.parametrize("chosen", ["x", "h", "parameters", "d_output"])
def test_second_derivatives_by_whatever_is_chosen(chosen):
    results = []
    for each in pair("gru", dtype=torch.float64):
        x, h = leaves(random(4, 3, INPUT).double()), leaves(state_of(each, 3))
        d_output = leaves(random(4, 3, HIDDEN).double())
        output = each(x, h)[0]
        (gradient,) = torch.autograd.grad(output, x, d_output, create_graph=True)
        total = output.sum() + gradient.square().sum()
        inputs = {"x": x, "h": h, "parameters": list(each.parameters()), "d_output": d_output}[chosen]
        results.append(torch.autograd.grad(total, inputs))
    assert_alike(*results)


def test_a_gradient_penalty_in_training():
    """As critics are trained (Gulrajani et al. 2017)."""
    losses = []
    for each in pair("lstm"):
        optimizer = torch.optim.Adam(each.parameters(), 1e-2)
        losses.append([])
        for step in range(5):
            x = leaves(random(6, 4, INPUT, seed=step))
            output = each(x)[1][0].sum()
            (by_x,) = torch.autograd.grad(output, x, create_graph=True)
            loss = output + 10 * (by_x.flatten(1).norm(dim=1) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.detach())
    assert_alike(*losses, atol=1e-4)


BEYOND = {
    "this cell": lambda: (ours("lstm_peephole"), {}),
    "direction='reverse'": lambda: (ours("gru", direction="reverse"), {}),
    "learn_state=True": lambda: (ours("gru", learn_state=True), {}),
    "mask=": lambda: (ours("gru"), {"mask": torch.ones(4, 3, dtype=torch.bool)}),
    "resets=": lambda: (ours("gru"), {"resets": torch.zeros(4, 3, dtype=torch.bool)}),
    "the same dropout": lambda: (ours("gru", num_layers=2, dropout=0.5), {}),
}


@pytest.mark.parametrize("what", BEYOND)
def test_second_derivatives_of_what_torch_has_not(what):
    module, steps = BEYOND[what]()
    x = leaves(random(4, 3, INPUT))
    (gradient,) = torch.autograd.grad(module(x, **steps)[0].sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError) as error:
        gradient.square().sum().backward()
    assert str(error.value).endswith(f"of torch.nn's formulas, which have no {what}")


@pytest.mark.parametrize("written", ["weights", "state"])
def test_what_was_written_to_since_the_call(written):
    module, x = ours("gru"), leaves(random(4, 3, INPUT))
    h = state_of(module, 3)
    output = module(x, h)[0].sum()
    (module.weight_hh_l0.data if written == "weights" else h).add_(1)
    torch.autograd.grad(output, x, retain_graph=True)
    output = module(x, h)[0].sum()
    (module.weight_hh_l0.data if written == "weights" else h).add_(1)
    with pytest.raises(RuntimeError, match="weights or states were written to since"):
        torch.autograd.grad(output, x, create_graph=True)


# ---- torch.func ----


def loss_function(module):
    def loss(parameters, x):
        return func.functional_call(module, parameters, (x,))[0].square().sum()

    return loss


@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before", "lstm_peephole"])
def test_grad_has_the_bits_of_autograd(cell):
    module, x = ours(cell), random(4, 3, INPUT)
    parameters = dict(module.named_parameters())
    found, by_x = func.grad(loss_function(module), argnums=(0, 1))(parameters, x)
    x = leaves(x)
    loss_function(module)(parameters, x).backward()
    assert torch.equal(by_x, x.grad)
    for name, parameter in parameters.items():
        assert torch.equal(found[name], parameter.grad)


@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_gradients_of_each_example(cell):
    module, examples = ours(cell, num_layers=2), random(5, 4, 2, INPUT)
    parameters = dict(module.named_parameters())
    found = func.vmap(func.grad(loss_function(module)), in_dims=(None, 0))(parameters, examples)
    for i, x in enumerate(examples):
        expected = torch.autograd.grad(loss_function(module)(parameters, x), list(parameters.values()))
        for name, gradient in zip(parameters, expected, strict=True):
            assert torch.equal(found[name][i], gradient)


def test_a_model_of_several_sets_of_weights():
    modules = [ours("gru", seed=seed) for seed in range(3)]
    stacked, _ = func.stack_module_state(modules)
    x = random(4, 2, INPUT)
    outputs = func.vmap(lambda p: func.functional_call(modules[0], p, (x,))[0])(stacked)
    for output, module in zip(outputs, modules, strict=True):
        assert torch.equal(output, module(x)[0])


@torchs_cells
def test_jacobians_and_hessians(cell):
    module, theirs = pair(cell, dtype=torch.float64)
    x = random(3, 2, INPUT, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(lambda x: theirs(x)[0], x)
    for found in (
        func.jacrev(lambda x: module(x)[0])(x),
        torch.autograd.functional.jacobian(lambda x: module(x)[0], x),
        torch.autograd.functional.jacobian(lambda x: module(x)[0], x, vectorize=True),
    ):
        assert_alike([found], [expected])
    expected = torch.autograd.functional.hessian(lambda x: theirs(x)[0].sin().sum(), x)
    for vectorize in (False, True):
        hessian = torch.autograd.functional.hessian
        assert_alike([hessian(lambda x: module(x)[0].sin().sum(), x, vectorize=vectorize)], [expected])
    twice = func.grad(lambda x: func.grad(lambda x: module(x)[0].sin().sum())(x).square().sum())(x)
    x = leaves(x)
    (first,) = torch.autograd.grad(theirs(x)[0].sin().sum(), x, create_graph=True)
    assert_alike([twice], torch.autograd.grad(first.square().sum(), x))


@pytest.mark.parametrize("form", ["padded", "packed"])
def test_gradients_of_several_vectors_at_a_time(form):
    module = ours("lstm")
    call, x, batch = call_of(module, form)
    x, state = leaves(x), leaves(state_of(module, *batch))
    output, (_h_n, c_n) = call(x, state)
    inputs = [x, *state, *module.parameters()]
    vectors = random(5, *output.shape), random(5, *c_n.shape, seed=1)
    found = torch.autograd.grad((output, c_n), inputs, vectors, is_grads_batched=True, retain_graph=True)
    for i, each in enumerate(zip(*vectors, strict=True)):
        expected = torch.autograd.grad((output, c_n), inputs, each, retain_graph=True)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a[i], b)


def test_dropout_under_vmap():
    module, x = ours("gru", num_layers=2, dropout=0.5).train(), random(3, 4, 2, INPUT)
    same, different = [func.vmap(lambda x: module(x)[0], randomness=r) for r in ("same", "different")]
    x[1] = x[0]
    assert not torch.equal(same(x)[0], same(x)[0])
    outputs = same(x)
    assert torch.equal(outputs[0], outputs[1])
    outputs = different(x)
    assert not torch.equal(outputs[0], outputs[1])
    with pytest.raises(RuntimeError, match="randomness"):
        func.vmap(lambda x: module(x)[0])(x)


def test_cells_and_low_precision_under_transforms():
    cell, x = gt.LSTMCell(INPUT, HIDDEN), random(6, INPUT)
    h, c = func.vmap(lambda x: cell(x))(x)
    assert torch.equal(torch.stack([h, c]), torch.stack(cell(x)))
    half, x = gt.GRU(INPUT, HIDDEN, dtype=torch.bfloat16), random(4, 2, INPUT).bfloat16()
    parameters = dict(half.named_parameters())
    found = func.grad(loss_function(half))(parameters, x)
    expected = torch.autograd.grad(loss_function(half)(parameters, x), list(parameters.values()))
    for a, b in zip(found.values(), expected, strict=True):
        assert a.dtype == torch.bfloat16
        assert torch.equal(a, b)


def test_no_example():
    module = ours("gru")
    with pytest.raises(ValueError, match="vmap: expected at least one example, got none"):
        func.vmap(lambda x: module(x)[0])(random(0, 4, 2, INPUT))
