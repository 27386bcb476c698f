"""Interleaved timing: every contender runs in every round, so that a noisy moment hits all of them alike."""

from __future__ import annotations

import contextlib
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from gatedrnn.bench.placement import placement
from gatedrnn.bench.shapes import Array

MIN_ROUNDS = 3
_LONG_CALL = 0.25  # seconds, as the next three
_LONG_TRIAL = 2.0
_WARM_CALL = 0.05  # longer calls wake their threads and fetch their weights in a time that weighs nothing
_WARM_UP = 0.001


@dataclass(frozen=True)
class Contender:
    """Something that computes a problem, with everything that can be prepared already prepared.

    Attributes:
        name: What the tables call it.
        run: One inference; returns something that `arrays` understands.
        arrays: Turns that into NumPy arrays: output (T, B, H), then the final states (B, H).
        session: Entered around a slice of runs, outside of the timing.
        reset: Sets a stream's state to zero.
        note: How it runs, where there was a choice.
        is_peer: False for a second way of calling ourselves.
    """

    name: str
    run: Callable[[], Any]
    arrays: Callable[[Any], list[Array]]
    session: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    reset: Callable[[], None] = lambda: None
    note: str = ""
    is_peer: bool = True


@dataclass
class Measurement:
    """Seconds per call of each contender, round by round."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """The median time of one call."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, base: str) -> float:
        """The median over the rounds of time(name) / time(base)."""
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)


def estimate(contender: Contender) -> float:
    """Seconds per call, roughly; also warms the contender up."""
    with placement.held(), contender.session():
        placement.spread()
        contender.run()  # a library may import the rest of itself, for longer than many calls take
        placement.spread()
        once = _timed(contender.run, 1)
        if once > _LONG_CALL:
            return once
        calls = min(50, max(1, int(0.005 / max(once, 1e-7))))
        return min(once, _timed(contender.run, calls))


def faster(candidates: Sequence[Contender]) -> Contender:
    """The quickest of several ways to run a peer; the first where a call is too long to try them all."""
    first, *others = candidates
    if not others:
        return first
    best_time = estimate(first)
    best = first
    for other in others if best_time < _LONG_TRIAL else ():
        seconds = estimate(other)
        if seconds < best_time:
            best, best_time = other, seconds
    return best


def interleave(
    contenders: Sequence[Contender],
    *,
    rounds: int,
    seconds: float,
    slice_seconds: float,
    gap_seconds: float,
    estimates: Sequence[float] | None = None,
) -> Measurement:
    """Time the contenders in turns.

    Args:
        contenders: Who takes part.
        rounds: How many rounds at most (at least MIN_ROUNDS are run).
        seconds: After this long no further round starts.
        slice_seconds: A contender's turn lasts about this long, or one call.
        gap_seconds: The pause before a turn, in which the previous contender's waiting threads fall asleep.
        estimates: Seconds per call where they are known already.
    """
    if estimates is None:
        estimates = [estimate(contender) for contender in contenders]
    calls = [max(1, round(slice_seconds / max(seconds_per_call, 1e-7))) for seconds_per_call in estimates]
    measurement = Measurement({contender.name: [] for contender in contenders})
    start = time.perf_counter()
    gc.collect()
    gc_was_enabled = gc.isenabled()
    gc.disable()
    try:
        for done in range(max(rounds, MIN_ROUNDS)):
            if done >= MIN_ROUNDS and time.perf_counter() - start > seconds:
                break
            for turn in range(len(contenders)):
                index = (turn + done) % len(contenders)
                if gap_seconds:
                    time.sleep(gap_seconds)
                taken = _turn(contenders[index], calls[index], warm_up=estimates[index] < _WARM_CALL)
                measurement.seconds[contenders[index].name].append(taken)
    finally:
        if gc_was_enabled:
            gc.enable()
    return measurement


def _turn(contender: Contender, calls: int, *, warm_up: bool) -> float:
    with placement.held(), contender.session():
        if warm_up:
            contender.run()
        placement.spread()
        until = time.perf_counter() + _WARM_UP
        while warm_up and time.perf_counter() < until:
            contender.run()
        return _timed(contender.run, calls)


def _timed(run: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in itertools.repeat(None, calls):
        run()
    return (time.perf_counter() - start) / calls
