"""Digests of results: the same on every machine with fused multiply-add, whatever compiled the engine.

`python tests/digests.py` writes them to digests.json, with which every other build is compared
(test_digests.py). It has to be done only where a change is meant to change bits, and the changelog says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import gatedrnn as gr
from helpers import CLASSES, assert_same_bits, flat

TABLE = Path(__file__).with_suffix(".json")
PRECISIONS = ("float32", "float64", "bfloat16x3", "bfloat16", "int8")
PROJECTED = {"lstm_projected": (gr.LSTM, {"proj_size": 19})}
KINDS = CLASSES | PROJECTED

# (I, H, B, T): tails of every vector width, tiles, blocks of terms and of time.
SMALL, MIDDLE, LARGE, BATCH = (1, 22, 1, 3), (19, 37, 11, 6), (130, 261, 3, 4), (33, 70, 67, 2)

# Options of the call, or of the module, and on which classes.
LSTM_ACTIVATIONS = {"activations": ["hard_sigmoid", "softsign", "elu"], "clip": 2.0, "cell_clip": 0.5}
LSTM_MORE = {"activations": ["sigmoid", ("leaky_relu", 0.1), ("scaled_tanh", 1.7, 0.6)]}
OPTIONS: list[tuple[str, tuple[str, ...], dict[str, Any], tuple[str, ...]]] = [
    ("layers", tuple(KINDS), {"num_layers": 2, "bidirectional": True}, ("lengths",)),
    ("reverse", tuple(KINDS), {"direction": "reverse", "bias": False}, ("mask", "resets")),
    ("merged", ("lstm", "gru", "rnn_tanh"), {"bidirectional": True, "merge": "mul"}, ()),
    ("learnt state", ("lstm", "gru"), {"learn_state": True, "batch_first": True}, ("resets",)),
    ("functions", ("lstm", "lstm_peephole", "lstm_projected"), LSTM_ACTIVATIONS, ()),
    ("functions", ("lstm_coupled",), LSTM_MORE, ()),
    (
        "functions",
        ("gru", "gru_reset_before"),
        {"activations": ["hard_sigmoid", "softplus"], "clip": 2.0},
        (),
    ),
    ("functions", ("rnn_tanh",), {"activations": [("affine", 0.5, 0.1)], "clip": 1.0}, ()),
    ("products normalised", ("lstm", "gru"), {"layer_norm": "products"}, ("lengths",)),
    ("gates normalised", ("lstm_peephole", "lstm_projected"), {"layer_norm": "gates"}, ()),
]


def numbers(shape: tuple[int, ...], dtype: Any, seed: int) -> np.ndarray:
    """Numbers in -1 .. 1 of 24 bits, by splitmix64: no generator of NumPy's, whose numbers may change."""
    with np.errstate(over="ignore"):
        z = np.arange(1, 1 + int(np.prod(shape)), dtype=np.uint64) + np.uint64(seed << 32)
        z = z * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return ((z >> np.uint64(40)).astype(dtype) * dtype(2.0**-23) - dtype(1)).reshape(shape)


def digest(arrays: list[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()[:12]


def cases() -> Iterator[tuple[str, Any, np.ndarray, dict[str, Any]]]:
    """(description, module, x, arguments of the call) of each case."""
    for precision in PRECISIONS:
        for kind in KINDS:
            for size in (SMALL, MIDDLE, LARGE, BATCH):
                yield _case("plain", kind, size, precision, {}, ())
        for name, kinds, options, marks in OPTIONS:
            for kind in kinds:
                yield _case(name, kind, MIDDLE, precision, options, marks)


def _case(name, kind, size, precision, options, marks):
    (i, h, b, t), (constructor, own) = size, KINDS[kind]
    dtype = np.float64 if precision == "float64" else np.float32
    less = None if precision.startswith("float") else precision
    module = constructor(i, h, dtype=dtype, precision=less, **own, **options)
    parameters = module.state_dict()
    scale = dtype(1 / 8) if h > 128 else dtype(1 / 4)
    module.load_state_dict(
        {
            key: numbers(value.shape, dtype, seed) * scale
            for seed, (key, value) in enumerate(parameters.items())
        }
    )
    x = 2 * numbers((b, t, i) if module.batch_first else (t, b, i), dtype, 100)
    lead, lengths = x.shape[:2], (np.arange(b) * 5 + 1) % (t + 1)
    every = {
        "lengths": lengths,
        "mask": numbers(lead, np.float32, 101) > -0.5,
        "resets": numbers(lead, np.float32, 102) > 0.5,
    }
    description = f"{precision} {kind} {i}x{h} {name}"
    return description, module, x, {mark: every[mark] for mark in marks}


def digests() -> dict[str, str]:
    """{description: digests of a call and, where there is one, of backward}."""
    return {description: " ".join(_digests(*case)) for description, *case in cases()}


def _digests(module, x, call) -> Iterator[str]:
    result = module(x, **call)
    yield digest(flat(result))
    if module.precision != "int8":
        output, state, tape = module.forward(x, **call)
        assert_same_bits((output, state), result)
        d_output = numbers(output.shape, module.dtype.type, 103)
        d_x, d_state, gradients = module.backward(tape, d_output)
        states = d_state if isinstance(d_state, tuple) else (d_state,)
        yield digest([d_x, *states, *(gradients[key] for key in sorted(gradients))])
    if not call and not module.bidirectional and module.direction == "forward":
        stream = module.stream(x.shape[1])
        assert_same_bits((np.stack([stream.step(x_t) for x_t in x]), stream.state), result)


def main() -> None:
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in digests().items())
    TABLE.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
