"""Ctrl-C and SIGTERM while something is under way that should be finished, or saved, first."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType, TracebackType

    from typing_extensions import Self

# Where one of these handlers is in place nobody else wants to answer the signal.
_DEFAULTS: dict[int, Callable[[int, FrameType | None], Any] | signal.Handlers] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}


class Interruption:
    """A context that answers the first Ctrl-C or SIGTERM later, and the second one at once.

    Only in the main thread, which is where signals arrive, and only where the handler was the default one.
    Processes that are forked inside answer as if the context were not there. A signal that nobody answered
    inside is answered on the way out.

    Args:
        wanted: Whether to do anything at all.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._replaced: list[int] = []
        self._process = os.getpid()
        self._asked: int | None = None  # the signal that came
        self._at_once = False
        self.hurried = False  # whether a second one came

    def __enter__(self) -> Self:
        if self._wanted and threading.current_thread() is threading.main_thread():
            with contextlib.suppress(ValueError):  # in other interpreters than the first it is another's task
                for number, default in _DEFAULTS.items():
                    if signal.getsignal(number) == default:
                        signal.signal(number, self._answer)
                        self._replaced.append(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._replaced:
            if signal.getsignal(number) == self._answer:  # and not that of somebody who came later
                signal.signal(number, _DEFAULTS[number])
        if kind is None or not issubclass(kind, (KeyboardInterrupt, SystemExit)):
            self.raise_if_asked()

    @contextlib.contextmanager
    def answered_at_once(self) -> Iterator[None]:
        """Inside of the block there is nothing to finish."""
        self._at_once = True
        try:
            self.raise_if_asked()
            yield
        finally:
            self._at_once = False

    def raise_if_asked(self) -> None:
        """Raise what the signal that came means: KeyboardInterrupt, or SystemExit with the shell's status."""
        if self._asked is not None:
            raise _meaning(self._asked)

    def _answer(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            _answer_by_default(number)
            return
        self.hurried = self._asked is not None
        self._asked = number
        if self.hurried or self._at_once:
            raise _meaning(number)


def _meaning(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def _answer_by_default(number: int) -> None:
    signal.signal(number, _DEFAULTS[number])
    os.kill(os.getpid(), number)
