"""Run several computations of the same model on the same words, time each, and compare the phonemes."""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gatedrnn as gr
from gatedrnn._optional import installed, progress

_WARM_UP_WORDS = 8


@dataclass(frozen=True)
class Engine:
    """One way to compute the model."""

    name: str
    pronounce: Callable[[Sequence[str]], list[list[str]]]
    batch_size: int
    seconds_at_most: float = float("inf")  # a slower run takes evenly spaced words instead of all


@dataclass(frozen=True)
class Run:
    """What an engine made of the words, and in how many seconds."""

    engine: Engine
    phonemes: dict[str, list[str]]
    seconds: float

    @property
    def rate(self) -> float:
        """Words per second."""
        return len(self.phonemes) / self.seconds


@contextlib.contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Hold gatedrnn, PyTorch and (by threadpoolctl) NumPy's matrix products to `count` threads."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(gr.num_threads(count))
        stack.enter_context(blas_threads(count))
        torch = sys.modules.get("torch")
        if torch is not None:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(count)
        yield


def blas_threads(count: int) -> contextlib.AbstractContextManager[Any]:
    """Hold NumPy's matrix products to `count` threads, where threadpoolctl is installed."""
    if not installed("threadpoolctl"):
        return contextlib.nullcontext()
    limits: Any = importlib.import_module("threadpoolctl").threadpool_limits
    context: contextlib.AbstractContextManager[Any] = limits(limits=count, user_api="blas")
    return context


def run(engine: Engine, words: Sequence[str], *, show_progress: bool) -> Run:
    """Warm the engine up, then pronounce all words batch by batch; only the engine's own time counts."""
    words = _affordable(engine, words)
    batches = [words[start : start + engine.batch_size] for start in range(0, len(words), engine.batch_size)]
    engine.pronounce(batches[0])
    phonemes: dict[str, list[str]] = {}
    seconds = 0.0
    shown = progress(batches, desc=engine.name, unit="batch") if show_progress else batches
    for batch in shown:
        start_time = time.perf_counter()
        pronounced = engine.pronounce(batch)
        seconds += time.perf_counter() - start_time
        phonemes.update(zip(batch, pronounced, strict=True))
    return Run(engine, phonemes, max(seconds, 1e-9))


def _affordable(engine: Engine, words: Sequence[str]) -> Sequence[str]:
    if engine.seconds_at_most == float("inf"):
        return words
    trial = words[:_WARM_UP_WORDS]
    engine.pronounce(trial)
    start_time = time.perf_counter()
    engine.pronounce(trial)
    expected = (time.perf_counter() - start_time) / len(trial) * len(words)
    return words[:: max(1, int(expected // engine.seconds_at_most) + 1)]


def differences(ours: Run, other: Run) -> list[str]:
    """Return the words that both runs pronounced, but differently."""
    return [word for word, phonemes in other.phonemes.items() if ours.phonemes[word] != phonemes]
