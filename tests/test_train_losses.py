"""gatedrnn.train's losses: small cases, derivatives by central differences, masks, extremes, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gatedrnn import train
from helpers import DTYPES, assert_same_bits, normal
from test_errors import refused

T, B, C = 4, 3, 5
EPS = np.finfo(np.float64).eps
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, C, (T, B))
PROBABILITIES = RNG.uniform(0, 1, (T, B, C))
TARGETS = normal((T, B, C), seed=3, dtype=np.float64)
MASK = train.mask_of([2, 0, 4], T)

# Each loss with targets for an input of (T, B, C).
LOSSES = {
    "softmax": (train.softmax_cross_entropy, LABELS),
    "mse": (train.mse, TARGETS),
    "binary": (train.binary_cross_entropy, PROBABILITIES),
}
losses = pytest.mark.parametrize("kind", LOSSES)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
masks = pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])


def inputs(dtype=np.float64, scale=1.0):
    return (scale * normal((T, B, C), dtype=np.float64)).astype(dtype)


def run(kind, x, targets=None, mask=None):
    function, default = LOSSES[kind]
    return function(x, default if targets is None else targets, mask)


def central_differences(function, x):
    """The derivative of a function of x, within eps^(2/3) where it and its third derivative are about 1.

    With a step of h = eps^(1/3) the formula is off by h^2 / 6 of the third derivative, and by eps / (2 h) for
    the rounding of the two values, eps / 2 each of the function's size.
    """
    h = EPS ** (1 / 3)
    derivative = np.empty_like(x)
    for position in np.ndindex(x.shape):
        above, below = x.copy(), x.copy()
        above[position] += h
        below[position] -= h
        derivative[position] = (function(above) - function(below)) / (above[position] - below[position])
    return derivative


# ---- what they compute ----


def test_softmax_small_case():
    """Logits 0 and log 3 are probabilities 1/4 and 3/4."""
    logits = np.array([[0.0, math.log(3)], [0.0, math.log(3)]])
    loss, d = train.softmax_cross_entropy(logits, [0, 1])
    assert abs(loss - (math.log(4) + math.log(4 / 3)) / 2) <= 4 * EPS
    np.testing.assert_allclose(d, [[-3 / 8, 3 / 8], [1 / 8, -1 / 8]], rtol=0, atol=2 * EPS)


def test_mse_small_case():
    loss, d = train.mse(np.array([[1.0, 2.0], [3.0, 4.0]]), [[1, 0], [0, 0]])
    assert loss == (4 + 9 + 16) / 4
    np.testing.assert_array_equal(d, [[0, 1], [1.5, 2]])


def test_binary_small_case():
    """A logit of log 3 is a probability of 3/4."""
    loss, d = train.binary_cross_entropy(np.array([math.log(3), -math.log(3), 0.0]), [True, True, False])
    assert abs(loss - (math.log(4 / 3) + math.log(4) + math.log(2)) / 3) <= 4 * EPS
    np.testing.assert_allclose(d, [-1 / 12, -1 / 4, 1 / 6], rtol=0, atol=2 * EPS)


@losses
@masks
def test_derivative(kind, mask):
    x = inputs()
    loss, d = run(kind, x, mask=mask)
    expected = central_differences(lambda x: run(kind, x, mask=mask)[0], x)
    assert np.abs(d - expected).max() <= max(1, loss) * EPS ** (2 / 3)


@losses
@masks
@dtypes
def test_types(kind, mask, dtype):
    x = inputs(dtype)
    before = x.copy()
    loss, d = run(kind, x, mask=mask)
    assert type(loss) is float
    assert d.dtype == dtype
    assert d.shape == x.shape
    assert_same_bits(x, before)
    assert not np.shares_memory(d, x)


@losses
def test_float32_has_float32s_accuracy(kind):
    """Against float64 on the same numbers: C + 4 roundings make an element, and the mean adds none."""
    x = inputs(np.float32, 3)
    _, targets = LOSSES[kind]
    if kind != "softmax":
        targets = targets.astype(np.float32)
    loss, d = run(kind, x, targets)
    expected, d_expected = run(kind, x.astype(np.float64), targets)
    allowed = (C + 4) * np.finfo(np.float32).eps
    assert abs(loss - expected) <= allowed * np.abs(x).max()
    assert np.abs(d - d_expected).max() <= allowed * np.abs(d_expected).max()


@losses
def test_loss_of_many_is_accumulated_in_float64(kind):
    """A million equal numbers: the mean is that of one, within float64's rounding."""
    function, _ = LOSSES[kind]
    one = np.array([[0.3, -0.4]], np.float32)
    many = np.repeat(one, 500_000, axis=0)
    targets = (lambda n: np.zeros(n, int)) if kind == "softmax" else (lambda n: np.full((n, 2), 0.1))
    expected = function(one, targets(1))[0]
    # Pairwise sums of 2^20 numbers: 20 additions deep, the innermost 128 of which are in 8 chains of 16.
    assert abs(function(many, targets(len(many)))[0] - expected) <= (20 + 16) * EPS * expected


def test_losses_of_a_single_position():
    loss, d = train.softmax_cross_entropy(np.array([0.0, 0.0]), 1)
    assert abs(loss - math.log(2)) <= EPS
    np.testing.assert_array_equal(d, [0.5, -0.5])
    loss, d = train.mse(np.array(3.0), 1)
    assert (loss, d.shape, float(d)) == (4, (), 4)
    loss, d = train.binary_cross_entropy(np.array(0.0), True)
    assert (d.shape, float(d)) == ((), -0.5)


@losses
def test_any_strides(kind):
    x = inputs()
    twice = np.repeat(x, 2, axis=2)[:, :, ::2]
    loss, d = run(kind, x)
    loss_strided, d_strided = run(kind, twice)
    assert loss == loss_strided
    assert_same_bits(d, d_strided)


# ---- masks ----


@losses
def test_masked_is_as_if_it_were_not_there(kind):
    x = inputs()
    function, targets = LOSSES[kind]
    loss, d = function(x, targets, MASK)
    alone, d_alone = function(x[MASK], targets[MASK])
    assert loss == alone
    assert_same_bits(d[MASK], d_alone)
    assert (d[~MASK] == 0).all()


@losses
def test_what_is_masked_is_not_looked_at(kind):
    x = inputs()
    function, targets = LOSSES[kind]
    loss, d = function(x, targets, MASK)
    spoiled, wrong = x.copy(), targets.copy()
    spoiled[~MASK] = np.nan
    wrong[~MASK] = -100
    loss_spoiled, d_spoiled = function(spoiled, wrong, MASK)
    assert loss == loss_spoiled
    assert_same_bits(d, d_spoiled)


@pytest.mark.parametrize("kind", ["mse", "binary"])
def test_mask_of_single_elements(kind):
    x = inputs()
    full = np.repeat(MASK[:, :, None], C, axis=2)
    loss, d = run(kind, x, mask=MASK)
    loss_full, d_full = run(kind, x, mask=full)
    assert loss == loss_full
    assert_same_bits(d, d_full)


def test_mask_of():
    expected = [[1, 0, 1], [1, 0, 1], [0, 0, 1]]
    np.testing.assert_array_equal(train.mask_of([2, 0, 3], 3), np.array(expected, bool))
    assert train.mask_of(np.array([2, 0, 3], np.uint8), 3).dtype == bool
    assert train.mask_of([0], 0).shape == (0, 1)


# ---- extremes ----


@dtypes
def test_large_logits_are_exact(dtype):
    big = np.array([[1e4, -1e4], [-1e4, 1e4]], dtype)
    loss, d = train.softmax_cross_entropy(big, [0, 0])
    assert loss == 1e4
    np.testing.assert_array_equal(d, [[0, 0], [-0.5, 0.5]])
    loss, d = train.binary_cross_entropy(big[0], [1.0, 1.0])
    assert loss == 0.5e4
    np.testing.assert_array_equal(d, [0, -0.5])
    loss, d = train.binary_cross_entropy(big[0], [0.0, 0.0])
    assert loss == 0.5e4
    np.testing.assert_array_equal(d, [0.5, 0])


def test_small_probabilities_keep_their_digits():
    """-log(1 - s(-40)) is s(-40), about 4e-18, which 1 - s(-40) would have lost."""
    loss, d = train.binary_cross_entropy(np.array([-40.0]), [0.0])
    assert abs(loss - math.exp(-40)) <= 4 * EPS * math.exp(-40)
    assert abs(d[0] - math.exp(-40)) <= 4 * EPS * math.exp(-40)


def test_impossible_classes():
    """A logit of -inf excludes a class."""
    loss, d = train.softmax_cross_entropy(np.array([[0.0, -np.inf, 0.0]]), [0])
    assert abs(loss - math.log(2)) <= EPS
    np.testing.assert_array_equal(d, [[-0.5, 0, 0.5]])


@losses
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_diverged_is_not_hidden(kind, value):
    """And is no warning either, which the tests' configuration would turn into an error."""
    x = inputs()
    x[1, 2, 3] = value
    loss, d = run(kind, x, PROBABILITIES if kind == "binary" else None)
    assert not math.isfinite(loss)
    assert not math.isnan(value) or np.isnan(d).any()


# ---- bad input ----

X = inputs()


@losses
@pytest.mark.parametrize(
    ("x", "error"),
    [
        (X.astype(int), TypeError),
        (X.astype(np.float16), TypeError),
        (X.astype(">f8"), TypeError),
        (X.tolist(), TypeError),
        (None, TypeError),
        (np.zeros((T, B, 0)), ValueError),
        (np.zeros((0, B, C)), ValueError),
    ],
)
def test_input_refused(kind, x, error):
    function, targets = LOSSES[kind]
    empty = np.zeros(getattr(x, "shape", ())[: targets.ndim], targets.dtype)
    with refused("prediction" if kind == "mse" else "logits", error):
        function(x, empty if error is ValueError else targets)


@pytest.mark.parametrize(
    ("kind", "targets", "error"),
    [
        ("softmax", LABELS.astype(float), TypeError),
        ("softmax", LABELS > 0, TypeError),
        ("softmax", LABELS[0], ValueError),
        ("softmax", LABELS[..., None], ValueError),
        ("softmax", np.full((T, B), C), ValueError),
        ("softmax", np.full((T, B), -1), ValueError),
        ("softmax", None, TypeError),
        ("mse", TARGETS[0], ValueError),
        ("mse", TARGETS[..., :1], ValueError),
        ("mse", TARGETS.astype(complex), TypeError),
        ("mse", "text", TypeError),
        ("mse", None, TypeError),
        ("binary", PROBABILITIES[0], ValueError),
        ("binary", PROBABILITIES + 1, ValueError),
        ("binary", -PROBABILITIES, ValueError),
        ("binary", PROBABILITIES * np.nan, ValueError),
        ("binary", PROBABILITIES.astype(object), TypeError),
    ],
)
def test_targets_refused(kind, targets, error):
    with refused("target" if kind == "mse" else "targets", error):
        LOSSES[kind][0](X, targets)


@losses
@pytest.mark.parametrize(
    ("mask", "error"),
    [
        (MASK.astype(int), TypeError),
        (MASK.T, ValueError),
        (np.zeros((T, B), bool), ValueError),
        (np.ones((T, B, C, 1), bool), ValueError),
        ("text", TypeError),
    ],
)
def test_mask_refused(kind, mask, error):
    with refused("mask", error):
        run(kind, X, mask=mask)


def test_softmax_has_no_mask_of_single_classes():
    with refused("mask", ValueError):
        run("softmax", X, mask=np.ones((T, B, C), bool))
    with refused("mask", ValueError):
        run("softmax", X, mask=np.ones(T, bool))


@pytest.mark.parametrize(
    ("lengths", "steps", "name", "error"),
    [
        ([1, 5], 4, "lengths", ValueError),
        ([-1], 4, "lengths", ValueError),
        ([1.0], 4, "lengths", TypeError),
        ([[1]], 4, "lengths", ValueError),
        (3, 4, "lengths", ValueError),
        ([True], 4, "lengths", TypeError),
        ([1], -1, "steps", ValueError),
        ([1], 4.0, "steps", TypeError),
    ],
)
def test_mask_of_refuses(lengths, steps, name, error):
    with refused(name, error):
        train.mask_of(lengths, steps)
