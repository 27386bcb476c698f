"""Copies and pickles of an optimiser, with and without what it trains."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import gatedrnn as gr
from gatedrnn import train
from helpers import assert_same_bits, normal

WAYS = {
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": lambda made, protocol=protocol: pickle.loads(pickle.dumps(made, protocol))
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
}
ways = pytest.mark.parametrize("way", WAYS)
ORDERS = [("net", "optimizer"), ("optimizer", "net")]
orders = pytest.mark.parametrize("order", ORDERS, ids=["net first", "optimizer first"])
NETS = {
    "lstm": lambda: gr.LSTM(3, 4, proj_size=2, seed=0),
    "linear": lambda: train.Linear(3, 4, seed=0),
    "embedding": lambda: train.Embedding(5, 4, padding_idx=1, seed=0),
    "modules": lambda: train.Modules(
        table=train.Embedding(9, 3, seed=1), parts=train.Modules(rnn=gr.GRU(3, 4), head=train.Linear(4, 1))
    ),
}
nets = pytest.mark.parametrize("kind", NETS)


def gradients(state, k):
    return {name: normal(value.shape, seed=k, dtype=value.dtype) for name, value in state.items()}


def trained(net, optimizer, steps):
    """The parameters after these steps, which each of them moves."""
    for k in steps:
        before = net.state_dict()
        optimizer.step(gradients(before, k))
        after = net.state_dict()
        assert all((after[name] != before[name]).any() for name in before)
    return net.state_dict()


def assert_same(actual, expected):
    assert list(actual) == list(expected)
    for name, array in expected.items():
        assert_same_bits(actual[name], array)


def agent(kind, order=ORDERS[0]):
    net = NETS[kind]()
    made = {"net": net, "optimizer": train.Adam(net.parameters(), lr=0.1)}
    trained(net, made["optimizer"], range(2))
    return {name: made[name] for name in order}


@ways
@orders
@nets
def test_the_copied_optimizer_trains_the_copied_network(way, order, kind):
    made = agent(kind, order)
    before = made["net"].state_dict()
    twin = WAYS[way](made)
    after = trained(twin["net"], twin["optimizer"], range(2, 5))
    assert_same(made["net"].state_dict(), before)
    assert_same(after, trained(made["net"], made["optimizer"], range(2, 5)))
    assert_same(twin["optimizer"].state_dict(), made["optimizer"].state_dict())
    assert repr(twin["net"]) == repr(made["net"])


@ways
def test_copies_of_copies(way):
    made = WAYS[way](WAYS[way](agent("modules")))
    x = normal((2, 3, 3))
    before = made["net"].parts.rnn(x)[0]
    trained(made["net"], made["optimizer"], range(3))
    assert (made["net"].parts.rnn(x)[0] != before).any()


class Policy:
    """With attributes that refer to each other."""

    def __init__(self):
        self.rnn = gr.GRU(3, 4, seed=0)
        self.optimizers = [train.SGD({name: array}, lr=0.5) for name, array in self.rnn.parameters().items()]
        self.head = train.Linear(4, 1, seed=0)
        self.optimizers.append(train.RMSprop(self.head.parameters(), centered=True, momentum=0.5))


@ways
def test_many_optimizers_of_one_network(way):
    made = Policy()
    twin = WAYS[way](made)
    for policy in (made, twin):
        for optimizer in policy.optimizers:
            for part in (policy.rnn, policy.head):
                optimizer.step(gradients(policy.rnn.state_dict() | policy.head.state_dict(), 7))
                assert part
    assert_same(twin.rnn.state_dict(), made.rnn.state_dict())
    assert_same(twin.head.state_dict(), made.head.state_dict())


class Learning(gr.GRU):
    def __init__(self):
        super().__init__(3, 4, seed=0)
        self.optimizer = train.SGD(self.parameters(), lr=0.5)


class LearningHead(train.Linear):
    def __init__(self):
        super().__init__(3, 4, seed=0)
        self.optimizer = train.SGD(self.parameters(), lr=0.5)


@ways
@pytest.mark.parametrize("cls", [Learning, LearningHead])
@pytest.mark.parametrize("of_the_optimizer", [False, True])
def test_an_optimizer_may_be_an_attribute_of_what_it_trains(way, cls, of_the_optimizer):
    made = cls()
    if of_the_optimizer:
        net, optimizer = WAYS[way]((made.optimizer, made))[::-1]
    else:
        net = WAYS[way](made)
        optimizer = net.optimizer
    assert net.optimizer is optimizer
    assert_same(trained(net, optimizer, range(2)), trained(made, made.optimizer, range(2)))


@ways
@orders
def test_arrays_that_are_no_modules(way, order):
    """The copy has the copied arrays: the same ones as what was copied with it."""
    arrays = {"w": normal((3, 4)), "b": normal((4,), dtype=np.float64)}
    made = {"net": arrays, "optimizer": train.Adam(arrays, lr=0.1)}
    twin = WAYS[way]({name: made[name] for name in order})
    before = {name: array.copy() for name, array in arrays.items()}
    twin["optimizer"].step(gradients(arrays, 1))
    assert_same(arrays, before)
    made["optimizer"].step(gradients(arrays, 1))
    assert_same(twin["net"], arrays)
    assert all((arrays[name] != before[name]).all() for name in arrays)


@ways
def test_an_optimizer_alone_brings_a_copy_of_its_network(way):
    made = agent("lstm")
    before = made["net"].state_dict()
    twin = WAYS[way](made["optimizer"])
    twin.step(gradients(before, 5))
    assert_same(made["net"].state_dict(), before)
    made["optimizer"].step(gradients(before, 5))
    assert_same(twin.state_dict(), made["optimizer"].state_dict())


@ways
def test_an_optimizer_whose_network_is_gone(way):
    made = agent("lstm")
    parameters = made["net"].parameters()
    optimizer = made.pop("optimizer")
    made.clear()
    twin = WAYS[way](optimizer)
    before = {name: array.copy() for name, array in parameters.items()}
    twin.step(gradients(before, 5))
    assert_same(parameters, before)
    optimizer.step(gradients(before, 5))
    assert_same(twin.state_dict(), optimizer.state_dict())


def test_a_shallow_copy_trains_the_same_parameters_for_itself():
    made = agent("modules")
    twin = copy.copy(made["optimizer"])
    state = made["optimizer"].state_dict()
    twin.lr = 0.5
    trained(made["net"], twin, range(2))
    assert_same(made["optimizer"].state_dict(), state)
    twin.load_state_dict(state)
    assert_same(twin.state_dict(), state)


def test_subclasses_keep_their_attributes():
    class Named(train.SGD):
        def __init__(self, name, parameters):
            self.name = name
            super().__init__(parameters, lr=0.5)

    net = gr.GRU(3, 4)
    twin, optimizer = copy.deepcopy((net, Named("a", net.parameters())))
    assert optimizer.name == "a"
    trained(twin, optimizer, range(2))
