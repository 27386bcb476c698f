"""Scratch does not grow with the sequence, nor with the number of calls."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import run_python

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")

MEGABYTE = 2**20
PEAK = """
import gc, json, sys
import numpy as np
import gatedrnn as gr
from helpers import build, normal

def memory(kind):  # VmHWM: the peak of this program, where getrusage would begin at its parent's
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(kind))
"""


@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before", "rnn_tanh"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_long_sequence_needs_its_output_and_little_more(cell, threads):
    code = (
        PEAK
        + """
gr.set_num_threads(int(sys.argv[2]))
module = build(sys.argv[1], 256, 256)
x = np.zeros((100_000, 1, 256), np.float32)
x[...] = normal(256)
module(x[:2])
before = memory("VmHWM")
output, _ = module(x)
print(json.dumps([memory("VmHWM") - before, output.nbytes]))
"""
    )
    growth, output = run_python(code, cell, threads)
    assert growth >= output // 2, "the measurement itself is broken"
    assert growth <= output + 16 * MEGABYTE


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_ragged_both_directions_and_layers(cell):
    """What one layer hands to the next is as large as the output; nothing else may grow."""
    code = (
        PEAK
        + """
module = build(sys.argv[1], 64, 64, num_layers=2, bidirectional=True)
x = np.zeros((10_000, 4, 64), np.float32)
x[...] = normal(64)
module(x[:2])
before = memory("VmHWM")
output, _ = module(x, lengths=[10_000, 1, 5_000, 9_999])
print(json.dumps([memory("VmHWM") - before, output.nbytes]))
"""
    )
    growth, output = run_python(code, cell)
    assert growth <= 3 * output + 16 * MEGABYTE


@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before", "rnn_tanh"])
def test_repeated_calls_do_not_leak(cell):
    code = (
        PEAK
        + """
module = build(sys.argv[1], 64, 64, num_layers=2, bidirectional=True)
single = build(sys.argv[1], 64, 64)
x = normal((50, 16, 64))

def work(n):
    for _ in range(n):
        module(x, lengths=[50] * 16)
        stream = single.stream(16)
        stream.step(x[0])
        stream.state = stream.state
        single.load_state_dict(single.state_dict())
        try:
            module(x[:, :, :5])
        except ValueError:
            pass

work(30)
gc.collect()
before = memory("VmRSS")
work(150)
gc.collect()
print(json.dumps(memory("VmRSS") - before))
"""
    )
    assert run_python(code, cell) <= 2 * MEGABYTE
