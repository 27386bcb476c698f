"""The engine on a CUDA device, in builds with ``GATEDRNN_CUDA=ON``. Used by `gatedrnn._device` only."""

from typing import Any

import numpy as np
import numpy.typing as npt

_Array = Any  # of NumPy, or on the device

class Array:
    """An array on the device."""

    def __init__(self, array: npt.NDArray[np.floating[Any]]) -> None: ...
    def numpy(self) -> npt.NDArray[np.floating[Any]]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    def keep(self, stream_owner: object) -> None: ...
    def __dlpack__(self, *, stream: int | None = None, **options: object) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...

class Tape:
    """What `forward` keeps on the device for `backward`."""

    @property
    def nbytes(self) -> int: ...
    def keep(self, stream_owner: object) -> None: ...

class Stream:
    """Sequences that go forward together, one time step at a time; their state stays on the device."""

    state: Any
    def step(self, x: _Array, out: _Array | None = None, stream: int = 0) -> _Array: ...
    def reset(self, rows: npt.ArrayLike | None = None) -> None: ...
    @property
    def batch_size(self) -> int: ...

class Network:
    """`gatedrnn._core.Network` on the device; `stream` is that of arrays which are there already."""

    def __init__(
        self,
        cell: str,
        parameters: dict[str, npt.NDArray[np.floating[Any]]],
        *,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool,
        bias: bool,
        proj_size: int,
        dtype: np.dtype[Any],
        precision: str,
        reverse: bool = False,
        learn_state: bool = False,
    ) -> None: ...
    def infer(
        self,
        x: _Array,
        state: Any,
        lengths: npt.ArrayLike | None,
        out: _Array | None,
        batch_first: bool,
        stream: int = 0,
    ) -> tuple[_Array, Any]: ...
    def forward(
        self,
        x: _Array,
        state: Any,
        lengths: npt.ArrayLike | None,
        batch_first: bool,
        dropout: float,
        dropout_seed: int,
        recompute: bool,
        owner: object = None,
        stream: int = 0,
    ) -> tuple[_Array, Any, Tape]: ...
    def backward(
        self,
        tape: Tape,
        d_output: _Array | None,
        d_state_n: Any,
        gradients: dict[str, _Array],
        accumulate: bool,
        input_gradient: bool,
        owner: object = None,
        stream: int = 0,
    ) -> tuple[Any, Any]: ...
    def new_gradients(self, stream: int = 0) -> dict[str, Array]: ...
    def plan(self, steps: int, batch: int) -> dict[str, object]: ...
    def stream(self, batch_size: int) -> Stream: ...

def devices() -> dict[str, Any]:
    """Tell the devices' names, the versions of runtime and driver, and the error where there are none."""
