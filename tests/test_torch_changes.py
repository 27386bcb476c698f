"""Changed parameters: however they change, the next call of a gatedrnn.torch module computes with them."""

from __future__ import annotations

import copy
import io
import pickle
import threading

import pytest

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("one_torch_thread")]
torch = pytest.importorskip("torch")

import gatedrnn.torch as gt  # noqa: E402
from gatedrnn import _core  # noqa: E402
from torch_modules import HIDDEN, INPUT, compare, operator_arguments, ours, pair, random, run  # noqa: E402


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
    pack = module._cache._cached
    assert torch.equal(call(module), before)
    assert module._cache._cached is pack
    CHANGES[change](module)
    fresh = ours("rnn_tanh", seed=5)
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(call(module), call(fresh))
    assert module._cache._cached is not pack
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


def test_written_while_packed_for_backward(monkeypatch):
    """Another thread writes other weights after they were compared, and the old ones again after the call."""
    module, other = ours("gru", 16, 32), ours("gru", 16, 32, seed=1)
    x = random(3, 2, 16)
    weights = list(module.parameters())
    same = ours("gru", 16, 32)
    expected = torch.autograd.grad(same(x)[0].sum(), list(same.parameters()))
    with torch.no_grad():
        module(x)  # packed, and not for backward
    before = [weight.detach().clone() for weight in weights]

    def write(values):
        for weight, value in zip(weights, values, strict=True):
            weight.data.copy_(value)

    compare = _core.fingerprint

    def compare_and_write(arrays):
        result = compare(arrays)
        monkeypatch.setattr(_core, "fingerprint", compare)
        write(other.parameters())
        return result

    monkeypatch.setattr(_core, "fingerprint", compare_and_write)
    module(x)
    write(before)
    gradients = torch.autograd.grad(module(x)[0].sum(), weights)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
