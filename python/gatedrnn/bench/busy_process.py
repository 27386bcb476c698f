"""A neighbour that wants a processor for itself, for benchmarks and tests."""

from __future__ import annotations

import os
import subprocess
import sys


class BusyProcess:
    """A process that keeps a processor busy within a block; it ends with this one, however that ends.

    Args:
        processor: The one that it stays on; None for any.
    """

    _CODE = """
import os, sys
if sys.argv[2] != "None":
    os.sched_setaffinity(0, [int(sys.argv[2])])
print("busy", flush=True)
while os.getppid() == int(sys.argv[1]):
    sum(range(1_000_000))
"""

    def __init__(self, processor: int | None = None) -> None:
        self._command = [sys.executable, "-c", self._CODE, str(os.getpid()), str(processor)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether it is there."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> BusyProcess:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE)
        try:
            if self._process.stdout is None or not self._process.stdout.readline():
                raise RuntimeError("the busy process did not start")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def processors() -> list[int]:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
