"""gatedrnn.train's Linear, Embedding and Modules: exact cases, gradients from their definition, bad input."""

from __future__ import annotations

import re

import numpy as np
import pytest

import gatedrnn as gr
from gatedrnn import train
from helpers import DTYPES, assert_same_bits, normal
from test_errors import refused

dtypes = pytest.mark.parametrize("dtype", DTYPES)
SHAPES = [(), (4,), (3, 4), (2, 3, 4), (0, 3), (1, 1)]


def linear(dtype=np.float64, **options):
    return train.Linear(5, 7, dtype=dtype, seed=1, **options)


def embedding(dtype=np.float64, **options):
    return train.Embedding(9, 4, dtype=dtype, seed=1, **options)


def assert_products(actual, equation, a, b, count, more=0):
    """`actual` is the einsum of a and b (and `more` to add), with as many roundings as it has additions.

    A sum of `count` products, in any order, is off by at most count * eps / 2 of the sum of their sizes.
    """
    exact = np.einsum(equation, a.astype(np.longdouble), b.astype(np.longdouble)) + more
    sizes = np.einsum(equation, np.abs(a), np.abs(b)) + np.abs(more)
    assert actual.dtype == a.dtype
    assert actual.shape == exact.shape
    assert (np.abs(actual - exact) <= (count + 1) * np.finfo(a.dtype).eps * sizes).all()


# ---- Linear ----


def test_linear_small_case():
    layer = train.Linear(2, 1, dtype=np.float64)
    layer.load_state_dict({"weight": np.array([[2.0, -1.0]]), "bias": np.array([0.5])})
    x = np.array([[1.0, 3.0], [4.0, 0.0]])
    y, tape = layer.forward(x)
    np.testing.assert_array_equal(y, [[-0.5], [8.5]])
    d_x, grads = layer.backward(tape, np.array([[1.0], [10.0]]))
    np.testing.assert_array_equal(d_x, [[2.0, -1.0], [20.0, -10.0]])
    np.testing.assert_array_equal(grads["weight"], [[41.0, 3.0]])
    np.testing.assert_array_equal(grads["bias"], [11.0])


@dtypes
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_linear_is_what_it_says(dtype, bias, shape):
    layer = linear(dtype, bias=bias)
    x, d_y = normal((*shape, 5), dtype=dtype), normal((*shape, 7), seed=1, dtype=dtype)
    y, tape = layer.forward(x)
    assert_products(y, "...i,oi->...o", x, layer.weight, 5, layer.bias if bias else 0)
    assert_same_bits(layer(x), y)
    d_x, grads = layer.backward(tape, d_y)
    rows, d_rows = x.reshape(-1, 5), d_y.reshape(-1, 7)
    assert list(grads) == list(layer.parameters()) == ["weight", "bias"][: 1 + bias]
    assert_products(d_x, "...o,oi->...i", d_y, layer.weight, 7)
    assert_products(grads["weight"], "no,ni->oi", d_rows, rows, len(rows))
    if bias:
        assert_products(grads["bias"], "no,n->o", d_rows, np.ones(len(rows), dtype), len(rows))


def test_linear_takes_any_strides():
    layer = linear()
    x, d_y = normal((3, 4, 10), dtype=np.float64)[:, ::-1, ::2], normal((7, 4, 3), dtype=np.float64).T
    d_y = d_y.copy(order="F")
    y, tape = layer.forward(x)
    d_x, grads = layer.backward(tape, d_y.reshape(3, 4, 7))
    same_y, same_tape = layer.forward(x.copy())
    same_d_x, same_grads = layer.backward(same_tape, np.ascontiguousarray(d_y))
    for a, b in zip((y, d_x, *grads.values()), (same_y, same_d_x, *same_grads.values()), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=12 * np.finfo(float).eps * np.abs(b).max())


@dtypes
def test_linear_initial_parameters(dtype):
    layer = train.Linear(100, 300, dtype=dtype, seed=3)
    for values in layer.parameters().values():
        assert np.abs(values).max() <= 0.1
        assert np.abs(values).max() > 0.099
        assert np.abs(values.mean()) < 0.1 / np.sqrt(values.size) * 3
    again = train.Linear(100, 300, dtype=dtype, seed=3)
    assert_same_bits(again.weight, layer.weight)
    assert (train.Linear(100, 300, seed=4).weight != layer.weight).any()


@pytest.mark.parametrize("out_features", [1, 3])
def test_a_million_equal_rows_are_added_up_in_blocks(out_features):
    """Added one by one, 2^20 terms drift by a percent; the levels of blocks drift by what each of them has.

    A chain of n equal terms is off by at most n * eps / 4 of its sum, the average of its partial sums.
    """
    eps = np.finfo(np.float32).eps
    count, value = 2**20, np.float32(0.1)
    linear = train.Linear(2, out_features)
    rows = np.full((count, 2), value)
    d_rows = np.full((count, out_features), value)
    _, grads = linear.backward(linear.forward(rows)[1], d_rows)
    np.testing.assert_allclose(grads["weight"], count * float(value) ** 2, rtol=(512 + 128 + 16) * eps / 4)
    np.testing.assert_allclose(grads["bias"], count * float(value), rtol=(128 + 128 + 64) * eps / 4)
    embedding = train.Embedding(3, out_features)
    _, grads = embedding.backward(embedding.forward(np.ones(count, int))[1], d_rows)
    expected = np.multiply.outer([0, 1, 0], np.full(out_features, count * float(value)))
    np.testing.assert_allclose(grads["weight"], expected, rtol=(128 + 128 + 64) * eps / 4)


# ---- Embedding ----


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64])
@pytest.mark.parametrize("shape", SHAPES)
def test_embedding_looks_rows_up(kind, shape):
    layer = embedding()
    indices = np.random.default_rng(0).integers(0, 9, shape).astype(kind)
    y, tape = layer.forward(indices)
    assert_same_bits(y, layer.weight[indices.astype(int)])
    assert_same_bits(layer(indices), y)
    d_y = normal(y.shape, dtype=np.float64)
    d_x, grads = layer.backward(tape, d_y)
    assert d_x is None
    assert list(grads) == ["weight"]
    one_hot = (indices.reshape(-1)[:, None] == np.arange(9)).astype(float)
    assert_products(grads["weight"], "nv,ne->ve", one_hot, d_y.reshape(-1, 4), indices.size)


@dtypes
def test_embedding_adds_in_the_order_of_positions(dtype):
    """The bits do not depend on how the sum is made: they are those of the plainest loop, in blocks."""
    layer = embedding(dtype)
    indices = np.random.default_rng(0).integers(0, 9, (60, 40))
    _, tape = layer.forward(indices)
    d_y = normal((60, 40, 4), dtype=dtype)
    expected = np.zeros((9, 4), dtype)
    for index in range(9):
        rows = d_y[indices == index]
        for block in range(0, len(rows), 128):
            expected[index] += sum(rows[block : block + 128], np.zeros(4, dtype))
    assert_same_bits(layer.backward(tape, d_y)[1]["weight"], expected)
    assert_same_bits(layer.backward(tape, d_y.copy(order="F"))[1]["weight"], expected)


def test_embedding_padding_index():
    layer = embedding(padding_idx=2)
    assert (layer.weight[2] == 0).all()
    assert (layer.weight[[0, 1, 3]] != 0).all()
    _, tape = layer.forward([2, 3, 2])
    gradient = layer.backward(tape, np.ones((3, 4)))[1]["weight"]
    np.testing.assert_array_equal(gradient[:4], np.outer([0, 0, 0, 1], np.ones(4)))


@dtypes
def test_embedding_initial_parameters(dtype):
    weight = train.Embedding(100, 100, dtype=dtype, seed=3).weight
    assert np.abs(weight.mean()) < 3 / 100
    assert np.abs(weight.std() - 1) < 3 / 100 / np.sqrt(2)
    assert_same_bits(train.Embedding(100, 100, dtype=dtype, seed=3).weight, weight)


@pytest.mark.parametrize("indices", [[1, 2], np.array([1, 2]), np.array([1, 2], np.int32)])
def test_indices_are_kept_though_what_they_came_in_changes(indices):
    layer = embedding()
    _, tape = layer.forward(indices)
    indices[0] = 5
    assert layer.backward(tape, np.ones((2, 4)))[1]["weight"][5].sum() == 0


@dtypes
@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[::-1, :, ::2], lambda x: x[:1, 0, :5]])
def test_a_batch_buffer_may_be_filled_again(dtype, view):
    """Between forward and backward, as a loop does that makes its next batch in the memory of the last."""
    buffer = normal((3, 4, 10), dtype=dtype)
    layer = train.Linear(view(buffer).shape[-1], 7, dtype=dtype)
    kept = view(buffer).copy()
    y, tape = layer.forward(view(buffer))
    buffer[...] = np.nan
    d_y = normal(y.shape, dtype=dtype)
    d_x, grads = layer.backward(tape, d_y)
    same_y, same_tape = layer.forward(kept)
    same_d_x, same_grads = layer.backward(same_tape, d_y)
    for name, gradient in grads.items():
        assert_same_bits(gradient, same_grads[name])
    assert_same_bits((y, d_x), (same_y, same_d_x))


@dtypes
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_positions_that_do_not_count_reach_no_gradient(dtype, value):
    """Padding may hold anything: 0 times NaN would be NaN."""
    layer = linear(dtype)
    x, mask = normal((4, 3, 5), dtype=dtype), train.mask_of([4, 0, 2], 4)
    targets = np.where(mask[..., None], normal((4, 3, 7), dtype=dtype), value)
    spoiled = np.where(mask[..., None], x, dtype(value))
    expected = []
    for inputs in (np.where(mask[..., None], x, dtype(0)), spoiled):
        with np.errstate(invalid="ignore"):  # inf - inf in the padding's outputs
            y, tape = layer.forward(inputs)
        loss, d_y = train.mse(y, targets, mask)
        expected.append((loss, *layer.backward(tape, d_y)))
    (loss, d_x, grads), (loss_spoiled, d_x_spoiled, grads_spoiled) = expected
    assert loss == loss_spoiled
    assert_same_bits(d_x_spoiled, d_x)
    for name, gradient in grads.items():
        assert_same_bits(grads_spoiled[name], gradient)


def test_a_position_that_counts_and_diverged_is_not_hidden():
    layer = linear()
    x = normal((4, 5), dtype=np.float64)
    x[2, 1] = np.nan
    gradient = layer.backward(layer.forward(x)[1], np.ones((4, 7)))[1]["weight"]
    assert np.isnan(gradient[:, 1]).all()
    assert np.isfinite(gradient[:, [0, 2, 3, 4]]).all()


# ---- parameters of both ----


@pytest.mark.parametrize("make", [linear, embedding])
def test_parameters_are_the_layers_own_and_state_dict_copies(make):
    layer = make()
    copies = layer.state_dict()
    for name, array in layer.parameters().items():
        assert np.shares_memory(array, getattr(layer, name))
        array += 1
        np.testing.assert_array_equal(getattr(layer, name), copies[name] + 1)
    again = make(np.float32)
    assert again.load_state_dict(copies) == ([], [])
    for name, array in again.parameters().items():
        assert_same_bits(array, copies[name].astype(np.float32))


@pytest.mark.parametrize("make", [linear, embedding])
def test_load_state_dict_refuses_by_name(make):
    layer = make()
    before = layer.state_dict()
    with refused("d", ValueError):
        layer.load_state_dict({**before, "other": before["weight"]})
    with refused("d", ValueError):
        layer.load_state_dict({})
    with refused("d", TypeError):
        layer.load_state_dict([before["weight"]])
    with refused("strict", TypeError):
        layer.load_state_dict(before, strict=1)
    with refused("weight", ValueError):
        layer.load_state_dict({**before, "weight": before["weight"].T})
    assert layer.load_state_dict({"other": 1}, strict=False) == (list(before), ["other"])
    for name, array in layer.state_dict().items():
        assert_same_bits(array, before[name])


def test_repr():
    assert repr(train.Linear(2, 3)) == "Linear(2, 3)"
    assert repr(train.Linear(2, 3, False, dtype=np.float64)) == "Linear(2, 3, bias=False, dtype=float64)"
    assert repr(train.Embedding(2, 3, 1)) == "Embedding(2, 3, padding_idx=1)"
    assert repr(train.Modules(a=train.Linear(2, 3))) == "Modules(a=Linear(2, 3))"


# ---- bad input ----


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("in_features", lambda: train.Linear(0, 3)),
        ("in_features", lambda: train.Linear(2.5, 3)),
        ("out_features", lambda: train.Linear(3, -1)),
        ("in_features", lambda: train.Linear(1 << 40, 1 << 40)),
        ("bias", lambda: train.Linear(3, 3, 1)),
        ("dtype", lambda: train.Linear(3, 3, dtype=np.int64)),
        ("seed", lambda: train.Linear(3, 3, seed=-1)),
        ("num_embeddings", lambda: train.Embedding(0, 3)),
        ("num_embeddings", lambda: train.Embedding(1 << 40, 1 << 40)),
        ("embedding_dim", lambda: train.Embedding(3, "4")),
        ("padding_idx", lambda: train.Embedding(3, 4, 3)),
        ("padding_idx", lambda: train.Embedding(3, 4, -1)),
        ("dtype", lambda: train.Embedding(3, 4, dtype=None)),
        ("seed", lambda: train.Embedding(3, 4, seed=0.5)),
    ],
)
def test_constructors_refuse(name, make):
    with refused(name):
        make()


@pytest.mark.parametrize(
    ("x", "kind"),
    [
        (np.ones((3, 4)), ValueError),
        (np.float64(1), TypeError),
        (np.array(1.0), ValueError),
        (np.ones((3, 5), np.float32), TypeError),
        (np.ones((3, 5), ">f8"), TypeError),
        (np.ones((3, 5), int), TypeError),
        ([1.0] * 5, TypeError),
        (None, TypeError),
    ],
)
def test_linear_refuses_x(x, kind):
    with refused("x", kind):
        linear().forward(x)
    with refused("x", kind):
        linear()(x)


@pytest.mark.parametrize(
    ("indices", "kind"),
    [
        ([0, 9], ValueError),
        ([-1], ValueError),
        (np.array([1.0]), TypeError),
        (np.array([True]), TypeError),
        (np.array([1], object), TypeError),
        ([[1], [1, 2]], TypeError),
        ("text", TypeError),
        (None, TypeError),
        ({1: 2}, TypeError),
        (np.array([2**64 - 1], np.uint64), ValueError),
        ([2**70], TypeError),
    ],
)
def test_embedding_refuses_indices(indices, kind):
    with refused("indices", kind):
        embedding().forward(indices)
    with refused("indices", kind):
        embedding()(indices)


@pytest.mark.parametrize(("make", "x", "width"), [(linear, np.ones((2, 5)), 7), (embedding, [1, 2], 4)])
def test_backward_refuses(make, x, width):
    layer = make()
    _, tape = layer.forward(x)
    with refused("d_y", ValueError):
        layer.backward(tape, np.ones((3, width)))
    with refused("d_y", ValueError):
        layer.backward(tape, np.ones((2, width + 1)))
    with refused("d_y", TypeError):
        layer.backward(tape, np.ones((2, width), np.float32))
    with refused("d_y", TypeError):
        layer.backward(tape, None)
    for wrong in (make().forward(x)[1], None, x):
        with refused("tape", TypeError):
            layer.backward(wrong, np.ones((2, width)))


# ---- Modules ----


def network():
    return train.Modules(
        embedding=train.Embedding(9, 4, seed=1), rnn=gr.GRU(4, 3, seed=2), head=train.Linear(3, 2, seed=3)
    )


NAMES = [
    "embedding.weight",
    "rnn.weight_ih_l0",
    "rnn.weight_hh_l0",
    "rnn.bias_ih_l0",
    "rnn.bias_hh_l0",
    "head.weight",
    "head.bias",
]


def test_modules_names_and_arrays():
    net = network()
    assert list(net.parameters()) == list(net.state_dict()) == NAMES
    x = normal((5, 1, 4))
    before = net.rnn(x)[0]
    net.parameters()["rnn.weight_ih_l0"][...] = 0
    assert (net.rnn(x)[0] != before).any()
    assert (net.rnn.weight_ih_l0 == 0).all()
    assert "head" in dir(net)


def test_modules_in_modules():
    outer = train.Modules(inner=network(), more=train.Linear(1, 1))
    assert list(outer.parameters()) == [*(f"inner.{name}" for name in NAMES), "more.weight", "more.bias"]
    values = {name: np.full_like(array, 3) for name, array in outer.state_dict().items()}
    outer.load_state_dict(values)
    assert all((array == 3).all() for array in outer.inner.head.parameters().values())


def test_modules_load_state_dict_all_or_nothing():
    net = network()
    before = net.state_dict()
    values = {name: np.full_like(array, 3) for name, array in before.items()}
    with refused("bias", ValueError):
        net.load_state_dict({**values, "head.bias": np.zeros(5)})
    with refused("d", ValueError) as _:
        net.load_state_dict({**values, "tail.weight": np.zeros(5)})
    with refused("d", TypeError):
        net.load_state_dict(None)
    for name, array in net.state_dict().items():
        assert_same_bits(array, before[name])
    keys = net.load_state_dict({"head.bias": values["head.bias"], "tail": 0}, strict=False)
    assert keys == ([name for name in NAMES if name != "head.bias"], ["tail"])
    assert (net.head.bias == 3).all()


def test_modules_gradients():
    net = network()
    parts = {name: getattr(net, name).state_dict() for name in ("head", "embedding", "rnn")}
    joined = net.gradients(**parts)
    assert list(joined) == NAMES
    assert joined["head.bias"] is parts["head"]["bias"]
    with refused("gradients", ValueError):
        net.gradients(head={}, embedding={})
    with refused("gradients", ValueError):
        net.gradients(**parts, tail={})
    with refused("rnn", TypeError):
        net.gradients(**{**parts, "rnn": None})


def test_modules_refuse():
    layer = train.Linear(1, 1)
    with refused("modules", ValueError):
        train.Modules()
    for name in ("a.b", "_a", "parameters", "state_dict", "gradients", "__init__"):
        with refused("modules", ValueError):
            train.Modules(**{name: layer})
    with refused("modules", ValueError):
        train.Modules(a=layer, b=layer)
    with refused("a", TypeError):
        train.Modules(a=np.zeros(3))
    with pytest.raises(AttributeError, match=re.escape("'Modules' object has no attribute 'b'")):
        _ = train.Modules(a=layer).b
