"""Ourselves against ourselves: what one form, type, layout or thread count costs next to another.

Each measure divides our time for one thing by our time for another; a factor accounts for the work there is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import gatedrnn as gr
from gatedrnn.bench.peers import Ours, OursInPyTorch, PyTorch
from gatedrnn.bench.shapes import GRID_SIZES, Problem, Shape, grid, matches, problem
from gatedrnn.bench.shapes import select as select_shapes
from gatedrnn.bench.timing import Contender

MEASURED, BASE = "measured", "base"


@dataclass(frozen=True)
class Measure:
    """One question. `allowed` is the largest ratio aimed at, with one thread and with more.

    `worst` says whether every shape is held to it, or the geometric mean. `threads` is how many it takes at
    least.
    """

    name: str
    title: str
    allowed: tuple[float, float]
    worst: bool
    pairs: Callable[[int], Iterator[Pair]]
    needs: str | None = None  # a package that is not the benchmark's own
    threads: int = 1


@dataclass(frozen=True)
class Pair:
    """Two ways to time: ratio = time of `measured` / (time of `base` * scale). Built when its turn comes."""

    label: str
    build: Callable[[], tuple[Contender, Contender]]
    scale: float = 1.0


def _ours(name: str, of: Problem, threads: int | None = None) -> Contender:
    contender = replace(Ours.contenders(of)[0], name=name)
    if threads is None:
        return contender
    return replace(contender, session=functools.partial(gr.num_threads, threads))


def _both_grus(shape: Shape) -> tuple[Contender, Contender]:
    before = problem(replace(shape, cell="GRU_BEFORE"), np.float32)
    return _ours(MEASURED, before), _ours(BASE, problem(shape, np.float32))


def _gru_before(_: int) -> Iterator[Pair]:
    for shape in grid("GRU"):
        yield Pair(shape.label, functools.partial(_both_grus, shape))


def _gru_before_training(_: int) -> Iterator[Pair]:
    for shape in select_shapes("grid", ["GRU"], (), train=True):
        yield Pair(shape.label, functools.partial(_both_grus, shape))


def _recompute(_: int) -> Iterator[Pair]:
    def build(shape: Shape) -> tuple[Contender, Contender]:
        of = problem(shape, np.float32)
        module = Ours.module(of)

        def run(recompute: bool) -> None:
            _, _, tape = module.forward(of.x, recompute=recompute)
            module.backward(tape, of.d_output)

        return (
            Contender(MEASURED, functools.partial(run, True), _nothing),
            Contender(BASE, functools.partial(run, False), _nothing),
        )

    for cell in ("LSTM", "GRU", "GRU_BEFORE"):
        for hidden, rows in ((64, 1), (256, 1), (128, 16), (256, 32)):
            shape = Shape(cell, hidden, hidden, rows, 1000, train=True)
            yield Pair(shape.label, functools.partial(build, shape))


def _in_pytorch(threads: int) -> Iterator[Pair]:
    def build(shape: Shape) -> tuple[Contender, Contender]:
        of = problem(shape, np.float32)
        (measured,) = OursInPyTorch(threads).contenders(of)
        return replace(measured, name=MEASURED), _ours(BASE, of)

    for shape in select_shapes("grid", ["LSTM", "GRU"], (), train=True):
        yield Pair(shape.label, functools.partial(build, shape))


_MODEL_SIZES = ((64, 32, 35), (256, 32, 35), (512, 32, 35), (128, 16, 100))


def _pytorch_models(threads: int) -> Iterator[Pair]:
    """What a program gains that has other layers too, whose threads and memory the recurrent one meets."""

    def build(shape: Shape) -> tuple[Contender, Contender]:
        ours, torchs = OursInPyTorch(threads), PyTorch(threads)
        return (
            Contender(MEASURED, ours.model_update(shape), _nothing),
            Contender(BASE, torchs.model_update(shape), _nothing),
        )

    for cell in ("LSTM", "GRU"):
        for hidden, rows, steps in _MODEL_SIZES:
            shape = Shape(cell, hidden, hidden, rows, steps, train=True)
            yield Pair(shape.label, functools.partial(build, shape))


def _nothing(_: Any) -> list[Any]:
    return []


def _float64(_: int) -> Iterator[Pair]:
    def build(shape: Shape) -> tuple[Contender, Contender]:
        return _ours(MEASURED, problem(shape, np.float64)), _ours(BASE, problem(shape, np.float32))

    for cell in ("LSTM", "GRU", "GRU_BEFORE"):
        shape = Shape(cell, 256, 256, 16, 100)
        yield Pair(shape.label, functools.partial(build, shape))


def _ragged(_: int) -> Iterator[Pair]:
    def build(shape: Shape) -> tuple[Contender, Contender]:
        of = problem(shape, np.float32)
        return _ours(MEASURED, of), _ours(BASE, replace(of, lengths=None))

    for cell in ("LSTM", "GRU", "GRU_BEFORE"):
        for hidden in (64, 128, 256):
            shape = Shape(cell, hidden, hidden, 64, 400, shortest=10)
            yield Pair(shape.label, functools.partial(build, shape), shape.row_steps() / (shape.B * shape.T))


def _threads(threads: int) -> Iterator[Pair]:
    many = max(threads, 2)

    def build(shape: Shape) -> tuple[Contender, Contender]:
        of = problem(shape, np.float32)
        return _ours(MEASURED, of, many), _ours(BASE, of, 1)

    for cell in ("LSTM", "GRU"):
        for hidden, rows, steps in GRID_SIZES:
            shape = Shape(cell, hidden, hidden, rows, steps)
            yield Pair(shape.label, functools.partial(build, shape))


_STACKED_SIZES = ((64, 1, 100), (128, 1, 100), (256, 1, 100), (64, 1, 1000), (128, 4, 100))


def _stacks(threads: int) -> Iterator[Pair]:
    def build(shape: Shape, layers: int) -> tuple[Contender, Contender]:
        module = getattr(gr, shape.cell)(shape.I, shape.H, layers, seed=0)
        x = problem(shape, np.float32).x

        def with_threads(name: str, count: int) -> Contender:
            session = functools.partial(gr.num_threads, count)
            return Contender(name, functools.partial(module, x), _nothing, session)

        return with_threads(MEASURED, max(threads, 2)), with_threads(BASE, 1)

    for cell in ("LSTM", "GRU"):
        for layers in (2, 3):
            for hidden, rows, steps in _STACKED_SIZES:
                shape = Shape(cell, hidden, hidden, rows, steps)
                yield Pair(f"{layers} x {shape.label}", functools.partial(build, shape, layers))


def _denormal(_: int) -> Iterator[Pair]:
    def build(shape: Shape) -> tuple[Contender, Contender]:
        normal = problem(shape, np.float32)
        # Without a bias every sum of denormal inputs is denormal too, and so is the state.
        weights = {name: value * (value.ndim > 1) for name, value in normal.weights.items()}
        normal = replace(normal, weights=weights)
        return _ours(MEASURED, replace(normal, x=normal.x * np.float32(1e-40))), _ours(BASE, normal)

    for cell in ("LSTM", "GRU"):
        for rows in (1, 16):
            shape = Shape(cell, 128, 128, rows, 100)
            yield Pair(shape.label, functools.partial(build, shape))


MEASURES = (
    Measure("self-gru", "GRU, reset before the product / after it", (1.15, 1.3), False, _gru_before),
    Measure(
        "self-gru-training",
        "GRU, reset before the product / after it, forward and backward",
        (1.25, 1.4),
        False,
        _gru_before_training,
    ),
    Measure("self-recompute", "training with recompute / without", (1.4, 1.4), True, _recompute),
    Measure(
        "self-pytorch",
        "gatedrnn.torch / NumPy, forward and backward",
        (1.1, 1.1),
        False,
        _in_pytorch,
        needs="torch",
    ),
    Measure(
        "self-pytorch-model",
        "an update of a PyTorch model (embedding, recurrent layer, linear, Adam): gatedrnn.torch / torch.nn",
        (1.0, 1.0),
        False,
        _pytorch_models,
        needs="torch",
    ),
    Measure("self-float64", "float64 / float32", (2.3, 2.3), True, _float64),
    Measure("self-ragged", "ragged / (padded * sum(lengths) / (B * T))", (1.2, 1.3), True, _ragged),
    Measure("self-threads", "two threads (or --threads) / one thread", (1.0, 1.0), True, _threads, threads=2),
    Measure(
        "self-stacks",
        "stacks of layers, two threads (or --threads) / one",
        (0.8, 0.8),
        True,
        _stacks,
        threads=2,
    ),
    Measure("self-denormal", "denormal inputs / normal ones", (1.2, 1.2), True, _denormal),
)


def select(names: Sequence[str]) -> list[Measure]:
    """The measures of these sets; "self" is all of them."""
    return [measure for measure in MEASURES if measure.name in names or "self" in names]


def pairs(measure: Measure, threads: int, only: Sequence[str]) -> list[Pair]:
    """The pairs of a measure that `--only` keeps."""
    return [pair for pair in measure.pairs(threads) if matches(pair.label, only)]


def as_dict(measure: Measure, threads: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """For JSON: the measure with its rows, and the number that is held against what is allowed."""
    ratios = [row["ratio"] for row in rows]
    return {
        "set": measure.name,
        "title": measure.title,
        "allowed": measure.allowed[threads > 1],
        "held_to": "largest" if measure.worst else "geometric mean",
        "geometric_mean": float(np.exp(np.mean(np.log(ratios)))),
        "largest": max(ratios),
        "rows": rows,
    }
