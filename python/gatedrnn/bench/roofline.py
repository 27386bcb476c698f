"""The roofline: what this machine allows, measured on the spot, and the least time a shape can take on it.

Measured, with as many threads at once as the benchmark uses: the rate of the format's multiply-adds, and the
speed of reading a buffer again and again, for sizes from half of the first cache to several times the last.

The model, for one layer of G gates, S row-steps (B * T, or the sum of the lengths) and N threads:

- input products:      max(2 G H I S / peak,  bytes of W_ih / bandwidth)
- recurrent products:  max(2 G H H S / peak,  T * bytes of W_hh / bandwidth)

and the limit is their sum. The input products of many steps can be taken together, so their weights need to
be read once; the recurrent weights must be read at every step, since the next step waits for this one. With
one row and one step this is the time to read both matrices; with many rows it is the plain compute bound.
Threads split the hidden units, so each reads 1 / N of the bytes, and the bandwidth is that of the cache that
holds this share:

- up to the second cache's size, the measured curve, interpolated;
- beyond it, whatever is better: the curve, or an ideal walk (up at even steps, down at odd ones) that finds
  a full second cache of weights still there, then a full third one, and reads only the rest from further
  away.

Training has each product three times: forward, for the gradient of the left side (the inputs', all steps
together; the state's, step by step with the recurrent weights read again), and for that of the weights.

A lower precision reads the bytes that its weights take, and its multiply-adds count once, whatever they are
made of.

Activations, reading x, writing the output, the tape and barriers are free in this model. It is a limit, not a
forecast.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from gatedrnn import _core
from gatedrnn.bench.placement import placement
from gatedrnn.bench.shapes import Shape

_MILLISECONDS = 10.0
_TRIES = 3  # noise only ever slows down: the best counts
_LARGEST_BUFFER = 128 << 20
_ITEMSIZE = {"float32": 4, "float64": 8, "bfloat16": 2, "bfloat16x3": 4, "int8": 1}  # of a weight


@dataclass(frozen=True)
class Level:
    """A level of the memory hierarchy as one thread sees it: bytes, and bytes per second."""

    name: str
    capacity: float
    bandwidth: float


@dataclass(frozen=True)
class Roofline:
    """One thread's share of the machine while `threads` threads are busy.

    `flops` is per second, in numbers of this `kind`. `curve` holds (bytes, bytes per
    second), rising in bytes. `levels` go from near to far; the last one is memory.
    """

    kind: str
    threads: int
    flops: float
    curve: tuple[tuple[int, float], ...]
    levels: tuple[Level, ...]

    def bandwidth(self, size: float) -> float:
        """Bytes per second of reading `size` bytes again and again, interpolated on logarithmic axes."""
        sizes, speeds = np.log(np.array(self.curve)).T
        return float(np.exp(np.interp(np.log(max(size, 1.0)), sizes, speeds)))

    def read_seconds(self, size: float, working_set: float) -> float:
        """The least time to read `size` bytes out of a working set that is read again and again."""
        if not size:
            return 0.0
        resident = 0.0
        left = working_set
        for level in self.levels[1:]:
            part = min(left, level.capacity)
            resident += part / level.bandwidth
            left -= part
        return min(working_set / self.bandwidth(working_set), resident) * size / working_set

    def limit_seconds(self, shape: Shape) -> float:
        """The least time for the shape; see the module's docstring."""
        rows, itemsize = shape.gates * shape.H, _ITEMSIZE[self.kind]
        input_bytes = rows * shape.I * itemsize / self.threads
        hidden_bytes = rows * shape.H * itemsize / self.threads
        both = input_bytes + hidden_bytes
        lengths = shape.lengths()
        steps = shape.T if lengths is None else int(lengths.max())
        compute = shape.flops() / (self.flops * self.threads)
        input_compute = compute * shape.I / (shape.I + shape.H)
        # A single step walks through both matrices; a sequence stays with the recurrent one.
        hidden_read = self.read_seconds(hidden_bytes, both if steps == 1 else hidden_bytes)
        inputs = max(input_compute, self.read_seconds(input_bytes, both))
        recurrence = max(compute - input_compute, steps * hidden_read)
        if not shape.train:
            return inputs + recurrence
        return 2 * (inputs + recurrence) + compute

    def as_dict(self) -> dict[str, Any]:
        """For JSON; None for the bytes of memory."""
        return {
            "threads": self.threads,
            "flops_per_thread": self.flops,
            "read_bandwidth_per_thread": [list(point) for point in self.curve],
            "levels": {
                level.name: {
                    "bytes": level.capacity if math.isfinite(level.capacity) else None,
                    "bandwidth": level.bandwidth,
                }
                for level in self.levels
            },
        }

    def __str__(self) -> str:
        levels = ", ".join(f"{level.name} {level.bandwidth / 1e9:.0f}" for level in self.levels)
        each = " per thread" if self.threads > 1 else ""
        return f"{self.kind} {self.flops / 1e9:.0f} GFLOP/s{each}; reading, GB/s{each}: {levels}"


def measure(kind: str, threads: int) -> Roofline:
    """Measure the machine; takes a second or two."""
    machine = _core.machine()
    near = int(machine["l1"]) or 32 << 10
    middle = int(machine["l2"]) or 8 * near
    far = max(int(machine["l3"]), 4 * middle)
    sizes = {near // 2, near, middle // 2, middle * 3 // 4, middle, middle * 3 // 2, 3 * middle}
    size = 2 * near
    while size <= min(2 * far, _LARGEST_BUFFER):
        sizes |= {size, size * 3 // 2}
        size *= 2
    flops = _best(lambda: _core.measure_multiply(kind, _MILLISECONDS), threads)

    def read(size: int) -> float:
        return _best(lambda: _core.measure_bandwidth(size, _MILLISECONDS), threads)

    curve = [(size, read(size)) for size in sorted(sizes)]
    speeds = dict(curve)
    # Half a cache, or a few times the one before, is surely served by it. The last one is shared, also with
    # other virtual machines, so the curve tells how much of it is ours; the system may not know.
    last, memory = speeds[3 * middle], min(speed for _, speed in curve)
    capacity = max(size for size, speed in curve if speed >= (last * memory) ** 0.5)
    levels = (
        Level("L1", near, speeds[near // 2]),
        Level("L2", middle, speeds[middle // 2]),
        Level("L3", capacity, last),
        Level("memory", float("inf"), memory),
    )
    return Roofline(kind, threads, flops, tuple(curve), levels)


def _best(probe: Callable[[], float], threads: int) -> float:
    """The best average per thread of several tries with all threads at it together."""
    return max(sum(_together(probe, threads)) / threads for _ in range(_TRIES))


def _together(probe: Callable[[], float], threads: int) -> Sequence[float]:
    if threads == 1:
        return [probe()]
    barrier = threading.Barrier(threads)

    def one(index: int) -> float:
        if placement.cpus:
            os.sched_setaffinity(0, {placement.cpus[index % len(placement.cpus)]})  # of this thread alone
        barrier.wait()
        return probe()

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, range(threads)))
