"""One side of the comparison: torch.nn as it is, or with our classes in the place of its own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

TORCH, OURS = "torch", "gatedrnn"
SIDES = (TORCH, OURS)  # in the order in which they run


def replace_classes() -> None:
    """Put our classes in the place of torch.nn's, for every program that is imported from now on."""
    import gatedrnn.torch

    for name in ("LSTM", "GRU", "RNN"):
        for module in (torch.nn, torch.nn.modules):
            setattr(module, name, getattr(gatedrnn.torch, name))


def set_threads(side: str, threads: int) -> None:
    """Let each operation have as many threads."""
    torch.set_num_threads(threads)
    if side == OURS:
        import gatedrnn

        gatedrnn.set_num_threads(threads)


@dataclass
class Report:
    """What one run of a program has to tell.

    Attributes:
        side: Whose recurrent classes it ran with.
        seconds: Times by name.
        numbers: Losses and predictions by name, which both sides have to agree in.
        tolerances: By how much the numbers may differ, relative to the largest of them.
    """

    side: str
    seconds: dict[str, float] = field(default_factory=dict)
    numbers: dict[str, list[float]] = field(default_factory=dict)
    tolerances: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def timed(self, name: str, steps: int = 1) -> Iterator[None]:
        """Note the time of the block, or of each of its steps."""
        start = time.perf_counter()
        yield
        self.seconds[name] = (time.perf_counter() - start) / steps

    def add(self, name: str, numbers: Iterable[Any], tolerance: float) -> None:
        """Note numbers to be compared."""
        self.numbers[name] = [float(number) for number in numbers]
        self.tolerances[name] = tolerance

    def fixed(self, model: torch.nn.Module) -> AbstractContextManager[Any]:
        """Promise that weights stay, on the side where there is such a promise."""
        if self.side == TORCH:
            return contextlib.nullcontext()
        import gatedrnn.torch

        return gatedrnn.torch.fixed(model)

    def check_classes(self, model: torch.nn.Module) -> None:
        """Make sure that a model computes with this side's classes.

        Raises:
            RuntimeError: It does not, and would be compared with itself.
        """
        layers = [type(module) for module in model.modules() if hasattr(module, "weight_hh_l0")]
        if not layers:
            raise RuntimeError(f"{type(model).__name__}: expected recurrent layers in it, got none")
        for layer in layers:
            is_ours = any(base.__module__.startswith("gatedrnn.torch") for base in layer.__mro__)
            if is_ours != (self.side == OURS):
                name = f"{layer.__module__}.{layer.__name__}"
                raise RuntimeError(f"{type(model).__name__}: expected layers of {self.side}, got {name}")
