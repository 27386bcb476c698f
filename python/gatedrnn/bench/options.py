"""Options that benchmarks have in common, and checks of what is given for them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def add_timing(parser: argparse.ArgumentParser, slice_milliseconds: float) -> None:
    """Add what decides how long it takes, and which rows are measured at all."""
    add = parser.add_argument
    add("--only", action="append", default=[], metavar="TEXT", help='only labels that contain this ("T=1 ")')
    add("--list", action="store_true", help="list the labels and do nothing")
    add("--repeats", type=positive(int), default=21, metavar="N", help="rounds per row (default: 21)")
    kind, most = positive(float), "no new round after this long (default: 4)"
    add("--seconds", type=kind, default=4.0, metavar="S", help=most)
    turn = f"a turn in a round (default: {slice_milliseconds:g} ms)"
    add("--slice", type=kind, default=slice_milliseconds, metavar="MS", help=turn)
    add("--json", type=Path, metavar="FILE", help="write everything measured")


def check_files(parser: argparse.ArgumentParser, files: Sequence[Path | None]) -> None:
    """Say now, and not after an hour of timing, that a result cannot be written."""
    for file in files:
        if file is not None and not file.absolute().parent.is_dir():
            parser.error(f"{file}: there is no such directory")


def names(known: Sequence[str], empty: str = "") -> Callable[[str], list[str]]:
    """Make a parser of comma-separated names; `empty` is the word for none of them."""

    def parse(text: str) -> list[str]:
        if empty and text == empty:
            return []
        chosen = [name.strip() for name in text.split(",")]
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return list(dict.fromkeys(chosen))

    return parse


def positive(kind: type[int] | type[float]) -> Callable[[str], Any]:
    """Make a parser of numbers above 0."""

    def number(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not positive")
        return value

    return number


def sizes(text: str) -> list[int]:
    """Parse comma-separated numbers above 0."""
    return [positive(int)(part) for part in text.split(",")]
