"""sigmoid and tanh of the instruction set in use, over every exponent, in units in the last place."""

from __future__ import annotations

import numpy as np
import pytest

from gatedrnn import _core
from helpers import DTYPES, FMA_ISAS, assert_same_bits, run_python
from reference import sigmoid
from tolerance import SIGMOID_ULP, TANH_ULP, wide

FUNCTIONS = {"sigmoid": (_core.sigmoid, sigmoid), "tanh": (_core.tanh, np.tanh)}
BOUNDS = {"sigmoid": SIGMOID_ULP, "tanh": TANH_ULP}
functions = pytest.mark.parametrize("name", FUNCTIONS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def sweep(dtype, per_exponent=4000):
    """Both signs, every exponent (denormals and infinity too), random mantissas, the smallest and largest.

    Where the functions bend, from 2^-13 to 2^8, there are eight times as many.
    """
    info = np.finfo(dtype)
    unsigned = np.dtype(f"u{info.dtype.itemsize}")
    rng = np.random.default_rng(0)
    exponents = np.arange(2 ** (info.iexp), dtype=unsigned)
    bias = 2 ** (info.iexp - 1) - 1
    exponents = np.concatenate([exponents, np.repeat(np.arange(bias - 13, bias + 9, dtype=unsigned), 7)])
    mantissas = rng.integers(0, 2**info.nmant, (len(exponents), per_exponent), unsigned)
    mantissas[:, :2] = 0, 2**info.nmant - 1
    bits = ((exponents[:, None] << unsigned.type(info.nmant)) | mantissas).ravel()
    values = bits.view(dtype)
    values = values[~np.isnan(values)]
    return np.concatenate([values, -values])


def errors_in_ulp(actual, expected):
    """|actual - expected| in units in the last place of the true value; `expected` is in a wider type.

    Results below the smallest normal number are flushed to zero, so there the unit is that number.
    """
    info = np.finfo(actual.dtype)
    size = np.abs(expected).astype(actual.dtype)
    unit = np.where(size < info.smallest_normal, info.smallest_normal, np.spacing(size))
    return np.abs(actual - expected) / unit


@functions
@dtypes
def test_every_exponent(name, dtype):
    engine, true = FUNCTIONS[name]
    x = sweep(dtype, per_exponent=4000 if dtype == np.float32 else 200)
    with np.errstate(under="ignore"):
        errors = errors_in_ulp(engine(x), true(x.astype(wide(dtype))))
    worst = int(errors.argmax())
    print(f"{name} {np.dtype(dtype).name}: {errors[worst]:.3f} ulp at {x[worst]!r}")
    assert errors.max() <= BOUNDS[name]  # false for NaN


@functions
@dtypes
def test_dense_where_it_bends(name, dtype):
    engine, true = FUNCTIONS[name]
    x = np.linspace(-20, 20, 500_001).astype(dtype)
    errors = errors_in_ulp(engine(x), true(x.astype(wide(dtype))))
    assert errors.max() <= BOUNDS[name]


@dtypes
def test_special_values(dtype):
    x = np.array([-np.inf, -0.0, 0.0, np.inf, np.nan], dtype)
    assert_same_bits(_core.sigmoid(x)[:4], np.array([0, 0.5, 0.5, 1], dtype))
    assert_same_bits(_core.tanh(x)[:4], np.array([-1, -0.0, 0.0, 1], dtype))
    assert np.isnan(_core.sigmoid(x)[4])
    assert np.isnan(_core.tanh(x)[4])


@dtypes
def test_tanh_never_falls(dtype):
    """From argument to next argument, and where the sequence takes its next power of two."""
    x = np.sort(np.abs(sweep(dtype, per_exponent=2000)))
    seams = (0.203 if dtype == np.float32 else 0.240139) + np.log(2) * (np.arange(27) + 0.5)
    near = seams[:, None] * (1 + np.finfo(dtype).eps * np.arange(-500, 501))
    x = np.sort(np.concatenate([x, near.astype(dtype).ravel()]))
    assert (np.diff(_core.tanh(x)) >= 0).all()


@functions
@dtypes
def test_every_lane_and_tail(name, dtype):
    """An element's result is the same in any vector lane and in the tail of any length."""
    engine, _ = FUNCTIONS[name]
    x = np.random.default_rng(0).standard_normal(70).astype(dtype) * 3
    alone = np.concatenate([engine(x[k : k + 1]) for k in range(70)])
    for length in range(71):
        assert_same_bits(engine(x[:length]), alone[:length])


@functions
@dtypes
def test_range_and_symmetry(name, dtype):
    engine, _ = FUNCTIONS[name]
    x = sweep(dtype, per_exponent=50)
    y = engine(x)
    assert (np.abs(y) <= 1).all()
    if name == "tanh":
        assert_same_bits(engine(-x), -y)
    else:
        assert (y >= 0).all()


def test_kernels_agree():
    """Every instruction set with FMA has the same bits; on a machine without any, a second run has them."""
    code = """
import json, sys
import numpy as np
from gatedrnn import _core
from test_activations import sweep
print(json.dumps([_core.fingerprint([f(sweep(t, 100))]) for f in (_core.sigmoid, _core.tanh) for t in "fd"]))
"""
    results = [run_python(code, isa=isa) for isa in FMA_ISAS or ["baseline"] * 2]
    assert results
    assert all(r == results[0] for r in results)
