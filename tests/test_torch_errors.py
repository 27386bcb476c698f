"""Errors of gatedrnn.torch: each names its argument, and what came."""

from __future__ import annotations

import pytest

from helpers import normal, run_python

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("one_torch_thread")]
torch = pytest.importorskip("torch")
from torch.nn.utils.rnn import (  # noqa: E402
    pack_sequence,
)

import gatedrnn.torch as gt  # noqa: E402
from gatedrnn.torch import _ops  # noqa: E402
from torch_modules import HIDDEN, INPUT, ours, random  # noqa: E402


def packed():
    return pack_sequence([random(4, INPUT), random(2, INPUT)])


ERRORS = {
    "too few axes": (lambda m: m(random(INPUT)), ValueError, "input: expected (T, B, 5) or (T, 5), got (5,)"),
    "features": (
        lambda m: m(random(4, 3, 6)),
        ValueError,
        "input: expected (T, B, 5) or (T, 5), got (4, 3, 6)",
    ),
    "no axes": (lambda m: m(torch.tensor(1.0)), ValueError, "input: expected (T, B, 5) or (T, 5), got ()"),
    "type of input": (
        lambda m: m(random(4, 3, INPUT).double()),
        TypeError,
        "input: expected torch.float32 like the parameters, got torch.float64",
    ),
    "integers": (
        lambda m: m(torch.ones(4, 3, INPUT, dtype=torch.int64)),
        TypeError,
        "input: expected torch.float32 like the parameters, got torch.int64",
    ),
    "an array": (
        lambda m: m(normal((4, 3, INPUT))),
        TypeError,
        "input: expected a tensor or a PackedSequence, got an array of shape (4, 3, 5) and dtype float32",
    ),
    "another device": (
        lambda m: m.to("meta")(random(4, 3, INPUT)),
        ValueError,
        "weight_ih_l0: expected a tensor on the CPU, got one on meta",
    ),
    "eight bits": (
        lambda m: m.to(torch.float8_e5m2)(random(4, 3, INPUT)),
        TypeError,
        "weight_ih_l0: expected torch.float32, torch.float64, torch.bfloat16 or torch.float16, "
        "got torch.float8_e5m2",
    ),
    "low precision": (
        lambda m: m.half()(random(4, 3, INPUT)),
        TypeError,
        "input: expected torch.float16 like the parameters, got torch.float32",
    ),
    "a parameter of another type": (
        lambda m: setattr(m.bias_hh_l0, "data", m.bias_hh_l0.data.double()) or m(random(4, 3, INPUT)),
        TypeError,
        "bias_hh_l0: expected torch.float32 like the first parameter, got torch.float64",
    ),
    "a parameter of another shape": (
        lambda m: setattr(m, "bias_hh_l0", torch.nn.Parameter(random(3))) or m(random(4, 3, INPUT)),
        ValueError,
        "bias_hh_l0: expected shape (28,), got (3,)",
    ),
    "state": (
        lambda m: m(random(4, 3, INPUT), random(1, 3, HIDDEN)),
        TypeError,
        "hx: expected a pair (h, c) of tensors, got an object of type Tensor",
    ),
    "half a state": (
        lambda m: m(random(4, 3, INPUT), (random(1, 3, HIDDEN), None)),
        TypeError,
        "hx: c: expected a tensor, got None",
    ),
    "the other half": (
        lambda m: m(random(4, 3, INPUT), (None, random(1, 3, HIDDEN))),
        TypeError,
        "hx: expected a pair (h, c) of tensors, got an object of type tuple",
    ),
    "shape of h": (
        lambda m: m(random(4, 3, INPUT), (random(1, 4, HIDDEN), random(1, 3, HIDDEN))),
        ValueError,
        "hx: h: expected (1, 3, 7), got (1, 4, 7)",
    ),
    "unbatched state": (
        lambda m: m(random(4, INPUT), (random(1, 1, HIDDEN), random(1, 1, HIDDEN))),
        ValueError,
        "hx: h: expected (1, 7), got (1, 1, 7)",
    ),
    "type of c": (
        lambda m: m(random(4, 3, INPUT), (random(1, 3, HIDDEN), random(1, 3, HIDDEN).double())),
        TypeError,
        "hx: c: expected torch.float32 like the parameters, got torch.float64",
    ),
    "lengths": (
        lambda m: m(random(4, 3, INPUT), lengths=[1, 5, 2]),
        ValueError,
        "lengths: expected 3 integers in 0 .. 4, got 5 at position 1",
    ),
    "type of lengths": (
        lambda m: m(random(4, 3, INPUT), lengths=torch.tensor([1.0, 2.0, 3.0])),
        TypeError,
        "lengths: expected 3 integers in 0 .. 4, got dtype float32",
    ),
    "unbatched lengths": (
        lambda m: m(random(4, INPUT), lengths=[4]),
        ValueError,
        "lengths: expected None for an unbatched input, got an object of type list",
    ),
    "packed and lengths": (
        lambda m: m(packed(), lengths=[4, 2]),
        ValueError,
        "lengths: expected None with a PackedSequence, which has its own",
    ),
    "packed features": (
        lambda m: m(pack_sequence([random(4, 6)])),
        ValueError,
        "input: expected packed rows (N, 5), got (4, 6)",
    ),
    "packed state": (
        lambda m: m(packed(), (random(1, 3, HIDDEN), random(1, 3, HIDDEN))),
        ValueError,
        "hx: h: expected (1, 2, 7), got (1, 3, 7)",
    ),
    "constructor": (lambda _: gt.GRU(5, 0), ValueError, "hidden_size: expected at least 1, got 0"),
    "projection": (
        lambda _: gt.LSTM(5, 7, proj_size=7),
        ValueError,
        "proj_size: expected less than hidden_size=7, got 7",
    ),
    "dtype": (
        lambda _: gt.RNN(5, 7, dtype=torch.int8),
        ValueError,
        "dtype: expected torch.float32, torch.float64, torch.bfloat16 or torch.float16, got torch.int8",
    ),
    "precision": (
        lambda _: gt.RNN(5, 7, precision="tf32"),
        ValueError,
        "precision: expected 'bfloat16' or 'bfloat16x3' or 'int8' on 'cpu', got 'tf32'",
    ),
    "precision of float64": (
        lambda _: gt.GRU(5, 7, precision="bfloat16", dtype=torch.float64),
        ValueError,
        "precision: expected None for float64, got 'bfloat16'",
    ),
    "precision of what became float64": (
        lambda _: gt.GRU(5, 7, precision="bfloat16").double()(random(4, 3, 5).double()),
        ValueError,
        "precision: expected None for torch.float64, got 'bfloat16'",
    ),
    "training in int8": (
        lambda _: gt.GRU(5, 7, precision="int8")(random(4, 3, 5)),
        ValueError,
        "precision: expected None, 'bfloat16' or 'bfloat16x3' for training, got 'int8', which is for "
        "inference",
    ),
    "size": (
        lambda _: gt.GRU(5, 1 << 40),
        ValueError,
        "input_size, hidden_size, num_layers: expected sizes that fit in memory, got about 2**85 bytes",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    call, kind, message = ERRORS[case]
    with pytest.raises(kind) as raised:
        call(ours("lstm"))
    assert str(raised.value) == message
    assert not _ops._recorded


def test_batch_first_in_errors():
    with pytest.raises(ValueError, match=r"input: expected \(B, T, 5\) or \(T, 5\), got \(4, 3, 6\)"):
        ours("gru", batch_first=True)(random(4, 3, 6))


def test_missing_torch():
    """The package needs no torch; the module says how to get it."""
    code = """
import json, sys
sys.modules["torch"] = None
import gatedrnn
try:
    import gatedrnn.torch
except ImportError as error:
    print(json.dumps(str(error)))
"""
    message = run_python(code)
    assert message.startswith("gatedrnn.torch needs PyTorch (")
    assert message.endswith("): 'pip install torch'")
    assert run_python("import gatedrnn, json, sys; print(json.dumps('torch' in sys.modules))") is False
