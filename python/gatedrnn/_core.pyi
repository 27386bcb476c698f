"""The compiled engine; private to this package."""

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Generic, TypeAlias, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[np.floating[Any]]
_State = TypeVar("_State")  # an array, or the pair (h, c)
_Given = TypeVar("_Given")  # the same, where parts of a pair may be None

__version__: str

class Network:
    """A whole stack (layers x directions), weights packed; immutable, safe to call from many threads."""

    def __init__(
        self,
        cell: str,
        parameters: dict[str, _Array],
        *,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool,
        bias: bool,
        proj_size: int,
        dtype: np.dtype[Any],
        precision: str | None = None,
        activations: Sequence[tuple[str, float, float]] = (),
        clip: float | None = None,
        cell_clip: float | None = None,
        layer_norm_eps: float = 0,
        reverse: bool = False,
        learn_state: bool = False,
    ) -> None: ...
    def renewed(self, parameters: dict[str, _Array]) -> Network:
        """The same network with other parameters."""

    def infer(
        self,
        x: npt.ArrayLike,
        state: Any,
        lengths: npt.ArrayLike | None,
        out: _Array | None,
        batch_first: bool,
        mask: npt.ArrayLike | None = None,
        resets: npt.ArrayLike | None = None,
        repeats: bool = False,
    ) -> tuple[_Array, Any]:
        """Compute; `repeats`: whether skipped steps have the output of the step before."""

    def step(self, x: npt.ArrayLike, state: Any) -> Any:
        """Take one step of a network of one layer: x (B, I) or (I,), the state likewise; the state after."""

    @property
    def packed_for_backward(self) -> bool: ...
    def pack_for_backward(self) -> None:
        """Make ready for `forward`, while the parameters are those that the network was made of."""

    @property
    def nbytes(self) -> int:
        """Size of the packed weights."""

    def forward(
        self,
        x: npt.ArrayLike,
        state: Any,
        lengths: npt.ArrayLike | None,
        batch_first: bool,
        dropout: float,
        dropout_seed: int,
        recompute: bool,
        owner: object = None,
        x_stays: bool = False,
        mask: npt.ArrayLike | None = None,
        resets: npt.ArrayLike | None = None,
        repeats: bool = False,
    ) -> tuple[_Array, Any, Tape]:
        """Run and keep a tape; with a copy of x, unless nobody is going to write into that (`x_stays`)."""

    def backward(
        self,
        tape: Tape,
        d_output: npt.ArrayLike | None,
        d_state_n: Any,
        gradients: dict[str, _Array],
        accumulate: bool,
        input_gradient: bool,
        owner: object = None,
    ) -> tuple[Any, Any]: ...
    def plan(self, steps: int, batch: int, threads: int, backward: bool = False) -> dict[str, object]:
        """Tell what the engine would decide for such a call."""

    def stream(self, batch_size: int) -> Stream[Any, Any]: ...
    recipe: tuple[Any, ...] | None  # the arguments of _streams.make_network, for pickles of streams
    def __reduce__(self) -> tuple[Any, ...]: ...

class Tape:
    @property
    def nbytes(self) -> int: ...
    _merged: Any  # see gatedrnn._merge

class Stream(Generic[_State, _Given]):
    @property
    def state(self) -> _State: ...
    @state.setter
    def state(self, state: _Given | None) -> None: ...
    @property
    def batch_size(self) -> int: ...
    def step(
        self,
        x: npt.ArrayLike,
        out: _Array | None = None,
        *,
        resets: npt.ArrayLike | None = None,
        mask: npt.ArrayLike | None = None,
    ) -> _Array: ...
    def reset(
        self,
        rows: int | Sequence[int] | Sequence[bool] | npt.NDArray[np.integer[Any] | np.bool_] | None = None,
    ) -> None: ...
    def __copy__(self) -> Stream[_State, _Given]: ...
    def __deepcopy__(self, memo: object) -> Stream[_State, _Given]: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

class _Machine(TypedDict):
    isa: str
    available: list[str]
    compiled: list[str]
    features: list[str]  # of the processor and the operating system, as /proc/cpuinfo names them
    missing: dict[str, list[str]]  # of those that each compiled one needs
    formats: dict[str, str]  # the instruction set that computes each
    l1: int
    l2: int
    l3: int
    cpu: str
    compiler: str
    threads: int

def machine() -> _Machine: ...

_Sizes: TypeAlias = tuple[tuple[str, int], ...]

def cells() -> dict[
    str, tuple[int, bool, tuple[str, ...], tuple[tuple[str, str], ...], tuple[_Sizes, _Sizes]]
]:
    """Tell of each cell its gates, whether its state is a pair, and the names of peepholes and functions.

    Only general cells have functions: pairs of a gate's letter and the name of its usual function. Only
    normalised cells have further parameters, without and with biases: names, and how many times H values.
    """

def activations() -> dict[str, tuple[float, ...]]:
    """Tell the defaults of each function's parameters."""

def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def thread_limit() -> ContextVar[int]:
    """Return the variable that limits the threads of calls made in a context; 0: no limit."""

def thread_source() -> str:
    """Tell where threads come from: "pool" or "openmp"."""

def borrow_threads(parallel: int, thread_num: int, num_threads: int, max_threads: int) -> None:
    """Compute on the threads of an OpenMP runtime from now on, given the addresses of its functions."""

def copy_all(pairs: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]]) -> None:
    """Copy (to, from) of each pair of contiguous arrays; nobody sees a part of it done."""

def aligned_array(count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Allocate a 1-d array that begins with a cache line; the numbers are undefined."""

def float_array(name: str, object: object) -> _Array:
    """Return what NumPy reads as floating-point numbers, in the machine's byte order, or raise an error."""

def check_out(
    out: object, dtype: np.dtype[Any], shape: tuple[int, ...], inputs: Sequence[npt.NDArray[Any]]
) -> None:
    """Raise an error unless results of such a shape can be written into `out`, apart from the inputs."""

def fingerprint(arrays: Sequence[npt.NDArray[Any]]) -> int:
    """Hash the bytes of contiguous arrays to 64 bits."""

def sigmoid(x: _Array) -> _Array:
    """Apply the engine's own activation code to a 1-d array."""

def tanh(x: _Array) -> _Array:
    """Apply the engine's own activation code to a 1-d array."""

def measure_multiply(format: str, milliseconds: float) -> float:
    """Measure multiplications and additions of one thread per second, in a format of `machine()`."""

def measure_bandwidth(bytes: int, milliseconds: float) -> float:
    """Measure the bytes/s that one thread reads from a buffer of that size, again and again."""
