"""From tensors to the engine's networks: weights are packed once and again when they have changed."""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
import math
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from gatedrnn import _core
from gatedrnn._parameters import CELLS, parameter_shapes
from gatedrnn.torch._errors import DtypeError, ShapeError

if TYPE_CHECKING:
    import numpy.typing as npt

    from gatedrnn._parameters import Shapes

    Array = npt.NDArray[np.floating[Any]]

# What the engine computes parameters of each dtype in; and products, where nobody asks for another precision.
DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.bfloat16: np.dtype(np.float32),
    torch.float16: np.dtype(np.float32),
}
LOW_PRECISIONS = {torch.bfloat16: "bfloat16", torch.float16: "bfloat16x3"}
DTYPE_NAMES = "torch.float32, torch.float64, torch.bfloat16 or torch.float16"


class Stack(NamedTuple):
    """What a list of weights is for; their shapes tell the rest."""

    cell: str  # the engine's name
    num_layers: int
    bidirectional: bool
    bias: bool
    precision: str | None = None
    functions: str = "{}"  # those of a general cell, and its clips, in JSON: graphs have no dictionaries
    reverse: bool = False
    learn_state: bool = False

    @property
    def tracks(self) -> int:
        """Layers times directions."""
        return self.num_layers * (1 + self.bidirectional)

    @property
    def has_c(self) -> bool:
        """Whether the state is a pair."""
        return CELLS[self.cell].has_c

    def sizes(self, weights: Sequence[Tensor]) -> tuple[int, int, int]:
        """Return the sizes of the input, of c or the hidden units, and of h."""
        weight_ih, weight_hh = weights[:2]
        return weight_ih.shape[1], weight_ih.shape[0] // CELLS[self.cell].gates, weight_hh.shape[1]


@functools.lru_cache(maxsize=256)
def shapes_of(stack: Stack, input_size: int, hidden_size: int, state_size: int) -> Shapes:
    """Return the shapes of all parameters by name; not to be changed, since the next caller gets them too."""
    options = {
        "input_size": input_size,
        "hidden_size": hidden_size,
        "num_layers": stack.num_layers,
        "bidirectional": stack.bidirectional,
        "bias": stack.bias,
        "learn_state": stack.learn_state,
        "proj_size": 0 if state_size == hidden_size else state_size,
        "dtype": np.dtype(np.float64),
    }
    return parameter_shapes(options, stack.cell)


class CachedNetwork(NamedTuple):
    """A network, and how to tell that the weights are still those that it was made of."""

    network: _core.Network
    stack: Stack
    places: list[tuple[str, slice, tuple[int, ...]]]  # of all parameters, side by side
    dtype: np.dtype[Any]
    tensors: list[Tensor]  # the weights
    arrays: list[npt.NDArray[Any]]  # their memory, as long as they have it
    addresses: list[int]
    fingerprint: int

    def new_gradients(self) -> dict[str, Array]:
        """Arrays for the gradients by name; the numbers are undefined.

        They share one piece of memory: given back piece by piece, it would go to the system each time.
        """
        flat = _core.aligned_array(self.places[-1][1].stop, self.dtype)
        return {name: flat[place].reshape(shape) for name, place, shape in self.places}

    def is_of(self, stack: Stack, weights: Sequence[Tensor], look: bool = True) -> bool:
        """Compare everything that tells a change, or without `look` all but the numbers.

        torch's version counters do not: writes through ``p.data`` or a NumPy view, by another process or by
        its fused optimizers are not counted. So the numbers are looked at.
        """
        return (
            self.addresses == [w.data_ptr() for w in weights]
            and self.stack == stack
            and all([w.is_contiguous() for w in weights])  # or `tensors` are copies
            and not (look and self.is_written())
        )

    def is_written(self) -> bool:
        """Tell whether a number in the weights' memory is another than it was, or the memory itself.

        FSDP takes the memory away after a call, and gives another for the next.
        """
        moved = self.addresses != [tensor.data_ptr() for tensor in self.tensors]
        return moved or self.fingerprint != _core.fingerprint(self.arrays)

    def is_like(self, stack: Stack, dtype: np.dtype[Any], arrays: Sequence[npt.NDArray[Any]]) -> bool:
        """Compare everything but the numbers."""
        shapes = [array.shape for array in self.arrays], [array.shape for array in arrays]
        return self.stack == stack and self.dtype == dtype and shapes[0] == shapes[1]


class NetworkCache:
    """A module's `CachedNetwork`, replaced as a whole: safe without a lock.

    Threads that find it outdated at the same time each pack, and each uses what it made.
    """

    __slots__ = ("__weakref__", "_cached", "_looked_at", "_written", "fixed", "number")

    def __init__(self) -> None:
        self.number = next(_numbers)
        self._cached: CachedNetwork | None = None
        self._looked_at: CachedNetwork | None = None  # since `fix`, for which numbers stay
        self._written = False  # since then
        self.fixed = 0
        _caches[self.number] = self

    def get(self, stack: Stack, weights: Sequence[Tensor], for_backward: bool) -> CachedNetwork:
        """Return the network of these weights, packing them first where they changed.

        Raises:
            TypeError: The weights' dtypes are not all the same of `DTYPES`.
            ValueError: One is not on the CPU, or of the wrong shape, or the precision is not for them.
        """
        cached = self._cached
        look = not self.fixed or cached is not self._looked_at
        if cached is None or not cached.is_of(stack, weights, look):
            cached = self._cached = _pack(stack, weights, cached, for_backward)
        elif for_backward and not cached.network.packed_for_backward:
            # Both packs anew: the weights may have been written since they were compared.
            cached = self._cached = _pack(stack, weights, None, for_backward)
        if self.fixed:
            self._looked_at = cached
        return cached

    def fix(self) -> None:
        """Look at the numbers once more, and then not until `release`."""
        self._written = self._was_written() if self.fixed else False
        self._looked_at = None
        self.fixed += 1

    def release(self) -> bool:
        """Look at the numbers in every call again; tell whether any was written since `fix`."""
        self.fixed -= 1
        self._written = self._was_written()
        return self._written

    def _was_written(self) -> bool:
        return self._written or (self._looked_at is not None and self._looked_at.is_written())

    def forget(self) -> None:
        """Let go of the weights."""
        self._written = self._was_written()
        self._cached = self._looked_at = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies of a module, and those read from a file, pack for themselves."""
        return NetworkCache, ()


_numbers = itertools.count(1)
_caches: weakref.WeakValueDictionary[int, NetworkCache] = weakref.WeakValueDictionary()


def cache_numbered(number: int) -> NetworkCache:
    """Return the cache of this number, or a new one where its module is gone or was in another process.

    Graphs cannot hold objects, so they hold numbers. One that means another module by now costs time, not
    correctness: `NetworkCache.get` compares.
    """
    cache = _caches.get(number)
    return NetworkCache() if cache is None else cache


def _pack(
    stack: Stack, weights: Sequence[Tensor], before: CachedNetwork | None, for_backward: bool
) -> CachedNetwork:
    """Check and pack the weights. A network like the one before goes on with its memory."""
    input_size, hidden_size, state_size = stack.sizes(weights)
    shapes = shapes_of(stack, input_size, hidden_size, state_size)
    for (name, shape), weight in zip(shapes.items(), weights, strict=True):
        _check_weight(name, shape, weight, weights[0].dtype)
    tensors = [w.detach().contiguous() for w in weights]
    arrays = [_memory(tensor) for tensor in tensors]
    fingerprint = _core.fingerprint(arrays)  # before the packing, in case of a write meanwhile
    dtype = DTYPES[weights[0].dtype]
    low = weights[0].dtype in LOW_PRECISIONS
    values = [tensor.float().numpy() for tensor in tensors] if low else arrays
    parameters = dict(zip(shapes, values, strict=True))
    if before is not None and before.is_like(stack, dtype, arrays):
        network = before.network.renewed(parameters)
    else:
        network = _core.Network(
            stack.cell,
            parameters,
            input_size=input_size,
            hidden_size=hidden_size,
            num_layers=stack.num_layers,
            bidirectional=stack.bidirectional,
            bias=stack.bias,
            proj_size=0 if state_size == hidden_size else state_size,
            dtype=dtype,
            precision=stack.precision,
            **json.loads(stack.functions),
            reverse=stack.reverse,
            learn_state=stack.learn_state,
        )
    if for_backward:
        network.pack_for_backward()
    ends = itertools.accumulate(array.size for array in arrays)
    places = [
        (name, slice(end - math.prod(shape), end), shape)
        for (name, shape), end in zip(shapes.items(), ends, strict=True)
    ]
    addresses = [tensor.data_ptr() for tensor in tensors]
    return CachedNetwork(network, stack, places, dtype, tensors, arrays, addresses, fingerprint)


def _memory(weight: Tensor) -> npt.NDArray[Any]:
    """Return the memory of a contiguous weight; of bfloat16, which NumPy has not, as integers.

    It is not kept by what is returned, and not asked of ``weight.numpy()``, after which torch would refuse to
    change its size, as FSDP does.
    """
    dtype = np.dtype(np.int16) if weight.dtype in LOW_PRECISIONS else DTYPES[weight.dtype]
    if not weight.numel():
        return np.empty(weight.shape, dtype)
    memory = (ctypes.c_byte * weight.nbytes).from_address(weight.data_ptr())
    array: npt.NDArray[Any] = np.frombuffer(cast(Any, memory), dtype)
    return array.reshape(weight.shape)


def _check_weight(name: str, shape: tuple[int, ...], weight: Tensor, dtype: torch.dtype) -> None:
    if weight.device.type != "cpu":
        raise ShapeError(f"{name}: expected a tensor on the CPU, got one on {weight.device}")
    if weight.dtype not in DTYPES:
        raise DtypeError(f"{name}: expected {DTYPE_NAMES}, got {weight.dtype}")
    if weight.dtype != dtype:
        raise DtypeError(f"{name}: expected {dtype} like the first parameter, got {weight.dtype}")
    if tuple(weight.shape) != shape:
        raise ShapeError(f"{name}: expected shape {shape}, got {tuple(weight.shape)}")
