"""The training loop that everyone writes: progress, validation, early stopping, checkpoint and resume."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterable, Sized
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from gatedrnn import _checks, _files
from gatedrnn.train import _arguments
from gatedrnn.train.checkpoints import load_checkpoint, notes_of, save_checkpoint
from gatedrnn.train.optimizers import clip_grad_norm

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from gatedrnn.train.layers import Module
    from gatedrnn.train.optimizers import Optimizer
    from gatedrnn.train.schedules import Schedule

    Array = npt.NDArray[np.floating[Any]]

__all__ = ["History", "fit"]

_Batch = TypeVar("_Batch")


@dataclass
class History:
    """What happened so far; with parameters, optimiser and generator the whole state of a run.

    Attributes:
        loss: Mean loss of the batches of each epoch.
        validation: What `validate` returned after each epoch; empty without it.
        step: Batches so far, in all epochs.
    """

    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    step: int = 0

    @property
    def best_epoch(self) -> int | None:
        """The first epoch with the lowest validation, counted from 0; None without validation."""
        return self.validation.index(min(self.validation)) if self.validation else None

    @property
    def epochs_since_best(self) -> int:
        """How many epochs went by without a better validation."""
        return 0 if self.best_epoch is None else len(self.validation) - 1 - self.best_epoch


def fit(
    module: Module,
    optimizer: Optimizer,
    loss_and_gradients: Callable[[_Batch], tuple[float, Mapping[str, Array]]],
    batches: Callable[[np.random.Generator], Iterable[_Batch]],
    *,
    epochs: int,
    validate: Callable[[], float] | None = None,
    patience: int | None = None,
    schedule: Schedule | None = None,
    max_norm: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    rng: np.random.Generator | None = None,
    progress: bool = True,
) -> History:
    """Train until so many epochs are done, or validation no longer gets better.

    With `validate` the module ends with the parameters of its best epoch, else with the last ones. With
    `checkpoint` the run is saved after each epoch, and where the file is there already, the run goes on from
    it: with the same bits as one that was never interrupted, if `batches` draws from its generator alone and
    `loss_and_gradients` carries nothing from one epoch to the next.

    Args:
        module: What is trained; several modules as one: `Modules`.
        optimizer: Of the module's parameters.
        loss_and_gradients: From a batch to its loss and the gradients by name.
        batches: Called at the start of each epoch with `rng`; returns the epoch's batches.
        epochs: How many in all, those before a resumption included, at least 1.
        validate: Called after each epoch; lower is better.
        patience: Stop after so many epochs without a better validation, at least 1; None: do not.
        schedule: From the step, counted from 0, to its learning rate; None leaves the optimiser's as it is.
        max_norm: Clip the gradients' norm to it, see `clip_grad_norm`; None: do not.
        checkpoint: Path of a file to save to and to go on from; None: do neither.
        rng: Generator for `batches`; None: a new one, of new random numbers.
        progress: Whether to write a line for each epoch to standard error, and, where tqdm is installed and
            standard error is a terminal, a bar that moves.

    Returns:
        The history, those before a resumption included.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is outside its range, an epoch has no batches, or the checkpoint is not of
            this run.
        OSError: The checkpoint cannot be read or written; that its folder is missing is found at the start.
        FloatingPointError: A loss, a validation, with `max_norm` a norm, or at the end of an epoch a
            parameter is not finite: the run diverged. Its last checkpoint stays.
    """
    _arguments.module("module", module)
    _arguments.optimizer("optimizer", optimizer)
    epochs = _checks.integer("epochs", epochs, 1)
    _arguments.function("loss_and_gradients", loss_and_gradients)
    _arguments.function("batches", batches)
    _arguments.function("validate", validate, optional=True)
    _arguments.function("schedule", schedule, optional=True)
    _check_patience(patience, validate)
    if max_norm is not None:
        max_norm = _arguments.number("max_norm", max_norm)
    path = None if checkpoint is None else _files.checked_target("checkpoint", checkpoint)
    generator = np.random.default_rng() if rng is None else _arguments.generator("rng", rng)
    progress = _checks.flag("progress", progress)

    def train(batch: _Batch) -> float:
        if schedule is not None:
            optimizer.lr = schedule(history.step)
        loss, grads = _pair("loss_and_gradients", loss_and_gradients(batch))
        loss = _finite("loss", loss, history.step)
        if max_norm is not None:
            _finite("norm of the gradients", clip_grad_norm(grads, max_norm), history.step)
        optimizer.step(grads)
        history.step += 1
        return loss

    history, best = _start(path, module, optimizer, generator, validate is not None)
    while len(history.loss) < epochs and (patience is None or history.epochs_since_best < patience):
        losses = [train(batch) for batch in _shown(batches(generator), history, epochs, progress)]
        if not losses:
            raise ValueError("batches: expected at least one batch in an epoch, got none")
        _check_parameters(module, history.step)
        history.loss.append(math.fsum(losses) / len(losses))
        if validate is not None:
            history.validation.append(_finite("validate", validate(), history.step))
            if history.epochs_since_best == 0:
                best = module.state_dict()
        if path is not None:
            save_checkpoint(path, module, optimizer, rng=generator, notes=asdict(history), arrays=best)
        if progress:
            print(_line(history, epochs), file=sys.stderr)
    if best:
        module.load_state_dict(best)
    return history


def _check_patience(patience: object, validate: object) -> None:
    if patience is None:
        return
    _checks.integer("patience", patience, 1)
    if validate is None:
        raise ValueError(f"patience: expected None without validate, got {patience}")


def _start(
    path: str | None,
    module: Module,
    optimizer: Optimizer,
    rng: np.random.Generator,
    has_validation: bool,
) -> tuple[History, dict[str, Array]]:
    """Return the history and the best parameters so far: those of the checkpoint, or none."""
    if path is None or not os.path.exists(path):
        return History(), {}
    history = _history(path, notes_of(path))
    if bool(history.validation) != has_validation:
        wanted, came = ("with", "without") if has_validation else ("without", "with")
        raise ValueError(f"checkpoint: expected a run {wanted} validation, got one {came}")
    return history, load_checkpoint(path, module, optimizer, rng=rng)[1]


def _history(path: str, notes: dict[str, Any]) -> History:
    def numbers(value: object) -> bool:
        return isinstance(value, list) and all(isinstance(each, float) for each in value)

    lists = numbers(notes.get("loss")) and numbers(notes.get("validation"))
    step = notes.get("step")
    if notes.keys() != {"loss", "validation", "step"} or not lists or not isinstance(step, int) or step < 0:
        raise ValueError(f"checkpoint: expected one that fit wrote, got {path!r}")
    return History(**notes)


def _pair(name: str, value: tuple[float, Mapping[str, Array]]) -> tuple[float, Mapping[str, Array]]:
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"{name}: expected it to return (loss, gradients), got {_checks.described(value)}")
    return value


def _finite(name: str, value: object, step: int) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {_checks.described(value)}") from None
    if not math.isfinite(number):
        raise FloatingPointError(f"{name}: expected a finite number, got {number} at step {step}")
    return number


def _check_parameters(module: Module, step: int) -> None:
    for name, array in module.state_dict().items():
        if not np.isfinite(array).all():
            raise FloatingPointError(f"{name}: expected finite parameters, got others after step {step}")


def _shown(batches: Iterable[_Batch], history: History, epochs: int, progress: bool) -> Iterable[_Batch]:
    """Draw a bar beside the batches, where there is one to draw."""
    if not progress or importlib.util.find_spec("tqdm") is None:
        return batches
    done = len(history.loss)
    expected = history.step // done if done else None  # where the batches do not know their number
    total = len(batches) if isinstance(batches, Sized) else expected
    bar: Any = importlib.import_module("tqdm").tqdm
    # disable=None: no bar where standard error is not a terminal.
    shown: Iterable[_Batch] = bar(
        batches, desc=f"epoch {done + 1}/{epochs}", total=total, unit="batch", leave=False, disable=None
    )
    return shown


def _line(history: History, epochs: int) -> str:
    line = f"epoch {len(history.loss)}/{epochs}  step {history.step}  loss {history.loss[-1]:.6g}"
    if history.validation:
        line += f"  validation {history.validation[-1]:.6g}" + " (best)" * (history.epochs_since_best == 0)
    return line
