"""How the outputs of the last layer's two directions are joined, and what that does to gradients."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gatedrnn import _checks, _core, _device

if TYPE_CHECKING:
    from collections.abc import Callable

MERGES = ("concat", "sum", "mul", "mean")

_LIBRARIES = ("torch", "cupy")  # whose arrays on a device have operators

_Output = Any  # arrays of NumPy, or of another library: the operators of all of them are the same


def merged(merge: str, output: _Output) -> _Output:
    """Join (..., 2 S), both directions side by side, to (..., S)."""
    if merge == "concat":
        return output
    forward, reverse = _halves(output)
    if merge == "mul":
        return forward * reverse
    total = forward + reverse
    return total * 0.5 if merge == "mean" else total


def _unmerged(merge: str, gradient: _Output, output: _Output | None) -> _Output:
    """Return the gradient by both directions side by side, from that by what they were joined to."""
    if merge == "mul":
        forward, reverse = _halves(output)
        parts = gradient * reverse, gradient * forward
    else:
        each = gradient * 0.5 if merge == "mean" else gradient
        parts = each, each
    return importlib.import_module(_device.library_of(gradient)).concatenate(parts, axis=-1)


def _halves(output: _Output) -> tuple[_Output, _Output]:
    size = output.shape[-1] // 2
    return output[..., :size], output[..., size:]


class _Kept(NamedTuple):
    """What a tape has for `backward` besides the engine's own."""

    library: str  # of the arrays
    shape: tuple[int, ...]  # of the merged output
    output: _Output | None  # of both directions, where the derivative needs it

    @property
    def nbytes(self) -> int:
        return 0 if self.output is None else int(self.output.nbytes)


class MergedNetwork:
    """An engine's network whose output is merged; everything else is the network's own."""

    __slots__ = ("_dtype", "_merge", "_network", "_size")

    def __init__(self, merge: str, network: Any, size: int, dtype: np.dtype[Any]) -> None:
        self._merge = merge
        self._network = network
        self._size = size
        self._dtype = dtype

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def renewed(self, parameters: dict[str, Any]) -> MergedNetwork:
        """Make the same network with other parameters."""
        return MergedNetwork(self._merge, self._network.renewed(parameters), self._size, self._dtype)

    def infer(self, x: Any, state: Any, lengths: Any, out: Any, *rest: Any) -> tuple[Any, Any]:
        """Run over whole sequences; keep nothing. The arguments are those of `_core.Network.infer`."""
        x = self._readable("x", x)
        if out is not None:
            self._check_out(x, state, out)
        output, state_n = self._network.infer(x, state, lengths, None, *rest)
        result = self._merged(output)
        if out is None:
            return result, state_n
        out[...] = result
        return out, state_n

    def forward(self, x: Any, *rest: Any, **marks: Any) -> tuple[Any, Any, Any]:
        """Run and keep a tape; the arguments are those of `_core.Network.forward`."""
        output, state_n, tape = self._network.forward(self._readable("x", x), *rest, **marks)
        result = self._merged(output)
        kept = output if self._merge == "mul" else None
        tape._merged = _Kept(_device.library_of(output), tuple(result.shape), kept)
        return result, state_n, tape

    def backward(self, tape: Any, d_output: Any, *rest: Any) -> tuple[Any, Any]:
        """Compute the gradients; the arguments are those of `_core.Network.backward`."""
        if d_output is not None and tape._merged is not None:  # else the engine refuses the tape
            d_output = self._unmerged(self._readable("d_output", d_output), tape._merged)
        result: tuple[Any, Any] = self._network.backward(tape, d_output, *rest)
        return result

    def _readable(self, name: str, value: Any) -> _Output:
        """Return what has operators, and refuse what has none."""
        if isinstance(self._network, _core.Network) or _device.is_on_host(value):
            return _core.float_array(name, value)
        if _device.library_of(value) not in _LIBRARIES:
            raise TypeError(
                f"{name}: expected an array of NumPy, PyTorch or CuPy with merge={self._merge!r}, "
                f"got {_checks.described(value)}"
            )
        return value

    def _check_out(self, x: _Output, state: Any, out: Any) -> None:
        shape = (*x.shape[:-1], self._size)
        if isinstance(x, np.ndarray):
            parts = state if isinstance(state, (tuple, list)) else (state,)
            inputs = [x, *(part for part in parts if isinstance(part, np.ndarray))]
            if len(shape) in (2, 3):  # else x is refused
                _core.check_out(out, self._dtype, shape, inputs)
        elif tuple(out.shape) != shape or out.dtype != x.dtype:
            got = f"{out.dtype} of shape {tuple(out.shape)}"
            raise ValueError(f"out: expected {x.dtype} of shape {shape}, got {got}")

    def _merged(self, output: _Output) -> _Output:
        with np.errstate(all="ignore"):  # as in the engine
            return merged(self._merge, output)

    def _unmerged(self, d_output: _Output, kept: _Kept) -> _Output:
        if isinstance(d_output, np.ndarray):  # of no subclass, and in no less than the module's dtype
            d_output = np.asarray(d_output, np.result_type(d_output.dtype, self._dtype))
        if _device.library_of(d_output) != kept.library:
            got = _checks.described(d_output)
            raise TypeError(f"d_output: expected an array of {kept.library}, as x was, got {got}")
        if tuple(d_output.shape) != kept.shape:
            raise ValueError(f"d_output: expected {kept.shape}, got {tuple(d_output.shape)}")
        with np.errstate(all="ignore"):
            return _unmerged(self._merge, d_output, kept.output)


def maker(merge: str, make: Callable[..., Any]) -> Callable[..., Any]:
    """Return what makes networks as `make`, the class of `_core` or `_device`, but with merged outputs."""
    if merge == "concat":
        return make

    def make_merged(cell: str, parameters: dict[str, Any], **options: Any) -> MergedNetwork:
        size = options["proj_size"] or options["hidden_size"]
        return MergedNetwork(merge, make(cell, parameters, **options), size, options["dtype"])

    return make_merged
