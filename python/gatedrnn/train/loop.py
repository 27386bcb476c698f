"""The training loop that everyone writes: progress, validation, early stopping, checkpoint and resume."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import asdict, dataclass, field
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from gatedrnn import _checks, _files
from gatedrnn._optional import progress as progress_bar
from gatedrnn.train import _arguments
from gatedrnn.train._generators import check_state, plain_state
from gatedrnn.train._interruption import Interruption
from gatedrnn.train._optimizer import check_optimizer
from gatedrnn.train.checkpoints import load_checkpoint, notes_of, save_checkpoint
from gatedrnn.train.clipping import clip_grad_norm
from gatedrnn.train.history import MODES, History, line_of, stopped_line_of
from gatedrnn.train.modules import generators_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from gatedrnn.train._optimizer import Optimizer
    from gatedrnn.train.modules import Module
    from gatedrnn.train.schedules import Schedule

    Array = npt.NDArray[np.floating[Any]]

__all__ = ["fit"]

_Batch = TypeVar("_Batch")
_END: Any = object()


def fit(
    module: Module,
    optimizer: Optimizer,
    loss_and_gradients: Callable[[_Batch], tuple[float, Mapping[str, Array]]],
    batches: Callable[[np.random.Generator], Iterable[_Batch]],
    *,
    epochs: int,
    validate: Callable[[], float] | None = None,
    mode: str = "min",
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

    **Interruptions.** With `checkpoint`, Ctrl-C and SIGTERM are answered when the update under way is
    finished: the run is saved, a line on standard error says so, and KeyboardInterrupt or SystemExit(143) is
    raised. Called again, `fit` draws the epoch's batches once more, passes over those that are done, and goes
    on with the next, with the same bits if `loss_and_gradients` carries nothing from batch to batch either (a
    state that it carries begins anew). A second signal ends the run at once. Handlers of your own stay in
    place; what they, or your functions, raise as KeyboardInterrupt or SystemExit saves the run in the same
    way, as it was after the last finished update. Without `checkpoint` nothing of this happens.

    **Hyper-parameters.** Where one of the optimiser's (`lr`, `weight_decay`, ...) is not what the run was
    started with, you changed it: it is what counts from here on, and a warning names both values. The others
    are those of the checkpoint, with changes that the run itself made. With `schedule`, that decides `lr`.

    Args:
        module: What is trained; several modules as one: `Modules`.
        optimizer: Of the module's parameters.
        loss_and_gradients: From a batch to its loss and the gradients by name.
        batches: Called at the start of each epoch with `rng`; returns the epoch's batches.
        epochs: How many in all, those before a resumption included, at least 1.
        validate: Called after each epoch, for a number that is better the lower it is, like a loss; `mode`
            says if it is otherwise.
        mode: "min", or "max" where higher validation is better, as of an accuracy.
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
        FloatingPointError: The run diverged: a loss, a gradient or with `max_norm` the norm of all is not
            finite, which is found before the update, so that parameters and optimiser are those of the update
            before, and the message names the batch; or at the end of an epoch a parameter or the validation
            is not finite. The last checkpoint stays.
    """
    _arguments.module("module", module)
    check_optimizer("optimizer", optimizer)
    epochs = _checks.integer("epochs", epochs, 1)
    _arguments.function("loss_and_gradients", loss_and_gradients)
    _arguments.function("batches", batches)
    _arguments.function("validate", validate, optional=True)
    _arguments.function("schedule", schedule, optional=True)
    mode = _checks.choice("mode", mode, MODES)
    if validate is None and mode != "min":
        raise ValueError(f"mode: expected 'min' without validate, got {mode!r}")
    if patience is not None:
        _checks.integer("patience", patience, 1)
        if validate is None:
            raise ValueError(f"patience: expected None without validate, got {patience}")
    if max_norm is not None:
        max_norm = _arguments.number("max_norm", max_norm)
    path = None if checkpoint is None else _files.checked_target("checkpoint", checkpoint)
    generator = np.random.default_rng() if rng is None else _arguments.generator("rng", rng)
    progress = _checks.flag("progress", progress)
    with Interruption(wanted=path is not None) as interruption:
        functions = loss_and_gradients, batches, validate, schedule
        run = _Run(module, optimizer, *functions, epochs, max_norm, path, generator, progress, interruption)
        run.history.mode = mode
        if path is not None and os.path.exists(path):
            _resume(run, path)
        try:
            run.train(patience)
        except (KeyboardInterrupt, SystemExit):
            if path is not None and not interruption.hurried:
                run.save_interrupted(path)
            raise
    return run.history


@dataclass
class _Run(Generic[_Batch]):
    """A run of `fit`: its checked arguments, and how far it is."""

    module: Module
    optimizer: Optimizer
    loss_and_gradients: Callable[[_Batch], tuple[float, Mapping[str, Array]]]
    batches: Callable[[np.random.Generator], Iterable[_Batch]]
    validate: Callable[[], float] | None
    schedule: Schedule | None
    epochs: int
    max_norm: float | None
    path: str | None
    generator: np.random.Generator
    progress: bool
    interruption: Interruption
    history: History = field(default_factory=History)  # of whole epochs, but for its step
    best: dict[str, Array] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)  # of the epoch under way
    epoch_rng: dict[str, Any] = field(default_factory=dict)  # the generator's state at its start
    whole: bool = True  # nothing of the above is half-changed

    def __post_init__(self) -> None:
        self.began_with = self.optimizer.hyper_parameters()
        self.states: dict[str, Any] = {}  # of all generators after the last update

    def train(self, patience: int | None) -> None:
        history = self.history
        while len(history.loss) < self.epochs:
            if patience is not None and history.epochs_since_best >= patience:
                self.tell(stopped_line_of(history))
                break
            self.epoch()
            self.interruption.raise_if_asked()
        if self.best:
            self.module.load_state_dict(self.best)

    def epoch(self) -> None:
        iterator = self.iterator()
        try:
            while (batch := self.next_batch(iterator)) is not _END:
                self.update(batch)
                self.interruption.raise_if_asked()
        finally:
            if isinstance(iterator, GeneratorType):
                iterator.close()  # and with it the bar
        if not self.losses:
            raise ValueError("batches: expected at least one batch in an epoch, got none")
        _check_finite("", self.module.state_dict(), f"after step {self.history.step}")
        validation = None
        if self.validate is not None:
            with self.interruption.answered_at_once():
                value = self.validate()
            validation = _finite("validate", value, f"after step {self.history.step}")
        self.end_epoch(validation)

    def iterator(self) -> Iterator[_Batch]:
        """Begin an epoch, or go on with one amid which the run was interrupted."""
        done, now = len(self.losses), self.generator.bit_generator.state
        self.keep_generators()
        if done:
            self.generator.bit_generator.state = self.epoch_rng
        else:
            self.epoch_rng = plain_state(self.generator)
        with self.interruption.answered_at_once():
            batches = self.batches(self.generator)
            if not isinstance(batches, Iterable):
                came = _checks.described(batches)
                raise TypeError(f"batches: expected it to return something to iterate over, got {came}")
            iterator = iter(_shown(batches, self.history, self.epochs) if self.progress else batches)
            for number in range(done):
                if next(iterator, _END) is _END:
                    raise ValueError(
                        f"batches: expected the checkpoint's epoch, of which {done} are done, got {number}"
                    )
        if done:
            self.generator.bit_generator.state = now
        return iterator

    def keep_generators(self) -> None:
        """Remember all generators as they are, for `save_interrupted`."""
        if self.path is not None:
            self.states = {
                name: generator.bit_generator.state for name, generator in self.generators().items()
            }

    def generators(self) -> dict[str, np.random.Generator]:
        return {**generators_of(self.module), "rng": self.generator}

    def next_batch(self, iterator: Iterator[_Batch]) -> _Batch:
        self.keep_generators()
        with self.interruption.answered_at_once():
            return next(iterator, _END)

    def update(self, batch: _Batch) -> None:
        optimizer, history = self.optimizer, self.history
        where = f"at step {history.step}, batch {len(self.losses) + 1} of epoch {len(history.loss) + 1}"
        rate = optimizer.lr
        if self.schedule is not None:
            optimizer.lr = self.schedule(history.step)
        try:
            loss, grads = _pair(self.loss_and_gradients(batch))
            loss = _finite("loss", loss, where)
            _check_finite("gradient of ", optimizer._accepted_gradients(grads), where)
            if self.max_norm is not None:
                _finite("norm of the gradients", clip_grad_norm(grads, self.max_norm), where)
        except BaseException:
            optimizer.lr = rate
            raise
        self.whole = False
        optimizer.step(grads)
        self.losses.append(loss)
        history.step += 1
        self.whole = True

    def end_epoch(self, validation: float | None) -> None:
        history = self.history
        self.whole = False
        history.loss.append(math.fsum(self.losses) / len(self.losses))
        if validation is not None:
            history.validation.append(validation)
            if history.epochs_since_best == 0:
                self.best = self.module.state_dict()
        self.losses, self.epoch_rng = [], {}
        self.keep_generators()
        self.whole = True
        if self.path is not None:
            self.save(self.path)
        self.tell(line_of(history, self.epochs))

    def save(self, path: str) -> None:
        notes = {**asdict(self.history), "hyper_parameters": self.began_with}
        notes["scheduled"] = self.schedule is not None
        if self.losses:
            notes["epoch"] = {"losses": self.losses, "rng": self.epoch_rng}
        save_checkpoint(path, self.module, self.optimizer, rng=self.generator, notes=notes, arrays=self.best)

    def save_interrupted(self, path: str) -> None:
        """Save the run as it was after the last update, unless there was none or one is half-done."""
        if not self.whole or not self.history.step:
            return
        for name, generator in self.generators().items():
            if name in self.states:
                generator.bit_generator.state = self.states[name]
        self.save(path)
        step = self.history.step
        print(f"interrupted after step {step}, saved to {path}: call fit again to go on", file=sys.stderr)

    def tell(self, line: str) -> None:
        if self.progress:
            print(line, file=sys.stderr)


def _resume(run: _Run[Any], path: str) -> None:
    """Bring a run, its module, optimiser and generators to where the checkpoint left them."""
    notes = _read_notes(path)
    epoch, history = (
        notes["epoch"],
        History(*(notes[name] for name in ("loss", "validation", "step", "mode"))),
    )
    if epoch is not None:
        check_state("rng", run.generator, epoch["rng"])
    if history.loss and bool(history.validation) != (run.validate is not None):
        wanted, came = ("without", "with") if run.validate is None else ("with", "without")
        raise ValueError(f"checkpoint: expected a run {wanted} validation, got one {came}")
    if history.validation and history.mode != run.history.mode:
        raise ValueError(
            f"checkpoint: expected a run with mode={run.history.mode!r}, got one with {history.mode!r}"
        )
    history.mode = run.history.mode
    run.best = load_checkpoint(path, run.module, run.optimizer, rng=run.generator)[1]
    run.history = history
    if epoch is not None:
        run.losses, run.epoch_rng = epoch["losses"], epoch["rng"]
    _choose_hyper_parameters(run, notes["hyper_parameters"], notes["scheduled"])


def _choose_hyper_parameters(run: _Run[Any], began: Mapping[str, Any], scheduled: bool) -> None:
    """Keep those that were changed since the run was started, and say so."""
    saved = run.optimizer.hyper_parameters()
    before = saved | {
        name: tuple(value) if isinstance(value, list) else value for name, value in began.items()
    }
    if scheduled:  # the file's is that of the last step
        before["lr"] = saved["lr"]
    if run.schedule is not None:
        before["lr"] = run.began_with["lr"]
    changed = {name: value for name, value in run.began_with.items() if value != before[name]}
    run.optimizer.set_hyper_parameters(changed)
    for name, value in changed.items():
        came = f"the checkpoint's run had {before[name]}, the optimizer has {value}"
        warnings.warn(f"{name}: {came}, which counts from here on", UserWarning, stacklevel=4)


def _read_notes(path: str) -> dict[str, Any]:
    """Return the notes that `_Run.save` made, with defaults of those that earlier versions did not make."""
    notes = {"mode": "min", "hyper_parameters": {}, "scheduled": False, "epoch": None, **notes_of(path)}
    epoch, step = notes["epoch"], notes.get("step")
    is_epoch = isinstance(epoch, dict) and epoch.keys() == {"losses", "rng"} and _numbers(epoch["losses"])
    if not (
        notes.keys() == {"loss", "validation", "step", "mode", "hyper_parameters", "scheduled", "epoch"}
        and _numbers(notes["loss"])
        and _numbers(notes["validation"])
        and isinstance(step, int)
        and step >= 0
        and notes["mode"] in MODES
        and isinstance(notes["hyper_parameters"], dict)
        and isinstance(notes["scheduled"], bool)
        and (epoch is None or is_epoch)
    ):
        raise ValueError(f"checkpoint: expected one that fit wrote, got {path!r}")
    return notes


def _numbers(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, float) for each in value)


def _pair(value: tuple[float, Mapping[str, Array]]) -> tuple[float, Mapping[str, Array]]:
    if not isinstance(value, tuple) or len(value) != 2:
        came = _checks.described(value)
        raise TypeError(f"loss_and_gradients: expected it to return (loss, gradients), got {came}")
    return value


def _finite(name: str, value: object, where: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {_checks.described(value)}") from None
    if not math.isfinite(number):
        raise FloatingPointError(f"{name}: expected a finite number, got {number} {where}")
    return number


def _check_finite(what: str, arrays: Mapping[str, Array], where: str) -> None:
    for name, array in arrays.items():
        finite = np.isfinite(array)
        if not finite.all():
            came = array[~finite][0]
            raise FloatingPointError(f"{what}{name}: expected finite numbers, got {came} {where}")


def _shown(batches: Iterable[_Batch], history: History, epochs: int) -> Iterable[_Batch]:
    """Draw a bar beside the batches."""
    done = len(history.loss)
    expected = history.step // done if done else None  # where the batches do not know their number
    total = len(batches) if isinstance(batches, Sized) else expected
    return progress_bar(batches, desc=f"epoch {done + 1}/{epochs}", total=total, unit="batch")
