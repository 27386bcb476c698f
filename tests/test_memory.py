"""Scratch does not grow with the sequence, nor with the number of calls; results use memory again."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from helpers import build, normal, run_python

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")

MEGABYTE = 2**20
WAITING = 128 * MEGABYTE  # what may wait to be used again, beside the largest piece
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


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("flags", ["mask=keep", "resets=keep", "resets=~keep", "mask=keep, resets=~keep"])
def test_pieces(cell, flags):
    """Many short ones take no more than the rows that they are cut from."""
    code = (
        PEAK
        + """
module = build(sys.argv[1], 64, 64, num_layers=2, bidirectional=True)
x = np.zeros((10_000, 4, 64), np.float32)
x[...] = normal(64)
keep = np.arange(40_000).reshape(10_000, 4) % 7 > 0
module(x[:2], mask=keep[:2])
before = memory("VmHWM")
output, _ = module(x, """
        + flags
        + """)
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


RESULTS = (
    PEAK
    + """
import resource

def faults(work):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

gr.set_num_threads(1)  # another number, another plan, other scratch
module = build("lstm", 64, 64)
"""
)


def test_results_find_the_memory_of_those_that_are_gone():
    """The allocator here keeps none."""
    code = (
        RESULTS
        + """
shapes = [(50, 16, 64), (100, 16, 64)]
inputs = [normal(shape) for shape in shapes]

def work():
    for x in inputs:
        output, state_n, tape = module.forward(x)
        module.backward(tape, x)

counts = [faults(work) for _ in range(5)]
results = sum(2 * x.nbytes for x in inputs) + 2 * sum(p.nbytes for p in module.parameters().values())
print(json.dumps([counts, results // resource.getpagesize()]))
"""
    )
    counts, pages = run_python(code, environment={"MALLOC_MMAP_THRESHOLD_": "16384"})
    assert counts[0] > pages, "the measurement itself is broken"
    assert max(counts[2:]) < pages / 10


def test_results_that_are_held_keep_their_memory():
    """Also by a part of them, and while others come and go."""
    module, x = build("gru", 64, 64), normal((50, 16, 64))
    held = [module(x * scale)[0] for scale in (1, 2, 3)]
    assert not any(np.shares_memory(*pair) for pair in itertools.combinations(held, 2))
    row = held[0][7, 3]
    expected = row.copy(), held[2].copy()
    address = held[1].__array_interface__["data"][0]
    del held[:2]
    others = [module(x * scale)[0] for scale in (4, 5)]
    assert address in [other.__array_interface__["data"][0] for other in others], "no memory was used again"
    assert np.array_equal(row, expected[0])
    assert np.array_equal(held[0], expected[1])


@pytest.mark.parametrize("size", [1, 20, 100])  # megabytes, of one result
def test_little_memory_waits_for_results(size):
    code = (
        RESULTS
        + """
x = np.ones((int(sys.argv[1]) * 2**20 // (16 * 64 * 4), 16, 64), np.float32)
module(x[:2])
before = memory("VmRSS")
held = [module(x)[0] for _ in range(max(2, 200 // int(sys.argv[1])))]
most = memory("VmRSS") - before
del held
print(json.dumps([most, memory("VmRSS") - before]))
"""
    )
    held, kept = run_python(code, size)
    assert held > 190 * MEGABYTE, "the measurement itself is broken"
    assert kept < WAITING + (size + 8) * MEGABYTE


TAPES = (
    RESULTS
    + """
def input_for(megabytes):  # of a tape
    x = np.zeros((megabytes * 2**20 // (16 * 6 * 64 * 4), 16, 64), np.float32)
    x[...] = normal(64)
    return x
"""
)


@pytest.mark.parametrize("size", [15, 40, 150])
def test_little_memory_waits_for_tapes(size):
    """Of however many there were at once, and of whichever modules."""
    code = (
        TAPES
        + """
size = int(sys.argv[1])
count = 1500 // size
modules = [build("lstm", 64, 64) for _ in range(count)]
x = input_for(size)
modules[0].forward(x[:2])
before = memory("VmRSS")
held = [module.forward(x)[2] for module in modules]
most, nbytes = memory("VmRSS") - before, held[0].nbytes
del held
gc.collect()
print(json.dumps([most / count, nbytes, memory("VmRSS") - before]))
"""
    )
    held, tape, kept = run_python(code, size, timeout=300)
    assert held > 0.9 * tape > 0.85 * size * MEGABYTE, "the measurement itself is broken"
    assert kept < WAITING + (size + 32) * MEGABYTE


@pytest.mark.parametrize("size", [150, 300])
@pytest.mark.parametrize("how", ["a function's", "the last one's until the next"])
def test_training_finds_the_memory_of_the_tape_before(size, how):
    """Also where it is larger than all else that waits."""
    code = (
        TAPES
        + """
module = build("lstm", 64, 64)
x = input_for(int(sys.argv[1]))
kept = []

def update():
    output, state_n, tape = module.forward(x)
    gradients = module.backward(tape, output, input_gradient=False)[2]
    module.load_state_dict({name: p - 1e-6 * gradients[name] for name, p in module.state_dict().items()})
    kept[:] = [tape] if len(sys.argv) > 2 else []
    return tape.nbytes

counts = [faults(update) for _ in range(6)]
print(json.dumps([counts, update() // resource.getpagesize()]))
"""
    )
    counts, pages = run_python(code, size, *(["keep"] if "until" in how else []), timeout=300)
    assert counts[0] > pages / 2 or counts[0] > 100, "the measurement itself is broken"
    assert max(counts[3:]) < pages / 20
