"""Weights that are promised to stay: no look at them, and no silence where the promise is broken."""

from __future__ import annotations

import copy
import threading

import pytest

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("one_torch_thread")]
torch = pytest.importorskip("torch")

import gatedrnn.torch as gt  # noqa: E402
from gatedrnn.torch import _cache  # noqa: E402


@pytest.fixture
def looks(monkeypatch):
    """Count the looks at weights."""
    counted = []
    look = _cache._core.fingerprint
    monkeypatch.setattr(_cache._core, "fingerprint", lambda arrays: counted.append(1) or look(arrays))
    return counted


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.ModuleList([gt.LSTMCell(3, 5), gt.GRU(5, 4)])


X = torch.linspace(-1, 1, 6).reshape(2, 3)


def call(model):
    with torch.inference_mode():
        return model[1](model[0](X)[0][None])[0]


def test_weights_are_looked_at_once(model, looks):
    expected = call(model)
    looks.clear()
    with gt.fixed(model) as same:
        assert same is model
        for _ in range(5):
            assert torch.equal(call(model), expected)
        assert len(looks) == 2  # one for each module
    assert len(looks) == 4  # and one at the end
    call(model)
    assert len(looks) == 6


def test_writes_before_the_block_are_seen(model):
    call(model)
    model[0].weight_ih.data.zero_()
    model[0].weight_hh.data.zero_()
    expected = call(copy.deepcopy(model))
    with gt.fixed(model):
        assert torch.equal(call(model), expected)


def write_within(model, then=lambda: None):
    with gt.fixed(model):
        before = call(model)
        model[0].weight_ih.data.add_(1)
        assert torch.equal(call(model), before)
        then()


def a_block_within(model):
    with gt.fixed(model):
        call(model)


def test_writes_within_the_block_are_said(model):
    before = call(model)
    with pytest.raises(RuntimeError, match="fixed: expected weights that stay, got writes to those of 0"):
        write_within(model)
    assert not torch.equal(call(model), before)


@pytest.mark.parametrize("then", [a_block_within, lambda model: model.double()])
def test_writes_are_said_also_after_another_look(model, then):
    with pytest.raises(RuntimeError, match="got writes to those of 0"):
        write_within(model, lambda: then(model))


def test_an_error_in_the_block_is_not_hidden(model):
    with pytest.raises(ZeroDivisionError):
        write_within(model, lambda: 1 / 0)


def test_other_tensors_are_noticed_at_once(model):
    other = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    with gt.fixed(model):
        call(model)
        model.load_state_dict(other, assign=True)
        assert not call(model).any()


def test_gradients_within_the_block(model):
    """The first of them packs for backward."""
    with gt.fixed(model):
        call(model)
        model[1](model[0](X)[0][None])[0].sum().backward()
    assert model[0].weight_ih.grad.any()


def test_nested_and_in_threads(model, looks):
    expected = call(model)
    wrong = []

    def work():
        with gt.fixed(model), gt.fixed(model[0]):
            for _ in range(20):
                if not torch.equal(call(model), expected):
                    wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    looks.clear()
    call(model)
    assert len(looks) == 2  # it is over


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (3, TypeError, r"model: expected a torch\.nn\.Module, got 3"),
        (torch.nn.LSTM(3, 4), ValueError, r"model: expected modules of gatedrnn\.torch in it, got none"),
    ],
    ids=["number", "torch.nn"],
)
def test_errors(model, error, message):
    with pytest.raises(error, match=message), gt.fixed(model):
        pass
