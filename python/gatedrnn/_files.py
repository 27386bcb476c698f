"""Safetensors files that carry a format and its version in their metadata."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gatedrnn import _checks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

_VERSION = "1"  # of every format so far


def write(
    path: object, format_name: str, tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write a file as a whole or not at all; one that was there stays until then.

    Raises:
        TypeError: `path` is not a path.
        OSError: The file cannot be written.
    """
    from safetensors.numpy import save as serialized

    target = checked_target("path", path)
    marked = {"format": format_name, "format_version": _VERSION, **metadata}
    _write_atomically(target, serialized(dict(tensors), metadata=marked))


def checked_target(name: str, path: object) -> str:
    """Return where a file would be written: a link stays one, and what it points to is replaced.

    Raises:
        TypeError: `path` is not a path.
        OSError: There is no such folder, or there is something of this name that is no file.
    """
    target = os.path.realpath(_checks.path(name, path))
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        code = errno.ENOTDIR if os.path.exists(folder) else errno.ENOENT
        raise OSError(code, os.strerror(code), folder)  # of the class that belongs to the code
    if os.path.isdir(target):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), target)
    if os.path.islink(target):  # still, so it leads to itself
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), target)
    if os.path.exists(target) and not os.path.isfile(target):
        raise OSError(errno.EINVAL, "Not a regular file, which could be replaced", target)
    return target


@contextlib.contextmanager
def reading(path: object, format_name: str, what: str) -> Iterator[tuple[Any, Mapping[str, str]]]:
    """Open a file, for a block that gets safetensors' reader and the metadata.

    What the block raises because of the file's content becomes a ValueError that names the file, and `what`
    was expected of it.

    Raises:
        TypeError: `path` is not a path.
        OSError: The file cannot be read.
        ValueError: It is not of this format, of a later version of it, or damaged.
    """
    with opened(path, what) as file:
        metadata = file.metadata() or {}
        _check_format(metadata, format_name)
        yield file, metadata


@contextlib.contextmanager
def opened(path: object, what: str) -> Iterator[Any]:
    """Open any safetensors file; errors are those of `reading`."""
    from safetensors import SafetensorError, safe_open

    name = _checks.path("path", path)
    with open(name, "rb"):
        pass  # errors of the operating system come from here, as its own classes
    try:
        with safe_open(name, framework="numpy") as file:
            yield file
    except (SafetensorError, TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"{name}: expected {what}: {error}") from error


def tensors_of(file: Any) -> dict[str, npt.NDArray[Any]]:
    """Read all tensors."""
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it has no other way


def format_of(path: str) -> str | None:
    """Return the format that a safetensors file says it has; None for one of somebody else's."""
    with opened(path, "safetensors") as file:
        return (file.metadata() or {}).get("format")


def shapes_of(path: str) -> dict[str, tuple[int, ...]]:
    """Read the shapes of all tensors in any safetensors file, by name."""
    with opened(path, "safetensors") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def tensors_named(path: str, names: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
    """Read these tensors; those of bfloat16, which NumPy has not, in float32."""
    with opened(path, "safetensors") as file:
        return {name: _tensor_of(path, file, name) for name in names}


def _tensor_of(path: str, file: Any, name: str) -> npt.NDArray[Any]:
    if file.get_slice(name).get_dtype() != "BF16":
        tensor: npt.NDArray[Any] = file.get_tensor(name)
        return tensor
    with open(path, "rb") as raw:  # whose header safetensors has checked
        size = int.from_bytes(raw.read(8), "little")
        described = json.loads(raw.read(size))[name]
        begin, end = described["data_offsets"]
        raw.seek(8 + size + begin)
        halves = np.frombuffer(raw.read(end - begin), "<u2")
    return (halves.astype(np.uint32) << 16).view(np.float32).reshape(described["shape"])


def _check_format(metadata: Mapping[str, str], format_name: str) -> None:
    if metadata.get("format") != format_name:
        found = _checks.shortened(metadata.get("format"))
        raise ValueError(f"metadata format is {found}, not {format_name!r}")
    version = metadata.get("format_version")
    if version != _VERSION:
        raise ValueError(
            f"metadata format_version is {_checks.shortened(version)}, not {_VERSION!r}: "
            "a newer gatedrnn may be able to read it"
        )


def _write_atomically(target: str, content: bytes) -> None:
    """Write beside the target, then rename; whatever happens, no half of a file is left."""
    temporary = os.path.join(os.path.dirname(target), f".gatedrnn-{os.urandom(8).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:  # with the permissions of any new file, unlike those of tempfile
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))  # those of the file that goes
        os.replace(temporary, target)
    except BaseException as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename == temporary:
            raise OSError(error.errno, error.strerror, target) from error  # the name that the caller knows
        raise
