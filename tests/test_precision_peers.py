"""Errors of each precision beside those of PyTorch and ONNX Runtime, against float64."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import torch

from gatedrnn.bench.peers import OnnxRuntime, Ours
from gatedrnn.bench.shapes import Problem, Shape, problem

pytestmark = pytest.mark.peers

SIZES = (32, 64, 128, 256, 512)


def error(output: np.ndarray, p: Problem) -> float:
    """The root mean square error."""
    exact = Ours.module(p.in_float64())(p.x.astype(np.float64))[0]
    return float(np.sqrt(np.square(output - exact).mean()))


def ours(p: Problem) -> float:
    return error(Ours.module(p)(p.x)[0], p)


def torchs(p: Problem) -> float:
    module = getattr(torch.nn, p.shape.cell)(p.shape.I, p.shape.H)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in p.weights.items()})
    x = torch.from_numpy(p.x)
    if p.precision == "bfloat16":
        module, x = module.bfloat16(), x.bfloat16()
    if p.precision == "int8":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated, and there is nothing else in PyTorch
            quantize = torch.ao.quantization.quantize_dynamic
            module = quantize(torch.nn.Sequential(module), {type(module)}, dtype=torch.qint8)[0]
    with torch.no_grad():
        return error(module(x)[0].float().numpy(), p)


def onnx_runtimes(p: Problem) -> float:
    contender = OnnxRuntime(1).contenders(p)[0]
    with contender.session():
        return error(contender.arrays(contender.run())[0], p)


@pytest.mark.parametrize(
    ("precision", "cell", "peer", "allowed"),
    [
        ("bfloat16", "LSTM", torchs, 1.1),
        ("bfloat16", "GRU", torchs, 1.1),
        ("int8", "LSTM", torchs, 0.5),
        ("int8", "GRU", torchs, 0.5),
        ("int8", "LSTM", onnx_runtimes, 0.5),
    ],
)
def test_errors(precision, cell, peer, allowed):
    """What docs/precision.md promises of errors."""
    ratios = {}
    for size in SIZES:
        p = problem(Shape(cell, size, size, 16, 25), np.float32, precision=precision)
        ratios[size] = ours(p) / peer(p)
    print(f"{precision} {cell}, rms error in parts of {peer.__name__}: {ratios}")
    assert max(ratios.values()) <= allowed


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_bfloat16x3_is_good_for_four_digits(cell):
    """Two pieces hold 16 of float32's 24 bits, so errors are larger than its, in the fifth digit."""
    for size in SIZES:
        p = problem(Shape(cell, size, size, 16, 25), np.float32, precision="bfloat16x3")
        exact = Ours.module(p.in_float64())(p.x.astype(np.float64))[0]
        off = Ours.module(p)(p.x)[0] - exact
        rms = np.sqrt(np.square(off).mean())
        print(f"{cell} H={size}: rms error {rms:.1e}, largest {np.abs(off).max():.1e}")
        assert np.abs(off).max() <= 2e-5


@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16x3", "int8"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_long_sequences_do_not_drift(precision, cell):
    """After ten thousand steps errors are what they were after a thousand."""
    p = problem(Shape(cell, 32, 64, 2, 10_000), np.float32, precision=precision)
    exact = Ours.module(replace(p, precision=None).in_float64())(p.x.astype(np.float64))[0]
    errors = np.sqrt(np.square(Ours.module(p)(p.x)[0] - exact).reshape(10, -1).mean(axis=1))
    print(f"{precision} {cell}, rms errors of thousands of steps: {errors}")
    assert errors[1:].max() <= 1.2 * errors[0]
