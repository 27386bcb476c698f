"""Which threads compute: PyTorch's own.

PyTorch's OpenMP threads keep spinning for milliseconds after each of its operations, in case of another one.
Threads of the engine would have to share the processors with them: on two cores a training loop, where an
embedding comes before the recurrent layer and a linear one after it, was slower than on one. So the engine
takes the threads that are spinning.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from gatedrnn import _core

_FUNCTIONS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads", "omp_get_max_threads")


def _forked() -> bool:
    """Whether this process is a fork that runs no program of its own, as far as Linux tells."""
    without_exec = 0x40  # PF_FORKNOEXEC
    try:
        text = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
        return bool(int(text.rpartition(")")[2].split()[6]) & without_exec)
    except (OSError, ValueError, IndexError):
        return False


def borrow() -> bool:
    """Have the engine use the OpenMP threads of PyTorch in this process; return whether there are any.

    The runtime is the one that PyTorch's library is linked with, GNU's or one that has its functions. In a
    forked process it may believe in threads that only the parent has, and would wait for them for ever.
    """
    if _forked():
        return False
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        functions = [getattr(library, name) for name in _FUNCTIONS]
    except (OSError, AttributeError):  # another system, or a build without OpenMP
        return False
    addresses = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions]
    _core.borrow_threads(*addresses)
    return True
