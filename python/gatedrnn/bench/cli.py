"""The command: its options, and what has to be decided before libraries are imported."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import gatedrnn as gr
from gatedrnn._optional import installed
from gatedrnn.bench import beside_others, shapes
from gatedrnn.bench.benchmark import ISA_VARIABLES, Benchmark
from gatedrnn.bench.layers import Layers
from gatedrnn.bench.options import add_timing, check_files, names, positive, sizes
from gatedrnn.bench.peers import PEERS
from gatedrnn.bench.placement import placement
from gatedrnn.bench.shapes import Shape, matches
from gatedrnn.convert.cli import MODEL_FILES, read_modules


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        argv: The arguments after ``gatedrnn bench``; None: those of the process.

    Returns:
        0; 1 where a peer's numbers disagree with ours.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if (rest := _after_set(arguments, "beside-others")) is not None:
        return beside_others.main(rest)
    parser = _parser()
    options = parser.parse_args(arguments)
    _check(parser, options)
    layers = None if options.file is None else Layers(read_modules(parser, options.file))
    chosen = _chosen(parser, options, layers)
    if options.list:
        print(*(f"{name}: {shape.label}" for name, group in chosen.items() for shape in group), sep="\n")
        return 0
    variables = ISA_VARIABLES[options.isa] if options.isa else {}
    if any(os.environ.get(key) != value for key, value in variables.items()):
        _restart(arguments, variables)
    if not options.no_pin:
        placement.pin(options.threads)
    with gr.num_threads(options.threads):
        status = Benchmark(options, chosen, layers.weights if layers else {}).run()
    for name, reason in layers.left.items() if layers else ():
        print(f"{name}: left out, {reason}")
    return status


def _after_set(arguments: list[str], name: str) -> list[str] | None:
    """Return the other arguments where these choose the set of this name."""
    for i, argument in enumerate(arguments):
        if argument == f"--set={name}":
            return arguments[:i] + arguments[i + 1 :]
        if argument == "--set" and arguments[i + 1 : i + 2] == [name]:
            return arguments[:i] + arguments[i + 2 :]
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gatedrnn bench",
        description="Time gatedrnn and every installed peer in one process, after checking that they agree.",
        epilog="Ratios are medians over rounds in which everybody runs for a short slice in rotating order.",
    )
    add = parser.add_argument
    add("file", nargs="?", metavar="FILE", help=f"time the recurrent layers of a model: {MODEL_FILES}")
    default = "(default: %(default)s)"
    rows = f"rows at a time of a FILE's layers, comma-separated {default}"
    add("--batch", type=sizes, default="1,32", metavar="NUMBERS", help=rows)
    steps = f"steps of a FILE's layers, comma-separated; 1: a stream's {default}"
    add("--steps", type=sizes, default="1,100", metavar="NUMBERS", help=steps)
    sets = "named set of shapes; may be repeated (default: grid, with --precision precision); "
    sets += "beside-others has options of its own"
    add("--set", action="append", choices=list(shapes.SETS), help=sets)
    cells, peers = ", ".join(shapes.CELLS), ", ".join(PEERS)
    add("--cells", type=names(shapes.CELLS), metavar="NAMES", help=f"comma-separated, of {cells}")
    add("--train", action="store_true", help="time forward and backward with all gradients, beside PyTorch")
    add("--threads", type=positive(int), default=1, metavar="N", help="threads for everybody (default: 1)")
    some = f"comma-separated, of {peers}, or none (default: all that are installed)"
    add("--peers", type=names(tuple(PEERS), empty="none"), metavar="NAMES", help=some)
    dtypes = ("float32", "float64")
    add("--dtype", choices=dtypes, default="float32", help="float64: only PyTorch has it too")
    lower = "compute in it, everybody as they can, beside our float32; print errors against float64"
    add("--precision", choices=shapes.PRECISIONS, help=lower)
    held = "hold gatedrnn, and the peers that can be, to this instruction set"
    add("--isa", choices=tuple(ISA_VARIABLES), help=held)
    add_timing(parser, slice_milliseconds=2)
    most = "skip shapes, with a line that says so, whose fewest rounds would take longer (default: 60)"
    add("--max-seconds-per-shape", type=positive(float), default=60.0, metavar="S", help=most)
    pause = "pause before each turn (default: 0; 60 ms with threads, which spin on)"
    add("--gap", type=float, metavar="MS", help=pause)
    add("--no-check", action="store_true", help="do not compare the outputs before timing")
    add("--no-pin", action="store_true", help="leave the process and its threads on all CPUs")
    add("--plot", type=Path, metavar="FILE.png", help="draw the ratios (needs matplotlib)")
    return parser


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with an error where options do not go together."""
    check_files(parser, [options.json, options.plot])
    if options.plot and not installed("matplotlib"):
        parser.error("--plot needs matplotlib, which is not installed")
    if options.file is not None and options.set:
        parser.error("--set and FILE do not go together")
    options.set = list(dict.fromkeys(options.set or ["precision" if options.precision else "grid"]))
    unknown = [name for name in options.set if name not in shapes.TRAINING_SETS]
    if options.train and unknown and options.file is None:
        parser.error(f"--train has the sets {', '.join(shapes.TRAINING_SETS)}, not {', '.join(unknown)}")
    if options.precision and options.dtype != "float32":
        parser.error(f"--precision {options.precision} does not go with --dtype {options.dtype}")
    if options.precision == "int8" and options.train:
        parser.error("--precision int8 is for inference, --train for bfloat16 and bfloat16x3")


def _chosen(
    parser: argparse.ArgumentParser, options: argparse.Namespace, layers: Layers | None
) -> dict[str, list[Shape]]:
    """Return the shapes that the options choose, by set; end with an error where there are none."""
    if layers is not None:
        name = os.path.basename(options.file)
        found = layers.shapes(options.batch, [T for T in options.steps if T > 1 or not options.train])
        chosen = {name: [replace(s, train=options.train) for s in found if matches(s.label, options.only)]}
        if not layers.weights:
            reasons = "; ".join(f"{layer}: {reason}" for layer, reason in layers.left.items())
            parser.error(f"{options.file}: no layer can be timed beside others: {reasons}")
    else:
        chosen = {
            name: shapes.select(name, options.cells, options.only, train=options.train)
            for name in options.set
        }
    if not any(chosen.values()):
        where = options.file or f"--set {' --set '.join(chosen)}"
        parser.error(f"--only: no label of {where} contains {options.only}; see --list")
    return {name: group for name, group in chosen.items() if group}


def _restart(arguments: list[str], variables: dict[str, str]) -> None:
    """Run this command again with variables that libraries read while they are imported."""
    sys.stdout.flush()
    command = [sys.executable, "-m", "gatedrnn.bench", *arguments]
    os.execve(sys.executable, command, os.environ | variables)
