"""Learning rates over the steps: each function returns one from step (0, 1, 2, ...) to rate.

They are pure functions of the step, so a run that is resumed needs to know nothing but its step. They compute
with Python's numbers: what is too small becomes 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from gatedrnn import _checks
from gatedrnn.train import _arguments

if TYPE_CHECKING:
    Schedule = Callable[[int], float]

__all__ = ["constant", "cosine", "step"]


def constant(lr: float) -> Schedule:
    """Give the same rate at every step.

    Args:
        lr: Learning rate, at least 0.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is outside its range.
    """
    rate = _arguments.number("lr", lr)
    return lambda step: rate


def cosine(lr: float, steps: int, final: float = 0.0, warmup: int = 0) -> Schedule:
    """Fall from `lr` to `final` along half a cosine (Loshchilov & Hutter 2017, equation 5, without restarts).

    The same as ``torch.optim.lr_scheduler.CosineAnnealingLR``, but past `steps` the rate stays `final`.

    Args:
        lr: Largest learning rate, at least 0.
        steps: Step at which `final` is reached, at least 1.
        final: Last learning rate, at least 0.
        warmup: Steps, fewer than `steps`, before the cosine starts. In step k of them the rate is
            lr (k + 1) / (warmup + 1): it rises evenly and reaches `lr` in step `warmup`.

    Errors are those of `constant`.
    """
    first, last = _arguments.number("lr", lr), _arguments.number("final", final)
    steps = _checks.integer("steps", steps, 1)
    warmup = _checks.integer("warmup", warmup, 0, steps - 1)

    def rate(step: int) -> float:
        step = int(step)  # NumPy's would underflow as `numpy.seterr` says
        if step < warmup:
            return first * (step + 1) / (warmup + 1)
        share = min(1.0, (step - warmup) / (steps - warmup))
        return last + (first - last) * (1 + math.cos(math.pi * share)) / 2

    return rate


def step(lr: float, every: int, factor: float = 0.1) -> Schedule:
    """Multiply the rate by `factor` every so many steps; the same as ``torch.optim.lr_scheduler.StepLR``.

    Args:
        lr: First learning rate, at least 0.
        every: Steps between two changes, at least 1.
        factor: At least 0.

    Errors are those of `constant`.
    """
    first, ratio = _arguments.number("lr", lr), _arguments.number("factor", factor)
    every = _checks.integer("every", every, 1)
    return lambda step: first * ratio ** (int(step) // every)
