"""On which CPUs the process and its threads run while they are timed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


class Placement:
    """Keeps the main thread alone on the first CPU while something runs, and all other threads on the others.

    Schedulers may put a library's just woken worker where its main thread spins and waits for it, and leave
    it there for milliseconds. That depends on who ran before, so it is kept away from everybody.
    """

    def __init__(self) -> None:
        """Does nothing until `pin`; then with two or more CPUs."""
        self.cpus: tuple[int, ...] = ()

    def pin(self, count: int) -> None:
        """Keep the process and all pools to come on `count` CPUs, of different cores if possible."""
        if not hasattr(os, "sched_setaffinity"):
            return
        allowed = sorted(os.sched_getaffinity(0))
        firsts: dict[str, int] = {}
        for cpu in allowed:
            siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
            firsts.setdefault(siblings.read_text().strip() if siblings.exists() else str(cpu), cpu)
        cores = list(firsts.values())
        self.cpus = tuple((cores + [cpu for cpu in allowed if cpu not in cores])[:count])
        if len(self.cpus) < count:
            print(f"note: {count} threads on {len(self.cpus)} CPUs", file=sys.stderr)
        os.sched_setaffinity(0, self.cpus)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within this the main thread has its CPU; a library that counts CPUs sees all before it."""
        if len(self.cpus) < 2:
            yield
            return
        os.sched_setaffinity(0, self.cpus[:1])
        try:
            yield
        finally:
            os.sched_setaffinity(0, self.cpus)

    def spread(self) -> None:
        """Move all other threads off the main thread's CPU; each time, as some libraries move theirs back."""
        if len(self.cpus) < 2:
            return
        for thread in set(os.listdir("/proc/self/task")) - {str(os.getpid())}:
            with contextlib.suppress(OSError):  # it may have ended
                os.sched_setaffinity(int(thread), self.cpus[1:])


placement = Placement()  # one per process, as its CPUs are
