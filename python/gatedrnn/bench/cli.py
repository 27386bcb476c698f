"""The command: options, environment, the loop over the shapes."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import gatedrnn as gr
from gatedrnn import _core
from gatedrnn.bench import against_self, beside_others, report, roofline, shapes
from gatedrnn.bench.peers import PEERS, Ours, Peer, UnsupportedError
from gatedrnn.bench.report import Entry, Row
from gatedrnn.bench.shapes import Problem, Shape
from gatedrnn.bench.timing import MIN_ROUNDS, Contender, estimate, interleave, placement

# What holds each library to an instruction set. All of them are read once, at import.
_ISA_VARIABLES = {
    "avx2": {
        "GATEDRNN_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
}
_SELF_SETS = ("self", *(measure.name for measure in against_self.MEASURES))
_CHECKED_STEPS = 3  # of a stream


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        argv: The arguments after ``gatedrnn bench``; None: those of the process.

    Returns:
        0; 1 where a peer's numbers disagree with ours.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    parser = _parser()
    options = parser.parse_args(arguments)
    _check_files(parser, options)
    options.set = list(dict.fromkeys(options.set or ["grid"]))
    if options.train and (
        unknown := [n for n in options.set if n in shapes.SETS and n not in shapes.TRAINING_SETS]
    ):
        parser.error(f"--train has the sets {', '.join(shapes.TRAINING_SETS)}, not {', '.join(unknown)}")
    alone = beside_others.NAME in options.set
    if alone and (len(options.set) > 1 or options.train or options.plot or options.threads > 1):
        parser.error(f"--set {beside_others.NAME} goes without other sets, --train, --plot and --threads")
    labels = _labels(options)
    if not labels:
        parser.error(
            f"--only: no label of --set {' --set '.join(options.set)} contains {options.only}; see --list"
        )
    if options.list:
        print(*labels, sep="\n")
        return 0
    if options.isa and any(
        os.environ.get(key) != value for key, value in _ISA_VARIABLES[options.isa].items()
    ):
        _restart(arguments, _ISA_VARIABLES[options.isa])
    if alone:
        return _beside_others(options)
    if not options.no_pin:
        placement.cpus = _pin(
            max([options.threads, *(measure.threads for measure in against_self.select(options.set))])
        )
    with gr.num_threads(options.threads):
        return Benchmark(options).run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gatedrnn bench",
        description="Time gatedrnn and every installed peer in one process, after checking that they agree.",
        epilog="Ratios are medians over rounds in which everybody runs for a short slice in rotating order.",
    )
    add = parser.add_argument
    add(
        "--set",
        action="append",
        choices=[*shapes.SETS, *_SELF_SETS, beside_others.NAME],
        help="named set; may be repeated (default: grid). The self sets time gatedrnn against itself; "
        f"{beside_others.NAME}, by itself, its default number of threads against one",
    )
    add(
        "--cells",
        type=_names(shapes.CELLS),
        metavar="NAMES",
        help=f"comma-separated, of {', '.join(shapes.CELLS)}",
    )
    add(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help='only shapes whose label contains this ("T=1 ")',
    )
    add("--train", action="store_true", help="time forward and backward with all gradients, beside PyTorch")
    add("--list", action="store_true", help="list the shapes' labels and do nothing")
    add("--threads", type=_positive(int), default=1, metavar="N", help="threads for everybody (default: 1)")
    add(
        "--peers",
        type=_names(tuple(PEERS), empty="none"),
        metavar="NAMES",
        help=f"comma-separated, of {', '.join(PEERS)}, or none (default: all that are installed)",
    )
    add("--dtype", choices=("float32", "float64"), default="float32", help="float64: only PyTorch has it too")
    add(
        "--isa",
        choices=tuple(_ISA_VARIABLES),
        help="hold gatedrnn, and the peers that can be, to this instruction set",
    )
    add("--repeats", type=_positive(int), default=21, metavar="N", help="rounds per shape (default: 21)")
    add(
        "--seconds",
        type=_positive(float),
        default=4.0,
        metavar="S",
        help="no new round after this long (default: 4)",
    )
    add(
        "--max-seconds-per-shape",
        type=_positive(float),
        default=60.0,
        metavar="S",
        help="skip shapes, with a line that says so, whose fewest rounds would take longer (default: 60)",
    )
    add(
        "--slice",
        type=_positive(float),
        metavar="MS",
        help=f"a turn in a round (default: 2 ms; {beside_others.NAME}: 20 ms)",
    )
    add(
        "--gap",
        type=float,
        metavar="MS",
        help="pause before each turn (default: 0; 30 ms with threads, which spin on)",
    )
    add("--no-check", action="store_true", help="do not compare the outputs before timing")
    add("--no-pin", action="store_true", help="leave the process and its threads on all CPUs")
    add("--json", type=Path, metavar="FILE", help="write everything measured")
    add("--plot", type=Path, metavar="FILE.png", help="draw the ratios (needs matplotlib)")
    return parser


def _check_files(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Say now, and not after an hour of timing, that a result cannot be written."""
    for file in (options.json, options.plot):
        if file is not None and not file.absolute().parent.is_dir():
            parser.error(f"{file}: there is no such directory")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib, which is not installed")


def _names(known: Sequence[str], empty: str = "") -> Any:
    def parse(text: str) -> list[str]:
        if empty and text == empty:
            return []
        names = [name.strip() for name in text.split(",")]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return list(dict.fromkeys(names))

    return parse


def _positive(kind: type[int] | type[float]) -> Any:
    def number(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not positive")
        return value

    return number


def _labels(options: argparse.Namespace) -> list[str]:
    """Name what the options choose."""
    labels = [
        f"{name}: {shape.label}"
        for name in options.set
        if name in shapes.SETS
        for shape in shapes.select(name, options.cells, options.only, train=options.train)
    ]
    return (
        labels
        + [
            f"{measure.name}: {pair.label}"
            for measure in against_self.select(options.set)
            for pair in against_self.pairs(measure, options.threads, options.only)
        ]
        + [
            f"{situation.name}: {row.label}"
            for name in options.set
            if name == beside_others.NAME
            for situation in beside_others.situations(options.only, options.dtype)
            for row in situation.rows
        ]
    )


def _beside_others(options: argparse.Namespace) -> int:
    machine, count = _core.machine(), gr.get_num_threads()
    print(
        f"gatedrnn {gr.__version__}, {machine['isa']}, {options.dtype}, default (up to {count} threads) "
        f"against one, {len(beside_others.processors())} processors, on {machine['cpu']}"
    )
    chosen = beside_others.situations(options.only, options.dtype)
    budget = beside_others.Budget(options.repeats, options.seconds, (options.slice or 20.0) / 1e3)
    rows = beside_others.run(chosen, budget)
    if options.json:
        content = {"options": vars(options), "machine": gr.show_config(mode="dict"), beside_others.NAME: rows}
        report.write_json(options.json, content)
        print(f"wrote {options.json}")
    return 0


def _restart(arguments: list[str], variables: dict[str, str]) -> None:
    """Run this command again with variables that libraries read while they are imported."""
    sys.stdout.flush()
    command = [sys.executable, "-m", "gatedrnn.bench", *arguments]
    os.execve(sys.executable, command, os.environ | variables)


def _pin(count: int) -> tuple[int, ...]:
    """Keep the process, and every pool started from now on, on `count` CPUs, different cores if possible."""
    if not hasattr(os, "sched_setaffinity"):
        return ()
    allowed = sorted(os.sched_getaffinity(0))
    firsts: dict[str, int] = {}
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        firsts.setdefault(siblings.read_text().strip() if siblings.exists() else str(cpu), cpu)
    cores = list(firsts.values())
    chosen = (cores + [cpu for cpu in allowed if cpu not in cores])[:count]
    if len(chosen) < count:
        print(f"note: {count} threads on {len(chosen)} CPUs", file=sys.stderr)
    os.sched_setaffinity(0, chosen)
    return tuple(chosen)


# ----------------------------------------------------------------------------------------------------
class Benchmark:
    """One run of the command."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Import the peers and measure the machine."""
        self.options = options
        self.threads: int = options.threads
        self.dtype = np.dtype(options.dtype)
        self.disagreement = False
        self.absent: dict[str, str] = {}
        needs_peers = any(name in shapes.SETS for name in options.set)
        self.peers = self._load_peers() if needs_peers else []
        self.roofline = roofline.measure(self.dtype, self.threads)
        self.write = print
        gap = options.gap if options.gap is not None else (30.0 if self.threads > 1 else 0.0)
        self.interleave = functools.partial(
            interleave,
            rounds=options.repeats,
            seconds=options.seconds,
            slice_seconds=(options.slice or 2.0) / 1e3,
        )
        self.gap_seconds = max(gap, 0.0) / 1e3

    def run(self) -> int:
        """Everything that was asked for; returns the exit status."""
        content = self._heading()
        content["sets"] = [self._set(name) for name in self.options.set if name in shapes.SETS]
        rows = [row for part in content["sets"] for row in part.pop("_rows")]
        content["self"] = [self._measure(measure) for measure in against_self.select(self.options.set)]
        content["self"] = [measure for measure in content["self"] if measure]
        if self.options.json:
            report.write_json(self.options.json, content)
            self.write(f"wrote {self.options.json}")
        if self.options.plot:
            self._plot(rows)
        return int(self.disagreement)

    def _load_peers(self) -> list[Peer]:
        wanted = self.options.peers
        found = []
        for key, peer in PEERS.items():
            if wanted is not None and key not in wanted:
                self.absent[peer.name] = "left out (--peers)"
            elif self.options.train and not peer.trains:
                self.absent[peer.name] = "does not train"
            elif missing := peer.missing():
                self.absent[peer.name] = f"not installed (needs {', '.join(missing)})"
            else:
                try:
                    found.append(peer(self.threads))
                except Exception as error:  # a broken installation must not hide the others
                    self.absent[peer.name] = f"installed, but does not start: {_sentence(error)}"
        return found

    def _heading(self) -> dict[str, Any]:
        machine = _core.machine()
        versions = {peer.name: peer.version() for peer in self.peers}
        count = f"{self.threads} thread" + "s" * (self.threads > 1)
        self.write(
            f"gatedrnn {gr.__version__}, {machine['isa']}, {self.options.dtype}, {count}, on {machine['cpu']}"
        )
        self.write(f"{self.roofline}")
        for name, version in versions.items():
            self.write(f"{name} {version}")
        for name, reason in self.absent.items():
            self.write(f"{name}: {reason}")
        if self.options.isa:
            held = [peer.name for peer in self.peers if peer.held]
            self.write(f"held to {self.options.isa}: gatedrnn, {', '.join(held)}")
            if not all(self._held(peer) for peer in self.peers):
                self.write("* uses what the machine has, and does not count as the fastest peer")
        return {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "options": vars(self.options),
            "machine": gr.show_config(mode="dict"),
            "roofline": self.roofline.as_dict(),
            "peers": versions,
            "absent": self.absent,
            "environment": {key: os.environ.get(key) for key in _ISA_VARIABLES["avx2"]},
        }

    # -- one set ------------------------------------------------------------
    def _set(self, name: str) -> dict[str, Any]:
        chosen = shapes.select(name, self.options.cells, self.options.only, train=self.options.train)
        columns = self._columns(name)
        rows = []
        self.write(f"\n{name}" + (", forward and backward" if self.options.train else ""))
        self.write(report.header(columns))
        for shape in self._progress(chosen, name):
            row = self._row(name, shape)
            rows.append(row)
            self.write(report.line(row, columns))
        result = report.summary(rows, columns)
        self.write(f"\n{report.summary_text(result)}")
        if reasons := report.details(rows):
            self.write(reasons)
        return {"set": name, "summary": result, "rows": [row.as_dict() for row in rows], "_rows": rows}

    def _columns(self, set_name: str) -> list[str]:
        names = []
        for peer in self.peers:
            names.append(peer.name)
            if set_name == "ragged" and peer.name == "PyTorch" and not self.options.train:
                names.append("PyTorch packed")
        return ([f"{Ours.name} m(x)"] if set_name == "streaming" else []) + names

    def _progress(self, items: Sequence[Any], title: str) -> Iterator[Any]:
        if importlib.util.find_spec("tqdm") is None:
            yield from items
            return
        tqdm = importlib.import_module("tqdm").tqdm
        tqdm.monitor_interval = 0  # no thread of its own beside what is being timed
        with contextlib.ExitStack() as stack:
            bar = stack.enter_context(
                tqdm(items, desc=title, unit="shape", leave=False, disable=None, file=sys.stderr)
            )
            if not bar.disable:
                stack.callback(setattr, self, "write", self.write)
                self.write = tqdm.write
            yield from bar

    # -- one shape ------------------------------------------------------------
    def _row(self, set_name: str, shape: Shape) -> Row:
        row = Row(set_name, shape, self.roofline.limit_seconds(shape))
        budget = self.options.max_seconds_per_shape
        # Everybody runs once for the check and in each of the fewest rounds; nobody is faster than the limit.
        least = row.limit_seconds * (1 + MIN_ROUNDS) * (1 + len(self.peers))
        if least > budget:
            row.skipped = f"needs at least {least:.0f} s (--max-seconds-per-shape)"
            return row
        problem = shapes.problem(shape, self.dtype)
        contenders = Ours.contenders(problem)
        row.entries = [Entry(contender.name, is_peer=False, note=contender.note) for contender in contenders]
        for peer in self.peers:
            added, entries = self._prepare(peer, problem)
            contenders += added
            row.entries += entries
        contenders, estimates = self._checked(problem, contenders, row)
        fewest = sum(estimates) * MIN_ROUNDS
        if fewest > budget:
            row.skipped = f"its fewest rounds take {fewest:.0f} s (--max-seconds-per-shape)"
            return row
        measurement = self.interleave(contenders, estimates=estimates, gap_seconds=self.gap_seconds)
        for entry in row.entries:
            if entry.name in measurement.seconds:
                entry.rounds = measurement.seconds[entry.name]
                entry.seconds = measurement.median(entry.name)
                entry.ratio = measurement.ratio(entry.name, Ours.name)
        return row

    def _held(self, peer: Peer) -> bool:
        wider = _core.machine()["available"][-1] != _core.machine()["isa"]
        return peer.held or not (self.options.isa and wider)

    def _prepare(self, peer: Peer, problem: Problem) -> tuple[list[Contender], list[Entry]]:
        try:
            contenders = peer.contenders(problem)
        except UnsupportedError as error:
            return [], [Entry(peer.name, problem="none", detail=str(error))]
        except Exception as error:  # a peer's failure is a result, not the end of the benchmark
            return [], [Entry(peer.name, problem="fails", detail=_sentence(error))]
        held = self._held(peer)
        return contenders, [Entry(c.name, note=c.note, is_peer=c.is_peer, held=held) for c in contenders]

    def _checked(
        self, problem: Problem, contenders: list[Contender], row: Row
    ) -> tuple[list[Contender], list[float]]:
        """Those whose numbers agree with ours, and their rough times; the other entries say what is wrong."""
        entries = {entry.name: entry for entry in row.entries}
        expected = self._outcome(problem, contenders[0])
        agreeing, estimates = [], []
        for contender in contenders:
            entry = entries[contender.name]
            try:
                if contender is not contenders[0] and not self.options.no_check:
                    self._compare(problem, expected, self._outcome(problem, contender), entry)
                if not entry.problem:
                    estimates.append(estimate(contender))
                    agreeing.append(contender)
            except Exception as error:
                if contender is contenders[0]:
                    raise
                entry.problem, entry.detail = "fails", _sentence(error)
        return agreeing, estimates

    def _outcome(self, problem: Problem, contender: Contender) -> list[Any]:
        if self.options.no_check:
            return []
        contender.reset()
        with contender.session():
            result = contender.run()
            for _ in range(_CHECKED_STEPS - 1 if problem.shape.stream else 0):
                result = contender.run()
            return [np.array(array) for array in contender.arrays(result)]

    def _compare(
        self, problem: Problem, expected: Sequence[Any], actual: Sequence[Any], entry: Entry
    ) -> None:
        allowed = problem.tolerance(_CHECKED_STEPS if problem.shape.stream else problem.shape.T)
        kinds = ["output", "state h", "state c"]
        if problem.shape.train:
            kinds = ["output", "gradient of x", *(f"gradient of {name}" for name in problem.weights)]
        for kind, want, got in zip(kinds, expected, actual, strict=False):
            if want.shape != got.shape:
                entry.detail = f"{kind} has shape {got.shape}, ours {want.shape}"
            else:
                error = float(np.abs(want - got).max(initial=0.0))
                if not error <= allowed * max(1.0, float(np.abs(want).max(initial=0.0))):
                    entry.detail = f"{kind} differs from ours by {error:.2g}, rounding explains {allowed:.2g}"
            if entry.detail:
                entry.problem = "disagrees"
                self.disagreement = True
                return

    # -- ourselves against ourselves ------------------------------------------------------------
    def _measure(self, measure: against_self.Measure) -> dict[str, Any]:
        chosen = against_self.pairs(measure, self.threads, self.options.only)
        if not chosen:
            return {}
        if measure.needs and importlib.util.find_spec(measure.needs) is None:
            self.write(f"\n{measure.name}: left out, {measure.needs} is not installed")
            return {}
        self.write(f"\n{measure.name}: {measure.title}\n{'':30} {'us':>10} {'base us':>10} {'ratio':>8}")
        rows = []
        for pair in self._progress(chosen, measure.name):
            timed = self.interleave(pair.build(), gap_seconds=0.0)
            row = {
                "label": pair.label,
                "measured_seconds": timed.median(against_self.MEASURED),
                "base_seconds": timed.median(against_self.BASE),
                "scale": pair.scale,
                "ratio": timed.ratio(against_self.MEASURED, against_self.BASE) / pair.scale,
                "rounds": timed.seconds,
            }
            rows.append(row)
            self.write(report.self_line(row))
        result = against_self.as_dict(measure, self.threads, rows)
        self.write(report.self_summary(result))
        return result

    def _plot(self, rows: Sequence[Row]) -> None:
        machine = _core.machine()
        count = f"{self.threads} thread" + "s" * (self.threads > 1)
        title = (
            f"gatedrnn beside its peers: {machine['cpu']}, {machine['isa']}, {self.options.dtype}, {count}"
        )
        report.plot(self.options.plot, rows, title)
        self.write(f"wrote {self.options.plot}")


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
