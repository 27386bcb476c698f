"""The command ``gatedrnn``."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

import gatedrnn as gr

_COMMANDS = {
    "demo": "pronounce words with a real pretrained GRU model; train a language model",
    "bench": "time gatedrnn and its peers side by side",
    "inspect": "list the recurrent layers of a model's file",
    "convert": "save one of them for gatedrnn.load",
    "config": "print version, instruction sets, threads and caches",
}


_PLACES = {"inspect": "convert.cli:inspect", "convert": "convert.cli:convert"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments after ``gatedrnn``; None for those of the process.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = _parser().parse_args(arguments[:1]).command
    rest = arguments[1:]
    if command == "config":
        return _config(rest)
    # Only now: they need packages that gatedrnn itself does not.
    module, function = _PLACES.get(command, f"{command}:main").split(":")
    run = getattr(importlib.import_module(f"gatedrnn.{module}"), function)
    try:
        status: int = run(rest)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return status


def _parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:8} {text}" for name, text in _COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="gatedrnn",
        usage="gatedrnn [-h] [--version] {" + ",".join(_COMMANDS) + "} ...",
        description="Recurrent networks on the CPU.",
        epilog=f"commands:\n{commands}\n\n'gatedrnn COMMAND --help' explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gatedrnn {gr.__version__}")
    parser.add_argument("command", choices=_COMMANDS, metavar="COMMAND", help="what to do")
    return parser


def _config(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="gatedrnn config", description=f"To {_COMMANDS['config']}.")
    parser.parse_args(arguments)
    gr.show_config()
    return 0
