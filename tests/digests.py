"""Digests of many results, one per cell, dtype and shape: the same on every machine with FMA."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np

from helpers import CELLS_AND_PROJECTION, DTYPES, build, flat, normal, state_of

# (I, H, B, T, options): tails of every vector width, tiles, several layers, both directions, blocks of time.
SHAPES = [
    (1, 2, 1, 3, {}),
    (7, 9, 15, 4, {"num_layers": 2, "bidirectional": True}),
    (17, 33, 2, 300, {}),
    (129, 31, 7, 5, {"bias": False}),
    (64, 64, 67, 4, {"bidirectional": True}),
    (31, 257, 1, 9, {}),
    (33, 129, 33, 3, {}),
]


def digests():
    """{description: digest of output and final state}."""
    result = {}
    for cell, dtype, (i, h, b, t, options) in itertools.product(CELLS_AND_PROJECTION, DTYPES, SHAPES):
        module = build(cell, i, h, dtype=dtype, **options)
        x, state, lengths = normal((t, b, i), dtype=dtype), state_of(module, b), t - np.arange(b) % (t + 1)
        values = flat(module(x, state, lengths=lengths))
        digest = hashlib.sha256(b"".join(a.tobytes() for a in values)).hexdigest()[:16]
        result[f"{cell} {np.dtype(dtype).name} I={i} H={h} B={b} T={t} {options}"] = digest
    return result
