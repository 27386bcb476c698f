"""The commands ``gatedrnn inspect`` and ``gatedrnn convert``."""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from typing import TYPE_CHECKING, Any

from gatedrnn.convert._any_file import modules_in

if TYPE_CHECKING:
    from collections.abc import Sequence

MODEL_FILES = "an ONNX, Keras (.keras, .h5), safetensors or PyTorch (.pt, .pth, .bin) file"


def inspect(arguments: Sequence[str]) -> int:
    """List the recurrent layers of a file; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="gatedrnn inspect",
        description="List a file's recurrent layers, and what gatedrnn makes of them.",
    )
    parser.add_argument("file", help=MODEL_FILES)
    options = parser.parse_args(arguments)
    modules = read_modules(parser, options.file)
    rows = [(name or "-", repr(module), f"{_parameters(module):,}") for name, module in modules.items()]
    head = ("name", "module", "parameters")
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(3)]
    for name, module, count in (head, *rows):
        print(f"{name:{widths[0]}}  {module:{widths[1]}}  {count:>{widths[2]}}")
    return 0


def convert(arguments: Sequence[str]) -> int:
    """Save a file's recurrent layer as a module of ours; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="gatedrnn convert", description="Save a file's recurrent layer for gatedrnn.load."
    )
    parser.add_argument("file", help=MODEL_FILES)
    parser.add_argument("out", help="the safetensors file to write")
    parser.add_argument(
        "--name", help="of the layer, as 'gatedrnn inspect' lists them; needed if there are several"
    )
    options = parser.parse_args(arguments)
    modules = read_modules(parser, options.file)
    name = next(iter(modules)) if options.name is None and len(modules) == 1 else options.name
    if name not in modules:
        names = ", ".join(map(repr, modules))
        _fail(parser, f"--name: expected one of {names}, got {name!r}")
    module = modules[name]
    if not hasattr(module, "save"):
        _fail(parser, f"{name}: a {type(module).__name__}, which takes one step, has no file of its own")
    try:
        module.save(options.out)
    except OSError as error:
        _fail(parser, str(error))
    print(f"{options.out}: {module!r}")
    return 0


def read_modules(parser: argparse.ArgumentParser, path: str) -> dict[str, Any]:
    """Return the modules of a file by name, or end with one line and status 2."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            modules = modules_in(path)
    except (ValueError, OSError, ImportError) as error:
        _fail(parser, str(error))
    for warning in caught:
        print(f"{parser.prog}: warning: {warning.message}", file=sys.stderr)
    if not modules:
        _fail(parser, f"{path}: expected recurrent layers, got none")
    return modules


def _fail(parser: argparse.ArgumentParser, message: str) -> Any:
    """Print one line, and end with status 2."""
    print(f"{parser.prog}: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def _parameters(module: Any) -> int:
    return sum(math.prod(value.shape) for value in module.state_dict().values())
