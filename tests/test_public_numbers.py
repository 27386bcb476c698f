"""Numbers that others published for their operators: here ONNX Runtime's tests of LSTM and GRU.

Source of the figures: deep_cpu_lstm_op_test.cc and deep_cpu_gru_op_test.cc in its
onnxruntime/test/providers/cpu/rnn.
"""

from __future__ import annotations

import numpy as np
import pytest

import gatedrnn as gr

# They were printed with about seven digits.
TOLERANCE = 2e-6

# ONNX' order of gates: i, o, f, c for the LSTM, z, r, h for the GRU.
LSTM_W = [
    [-0.494659, 0.0453352], [-0.487793, 0.417264], [-0.0175329, 0.489074], [-0.446013, 0.414029],
    [-0.0091708, -0.255364], [-0.106952, -0.266717], [-0.0888852, -0.428709], [-0.283349, 0.208792],
]  # fmt: skip
LSTM_R = [
    [0.146626, -0.0620289], [-0.0815302, 0.100482], [-0.219535, -0.306635], [-0.28515, -0.314112],
    [-0.228172, 0.405972], [0.31576, 0.281487], [-0.394864, 0.42111], [-0.386624, -0.390225],
]  # fmt: skip
LSTM_B = [0.381619, 0.0323954, -0.14449, 0.420804, -0.258721, 0.45056, -0.250755, 0.0967895]
LSTM_P = {"i": [0.2345, 0.5235], "o": [0.4378, 0.3475], "f": [0.8927, 0.3456]}
GRU_ROWS = [0, 1, 4, 5, 6, 7]  # the same figures, without the LSTM's o
X = [[-0.455351, -0.276391], [-0.185934, -0.269585]]
SWAPPED = ("tanh", "sigmoid", "tanh")


def in_our_order(rows, theirs, ours):
    blocks = dict(zip(theirs, np.split(np.asarray(rows, np.float32), len(theirs)), strict=True))
    return np.concatenate([blocks[gate] for gate in ours])


def lstm(peephole=True, coupled=False, **options):
    ours = "igo" if coupled else "ifgo"
    module = gr.LSTM(2, 2, peephole=peephole, coupled=coupled, **options)
    values = {
        "weight_ih_l0": in_our_order(LSTM_W, "iofg", ours),
        "weight_hh_l0": in_our_order(LSTM_R, "iofg", ours),
        "bias_ih_l0": in_our_order(LSTM_B, "iofg", ours),
        "bias_hh_l0": np.zeros(2 * len(ours), np.float32),
        **{f"weight_c{g}_l0": np.float32(p) for g, p in LSTM_P.items() if peephole and g in ours},
    }
    module.load_state_dict(values)
    return module


# Options, the output and c at the end; x is X.
LSTM_CASES = [
    ({}, [[-0.0251062, 0.0561262], [-0.0327752, 0.0593536]], [-0.0780206, 0.098829]),
    ({"coupled": True}, [[-0.0251063, 0.0561262], [-0.0314321, 0.0508737]], [-0.0747490, 0.0848012]),
    ({"clip": 0.1}, [[-0.0228085, 0.0274438], [-0.0351620, 0.0387568]], [-0.0741576, 0.0739600]),
    (
        {"activations": SWAPPED, "peephole": False},
        [[-0.0660155, 0.0351227], [-0.0423689, 0.0177365]],
        [0.1624992, 0.0467248],
    ),
]


@pytest.mark.parametrize(("options", "y", "c"), LSTM_CASES, ids=str)
def test_lstm(options, y, c):
    output, (h_n, c_n) = lstm(**options)(np.float32(X))
    np.testing.assert_allclose(output, y, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(h_n[0], y[1], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(c_n[0], c, atol=TOLERANCE, rtol=0)


def test_lstm_batch_with_other_functions():
    x = [
        [[-0.455351, -0.476391], [-0.555351, -0.376391], [-0.655351, -0.276391]],
        [[-0.185934, -0.869585], [-0.285934, -0.769585], [-0.385934, -0.669585]],
    ]
    y = [
        [[-0.090715, 0.011908], [-0.083193, 0.037192], [-0.073643, 0.068889]],
        [[-0.10545, -0.01573], [-0.10621, -0.0056667], [-0.10559, 0.015734]],
    ]
    output, (_, c_n) = lstm(activations=SWAPPED, peephole=False)(np.float32(x))
    np.testing.assert_allclose(output, y, atol=1e-5, rtol=0)  # five digits
    c = [[0.21381, -0.096022], [0.23038, -0.0239], [0.24572, 0.051626]]
    np.testing.assert_allclose(c_n[0], c, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("clip", "first", "last"),
    [
        (None, [0.90387899, 0.9135572, 0.91772245], [0.96105254, 0.96391004, 0.96402279]),
        (4.0, [0.88572926, 0.89251395, 0.89655037], [0.94103248, 0.94266769, 0.94266769]),
    ],
)
def test_lstm_of_large_inputs(clip, first, last):
    """Two steps of 32 rows, x from 1 to 64: without the clip nearly all gates are saturated."""
    module = gr.LSTM(1, 3, bias=False, clip=clip)
    w = np.float32([[0.1], [0.2], [0.3], [0.4], [1], [2], [3], [4], [10], [11], [12], [13]])
    recurrent = np.full((12, 3), 0.1, np.float32)
    module.load_state_dict({"weight_ih_l0": in_our_order(w, "iofg", "ifgo"), "weight_hh_l0": recurrent})
    _, (h_n, _) = module(np.arange(1, 65, dtype=np.float32).reshape(2, 32, 1))
    np.testing.assert_allclose(h_n[0, [0, 31]], [first, last], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("options", "y"),
    [
        ({"reset_after": False}, [[-0.03255286, 0.0774838], [-0.05556786, 0.0785508]]),
        ({"reset_after": True}, [[-0.0325528607, 0.0774837881], [-0.0577347837, 0.0796165839]]),
        (
            {"reset_after": False, "activations": ("tanh", "sigmoid")},
            [[0.222789, 0.4669829], [0.3810334, 0.4944591]],
        ),
    ],
    ids=str,
)
def test_gru(options, y):
    module = gr.GRU(2, 2, **options)

    def rows(figures):
        return in_our_order([figures[row] for row in GRU_ROWS], "zrn", "rzn")

    values = {"weight_ih_l0": rows(LSTM_W), "weight_hh_l0": rows(LSTM_R), "bias_ih_l0": rows(LSTM_B)}
    module.load_state_dict({**values, "bias_hh_l0": np.zeros(6, np.float32)})
    np.testing.assert_allclose(module(np.float32(X))[0], y, atol=TOLERANCE, rtol=0)
