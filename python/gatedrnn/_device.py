"""Computing on a CUDA device: finding it, and a network there that is used like `_core.Network`.

Arrays of NumPy are copied to the device and back. Those that are there already (of PyTorch, CuPy, or anything
with DLPack or ``__cuda_array_interface__``) are shared: the work goes to their library's current stream, the
results are arrays of the same library, and nobody waits.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from gatedrnn import _core, _streams

BUILD = "pip install . -C cmake.define.GATEDRNN_CUDA=ON"

_Result = Any  # arrays of whatever library


class NotBuiltError(RuntimeError):
    """This build has no device backend."""


def backend() -> Any:
    """Return the extension module, or raise a RuntimeError that names what is missing."""
    try:
        module = importlib.import_module("gatedrnn._cuda")
    except ModuleNotFoundError:
        raise NotBuiltError(
            f"device: 'cuda' needs the device backend, which this build has not; install it with: {BUILD}"
        ) from None
    except ImportError as error:
        raise RuntimeError(f"device: 'cuda' needs libraries of CUDA that were not found: {error}") from error
    found = module.devices()
    if not found["driver"]:
        raise RuntimeError("device: 'cuda' needs a driver, and none is installed")
    if not found["names"]:
        reason = f" ({found['error']})" if found["error"] else ""
        raise RuntimeError(f"device: 'cuda' needs a device, and the driver finds none{reason}")
    return module


def described() -> bool | str | list[str]:
    """For `show_config`: False where there is no backend, else the devices, or why there are none."""
    try:
        return list(backend().devices()["names"])
    except NotBuiltError:
        return False
    except RuntimeError as error:
        return str(error).removeprefix("device: 'cuda' ")


def library_of(array: object) -> str:
    """Return the name of the package that an array's type is of."""
    return type(array).__module__.partition(".")[0]


class _Place:
    """Where a call's arrays are, by its first one: the library they are of, and its current stream.

    CuPy's streams end with their objects, so what is given back in a stream's order keeps its object.
    """

    def __init__(self, array: object) -> None:
        self.library = library_of(array)
        self.stream = 0
        self.stream_owner: object = None
        if self.library == "torch":
            torch = importlib.import_module("torch")
            on_device: Any = array
            self.stream = torch.cuda.current_stream(on_device.device).cuda_stream if on_device.is_cuda else 0
        elif self.library == "cupy":
            current: Any = importlib.import_module("cupy").cuda.get_current_stream()
            self.stream_owner, self.stream = current, current.ptr

    def given(self, results: _Result) -> _Result:
        """Turn our arrays into the library's, which share their memory."""
        if isinstance(results, tuple):
            return tuple(self.given(result) for result in results)
        if isinstance(results, dict):
            return {name: self.given(result) for name, result in results.items()}
        if results is None or self.library not in ("torch", "cupy") or not _is_ours(results):
            return results
        results.keep(self.stream_owner)
        return importlib.import_module(self.library).from_dlpack(results)


def is_on_host(array: Any) -> bool:
    """Whether NumPy is to read it."""
    if isinstance(array, np.ndarray):
        return True
    if hasattr(array, "__dlpack_device__"):
        return bool(array.__dlpack_device__()[0] == 1)
    return not hasattr(array, "__dlpack__") and not hasattr(array, "__cuda_array_interface__")


def _is_ours(array: object) -> bool:
    return type(array).__name__ == "Array" and type(array).__module__.endswith("_cuda")


class Tape:
    """What `forward` keeps on the device for `backward`."""

    __slots__ = ("_merged", "place", "tape")

    def __init__(self, tape: Any, place: _Place | None) -> None:
        self._merged: Any = None  # see gatedrnn._merge
        self.tape = tape
        self.place = place
        if place is not None:
            tape.keep(place.stream_owner)

    @property
    def nbytes(self) -> int:
        """Its size on the device in bytes, without the copy of the input."""
        size: int = self.tape.nbytes
        return size if self._merged is None else size + int(self._merged.nbytes)


class Network:
    """`_core.Network` on the device; immutable too."""

    __slots__ = ("_made_by", "_network", "recipe")
    packed_for_backward = True

    def __init__(
        self, cell: str, parameters: dict[str, Any], *, precision: str | None, **options: Any
    ) -> None:
        self._made_by = cell, {"precision": precision, **options}
        self._network = backend().Network(cell, parameters, precision=precision or "", **options)
        self.recipe: tuple[Any, ...] | None = None  # see _core.Network

    def infer(
        self,
        x: Any,
        state: Any,
        lengths: Any,
        out: Any,
        batch_first: bool,
        mask: Any = None,
        resets: Any = None,
        repeats: bool = False,
    ) -> tuple[Any, Any]:
        """Run over whole sequences; keep nothing."""
        marks = mask, resets, repeats
        if is_on_host(x):
            x = _core.float_array("x", x)
            return self._network.infer(x, state, lengths, out, batch_first, 0, *marks)  # type: ignore[no-any-return]
        place = _Place(x)
        output, state_n = self._network.infer(x, state, lengths, out, batch_first, place.stream, *marks)
        return place.given(output), place.given(state_n)

    def renewed(self, parameters: dict[str, Any]) -> Network:
        """Make the same network with other parameters."""
        cell, options = self._made_by
        return Network(cell, parameters, **options)

    def pack_for_backward(self) -> None:
        """Do nothing: the same weights serve both ways."""

    def forward(self, x: Any, *rest: Any, **marks: Any) -> tuple[Any, Any, Tape]:
        """Run and keep a tape; the arguments are those of `_core.Network.forward`."""
        if is_on_host(x):
            output, state_n, tape = self._network.forward(_core.float_array("x", x), *rest, **marks)
            return output, state_n, Tape(tape, None)
        place = _Place(x)
        output, state_n, tape = self._network.forward(x, *rest, place.stream, **marks)
        return place.given(output), place.given(state_n), Tape(tape, place)

    def new_gradients(self, tape: Tape) -> dict[str, Any] | None:
        """Make arrays for the gradients where forward's were on the device."""
        if tape.place is None:
            return None
        made: dict[str, Any] = tape.place.given(self._network.new_gradients(tape.place.stream))
        return made

    def backward(self, tape: Tape, d_output: Any, *rest: Any) -> tuple[Any, Any]:
        """Compute the gradients; the arguments are those of `_core.Network.backward`."""
        place = tape.place if d_output is None or tape.place is None else _Place(d_output)
        stream = 0 if place is None else place.stream
        d_x, d_state = self._network.backward(tape.tape, d_output, *rest, stream)
        return (d_x, d_state) if place is None else (place.given(d_x), place.given(d_state))

    def plan(self, steps: int, batch: int) -> dict[str, object]:
        """Tell what the engine would decide for such a call."""
        plan: dict[str, object] = self._network.plan(steps, batch)
        return plan

    def stream(self, batch_size: int) -> Stream:
        """Make a stream."""
        return Stream(self, self._network.stream(batch_size))

    def __reduce__(self) -> tuple[Any, ...]:
        if self.recipe is None:
            raise TypeError("cannot pickle a network of which no stream was made")
        return _streams.make_network, self.recipe


class Stream:
    """`_core.Stream` on the device, where its state stays."""

    __slots__ = ("_network", "_stream")

    def __init__(self, network: Network, stream: Any) -> None:
        self._network = network
        self._stream = stream

    def step(self, x: Any, out: Any = None, *, resets: Any = None, mask: Any = None) -> Any:
        """Take one step: x (B, I) to output (B, S)."""
        if is_on_host(x):
            return self._stream.step(_core.float_array("x", x), out, resets=resets, mask=mask)
        place = _Place(x)
        return place.given(self._stream.step(x, out, place.stream, resets=resets, mask=mask))

    @property
    def state(self) -> Any:
        """The state as NumPy arrays, in the layout of a call's."""
        return self._stream.state

    @state.setter
    def state(self, value: Any) -> None:
        self._stream.state = value

    def reset(self, rows: Any = None) -> None:
        """Set the state of these rows, or of all, to what sequences begin with."""
        self._stream.reset(rows)

    @property
    def batch_size(self) -> int:
        """Number of sequences."""
        size: int = self._stream.batch_size
        return size

    def __copy__(self) -> Stream:
        copied = self._network.stream(self.batch_size)
        copied.state = self.state
        return copied

    def __deepcopy__(self, memo: object) -> Stream:
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        return _streams.make_stream, (self._network, self.batch_size, self.state)
