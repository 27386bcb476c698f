"""``gatedrnn demo``: a real pretrained model, compared with its own code; and one trained here and now."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path

import gatedrnn as gr
from gatedrnn._optional import installed
from gatedrnn.demo import baseline, language_model
from gatedrnn.demo._compare import Engine, Run, blas_threads, differences, num_threads, run
from gatedrnn.demo._options import parse
from gatedrnn.demo.g2p import ModelNotInstalledError, Pronouncer, find_package, load_weights
from gatedrnn.demo.words import documentation_words

__all__ = ["main"]

_SHOWN_WORDS = 12
_SHOWN_DIFFERENCES = 10
_REFERENCE_SECONDS = 20.0


def main(argv: Sequence[str] | None = None) -> int:
    """Pronounce words and print a comparison; train a language model and let it write.

    Args:
        argv: The arguments after ``gatedrnn demo``; None: those of the process.

    Returns:
        0, or 1 where the extra is missing, any phoneme differs from those of g2p_en's own code, or the text
        to train on cannot be read.
    """
    options = parse(argv)
    training = not options.words if options.train is None else options.train
    status = 0 if options.train else _pronounce(options)
    if status == 0 and training:
        status = _train(options)
    return status


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
        with gr.num_threads(options.threads or gr.get_num_threads()), blas_threads(1):
            language_model.run(task)
    except (OSError, ValueError) as error:
        print(f"gatedrnn demo: {error}", file=sys.stderr)
        return 1
    return 0


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
        products = "NumPy's matrix products (g2p_en's, and our output layer)"
        print(f"{products} were not held to --threads {threads}:\nthat needs the package threadpoolctl.")


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
