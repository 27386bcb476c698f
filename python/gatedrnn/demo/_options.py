"""The options of ``gatedrnn demo``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from gatedrnn.demo import language_model
from gatedrnn.demo.words import check_word

_PRONOUNCING = ("count", "batch_size")
_TRAINING = ("text", "cell", "hidden", "seconds", "epochs", "out")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments after the command's name; end with an error where they do not go together."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.train and options.words:
        parser.error(f"words: expected none with --train, got {' '.join(options.words)}")
    if options.words or options.train is False:
        _refuse(parser, options, _TRAINING, "where nothing is trained")
    if options.train:
        _refuse(parser, options, _PRONOUNCING, "with --train")
    return options


def _refuse(
    parser: argparse.ArgumentParser, options: argparse.Namespace, names: Sequence[str], where: str
) -> None:
    """End with an error if one of these options was given."""
    for name in names:
        if getattr(options, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')}: expected none {where}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gatedrnn demo",
        description="Pronounce English words with a real pretrained GRU model, and compare speed and "
        'phonemes with its own code (needs the extra: pip install ".[demo]" in the source folder of '
        "gatedrnn). Without words, train a character language model as well, save it, load it and let it "
        "write.",
    )
    add = parser.add_argument
    words = "words of letters a-z, only to pronounce (default: words of Python's own documentation)"
    add("words", nargs="*", type=_word, help=words)
    train = "only train, which needs no extra; or only pronounce (default: both)"
    add("--train", action=argparse.BooleanOptionalAction, default=None, help=train)
    threads = "(default: 1 to pronounce, where the default number is timed as well; all to train)"
    add("--threads", type=_integer(1, os.cpu_count() or 1), help=f"threads {threads}")
    add("--quiet", action="store_true", help="no progress bar, no lines of progress")

    add = parser.add_argument_group("to pronounce").add_argument
    count = "so many default words at most (default: %(default)s)"
    add("--count", type=_integer(1), default=3000, help=count)
    batch = "words at once (default: %(default)s)"
    add("--batch-size", type=_integer(1, 4096), default=256, help=batch)

    add = parser.add_argument_group("to train").add_argument
    text = "text in UTF-8, what is none of it being U+FFFD (default: Python's own documentation)"
    add("--text", type=Path, metavar="FILE", help=text)
    cells = tuple(language_model.CELLS)
    add("--cell", choices=cells, default="lstm", help="recurrent layer (default: %(default)s)")
    hidden = "hidden units (default: %(default)s)"
    add("--hidden", type=_integer(1, 4096), default=256, metavar="UNITS", help=hidden)
    add("--seconds", type=_seconds, default=30.0, help="how long to train (default: %(default)g)")
    add("--epochs", type=_integer(1), help="how often to go through the text, instead of --seconds")
    out, folder = Path("gatedrnn-demo"), "for model, sample and loss curve (default: %(default)s)"
    add("--out", type=Path, default=out, metavar="FOLDER", help=folder)
    return parser


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
