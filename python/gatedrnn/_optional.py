"""Packages that are used where they are installed."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

_T = TypeVar("_T")


def installed(module: str) -> bool:
    """Tell whether a top-level module can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def required(module: str, what: str) -> Any:
    """Import a package that `what` needs and we do not.

    Raises:
        ImportError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ImportError(f"{what} needs the package {module}: pip install {module}") from error


def progress(items: Iterable[_T], **options: Any) -> Iterable[_T]:
    """Draw a bar beside the items, with tqdm where standard error is a terminal."""
    if not installed("tqdm"):
        return items
    tqdm: Any = importlib.import_module("tqdm").tqdm
    shown: Iterable[_T] = tqdm(items, leave=False, disable=None, **options)  # None: unless it is no terminal
    return shown
