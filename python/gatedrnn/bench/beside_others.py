"""The default number of threads against one thread, where other programs and threads are about.

`gatedrnn bench --set beside-others`; see bench/README.md for the situations.
Nothing is pinned but a busy process: this is how a program runs whose author set nothing. A ratio is the
median over the rounds of the default's time divided by that of one thread in the same round. The goal stands
beside it; the command does not fail where one is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import gatedrnn as gr
from gatedrnn import _core
from gatedrnn.bench import report
from gatedrnn.bench.busy_process import BusyProcess, processors
from gatedrnn.bench.options import add_timing, check_files
from gatedrnn.bench.peers import Ours
from gatedrnn.bench.shapes import Shape, grid, matches, problem, streaming
from gatedrnn.bench.timing import MIN_ROUNDS, Measurement, interleave

DEFAULT, ONE = "default", "1 thread"
CALLERS = 8  # Python threads that call at once
_TURN = 0.2  # seconds that they do so, at most
_PRODUCT_COLUMNS = 1024  # wide enough for BLAS to use all its threads

Session = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Budget:
    """How long one row of a table may take; as the options of the command say."""

    rounds: int
    seconds: float
    slice_seconds: float


@dataclass(frozen=True)
class Result:
    """One row: how the two sides did, in seconds per call or calls per second, and their ratio."""

    default: float
    other: float
    ratio: float
    note: str = ""


@dataclass(frozen=True)
class Row:
    """Something to measure. Built and run when its turn comes."""

    label: str
    measure: Callable[[Budget], Result]


@dataclass(frozen=True)
class Situation:
    """What goes on meanwhile, the rows measured there, and the goal for each of their ratios."""

    name: str
    title: str
    goal: float
    at_least: bool  # whether the goal is the smallest ratio aimed at, and not the largest
    units: tuple[str, str]  # of the two columns before the ratio
    rows: Sequence[Row]
    around: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext

    def reached(self, ratio: float) -> bool:
        """Whether a ratio is what was aimed at."""
        return ratio >= self.goal if self.at_least else ratio <= self.goal


def situations(only: Sequence[str], dtype: str) -> list[Situation]:
    """What `--only` keeps of it all; it looks for its texts in "situation: label"."""
    pinned = hasattr(os, "sched_setaffinity")
    place = processors()[:2][-1] if pinned else None  # the second, or the only one
    all_of_them = [
        Situation("alone", "nobody else", 1.05, False, ("default us", "one us"), list(_shapes(dtype))),
        Situation(
            "busy",
            f"beside a busy process on processor {place}" if pinned else "beside a busy process",
            1.25,
            False,
            ("default us", "one us"),
            list(_shapes(dtype)),
            functools.partial(BusyProcess, place),
        ),
        Situation(
            "blas",
            f"steps of a GRU, a NumPy product to {_PRODUCT_COLUMNS} columns before each; time of the steps",
            0.75,
            False,
            ("default us", "one us"),
            [
                Row("GRU H=256 B=256 stream", functools.partial(_beside_products, dtype, True)),
                Row("GRU H=256 B=256 T=1", functools.partial(_beside_products, dtype, False)),
            ],
        ),
        Situation(
            "callers",
            f"{CALLERS} Python threads call at once; default / best fixed number of threads",
            0.9,
            True,
            ("default /s", "best /s"),
            [
                Row(shape.label, functools.partial(_callers, shape, dtype))
                for shape in (Shape("LSTM", 256, 256, 1, 100), Shape("GRU", 128, 128, 16, 100))
            ],
        ),
    ]
    kept = [
        replace(each, rows=[row for row in each.rows if matches(f"{each.name}: {row.label}", only)])
        for each in all_of_them
    ]
    return [each for each in kept if each.rows]


def run(chosen: Sequence[Situation], budget: Budget) -> list[dict[str, Any]]:
    """Measure and print; return it all for JSON."""
    if len(processors()) == 1:
        print("note: this process has one processor, so the default is one thread: both sides do the same")
    content = []
    for situation in chosen:
        print(f"\n{situation.name}: {situation.title}")
        print(f"{'':30} {situation.units[0]:>12} {situation.units[1]:>12} {'ratio':>8} {'goal':>8}")
        rows = []
        with situation.around():
            for row in situation.rows:
                result = row.measure(budget)
                reached = situation.reached(result.ratio)
                rows.append({"label": row.label, "reached": reached, **vars(result)})
                print(_line(row, result, situation))
        content.append(
            {"situation": situation.name, "title": situation.title, "goal": situation.goal, "rows": rows}
        )
        ratios = [row["ratio"] for row in rows]
        missed = sum(not row["reached"] for row in rows)
        spread = f"ratios {min(ratios):.3f} to {max(ratios):.3f}"
        print(f"  {len(rows)} rows, {spread}, {missed} of them miss the goal")
    return content


def _line(row: Row, result: Result, situation: Situation) -> str:
    scale = 1.0 if situation.at_least else 1e6
    columns = f"{result.default * scale:>12,.1f} {result.other * scale:>12,.1f} {result.ratio:>8.3f}"
    sign = ">=" if situation.at_least else "<="
    goal = f"{sign} {situation.goal:.2f}"
    missed = "" if situation.reached(result.ratio) else " missed"
    return f"{row.label:30} {columns} {goal:>8}{missed}" + (f"  {result.note}" if result.note else "")


# ---- One and many calls of a shape ------------------------------------------------------------------------


def _shapes(dtype: str) -> Iterator[Row]:
    for cell in ("LSTM", "GRU"):
        for shape in (*grid(cell), *streaming(cell)):
            yield Row(shape.label, functools.partial(_default_against_one, shape, dtype))


def _default_against_one(shape: Shape, dtype: str, budget: Budget) -> Result:
    contender = Ours.contenders(problem(shape, dtype))[0]
    measurement = interleave(
        [
            replace(contender, name=DEFAULT),
            replace(contender, name=ONE, session=functools.partial(gr.num_threads, 1)),
        ],
        rounds=budget.rounds,
        seconds=budget.seconds,
        slice_seconds=budget.slice_seconds,
        gap_seconds=0.0,
    )
    return _compared(measurement)


def _compared(measurement: Measurement, note: str = "") -> Result:
    default, one = measurement.median(DEFAULT), measurement.median(ONE)
    return Result(default, one, measurement.ratio(DEFAULT, ONE), note)


def _rounds(sides: dict[str, Callable[[], float]], budget: Budget) -> Measurement:
    """Let each side have its turn in each round, in rotating order; a turn gives its own figure."""
    names = list(sides)
    measurement = Measurement({name: [] for name in names})
    start = time.perf_counter()
    for done in range(max(budget.rounds, MIN_ROUNDS)):
        if done >= MIN_ROUNDS and time.perf_counter() - start > budget.seconds:
            break
        for turn in range(len(names)):
            name = names[(turn + done) % len(names)]
            measurement.seconds[name].append(sides[name]())
    return measurement


# ---- Beside BLAS ------------------------------------------------------------------------------------------


def _beside_products(dtype: str, stream: bool, budget: Budget) -> Result:
    shape = Shape("GRU", 256, 256, 256, 1, stream=stream)
    of = problem(shape, dtype)
    step: Callable[[], Any] = Ours.contenders(of)[0].run
    left, right = of.x[0], np.ones((shape.H, _PRODUCT_COLUMNS), dtype)
    whole: dict[str, list[float]] = {DEFAULT: [], ONE: []}  # of the loop, products included

    def turn(name: str, session: Session) -> float:
        """Seconds of a step, in a loop of about a slice."""
        steps, in_steps = 0, 0.0
        with session():
            step()
            start = time.perf_counter()
            while steps < 3 or time.perf_counter() - start < budget.slice_seconds:
                left @ right
                before = time.perf_counter()
                step()
                in_steps += time.perf_counter() - before
                steps += 1
            whole[name].append((time.perf_counter() - start) / steps)
        return in_steps / steps

    sides: dict[str, Callable[[], float]] = {
        DEFAULT: functools.partial(turn, DEFAULT, contextlib.nullcontext),
        ONE: functools.partial(turn, ONE, functools.partial(gr.num_threads, 1)),
    }
    measurement = _rounds(sides, budget)
    loop = statistics.median(a / b for a, b in zip(whole[DEFAULT], whole[ONE], strict=True))
    return _compared(measurement, f"(the whole loop {loop:.3f})")


# ---- Many callers -----------------------------------------------------------------------------------------


def _callers(shape: Shape, dtype: str, budget: Budget) -> Result:
    call = Ours.contenders(problem(shape, dtype))[0].run
    fixed: dict[str, Session] = {
        _threads_text(count): functools.partial(gr.num_threads, count) for count in _counts()
    }
    sessions: dict[str, Session] = {DEFAULT: contextlib.nullcontext, **fixed}
    turn = min(_TURN, max(budget.slice_seconds, budget.seconds / MIN_ROUNDS / len(sessions)))
    sides: dict[str, Callable[[], float]] = {
        name: functools.partial(_calls_per_second, call, session, turn) for name, session in sessions.items()
    }
    measurement = _rounds(sides, budget)
    best = max(fixed, key=measurement.median)
    ratio = measurement.ratio(DEFAULT, best)
    return Result(measurement.median(DEFAULT), measurement.median(best), ratio, f"(best: {best})")


def _counts() -> list[int]:
    """Numbers of threads from one to all processors; of many only powers of two and all."""
    most = len(processors())
    return [n for n in range(1, most + 1) if most <= 8 or n == most or n & (n - 1) == 0]


def _threads_text(count: int) -> str:
    return f"{count} thread" + "s" * (count > 1)


def _calls_per_second(call: Callable[[], Any], session: Session, seconds: float) -> float:
    """What all callers together get done."""
    counts = [0] * CALLERS
    barrier = threading.Barrier(CALLERS + 1)
    end = [0.0]

    def work(caller: int) -> None:
        with session():  # here too: it may be for this thread alone
            barrier.wait()
            while time.perf_counter() < end[0]:
                call()
                counts[caller] += 1

    threads = [threading.Thread(target=work, args=(caller,), daemon=True) for caller in range(CALLERS)]
    with session():
        for thread in threads:
            thread.start()
        start = time.perf_counter()
        end[0] = start + seconds  # before anybody looks
        barrier.wait()
        for thread in threads:
            thread.join()
        return sum(counts) / (time.perf_counter() - start)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gatedrnn bench --set beside-others",
        description="Time gatedrnn with its default number of threads against one thread, beside others.",
    )
    dtypes = ("float32", "float64")
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="default: float32")
    add_timing(parser, slice_milliseconds=20)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run it with the arguments after the set's name; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    check_files(parser, [options.json])
    chosen = situations(options.only, options.dtype)
    if not chosen:
        parser.error(f"--only: no label contains {options.only}; see --list")
    if options.list:
        print(*(f"{each.name}: {row.label}" for each in chosen for row in each.rows), sep="\n")
        return 0
    machine, count = _core.machine(), gr.get_num_threads()
    print(
        f"gatedrnn {gr.__version__}, {machine['isa']}, {options.dtype}, default (up to {count} threads) "
        f"against one, {len(processors())} processors, on {machine['cpu']}"
    )
    content = run(chosen, Budget(options.repeats, options.seconds, options.slice / 1e3))
    if options.json:
        report.write_json(options.json, {"machine": gr.show_config(mode="dict"), "situations": content})
        print(f"wrote {options.json}")
    return 0
