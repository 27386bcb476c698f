"""Two builds of gatedrnn against each other, such as a wheel's and that of this machine's compiler.

    pip install --no-deps --target /tmp/ours .
    pip install --no-deps --target /tmp/wheel wheelhouse/gatedrnn-*.whl
    python bench/two_builds.py /tmp/wheel /tmp/ours [--train] [--threads 2]

Each build has a process of its own, in which the shapes of the grid wait for their turns. The ratio of
a shape is the median over the rounds of the first build's time divided by the second's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Build:
    """A process that computes with the package in a folder."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(folder)],
            env=os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.description = str(self._answer())

    def prepare(self, label: str, train: bool) -> float:
        """Build the module of a shape; return the seconds per call, roughly."""
        return float(self._ask(label=label, train=train))

    def seconds(self, calls: int) -> float:
        """Time so many calls, and return the seconds of one."""
        return float(self._ask(calls=calls))

    def _ask(self, **question: Any) -> Any:
        assert self._process.stdin
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a build's process has ended")
        return json.loads(line)


def serve(folder: Path) -> None:
    """Answer questions from standard input, one a line."""
    # An editable install has a finder that is asked before the folder is.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
    import numpy as np

    import gatedrnn as gr
    from gatedrnn import _core
    from gatedrnn.bench.peers import Ours
    from gatedrnn.bench.shapes import problem, select
    from gatedrnn.bench.timing import estimate

    if Path(gr.__file__).parent.parent != folder.resolve():
        raise SystemExit(f"{folder}: there is no gatedrnn")
    machine = _core.machine()
    answer: Any = f"{folder}: {machine['compiler']}, {machine['isa']}"
    print(json.dumps(answer), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if "label" in question:
            shapes = select("grid", None, (), train=question["train"])
            (shape,) = (shape for shape in shapes if shape.label == question["label"])
            contender = Ours.contenders(problem(shape, np.float32))[0]
            answer = estimate(contender)
        else:
            contender.run()
            start = time.perf_counter()
            for _ in range(question["calls"]):
                contender.run()
            answer = (time.perf_counter() - start) / question["calls"]
        print(json.dumps(answer), flush=True)


def compare(builds: Sequence[Build], label: str, options: argparse.Namespace) -> float:
    """Time one shape in turns, print and return its ratio."""
    calls = [max(1, round(options.slice / 1e3 / build.prepare(label, options.train))) for build in builds]
    rounds: list[list[float]] = []
    start = time.perf_counter()
    while len(rounds) < 3 or (
        len(rounds) < options.repeats and time.perf_counter() - start < options.seconds
    ):
        first = len(rounds) % 2
        times = {i: builds[i].seconds(calls[i]) for i in (first, 1 - first)}
        rounds.append([times[0], times[1]])
    ratio = statistics.median(ours / base for ours, base in rounds)
    medians = [statistics.median(column) * 1e6 for column in zip(*rounds, strict=True)]
    print(f"{label:28} {medians[0]:>12,.1f} {medians[1]:>12,.1f} {ratio:>8.3f}", flush=True)
    return ratio


def main() -> int:
    """Parse, start both, compare shape by shape."""
    from gatedrnn.bench.options import add_timing, positive
    from gatedrnn.bench.shapes import select

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs=2, type=Path, metavar="FOLDER", help="what pip installed into")
    parser.add_argument("--train", action="store_true", help="forward and backward")
    parser.add_argument("--threads", type=positive(int), default=1, metavar="N", help="default: 1")
    add_timing(parser, slice_milliseconds=5)
    options = parser.parse_args()
    for folder in options.folders:
        if not (folder / "gatedrnn").is_dir():
            parser.error(f"{folder}: there is no gatedrnn in it")
    labels = [shape.label for shape in select("grid", None, options.only, train=options.train)]
    if not labels:
        parser.error(f"--only: no label contains {options.only}")
    if options.list:
        print(*labels, sep="\n")
        return 0
    builds = [Build(folder, options.threads) for folder in options.folders]
    for build in builds:
        print(build.description)
    print(f"{'':28} {'us':>12} {'base us':>12} {'ratio':>8}")
    ratios = [compare(builds, label, options) for label in labels]
    print(f"geometric mean {statistics.geometric_mean(ratios):.3f}, largest {max(ratios):.3f}")
    if options.json:
        options.json.write_text(json.dumps(dict(zip(labels, ratios, strict=True)), indent=1))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]))
    else:
        raise SystemExit(main())
