"""Who holds a module's parameters: when packs are compared and when they are trusted; half-made modules."""

from __future__ import annotations

import copy
import gc
import operator
import pickle
import threading

import numpy as np
import pytest

import gatedrnn as gr
from gatedrnn import _core, _packs, train
from helpers import assert_same_bits, build, normal

X = normal((2, 2, 5))


@pytest.fixture
def compared(monkeypatch):
    """A function that tells how often a block of calls looked at the parameters."""
    count = [0]

    class Counting:
        def __getattr__(self, name):
            return getattr(_core, name)

        def fingerprint(self, arrays):
            count[0] += 1
            return _core.fingerprint(arrays)

    monkeypatch.setattr(_packs, "_core", Counting())

    def compared(module, calls=3):
        before = count[0]
        for _ in range(calls):
            module(X)
        return count[0] - before

    return compared


def assert_up_to_date(module):
    """A call has the bits of a module that was made with these parameters."""
    fresh = build("gru", seed=9)
    fresh.load_state_dict(module.state_dict())
    assert_same_bits(module(X), fresh(X))


def gradients(module):
    return {name: np.ones_like(value) for name, value in module.state_dict().items()}


# ---- how often calls compare ----


def test_nobody_holds_the_parameters(compared):
    module = build("gru")
    assert compared(module) == 1  # when it is packed
    module.state_dict()
    assert compared(module) == 0
    module.load_state_dict(build("gru", seed=1).state_dict())
    assert compared(module) == 1
    assert_up_to_date(module)


@pytest.mark.parametrize("cls", [train.SGD, train.Adam, train.AdamW, train.RMSprop])
def test_optimizers_say_when_they_write(cls, compared):
    """A comparison or two after each step, which also pack; none otherwise."""
    module = build("gru")
    optimizer = cls(module.parameters(), lr=0.1)
    assert compared(module) == 1
    for _ in range(3):
        before = module.state_dict()
        optimizer.step(gradients(module))
        assert not np.array_equal(module.state_dict()["weight_hh_l0"], before["weight_hh_l0"])
        assert compared(module) == 1
        assert_up_to_date(module)
        assert compared(module) == 0
    optimizer.load_state_dict(optimizer.state_dict())
    assert compared(module) == 0
    del optimizer
    gc.collect()
    assert compared(module) == 0


def test_a_dictionary_of_views_is_somebody_else(compared):
    """Also where an optimiser was made of it."""
    module = build("gru")
    parameters = module.parameters()
    optimizer = train.SGD(parameters, lr=0.1)
    module(X)
    assert compared(module) == 3
    parameters["bias_hh_l0"][...] = 3
    assert_up_to_date(module)
    optimizer.step(gradients(module))
    assert_up_to_date(module)
    assert compared(module) == 3
    del parameters
    assert compared(module) == 1
    assert compared(module) == 0
    assert_up_to_date(module)


def test_an_optimizer_of_some_parameters(compared):
    module = build("gru")
    weight = module.weight_hh_l0
    optimizer = train.SGD({"w": weight, "rows": module.weight_ih_l0[7:14]}, lr=0.5)
    del weight
    module(X)
    assert compared(module) == 0
    before = module.state_dict()
    optimizer.step({"w": np.ones((21, 7), np.float32), "rows": np.ones((7, 5), np.float32)})
    after = module.state_dict()
    assert_same_bits(after["weight_hh_l0"], before["weight_hh_l0"] - 0.5)
    assert_same_bits(after["weight_ih_l0"][7:14], before["weight_ih_l0"][7:14] - 0.5)
    assert_same_bits(after["weight_ih_l0"][:7], before["weight_ih_l0"][:7])
    assert_up_to_date(module)


WAYS = {
    "attribute": lambda m: m.weight_hh_l0.fill(0.25),
    "dictionary": lambda m: m.parameters()["weight_ih_l0"].__setitem__(0, 2.0),
    "assignment": lambda m: setattr(m, "bias_hh_l0", np.ones(21)),
    "in place": lambda m: setattr(m, "weight_hh_l0", operator.imul(m.weight_hh_l0, 2)),
    "load_state_dict": lambda m: m.load_state_dict(build("gru", seed=4).state_dict()),
    "step": lambda m: train.Adam(m.parameters(), lr=0.1).step(gradients(m)),
    "fit": lambda m: train.fit(
        m,
        train.SGD(m.parameters(), lr=0.1),
        lambda batch: (1.0, gradients(m)),
        lambda rng: [0],
        epochs=1,
        progress=False,
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_changing_is_noticed_once(way, compared):
    module = build("gru")
    optimizer = train.SGD(module.parameters(), lr=0.1)
    module(X)
    before = module(X)
    WAYS[way](module)
    assert compared(module) == 1
    assert not np.array_equal(module(X)[0], before[0])
    assert_up_to_date(module)
    optimizer.step(gradients(module))
    assert_up_to_date(module)


VIEWS = {
    "slice": lambda a: a[2:5, ::2],
    "transposed": lambda a: a.T,
    "flat": lambda a: a.reshape(-1),
    "bytes": lambda a: a.view(np.uint8),
    "subclass": lambda a: a.view(np.matrix)[3],
    "memoryview": memoryview,
    "iterator": lambda a: a.flat,
    "again": lambda a: np.asarray(memoryview(a)),
}


@pytest.mark.parametrize("view", VIEWS)
def test_any_view_counts_as_a_holder(view, compared):
    module = build("gru")
    module(X)
    held = VIEWS[view](module.weight_hh_l0)
    module(X)
    assert compared(module) == 3
    if view in ("memoryview", "iterator"):
        np.asarray(held.obj if view == "memoryview" else held.base)[...] = 0.5
    else:
        held[...] = 1
    assert_up_to_date(module)
    del held
    assert compared(module) == 1
    assert compared(module) == 0


def test_what_a_failing_step_did_is_noticed(compared, monkeypatch):
    """A signal's handler may raise anywhere; a traceback may keep the frame alive."""
    module = build("gru")
    optimizer = train.SGD(module.parameters(), lr=0.5)
    module(X)
    update, calls = train.SGD._update, []

    def broken(self, p, *arrays, **options):
        update(self, p, *arrays, **options)
        module(X)  # packs what is half-changed
        calls.append(p.size)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(train.SGD, "_update", broken)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(gradients(module))
    assert_up_to_date(module)
    monkeypatch.undo()
    optimizer.step(gradients(module))
    assert_up_to_date(module)


def test_reading_while_others_call(compared):
    """Loans that come and go in other threads never leave an old pack trusted."""
    module = build("gru")
    stop = threading.Event()

    def call():
        while not stop.is_set():
            module(X)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for value in range(200):
        module.bias_hh_l0[...] = value / 100
        assert module.bias_hh_l0[0] == np.float32(value / 100)
    stop.set()
    for thread in threads:
        thread.join()
    assert_up_to_date(module)


def test_arrays_outlive_their_module():
    module = build("gru")
    parameters, optimizer = module.parameters(), train.SGD(module.parameters(), lr=0.5)
    before = {name: value.copy() for name, value in parameters.items()}
    grads = gradients(module)
    del module
    gc.collect()
    optimizer.step(grads)
    for name, value in parameters.items():
        assert_same_bits(value, before[name] - np.float32(0.5))


def test_backward_may_look_too(compared):
    module = build("gru")
    optimizer = train.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        output, _, tape = module.forward(X)
        optimizer.step(module.backward(tape, np.ones_like(output))[2])
        assert compared(module) == 1
        assert_up_to_date(module)


# ---- half-made modules ----


class Early:
    """Sets an attribute, and looks at what is there, before the constructor of what it is mixed with."""

    def __init__(self, *arguments, early=(), **options):
        self.units = 3
        for look in early:
            look(self)
        super().__init__(*arguments, **options)


def early(cls):
    return type(f"Early{cls.__name__}", (Early, cls), {})


HALF_MADE = {
    cls.__name__: (early(cls), (5, 7)) for cls in (gr.LSTM, gr.GRU, gr.RNN, train.Linear, train.Embedding)
}
half_made = pytest.mark.parametrize("kind", HALF_MADE)


def make(kind, **options):
    cls, arguments = HALF_MADE[kind]
    return cls(*arguments, **options)


@half_made
def test_a_subclass_may_set_attributes_first(kind):
    module = make(kind, early=[lambda module: setattr(module, "more", [1])], seed=1)
    assert (module.units, module.more) == (3, [1])
    assert {"units", "more"} <= set(dir(module))
    expected = HALF_MADE[kind][0].__bases__[1](5, 7, seed=1).state_dict()
    for name, value in module.state_dict().items():
        assert_same_bits(value, expected[name])


@half_made
def test_a_half_made_module_can_be_looked_at(kind):
    seen = []

    def look(module):
        names = dir(module)
        seen.append((repr(module), "units" in names, hasattr(module, "weight"), hasattr(module, "dtype")))
        for name in ("weight_hh_l0", "bias", "dtype", "no_such_thing"):
            with pytest.raises(AttributeError, match=rf"'Early.*{name}': super\(\).__init__\(\) was not"):
                getattr(module, name)
        for use in (lambda: module(X), module.state_dict, module.parameters, lambda: copy.copy(module)):
            with pytest.raises(AttributeError, match=r"super\(\).__init__\(\) was not called yet"):
                use()

    make(kind, early=[look])
    assert seen == [(f"<Early{kind}, before super().__init__()>", True, False, False)]


def test_a_half_made_modules():
    seen = []

    def look(net):
        seen.append((repr(net), "units" in dir(net), hasattr(net, "head")))
        with pytest.raises(AttributeError, match=r"'head': super\(\).__init__\(\) was not called yet"):
            _ = net.head

    net = early(train.Modules)(early=[look], head=train.Linear(2, 3))
    assert seen == [("<EarlyModules, before super().__init__()>", True, False)]
    assert net.units == 3
    with pytest.raises(AttributeError, match="head: fixed when EarlyModules is made"):
        net.head = train.Linear(2, 3)
    with pytest.raises(ValueError, match=r"expected names .* got 'units'"):
        early(train.Modules)(units=train.Linear(2, 3))


def test_what_would_hide_a_parameter_is_refused():
    with pytest.raises(AttributeError, match=r"weight_hh_l0: cannot be assigned before super\(\).__init__"):
        make("GRU", early=[lambda module: setattr(module, "weight_hh_l0", 3)])


@half_made
def test_subclasses_are_copied_whole(kind):
    module = make(kind, seed=1)
    module.more = [1, 2]
    for twin in (copy.deepcopy(module), copy.copy(module)):
        assert (type(twin), twin.units, twin.more, repr(twin)) == (type(module), 3, [1, 2], repr(module))
        for name, value in twin.parameters().items():
            assert_same_bits(value, module.state_dict()[name])
            value[...] = 0
            assert module.state_dict()[name].any()


@pytest.mark.parametrize(
    "layer", [train.Linear(3, 4, bias=False, dtype=np.float64), train.Embedding(4, 3, padding_idx=2)]
)
def test_layers_are_pickled_whole(layer):
    twin = pickle.loads(pickle.dumps(layer))
    assert repr(twin) == repr(layer)
    assert_same_bits(twin.weight, layer.weight)
