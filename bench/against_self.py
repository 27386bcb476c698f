"""Ourselves against ourselves: what one form, type, layout or thread count costs next to another.

Each measure divides our time for one thing by our time for another; a factor accounts for the work there is.
`python bench/against_self.py --help` has the measures. The aims stand beside the ratios; the command does not
fail where one is missed.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import gatedrnn as gr
from gatedrnn import _core
from gatedrnn._optional import installed
from gatedrnn.bench import report
from gatedrnn.bench.options import add_timing, check_files, positive
from gatedrnn.bench.peers import Ours, PyTorch
from gatedrnn.bench.placement import placement
from gatedrnn.bench.shapes import GRID_SIZES, Problem, Shape, grid, matches, problem
from gatedrnn.bench.shapes import select as select_shapes
from gatedrnn.bench.timing import Contender, interleave

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


class OursInPyTorch(PyTorch):
    """gatedrnn.torch, called as torch.nn is."""

    @property
    def classes(self) -> Any:
        return importlib.import_module("gatedrnn.torch")


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
            Contender(MEASURED, _model_update(ours, shape), _nothing),
            Contender(BASE, _model_update(torchs, shape), _nothing),
        )

    for cell in ("LSTM", "GRU"):
        for hidden, rows, steps in _MODEL_SIZES:
            shape = Shape(cell, hidden, hidden, rows, steps, train=True)
            yield Pair(shape.label, functools.partial(build, shape))


def _model_update(library: PyTorch, shape: Shape) -> Callable[[], Any]:
    """One update of a language model of 256 tokens with such a layer, by Adam with clipped gradients."""
    torch, tokens = library.torch, 256
    torch.manual_seed(0)
    embedding, head = torch.nn.Embedding(tokens, shape.I), torch.nn.Linear(shape.H, tokens)
    recurrent = getattr(library.classes, shape.cell)(shape.I, shape.H)
    model = torch.nn.ModuleList([embedding, recurrent, head])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    inputs, targets = torch.randint(tokens, (2, shape.T, shape.B))

    def update() -> Any:
        optimizer.zero_grad()
        logits = head(recurrent(embedding(inputs))[0])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return update


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


_OPTION_SIZES = ((16, 64, 100), (64, 1, 100), (64, 64, 100), (256, 1, 100), (256, 16, 100), (256, 64, 50))
_NORMS: dict[str, list[dict[str, Any]]] = {
    "LSTM": [{"layer_norm": "products"}, {"layer_norm": "gates"}],
    "GRU": [{"layer_norm": "products"}],
}
_FUNCTIONS: dict[str, list[dict[str, Any]]] = {
    "LSTM": [
        {"activations": ("hard_sigmoid", "tanh", "tanh")},
        {"activations": ("sigmoid", "elu", "softsign"), "clip": 3.0, "cell_clip": 10.0},
    ],
    "GRU": [{"activations": ("hard_sigmoid", "tanh")}, {"activations": ("sigmoid", "relu"), "clip": 3.0}],
    "GRU_BEFORE": [{"activations": ("hard_sigmoid", "tanh"), "reset_after": False}],
    "RNN": [{"activations": ("softsign",)}],
}


def _with_options(shape: Shape, options: dict[str, Any]) -> tuple[Contender, Contender]:
    """A module with options, and the same without, forward or for training."""
    of = problem(shape, np.float32)
    plain = Ours.module(of)
    module = type(plain)(shape.I, shape.H, **options)
    module.load_state_dict(of.weights, strict=False)

    def run(called: Any) -> None:
        if not shape.train:
            called(of.x)
            return
        _, _, tape = called.forward(of.x)
        called.backward(tape, of.d_output)

    return (
        Contender(MEASURED, functools.partial(run, module), _nothing),
        Contender(BASE, functools.partial(run, plain), _nothing),
    )


def _functions(_: int) -> Iterator[Pair]:
    yield from _options(_FUNCTIONS)


def _layer_norms(_: int) -> Iterator[Pair]:
    yield from _options(_NORMS)


def _options(all_choices: dict[str, list[dict[str, Any]]]) -> Iterator[Pair]:
    for train in (False, True):
        for cell, choices in all_choices.items():
            for number, options in enumerate(choices):
                for hidden, rows, steps in _OPTION_SIZES:
                    shape = Shape(cell, hidden, hidden, rows, steps, train=train)
                    label = f"{shape.label} {number}" + (" training" if train else "")
                    yield Pair(label, functools.partial(_with_options, shape, options))


def _marks(_: int) -> Iterator[Pair]:
    """A fifth of the steps skipped; episodes of ten steps; both. Beside a call that takes every step."""

    def build(shape: Shape, mask: bool, resets: bool) -> tuple[Contender, Contender]:
        of = problem(shape, np.float32)
        module, rng = Ours.module(of), np.random.default_rng(0)
        lead = (shape.T, shape.B)
        marks: dict[str, Any] = {}
        if mask:
            marks["mask"] = rng.random(lead) < 0.8
        if resets:
            marks["resets"] = rng.random(lead) < 0.1

        def run(**given: Any) -> None:
            if not shape.train:
                module(of.x, **given)
                return
            _, _, tape = module.forward(of.x, **given)
            module.backward(tape, of.d_output)

        return (
            Contender(MEASURED, functools.partial(run, **marks), _nothing),
            Contender(BASE, run, _nothing),
        )

    for train in (False, True):
        for cell in ("LSTM", "GRU"):
            for hidden, rows, steps in (*_OPTION_SIZES, (128, 1, 400)):
                shape = Shape(cell, hidden, hidden, rows, steps, train=train)
                for mask, resets in ((True, False), (False, True), (True, True)):
                    names = " ".join(["mask"] * mask + ["resets"] * resets + ["training"] * train)
                    yield Pair(f"{shape.label} {names}", functools.partial(build, shape, mask, resets))


MEASURES = (
    Measure("gru", "GRU, reset before the product / after it", (1.15, 1.3), False, _gru_before),
    Measure(
        "gru-training",
        "GRU, reset before the product / after it, forward and backward",
        (1.25, 1.4),
        False,
        _gru_before_training,
    ),
    Measure("recompute", "training with recompute / without", (1.4, 1.4), True, _recompute),
    Measure(
        "pytorch",
        "gatedrnn.torch / NumPy, forward and backward",
        (1.1, 1.1),
        False,
        _in_pytorch,
        needs="torch",
    ),
    Measure(
        "pytorch-model",
        "an update of a PyTorch model (embedding, recurrent layer, linear, Adam): gatedrnn.torch / torch.nn",
        (1.0, 1.0),
        False,
        _pytorch_models,
        needs="torch",
    ),
    Measure("float64", "float64 / float32", (2.3, 2.3), True, _float64),
    Measure("ragged", "ragged / (padded * sum(lengths) / (B * T))", (1.2, 1.3), True, _ragged),
    Measure("threads", "two threads (or --threads) / one thread", (1.0, 1.0), True, _threads, threads=2),
    Measure(
        "stacks",
        "stacks of layers, two threads (or --threads) / one",
        (0.8, 0.8),
        True,
        _stacks,
        threads=2,
    ),
    Measure("functions", "cells with other functions and clips / without", (2.0, 2.0), True, _functions),
    Measure("layer-norm", "layer-normalised cells / plain ones", (2.0, 2.0), True, _layer_norms),
    Measure("marks", "masks and episodes / every step of one sequence", (1.1, 1.1), True, _marks),
    Measure("denormal", "denormal inputs / normal ones", (1.2, 1.2), True, _denormal),
)


def run(measure: Measure, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the pairs that `--only` keeps, and print; return it all for JSON."""
    print(f"\n{measure.name}: {measure.title}\n{'':30} {'us':>10} {'base us':>10} {'ratio':>8}")
    rows: list[dict[str, Any]] = []
    for pair in _pairs(measure, options):
        timed = interleave(
            pair.build(),
            rounds=options.repeats,
            seconds=options.seconds,
            slice_seconds=options.slice / 1e3,
            gap_seconds=0.0,
        )
        row = {
            "label": pair.label,
            "measured_seconds": timed.median(MEASURED),
            "base_seconds": timed.median(BASE),
            "scale": pair.scale,
            "ratio": timed.ratio(MEASURED, BASE) / pair.scale,
            "rounds": timed.seconds,
        }
        rows.append(row)
        print(_line(row))
    ratios = [row["ratio"] for row in rows]
    mean, largest = statistics.geometric_mean(ratios), max(ratios)
    allowed = measure.allowed[options.threads > 1]
    held_to = "largest" if measure.worst else "geometric mean"
    print(f"  geometric mean {mean:.3f}, largest {largest:.3f}; aim: {held_to} <= {allowed:g}")
    return {
        "measure": measure.name,
        "title": measure.title,
        "allowed": allowed,
        "held_to": held_to,
        "geometric_mean": mean,
        "largest": largest,
        "rows": rows,
    }


def _pairs(measure: Measure, options: argparse.Namespace) -> list[Pair]:
    return [pair for pair in measure.pairs(options.threads) if matches(pair.label, options.only)]


def _line(row: dict[str, Any]) -> str:
    times = [report.microseconds(row[name]) for name in ("measured_seconds", "base_seconds")]
    scale = f" * {row['scale']:.3f}" if row["scale"] != 1 else ""
    return f"{row['label']:30} {times[0]:>10} {times[1]:>10}{scale} {row['ratio']:>8.3f}"


def _parser() -> argparse.ArgumentParser:
    measures = "\n".join(f"  {measure.name:16} {measure.title}" for measure in MEASURES)
    parser = argparse.ArgumentParser(
        prog="python bench/against_self.py",
        description="Time gatedrnn against itself.",
        epilog=f"measures:\n{measures}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("measures", nargs="*", metavar="MEASURE", help="which ones (default: all)")
    parser.add_argument("--threads", type=positive(int), default=1, metavar="N", help="default: 1")
    add_timing(parser, slice_milliseconds=2)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(argv)
    check_files(parser, [options.json])
    known = {measure.name: measure for measure in MEASURES}
    if unknown := [name for name in options.measures if name not in known]:
        parser.error(f"{unknown[0]!r} is none of {', '.join(known)}")
    chosen = [known[name] for name in options.measures] or list(MEASURES)
    chosen = [measure for measure in chosen if _pairs(measure, options)]
    if not chosen:
        parser.error(f"--only: no label contains {options.only}; see --list")
    if options.list:
        labels = [f"{measure.name}: {pair.label}" for measure in chosen for pair in _pairs(measure, options)]
        print(*labels, sep="\n")
        return 0
    machine = _core.machine()
    print(f"gatedrnn {gr.__version__}, {machine['isa']}, on {machine['cpu']}")
    placement.pin(max(options.threads, *(measure.threads for measure in chosen)))
    results = []
    with gr.num_threads(options.threads):
        for measure in chosen:
            if measure.needs and not installed(measure.needs):
                print(f"\n{measure.name}: left out, {measure.needs} is not installed")
            else:
                results.append(run(measure, options))
    if options.json:
        content = {"threads": options.threads, "machine": gr.show_config(mode="dict"), "measures": results}
        report.write_json(options.json, content)
        print(f"wrote {options.json}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
