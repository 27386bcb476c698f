"""How far a result may be from the truth: from eps and the number of roundings, grown with the steps.

One pre-activation is a chain of n = 2 + I + H fused multiply-adds. Each rounds by at most eps / 2 of a
partial sum of order `scale`, in either direction, so the sum of n such errors is of order sqrt(n) * eps / 2
(a random walk); twice that is allowed for the largest of many elements. The activations and the pointwise
arithmetic of the cell add roundings, counted below. A state's error goes into the next step with a factor of
about one (the weights of tests are of order 1 / sqrt(H)), so the errors of T steps and of L layers add up.
"""

from __future__ import annotations

import numpy as np

# The documented bound of sigmoid and tanh, in units in the last place, where the result is a normal number.
ACTIVATION_ULP = 4

# (activations, other roundings) on the way from the pre-activations to the new state.
POINTWISE = {
    "lstm": (5, 4),
    "lstm_peephole": (5, 7),
    "lstm_coupled": (5, 4),
    "lstm_coupled_peephole": (5, 6),
    "gru": (3, 4),
    "gru_reset_before": (3, 4),
    "rnn_tanh": (1, 0),
    "rnn_relu": (0, 0),
}


def wide(dtype):
    """The type in which the reference runs for results of `dtype`."""
    return np.float64 if dtype == np.float32 else np.longdouble


def tolerance(dtype, cell, accumulations, steps, layers=1, scale=1.0):
    """The largest absolute error allowed after `steps` steps of `layers` layers at values of size `scale`."""
    activations, arithmetic = POINTWISE[cell]
    per_step = np.sqrt(accumulations) + activations * ACTIVATION_ULP + arithmetic
    return float(np.finfo(dtype).eps * scale * per_step * max(steps, 1) * layers)


def assert_close(actual, expected, *, cell, accumulations, steps, layers=1):
    """Both are an array, or tuples or lists of arrays. NaN on either side fails, as does another shape."""
    if isinstance(expected, (tuple, list)):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e, cell=cell, accumulations=accumulations, steps=steps, layers=layers)
        return
    assert actual.shape == expected.shape
    if not expected.size:
        return
    error = np.abs(actual - expected).max()
    scale = max(1.0, float(np.abs(expected).max()))
    allowed = tolerance(actual.dtype, cell, accumulations, steps, layers, scale)
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"  # false for NaN
