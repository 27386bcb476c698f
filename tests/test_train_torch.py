"""gatedrnn.train against PyTorch in float64, to the last digits.

Both sides round, so twice the bound of one is allowed.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from gatedrnn import train
from helpers import normal
from test_train_optimizers import CASES as OPTIMIZERS

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("one_torch_thread")]
torch = pytest.importorskip("torch")

EPS = np.finfo(np.float64).eps


def assert_near(actual, expected, roundings, sizes=None):
    """Off by at most `roundings` of eps / 2 on each side, of numbers of `sizes` (default: the results)."""
    expected = expected.detach().numpy()
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    sizes = np.abs(expected) if sizes is None else sizes
    assert (np.abs(actual - expected) <= roundings * EPS * sizes).all()


def tensor(array):
    return torch.from_numpy(array.copy()).requires_grad_()


# ---- layers ----


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (6,), (3, 4), (2, 3, 4)])
def test_linear(bias, shape):
    theirs = torch.nn.Linear(17, 9, bias, dtype=torch.float64)
    ours = train.Linear(17, 9, bias, dtype=np.float64)
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x, d_y = normal((*shape, 17), dtype=np.float64), normal((*shape, 9), seed=1, dtype=np.float64)
    x_tensor = tensor(x)
    y = theirs(x_tensor)
    y.backward(torch.from_numpy(d_y))
    our_y, tape = ours.forward(x)
    d_x, grads = ours.backward(tape, d_y)
    weight, rows, d_rows = np.abs(ours.weight), np.abs(x).reshape(-1, 17), np.abs(d_y).reshape(-1, 9)
    assert_near(our_y, y, 18, np.abs(x) @ weight.T + (np.abs(ours.bias) if bias else 0))
    assert_near(d_x, x_tensor.grad, 9, np.abs(d_y) @ weight)
    assert_near(grads["weight"], theirs.weight.grad, len(rows), d_rows.T @ rows)
    if bias:
        assert_near(grads["bias"], theirs.bias.grad, len(rows), d_rows.sum(axis=0))


@pytest.mark.parametrize("padding_idx", [None, 3])
def test_embedding(padding_idx):
    theirs = torch.nn.Embedding(13, 5, padding_idx, dtype=torch.float64)
    ours = train.Embedding(13, 5, padding_idx, dtype=np.float64)
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    indices, d_y = np.random.default_rng(0).integers(0, 13, (20, 4)), normal((20, 4, 5), dtype=np.float64)
    y = theirs(torch.from_numpy(indices))
    y.backward(torch.from_numpy(d_y))
    our_y, tape = ours.forward(indices)
    assert_near(our_y, y, 0)
    _, grads = ours.backward(tape, d_y)
    sizes = ours.backward(tape, np.abs(d_y))[1]["weight"]
    assert_near(grads["weight"], theirs.weight.grad, np.bincount(indices.ravel()).max(), sizes)


@pytest.mark.parametrize("shape", [(64, 50), (1, 300)])
def test_initial_ranges(shape):
    """The same distribution: bounds, and deviations within 4 of their own standard errors."""
    ours, theirs = train.Linear(*shape, seed=0), torch.nn.Linear(*shape)
    for name, values in theirs.state_dict().items():
        bound = shape[0] ** -0.5
        mine = ours.state_dict()[name]
        for each in (mine, values.numpy()):
            assert np.abs(each).max() <= np.float32(bound)
            assert abs(each.std() / (bound / np.sqrt(3)) - 1) < 4 / np.sqrt(2 * each.size)
    embedding, other = train.Embedding(*shape, seed=0).weight, torch.nn.Embedding(*shape).weight
    for each in (embedding, other.detach().numpy()):
        assert abs(each.std() - 1) < 4 / np.sqrt(2 * each.size)


# ---- losses ----

T, B, C = 6, 4, 7
MASK = train.mask_of([6, 0, 2, 5], T)


def run_torch(loss_function, x):
    x_tensor = tensor(x)
    loss = loss_function(x_tensor)
    loss.backward()
    return loss.item(), x_tensor.grad


def assert_same_loss(ours, theirs, terms, size):
    """A mean of `terms` numbers, each of at most `size` and with C + 4 roundings of its own."""
    (loss, d), (their_loss, their_d) = ours, theirs
    assert abs(loss - their_loss) <= (terms + C + 4) * EPS * size
    assert_near(d, their_d, C + 4, np.abs(d).max())


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_softmax_cross_entropy(mask, scale):
    x = scale * normal((T, B, C), dtype=np.float64)
    targets = np.random.default_rng(0).integers(0, C, (T, B))
    labels = torch.from_numpy(np.where(MASK, targets, -100) if mask is not None else targets)
    theirs = run_torch(lambda x: torch.nn.functional.cross_entropy(x.movedim(-1, 1), labels), x)
    ours = train.softmax_cross_entropy(x, targets, mask)
    assert_same_loss(ours, theirs, T * B, 2 * np.abs(x).max())


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_mse(mask):
    x, target = normal((T, B, C), dtype=np.float64), normal((T, B, C), seed=1, dtype=np.float64)
    chosen = torch.from_numpy(np.ones((T, B), bool) if mask is None else mask)
    wanted = torch.from_numpy(target)[chosen]
    theirs = run_torch(lambda x: torch.nn.functional.mse_loss(x[chosen], wanted), x)
    assert_same_loss(train.mse(x, target, mask), theirs, T * B * C, np.square(x - target).max())


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_binary_cross_entropy(mask, scale):
    x, t = scale * normal((T, B, C), dtype=np.float64), np.random.default_rng(0).uniform(0, 1, (T, B, C))
    chosen = torch.from_numpy(np.ones((T, B), bool) if mask is None else mask)
    function, wanted = torch.nn.functional.binary_cross_entropy_with_logits, torch.from_numpy(t)[chosen]
    theirs = run_torch(lambda x: function(x[chosen], wanted), x)
    assert_same_loss(train.binary_cross_entropy(x, t, mask), theirs, T * B * C, 1 + np.abs(x).max())


# ---- optimisers ----

STEPS = 10


@pytest.mark.parametrize("case", OPTIMIZERS)
@pytest.mark.parametrize("given_lr", [True, False])
def test_optimizers(case, given_lr):
    """Ten steps, parameters and buffers after each; and the default learning rates.

    A step has less than 20 roundings on each side, of numbers of at most the largest parameter or gradient.
    """
    cls, _, options = OPTIMIZERS[case]
    options = {**options, "lr": 0.05} if given_lr else options
    ours = {"a": normal((3, 4), dtype=np.float64), "b": normal((5,), seed=1, dtype=np.float64)}
    theirs = {name: tensor(p) for name, p in ours.items()}
    optimizer, reference = (
        cls(ours, **options),
        getattr(torch.optim, cls.__name__)(theirs.values(), **options),
    )
    for step in range(1, STEPS + 1):
        grads = {
            n: normal(p.shape, seed=10 * step + i, dtype=np.float64) for i, (n, p) in enumerate(ours.items())
        }
        for name, p in theirs.items():
            p.grad = torch.from_numpy(grads[name].copy())
        optimizer.step(grads)
        reference.step()
        state = optimizer.state_dict()
        for name, p in theirs.items():
            size = max(1, *(np.abs(array).max() for array in (ours[name], grads[name])))
            assert_near(ours[name], p, 20 * step, size)
            for buffer, value in reference.state[p].items():
                if buffer != "step" and value is not None:
                    key = f"{buffer}.{name}"
                    if key not in state:  # RMSprop(centered=True) keeps the variance instead
                        state[key] = state[f"variance.{name}"] + state[f"grad_avg.{name}"] ** 2
                    assert_near(state[key], value, 20 * step, np.abs(value.numpy()).max() + 1)


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e3, np.inf])
def test_clip_grad_norm(max_norm):
    grads = {"a": normal((30, 4), dtype=np.float64), "b": normal((5,), seed=1, dtype=np.float64)}
    parameters = [tensor(g) for g in grads.values()]
    for parameter, g in zip(parameters, grads.values(), strict=True):
        parameter.grad = torch.from_numpy(g.copy())
    expected = torch.nn.utils.clip_grad_norm_(parameters, max_norm).item()
    norm = train.clip_grad_norm(grads, max_norm)
    # 125 squares and their sum; a root halves relative errors.
    assert abs(norm - expected) <= 125 * EPS * expected
    for parameter, g in zip(parameters, grads.values(), strict=True):
        assert_near(g, parameter.grad, 125 + 3)


# ---- schedules ----


def rates_of_torch(make_scheduler, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


LR = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (train.schedules.constant(0.3), lambda o: LR.ConstantLR(o, factor=1.0)),
        (train.schedules.step(0.3, 4, 0.5), lambda o: LR.StepLR(o, 4, 0.5)),
        (train.schedules.step(0.3, 7), lambda o: LR.StepLR(o, 7)),
        (train.schedules.cosine(0.3, 19), lambda o: LR.CosineAnnealingLR(o, 19)),
        (train.schedules.cosine(0.3, 25, 0.01), lambda o: LR.CosineAnnealingLR(o, 25, eta_min=0.01)),
    ],
)
def test_schedules(ours, theirs):
    """Torch multiplies the last rate by a factor, so its roundings add up: four in each step."""
    for step, expected in enumerate(rates_of_torch(theirs, 20)):
        assert abs(ours(step) - expected) <= (4 * step + 1) * EPS * 0.3


def test_warm_up():
    warm_up = train.schedules.cosine(0.3, 30, warmup=4)
    expected = rates_of_torch(lambda o: LR.LinearLR(o, start_factor=1 / 5, total_iters=4), 5)
    for step, rate in enumerate(expected):
        assert abs(warm_up(step) - rate) <= (4 * step + 1) * EPS * 0.3


# ---- all together ----


@pytest.mark.parametrize(("momentum", "max_norm"), list(itertools.product([0.0, 0.9], [None, 0.5])))
def test_a_training_run(momentum, max_norm):
    """Embedding, Linear, cross-entropy, clipping and SGD: parameters after 20 steps.

    Errors enter at each step and grow with those after it: by no more than a factor of about one here, since
    the rate is far below what diverges. Counted as 100 roundings a step on each side.
    """
    net = train.Modules(a=train.Embedding(9, 6, dtype=np.float64), b=train.Linear(6, 9, dtype=np.float64))
    model = torch.nn.Sequential(torch.nn.Embedding(9, 6), torch.nn.Linear(6, 9)).double()
    names = dict(zip(net.parameters(), model.state_dict(), strict=True))
    net.load_state_dict({name: model.state_dict()[theirs] for name, theirs in names.items()})
    optimizer = train.SGD(net.parameters(), lr=0.1, momentum=momentum)
    reference = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    tokens = np.random.default_rng(0).integers(0, 9, (20, 17))
    for row in tokens:
        x, x_tape = net.a.forward(row[:-1])
        logits, logits_tape = net.b.forward(x)
        _, d_logits = train.softmax_cross_entropy(logits, row[1:])
        d_x, d_b = net.b.backward(logits_tape, d_logits)
        grads = net.gradients(a=net.a.backward(x_tape, d_x)[1], b=d_b)
        reference.zero_grad()
        torch.nn.functional.cross_entropy(
            model(torch.from_numpy(row[:-1])), torch.from_numpy(row[1:])
        ).backward()
        if max_norm is not None:
            train.clip_grad_norm(grads, max_norm)
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step(grads)
        reference.step()
    for name, theirs in names.items():
        expected = model.state_dict()[theirs]
        assert_near(net.parameters()[name], expected, 100 * len(tokens), np.abs(expected.numpy()).max())
