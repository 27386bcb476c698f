"""Threads, and what this build and machine have."""

from __future__ import annotations

import contextlib
import inspect
import os
import warnings
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Literal, TypeVar, overload

from gatedrnn import _checks, _core, _device

_MAX_THREADS = 1024
_Function = TypeVar("_Function", bound=Callable[..., Any])

# The limits of the blocks around the one that this thread of control is in, from the inside out.
_Blocks = tuple[int, Any]  # the next one out, or None
_outer_blocks: ContextVar[_Blocks | None] = ContextVar("gatedrnn.outer_blocks", default=None)


def set_num_threads(n: int) -> None:
    """Set how many threads a call may use, in the whole process.

    A call uses fewer where that is faster; the results are the same bits for any number. The default respects
    ``OMP_NUM_THREADS``, the process's processor affinity and its control group's quota. Within a block of
    `num_threads` the block's number holds.

    Args:
        n: From 1 to 1024.

    Raises:
        TypeError: `n` is not an integer.
        ValueError: `n` is out of range.
    """
    _core.set_num_threads(_checked_count(n))


def get_num_threads() -> int:
    """Return how many threads a call may use here."""
    return _core.get_num_threads()


class num_threads(contextlib.ContextDecorator):  # noqa: N801 - used like a function
    """A context manager, also usable as a decorator, within which calls may use `n` threads.

    ::

        with gatedrnn.num_threads(1):
            output, state = module(x)

    The number from before comes back at the end, also after an exception. Unlike `set_num_threads` it acts on
    its own thread of control only (contextvars): the thread, or task of asyncio, that enters it, and tasks
    that this one starts. Blocks of others that overlap in time have numbers of their own.

    Args:
        n: From 1 to 1024.

    Raises:
        TypeError: `n` is not an integer.
        ValueError: `n` is out of range.
    """

    def __init__(self, n: int) -> None:
        self._count = _checked_count(n)

    def __call__(self, func: _Function) -> _Function:
        """Decorate a function."""
        if (
            inspect.iscoroutinefunction(func)
            or inspect.isgeneratorfunction(func)
            or inspect.isasyncgenfunction(func)
        ):
            raise TypeError(
                "num_threads: expected a plain function to decorate, got one that is left and entered"
            )
        return super().__call__(func)

    def __enter__(self) -> None:
        limit = _core.thread_limit()
        _outer_blocks.set((limit.get(0), _outer_blocks.get()))
        limit.set(self._count)

    def __exit__(self, *_: object) -> None:
        blocks = _outer_blocks.get()
        before, outer = blocks if blocks else (0, None)
        _outer_blocks.set(outer)
        _core.thread_limit().set(before)


def _checked_count(n: object) -> int:
    return _checks.integer("n", n, 1, _MAX_THREADS)


@overload
def show_config(mode: Literal["print"] = "print") -> None: ...
@overload
def show_config(mode: Literal["dict"]) -> dict[str, Any]: ...
def show_config(mode: str = "print") -> dict[str, Any] | None:
    """Tell the version, the instruction set in use and those available, threads, caches, build, CUDA devices.

    "processor features" are those by which the instruction set is chosen.

    Args:
        mode: "print" to print it and return None, "dict" to return it. Caches are in bytes. "formats" are
            the ways to compute products, with the instruction set that does.

    Raises:
        TypeError: `mode` is not a string.
        ValueError: `mode` is another string.
    """
    config = _config()
    if _checks.choice("mode", mode, ("print", "dict")) == "dict":
        return config
    width = max(map(len, config))
    for name, value in config.items():
        print(f"{name:{width}}  {_written(value)}")
    return None


def _config() -> dict[str, Any]:
    machine = _core.machine()
    return {
        "version": _core.__version__,
        "processor": machine["cpu"],
        "processor features": list(machine["features"]),
        "isa": machine["isa"],
        "isa available": list(machine["available"]),
        "isa compiled": list(machine["compiled"]),
        "formats": machine["formats"],
        "threads": _core.get_num_threads(),
        "threads from": _core.thread_source(),
        "caches": {"l1": machine["l1"], "l2": machine["l2"], "l3": machine["l3"]},
        "compiler": machine["compiler"],
        "cuda": _device.described(),
    }


def warn_of_baseline() -> None:
    """Warn where the slow kernels run for want of a feature that hardly any processor with AVX2 lacks.

    Hypervisors hide features; nobody would notice but by the time that everything takes.
    """
    asked_for = bool(os.environ.get("GATEDRNN_ISA"))
    if not asked_for and (reason := _reason_for_baseline(_core.machine())):
        warnings.warn(reason, RuntimeWarning, stacklevel=3)


def _reason_for_baseline(machine: Mapping[str, Any]) -> str | None:
    if machine["isa"] != "baseline" or "avx2" not in machine["features"]:
        return None
    if "avx2" in machine["missing"]:
        missing = ", ".join(_FEATURE_DESCRIPTIONS.get(name, name) for name in machine["missing"]["avx2"])
        reason = f"for want of what their code may use: {missing}. A hypervisor or the system may hide that"
    else:
        reason = "since this build has no other ones"
    return (
        "gatedrnn computes with its baseline kernels, several times slower and with other bits than those "
        f"for AVX2, although this processor has AVX2, {reason}. GATEDRNN_ISA=baseline in the environment "
        "says that this is meant"
    )


_FEATURE_DESCRIPTIONS = {"os-ymm": "registers of 32 bytes, saved by the operating system (os-ymm)"}


def _written(value: object) -> str:
    if value is False:
        return "not built"
    if isinstance(value, dict):
        return ", ".join(
            f"{key} {of}" if isinstance(of, str) else f"{key.upper()} {of / 1024:.0f} KiB"
            for key, of in value.items()
        )
    return ", ".join(value) if isinstance(value, list) else str(value)
