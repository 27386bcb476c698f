"""``gatedrnn demo``: a real pretrained model, compared with its own code; and one trained here and now."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import gatedrnn as gr
from gatedrnn.demo import baseline, language_model
from gatedrnn.demo._compare import Engine, Run, differences, installed, num_threads, one_blas_thread, run
from gatedrnn.demo.g2p import ModelNotInstalledError, Pronouncer, find_package, load_weights
from gatedrnn.demo.words import check_word, documentation_words

__all__ = ["main"]

_SHOWN_WORDS = 12
_SHOWN_DIFFERENCES = 10
_REFERENCE_SECONDS = 20.0
_MAX_BATCH_SIZE = 4096
_MAX_HIDDEN_SIZE = 4096
_PRONOUNCING = ("count", "batch_size")
_TRAINING = ("text", "cell", "hidden", "seconds", "epochs", "out")
_TRAINING_SECONDS = 30.0


def main(argv: Sequence[str] | None = None) -> int:
    """Pronounce words and print a comparison; train a language model and let it write.

    Args:
        argv: The arguments after ``gatedrnn demo``; None: those of the process.

    Returns:
        0, or 1 where the extra is missing, any phoneme differs from those of g2p_en's own code, or the text
        to train on cannot be read.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    training = not options.words if options.train is None else options.train
    if options.train and options.words:
        parser.error(f"words: expected none with --train, got {' '.join(options.words)}")
    if not training:
        _refuse(parser, options, _TRAINING, "where nothing is trained")
    if options.train:
        _refuse(parser, options, _PRONOUNCING, "with --train")
    status = 0 if options.train else _pronounce(options)
    if status == 0 and training:
        status = _train(options)
    return status


def _refuse(
    parser: argparse.ArgumentParser, options: argparse.Namespace, names: Sequence[str], where: str
) -> None:
    """End with an error if one of these options was given."""
    for name in names:
        if getattr(options, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')}: expected none {where}")


def _pronounce(options: argparse.Namespace) -> int:
    try:
        package = find_package()
    except ModelNotInstalledError as error:
        print(f"gatedrnn demo: {error}; 'gatedrnn demo --train' needs no model", file=sys.stderr)
        return 1
    words = list(dict.fromkeys(options.words)) or documentation_words(options.count)
    engines = _engines(package, options.batch_size)
    default_threads, threads = gr.get_num_threads(), options.threads or 1

    print("letters -> encoder GRU -> decoder GRU -> phonemes, with the pretrained weights of g2p_en\n")
    with num_threads(threads):
        runs = [run(engine, words, show_progress=not options.quiet) for engine in engines]
    _print_words(runs[0], len(words) if options.words else _SHOWN_WORDS)
    source = "" if options.words else " of Python's own documentation (pydoc_data.topics)"
    print(f"\n{len(words)} distinct words{source}, batches of {options.batch_size}")
    _print_times(runs, f"{threads} thread{'s' * (threads > 1)}")
    if default_threads != threads:
        default_runs = [run(engine, words, show_progress=not options.quiet) for engine in engines]
        _print_times(default_runs, f"default threads (gatedrnn: {default_threads})")
    _print_notes(runs, threads)
    return _print_comparison(runs)


def _train(options: argparse.Namespace) -> int:
    budget = language_model.Budget(options.seconds, options.epochs)
    task = language_model.Task(
        options.text, options.out, options.cell, options.hidden, budget, quiet=options.quiet
    )
    if not options.train:
        print()
    try:
        # NumPy's own threads would go on spinning between its products, on the cores that the engine needs.
        with gr.num_threads(options.threads or gr.get_num_threads()), one_blas_thread():
            language_model.run(task)
    except (OSError, ValueError) as error:
        print(f"gatedrnn demo: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gatedrnn demo",
        description="Pronounce English words with a real pretrained GRU model, and compare speed and "
        'phonemes with its own code (needs the extra: pip install ".[demo]" in the source folder of '
        "gatedrnn). Without words, train a "
        "character language model as well, save it, load it and let it write.",
    )
    add = parser.add_argument
    add(
        "words",
        nargs="*",
        type=_word,
        help="words of letters a-z, only to pronounce (default: words of Python's own documentation)",
    )
    add(
        "--train",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="only train, which needs no extra; or only pronounce (default: both)",
    )
    add(
        "--threads",
        type=_integer(1, os.cpu_count() or 1),
        help="threads (default: 1 to pronounce, where the default number is timed as well; all to train)",
    )
    add("--quiet", action="store_true", help="no progress bar, no lines of progress")
    _add_pronouncing(parser.add_argument_group("to pronounce").add_argument)
    _add_training(parser.add_argument_group("to train").add_argument)
    return parser


def _add_pronouncing(add: Callable[..., object]) -> None:
    add(
        "--count", type=_integer(1), default=3000, help="so many default words at most (default: %(default)s)"
    )
    add(
        "--batch-size",
        type=_integer(1, _MAX_BATCH_SIZE),
        default=256,
        help="words at once (default: %(default)s)",
    )


def _add_training(add: Callable[..., object]) -> None:
    add(
        "--text",
        type=Path,
        metavar="FILE",
        help="text in UTF-8, what is none of it being U+FFFD (default: Python's own documentation)",
    )
    add(
        "--cell",
        choices=language_model.CELLS,
        default="lstm",
        help="recurrent layer (default: %(default)s)",
    )
    add(
        "--hidden",
        type=_integer(1, _MAX_HIDDEN_SIZE),
        default=256,
        metavar="UNITS",
        help="hidden units (default: %(default)s)",
    )
    add(
        "--seconds",
        type=_seconds,
        default=_TRAINING_SECONDS,
        help="how long to train (default: %(default)g)",
    )
    add("--epochs", type=_integer(1), help="how often to go through the text, instead of --seconds")
    add(
        "--out",
        type=Path,
        default=Path("gatedrnn-demo"),
        metavar="FOLDER",
        help="for model, sample and loss curve (default: %(default)s)",
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text!r}")
    return value


def _word(text: str) -> str:
    try:
        return check_word(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _integer(low: int, high: int | None = None) -> Callable[[str], int]:
    wanted = f"an integer of at least {low}" if high is None else f"an integer in {low}..{high}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
        return value

    return parse


def _engines(package: Path, batch_size: int) -> list[Engine]:
    """List what to time: ours first, the reference last."""
    weights = load_weights(package)
    pronounce = Pronouncer(weights)
    engines = [
        Engine(f"gatedrnn {gr.__version__}", pronounce, batch_size),
        Engine("gatedrnn, one word at a time", pronounce, 1),
    ]
    if installed("torch"):
        torch_pronounce = baseline.torch_pronouncer(weights)
        engines.append(Engine(f"PyTorch {_version('torch')} nn.GRU", torch_pronounce, batch_size))
    predict = baseline.load_reference(package).predict
    name = f"g2p_en {_version('g2p_en')}'s own NumPy code"
    engines.append(Engine(name, lambda words: [predict(word) for word in words], 1, _REFERENCE_SECONDS))
    return engines


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "(unknown release)"


def _print_words(ours: Run, count: int) -> None:
    """Print `count` words, evenly spaced among all, with their phonemes."""
    words = list(ours.phonemes)
    shown = words[:: -(-len(words) // count)]
    width = max(map(len, shown))
    for word in shown:
        print(f"  {word:{width}}  {' '.join(ours.phonemes[word])}")


def _print_times(runs: Sequence[Run], threads: str) -> None:
    width = max(len(each.engine.name) for each in runs)
    print(f"\n  {threads:{width}}  {'words':>6}  {'seconds':>8}  {'words/s':>8}  gatedrnn's rate / this")
    for each in runs:
        ratio = "" if each is runs[0] else f"{runs[0].rate / each.rate:.1f}"
        numbers = f"{len(each.phonemes):6}  {each.seconds:8.3f}  {each.rate:8.0f}  {ratio:>21}"
        print(f"  {each.engine.name:{width}}  {numbers}".rstrip())


def _print_notes(runs: Sequence[Run], threads: int) -> None:
    called = ", ".join(
        name for name in baseline.REFERENCE_METHODS if name not in {"predict", "load_variables"}
    )
    print(
        "\nImporting g2p_en would start a download, so what is timed as its own code is predict() of its"
        f"\nclass G2p with the methods that it calls ({called}), unchanged,"
        "\ncompiled from the installed g2p.py. It takes one word at a time."
    )
    if len(runs[-1].phonemes) < len(runs[0].phonemes):
        print(f"It got evenly spaced words instead of all, to stay near {_REFERENCE_SECONDS:.0f} seconds.")
    if not installed("threadpoolctl"):
        print(
            f"NumPy's matrix products (g2p_en's, and our output layer) were not held to --threads {threads}:"
        )
        print("that needs the package threadpoolctl.")


def _print_comparison(runs: Sequence[Run]) -> int:
    """Print how many words the others pronounce like us; return 1 where g2p_en's own code differs, else 0."""
    print()
    different: list[str] = []
    for other in runs[1:]:
        different = differences(runs[0], other)
        total = len(other.phonemes)
        print(f"phonemes equal to {other.engine.name}: {total - len(different)} of {total} words")
        for word in different[:_SHOWN_DIFFERENCES]:
            print(f"  {word}: {' '.join(runs[0].phonemes[word])} | theirs: {' '.join(other.phonemes[word])}")
        if len(different) > _SHOWN_DIFFERENCES:
            print(f"  and {len(different) - _SHOWN_DIFFERENCES} more")
    return 1 if different else 0
