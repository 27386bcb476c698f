"""One run of the benchmark: the loop over the sets and their shapes."""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import gatedrnn as gr
from gatedrnn import _core
from gatedrnn._optional import installed, progress
from gatedrnn.bench import report, roofline, shapes
from gatedrnn.bench.peers import PEERS, Ours, Peer, UnsupportedError
from gatedrnn.bench.plot import plot
from gatedrnn.bench.report import Entry, Row
from gatedrnn.bench.shapes import Problem, Shape
from gatedrnn.bench.timing import MIN_ROUNDS, Contender, estimate, interleave

# What holds each library to an instruction set. All of them are read once, at import.
ISA_VARIABLES = {
    "avx2": {
        "GATEDRNN_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
}
_CHECKED_STEPS = 3  # of a stream
SPINNING_MS = 60.0  # so long others' threads may spin after a call: those of ONNX Runtime 1.32 do for 50 ms


class Benchmark:
    """One run of the command."""

    def __init__(
        self,
        options: argparse.Namespace,
        chosen: Mapping[str, Sequence[Shape]],
        weights: Mapping[str, dict[str, Any]],
    ) -> None:
        """Import the peers and measure the machine.

        Args:
            options: Those of the command.
            chosen: The shapes of each set.
            weights: Those of a file's layers, by name.
        """
        self.options, self.chosen, self.weights = options, chosen, weights
        self.threads: int = options.threads
        self.dtype = np.dtype(options.dtype)
        self.disagreement = False
        self.absent: dict[str, str] = {}
        self.peers = self._load_peers()
        self.kind: str = options.precision or options.dtype  # of the numbers
        self.roofline = roofline.measure(self.kind, self.threads)
        self.write = print
        if installed("tqdm"):
            tqdm = importlib.import_module("tqdm").tqdm
            tqdm.monitor_interval = 0  # no thread of its own beside what is being timed
            self.write = tqdm.write  # above the bar
        gap = options.gap if options.gap is not None else (SPINNING_MS if self.threads > 1 else 0.0)
        self.interleave = functools.partial(
            interleave,
            rounds=options.repeats,
            seconds=options.seconds,
            slice_seconds=options.slice / 1e3,
        )
        self.gap_seconds = max(gap, 0.0) / 1e3

    def run(self) -> int:
        """Everything that was asked for; returns the exit status."""
        content = self._heading()
        content["sets"] = [self._set(name) for name in self.chosen]
        rows = [row for part in content["sets"] for row in part.pop("_rows")]
        if self.options.json:
            report.write_json(self.options.json, content)
            self.write(f"wrote {self.options.json}")
        if self.options.plot:
            plot(self.options.plot, rows, f"gatedrnn beside its peers: {self._conditions()}")
            self.write(f"wrote {self.options.plot}")
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
        versions = {peer.name: peer.version() for peer in self.peers}
        self.write(f"gatedrnn {gr.__version__}, {self._conditions()}")
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
            "environment": {key: os.environ.get(key) for key in ISA_VARIABLES["avx2"]},
        }

    # -- one set ------------------------------------------------------------
    def _set(self, name: str) -> dict[str, Any]:
        chosen = self.chosen[name]
        columns = self._columns(name, chosen)
        width = max(report.LABEL_WIDTH, *(len(shape.label) for shape in chosen))
        rows = []
        self.write(f"\n{name}" + (", forward and backward" if self.options.train else ""))
        self.write(report.header(columns, width))
        for shape in progress(chosen, desc=name, unit="shape"):
            row = self._row(name, shape)
            rows.append(row)
            self.write(report.line(row, columns, width))
        result = report.summary(rows, columns, limit=math.isfinite(self.roofline.flops))
        self.write(f"\n{report.summary_text(result)}")
        if reasons := report.details(rows):
            self.write(reasons)
        return {"set": name, "summary": result, "rows": [row.as_dict() for row in rows], "_rows": rows}

    def _columns(self, set_name: str, chosen: Sequence[Shape]) -> list[str]:
        names = []
        for peer in self.peers:
            names.append(peer.name)
            if set_name == "ragged" and peer.name == "PyTorch" and not self.options.train:
                names.append("PyTorch packed")
        ours = [f"{Ours.name} m(x)"] if any(shape.stream for shape in chosen) else []
        return ours + ([Ours.name_in_float32] if self.options.precision else []) + names

    # -- one shape ------------------------------------------------------------
    def _row(self, set_name: str, shape: Shape) -> Row:
        row = Row(set_name, shape, self.roofline.limit_seconds(shape))
        budget = self.options.max_seconds_per_shape
        # Everybody runs once for the check and in each of the fewest rounds; nobody is faster than the limit.
        least = row.limit_seconds * (1 + MIN_ROUNDS) * (1 + len(self.peers))
        if least > budget:
            row.skipped = f"needs at least {least:.0f} s (--max-seconds-per-shape)"
            return row
        weights = self.weights.get(shape.layer)
        problem = shapes.problem(shape, self.dtype, precision=self.options.precision, weights=weights)
        if weights is not None:
            problem = replace(problem, measured_error=self._measured_error(problem))
        contenders = Ours.contenders(problem)
        row.entries = [Entry(contender.name, is_peer=False, note=contender.note) for contender in contenders]
        for peer in self.peers:
            added, entries = self._prepare(peer, problem)
            contenders += added
            row.entries += entries
        contenders, estimates = self._checked(problem, contenders, row)
        if row.ours.problem:
            row.skipped = f"ours {row.ours.problem}: {row.ours.detail}"
            return row
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
        """Those whose numbers agree, and their rough times; the other entries say what is wrong.

        They agree with ours; in a lower precision all, also ours, with what we compute in float64.
        """
        entries = {entry.name: entry for entry in row.entries}
        reference = Ours.contenders(problem.in_float64())[0] if problem.precision else contenders[0]
        expected = self._outcome(problem, reference)
        agreeing, estimates = [], []
        for contender in contenders:
            entry = entries[contender.name]
            try:
                if contender is not reference and not self.options.no_check:
                    self._compare(problem, expected, self._outcome(problem, contender), entry)
                if not entry.problem:
                    estimates.append(estimate(contender))
                    agreeing.append(contender)
            except Exception as error:
                if contender is contenders[0]:
                    raise
                entry.problem, entry.detail = "fails", _sentence(error)
        return agreeing, estimates

    def _measured_error(self, problem: Problem) -> float:
        """How far ours are from float64."""
        ours = self._outcome(problem, Ours.contenders(problem)[0])
        exact = self._outcome(problem, Ours.contenders(problem.in_float64())[0])
        pairs = zip(ours, exact, strict=True)
        return max((float(np.abs(a - b).max() / max(1.0, np.abs(b).max())) for a, b in pairs), default=0.0)

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
        whose = "float64" if problem.precision else "ours"
        kinds = ["output", "state h", "state c"]
        if problem.shape.train:
            kinds = ["output", "gradient of x", *(f"gradient of {name}" for name in problem.weights)]
        errors = []
        for kind, want, got in zip(kinds, expected, actual, strict=False):
            if want.shape != got.shape:
                entry.detail = f"{kind} has shape {got.shape}, {whose} {want.shape}"
                break
            # Of numbers that may be above 1, such as gradients, relative to the largest.
            errors.append(np.abs(want - got).ravel() / max(1.0, float(np.abs(want).max(initial=0.0))))
            error = float(errors[-1].max(initial=0.0))
            if not error <= allowed:
                entry.detail = f"{kind} differs from {whose} by {error:.2g}, rounding explains {allowed:.2g}"
                break
        if problem.precision and errors:
            every = np.concatenate(errors)
            entry.error = float(every.max()), float(np.sqrt(np.mean(every**2)))
        if entry.detail:
            entry.problem = "disagrees"
            self.disagreement = True

    def _conditions(self) -> str:
        machine = _core.machine()
        count = f"{self.threads} thread" + "s" * (self.threads > 1)
        return f"{machine['isa']}, {self.kind}, {count}, on {machine['cpu']}"


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
