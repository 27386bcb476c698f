"""Programs of other people with torch.nn's recurrent classes, and with ours in their place.

Each program runs in a process of its own, once with each side's classes, in turns and from the same seeds.
What they have learnt and predicted has to agree up to rounding; their times stand side by side.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gatedrnn as gr
from gatedrnn import _core
from gatedrnn._optional import installed
from gatedrnn.bench.options import positive
from gatedrnn.bench.placement import placement

SIDES = ("torch", "gatedrnn")  # in the order in which they run
RESULT = "result.json"
# GNU's allocator gives large arrays back to the system or keeps them, as its heap happens to lie: with either
# side a program took a fifth longer in one run of three. So it keeps them, on both sides. (Not by a threshold
# for mmap: one above 32 MB is ignored, and any other ends what the allocator learns by itself.)
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_MAX_": "0"}


@dataclass(frozen=True)
class Program:
    """A program: its file in `client_programs`, and the modules and packages that it needs."""

    name: str
    title: str
    needs: dict[str, str]

    def missing(self) -> list[str]:
        """Return the packages that are not installed."""
        needs = {"torch": "torch", **self.needs}
        return [package for module, package in needs.items() if not installed(module)]


PROGRAMS = (
    Program(
        "darts",
        "darts, RNNModel and BlockRNNModel",
        {"darts": "darts", "pytorch_lightning": "pytorch-lightning"},
    ),
    Program("skorch", "skorch, a classifier of sentences", {"skorch": "skorch"}),
    Program(
        "sb3_contrib",
        "sb3-contrib, RecurrentPPO on CartPole",
        {"sb3_contrib": "sb3-contrib", "gymnasium": "gymnasium"},
    ),
    Program(
        "pytorch_forecasting",
        "pytorch-forecasting, DeepAR",
        {"pytorch_forecasting": "pytorch-forecasting", "lightning": "lightning"},
    ),
    Program("word_model", "a language model of words, two LSTMs of 200 units", {}),
)


class ProgramError(Exception):
    """A program ended with an error; the text is what it wrote."""


@dataclass(frozen=True)
class Row:
    """A line of the table: one thing that both sides tell."""

    name: str
    torch: float
    ours: float


@dataclass(frozen=True)
class Times(Row):
    """Seconds: the medians of each side, and torch.nn's divided by ours in each round."""

    ratios: list[float]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    def __str__(self) -> str:
        sides = f"{_duration(self.torch):>11} {_duration(self.ours):>11}"
        return f"{self.name:30} {sides} {self.ratio:>7.2f}  ({min(self.ratios):.2f} - {max(self.ratios):.2f})"


@dataclass(frozen=True)
class Numbers(Row):
    """Losses or predictions: the last of each side, and by how much the sides differ."""

    difference: float
    tolerance: float

    @property
    def agree(self) -> bool:
        return self.difference <= self.tolerance  # not so if there is a NaN

    def __str__(self) -> str:
        verdict = "agree" if self.agree else "DIFFER"
        by = f"{self.difference:.0e} of {self.tolerance:.0e}"
        return f"{self.name:30} {self.torch:>11.6f} {self.ours:>11.6f} {verdict:>7}  ({by})"


def compare(program: Program, repeats: int, threads: int) -> list[Times | Numbers]:
    """Run both sides of a program in turns.

    Raises:
        ProgramError: One of them failed.
    """
    rounds = [[_run_apart(program, side, threads) for side in SIDES] for _ in range(repeats)]
    first = rounds[0][0]
    numbers = [_numbers(name, rounds) for name in first["numbers"]]
    return [*numbers, *(_times(name, rounds) for name in first["seconds"])]


def _times(name: str, rounds: Sequence[Sequence[Any]]) -> Times:
    torch, ours = ([each[side]["seconds"][name] for each in rounds] for side in (0, 1))
    ratios = [theirs / mine for theirs, mine in zip(torch, ours, strict=True)]
    return Times(name, statistics.median(torch), statistics.median(ours), ratios)


def _numbers(name: str, rounds: Sequence[Sequence[Any]]) -> Numbers:
    pairs = [(torch["numbers"][name], ours["numbers"][name]) for torch, ours in rounds]
    differences = [_difference(torch, ours) for torch, ours in pairs]
    worst = math.nan if any(map(math.isnan, differences)) else max(differences)
    return Numbers(name, pairs[0][0][-1], pairs[0][1][-1], worst, rounds[0][0]["tolerances"][name])


def _difference(some: Sequence[float], others: Sequence[float]) -> float:
    """Return the largest difference, divided by the largest number; NaN where there is one."""
    differences = [abs(a - b) for a, b in zip(some, others, strict=True)]
    if not all(map(math.isfinite, differences)):
        return math.nan
    return max(differences) / (max(map(abs, some)) or 1.0)


def _run_apart(program: Program, side: str, threads: int) -> Any:
    """Run one side in a process of its own, in a folder that goes away; return what it reports."""
    arguments = ["--only", program.name, "--with", side, "--threads", str(threads)]
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, **KEEP_MEMORY, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(
            command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode:
            raise ProgramError(f"with {side} it ended with status {done.returncode}:\n{done.stdout}")
        return json.loads(Path(folder, RESULT).read_text())


def run_here(name: str, side: str, threads: int) -> None:
    """Run one side of a program in this process, after a short run to warm up, and write its report."""
    from client_programs import side as sides

    if side == sides.OURS:
        sides.replace_classes()
    sides.set_threads(side, threads)
    program = importlib.import_module(f"client_programs.{name}")
    program.run(sides.Report(side), 1)
    report = sides.Report(side)
    program.run(report, program.ROUNDS)
    Path(RESULT).write_text(json.dumps(asdict(report)))


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1e6 * seconds:,.0f} us"


def _table(program: Program, repeats: int, threads: int) -> list[Times | Numbers] | None:
    """Print and return the table of a program; None where it did not run."""
    print(f"\n{program.name}: {program.title}", flush=True)
    if missing := program.missing():
        print(f"  not installed: {', '.join(missing)}; pip install {' '.join(missing)}")
        return None
    try:
        rows = compare(program, repeats, threads)
    except ProgramError as error:
        print(f"  failed: {error}")
        return None
    print(f"{'':30} {'torch.nn':>11} {'gatedrnn':>11} {'ratio':>7}", *rows, sep="\n", flush=True)
    return rows


def _sum_up(tables: dict[str, list[Times | Numbers] | None]) -> int:
    """Print what did not run, what differs and what is slower; return the command's status."""
    rows = [(name, row) for name, table in tables.items() for row in table or ()]
    absent = [name for name, table in tables.items() if table is None]
    differ = [f"{name}: {row.name}" for name, row in rows if isinstance(row, Numbers) and not row.agree]
    times = [(name, row) for name, row in rows if isinstance(row, Times)]
    slower = [f"{name}: {row.name} ({row.ratio:.2f})" for name, row in times if row.ratio < 1]
    print()
    if absent:
        print(f"did not run: {', '.join(absent)}")
    if differ:
        print(f"differ by more than rounding: {', '.join(differ)}")
    if times:
        print(f"slower than torch.nn, of {len(times)} times: {', '.join(slower) or 'none'}")
    return 1 if absent or differ else 0


def _parser() -> argparse.ArgumentParser:
    names = [program.name for program in PROGRAMS]
    parser = argparse.ArgumentParser(
        prog="python bench/clients.py",
        description="Time programs that use torch.nn's recurrent classes, with ours in their place.",
    )
    add = parser.add_argument
    add("--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    add("--repeats", type=positive(int), default=5, metavar="N", help="rounds of both sides (default: 5)")
    add("--threads", type=positive(int), default=1, metavar="N", help="default: 1")
    add("--with", dest="side", choices=SIDES, help=argparse.SUPPRESS)  # what the processes are started with
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    if options.side:
        run_here(options.only[0], options.side, options.threads)
        return 0
    chosen = [program for program in PROGRAMS if not options.only or program.name in options.only]
    machine = _core.machine()
    print(f"gatedrnn {gr.__version__}, {machine['isa']}, on {machine['cpu']}, threads: {options.threads}")
    print("ratio: time with torch.nn / time with gatedrnn; median (and range) of the rounds")
    placement.pin(options.threads)
    return _sum_up({p.name: _table(p, options.repeats, options.threads) for p in chosen})


if __name__ == "__main__":
    raise SystemExit(main())
