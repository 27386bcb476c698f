"""What happened in a run of `fit`, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["History"]

_BETTER = {"min": (min, "lower"), "max": (max, "higher")}
MODES = tuple(_BETTER)


@dataclass
class History:
    """What happened so far; with parameters, optimiser and generator the whole state of a run.

    Attributes:
        loss: Mean loss of the batches of each epoch.
        validation: What `validate` returned after each epoch; empty without it.
        step: Batches so far, in all epochs.
        mode: "min" where the lowest validation is the best, "max" where the highest is.
    """

    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    step: int = 0
    mode: str = "min"

    @property
    def best_epoch(self) -> int | None:
        """The first epoch with the best validation, counted from 0; None without validation."""
        best, _ = _BETTER[self.mode]
        return self.validation.index(best(self.validation)) if self.validation else None

    @property
    def epochs_since_best(self) -> int:
        """How many epochs went by without a better validation."""
        return 0 if self.best_epoch is None else len(self.validation) - 1 - self.best_epoch


def line_of(history: History, epochs: int) -> str:
    """Tell of the last epoch."""
    line = f"epoch {len(history.loss)}/{epochs}  step {history.step}  loss {history.loss[-1]:.6g}"
    if history.best_epoch is None:
        return line
    best = "best" if history.epochs_since_best == 0 else f"best {history.validation[history.best_epoch]:.6g}"
    return f"{line}  validation {history.validation[-1]:.6g} ({best}, {_BETTER[history.mode][1]} is better)"


def stopped_line_of(history: History) -> str:
    """Tell why there is none more, where validation no longer gets better."""
    best, (_, better) = history.best_epoch, _BETTER[history.mode]
    assert best is not None
    return (
        f"stopped: no {better} validation in {history.epochs_since_best} epochs than "
        f"{history.validation[best]:.6g} in epoch {best + 1}"
    )
