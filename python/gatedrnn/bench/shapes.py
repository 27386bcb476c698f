"""The named sets of shapes, and the data of one shape.

One layer, one direction everywhere: every peer has that, and on one thread stacks of layers are sums of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gatedrnn import _parameters

Array = npt.NDArray[Any]

# With the engine's names for them.
ENGINES = {
    "LSTM": "lstm",
    "GRU": "gru",
    "GRU_BEFORE": "gru_reset_before",
    "RNN": "rnn_tanh",
    "RNN_RELU": "rnn_relu",
}
CELLS = tuple(ENGINES)

# (activations, other roundings) from the pre-activations to the new state.
_POINTWISE = {"LSTM": (5, 4), "GRU": (3, 4), "GRU_BEFORE": (3, 4), "RNN": (1, 0), "RNN_RELU": (0, 0)}
_ACTIVATION_ULP = 8  # what any library's own sigmoid or tanh may be off by
_MEMORY_STEPS = 16  # random weights of order 1 / sqrt(H) let an old error fade by about this many steps

# The unit roundoff of an operand: of bfloat16's 8 bits, of the 16 that two pieces hold, of the 7 that some
# use of int8. The last is a usual number's, a fourth of the largest, which sets the scale.
_MEASURED_MARGIN = 8  # how many times our measured error another library's may be
_ROUNDOFF = {"bfloat16": 2.0**-9, "bfloat16x3": 2.0**-17, "int8": 4 * 2.0**-7}
PRECISIONS = tuple(_ROUNDOFF)


@dataclass(frozen=True)
class Shape:
    """One problem: a cell, its sizes, and how its rows' lengths are drawn.

    `shortest` None means that every row has T steps; otherwise lengths are log-uniform from `shortest` to T.
    `stream` asks for single steps with the state carried over, instead of whole sequences; `train` for
    forward and backward with all gradients. `layer` names one of a file's, whose weights it has.
    """

    cell: str
    I: int  # noqa: E741 (the usual name)
    H: int
    B: int
    T: int
    shortest: int | None = None
    stream: bool = False
    train: bool = False
    layer: str = ""

    @property
    def label(self) -> str:
        """A unique name, by which `--only` finds the shape."""
        steps = f"T={self.T}" if self.shortest is None else f"T={self.shortest}..{self.T}"
        sizes = f"H={self.H} B={self.B} {steps}"
        if self.I != self.H:
            sizes = f"I={self.I} {sizes}"
        return f"{self.layer} {self.cell} {sizes}".lstrip() + (" stream" if self.stream else "")

    @property
    def gates(self) -> int:
        """How many gates the cell has."""
        return _parameters.CELLS[ENGINES[self.cell]].gates

    def lengths(self) -> Array | None:
        """(B,) int64, the same at every call; None where all rows are full."""
        if self.shortest is None:
            return None
        rng = np.random.default_rng(20240229)
        low, high = np.log(self.shortest), np.log(self.T + 1)
        return np.exp(rng.uniform(low, high, self.B)).astype(np.int64).clip(self.shortest, self.T)

    def row_steps(self) -> int:
        """How many (row, step) pairs are to be computed."""
        lengths = self.lengths()
        return self.B * self.T if lengths is None else int(lengths.sum())

    def flops(self) -> float:
        """Multiplications and additions of the two matrix products forward.

        Backward has two more of the same size for each.
        """
        return 2.0 * self.gates * self.H * (self.I + self.H) * self.row_steps()


@dataclass(frozen=True)
class Problem:
    """A shape with its numbers: torch-ordered weights and x (T, B, I), C-contiguous.

    `d_output` (T, B, H) is the gradient that training starts from. `precision` is a lower one to compute in.
    `measured_error` is how far we are from float64 with trained weights, which may make more of errors than
    random ones do.
    """

    shape: Shape
    weights: dict[str, Array]
    x: Array
    lengths: Array | None
    d_output: Array
    precision: str | None = None
    measured_error: float = 0.0

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self.x.dtype

    def in_float64(self) -> Problem:
        """The same numbers, to be computed in float64."""
        wide = {name: value.astype(np.float64) for name, value in self.weights.items()}
        x, d_output = self.x.astype(np.float64), self.d_output.astype(np.float64)
        return replace(self, weights=wide, x=x, d_output=d_output, precision=None)

    def tolerance(self, steps: int) -> float:
        """The largest difference between two libraries' states after `steps` steps that rounding explains.

        A pre-activation is a sum of n = 2 + I + H products; its rounding error is of order sqrt(n) eps.
        Activations and pointwise arithmetic add theirs. Errors of the last few steps add up, older ones
        fade. Two libraries: twice that.

        In a lower precision it is the difference between a library and float64, and the operands' rounding is
        what counts. It is random, so variances add up: in roundoffs those of n products with weights of order
        1 / sqrt(H) to n / H, in bfloat16 one more for each activation and operation, as some round them all.
        """
        return max(self._expected_error(steps), _MEASURED_MARGIN * self.measured_error)

    def _expected_error(self, steps: int) -> float:
        shape = self.shape
        if self.precision:
            return self._tolerance_of_operands(_ROUNDOFF[self.precision], steps)
        activations, arithmetic = _POINTWISE[shape.cell]
        per_step = np.sqrt(2 + shape.I + shape.H) + activations * _ACTIVATION_ULP + arithmetic
        error = 2 * np.finfo(self.dtype).eps * per_step * min(max(steps, 1), _MEMORY_STEPS)
        if shape.train:
            # Backward doubles the chain of steps, and gradients of weights are sums over all of them.
            error = 2 * error + 2 * np.finfo(self.dtype).eps * np.sqrt(shape.row_steps())
        return float(error)

    def _tolerance_of_operands(self, roundoff: float, steps: int) -> float:
        shape = self.shape
        pointwise = sum(_POINTWISE[shape.cell]) if self.precision == "bfloat16" else 0
        variance = ((shape.I + shape.H) / shape.H + pointwise) * min(max(steps, 1), _MEMORY_STEPS)
        if shape.train:  # as above; some round the gradients of weights at every step
            return float(roundoff * (2 * np.sqrt(variance) + np.sqrt(shape.T)))
        return float(roundoff * np.sqrt(variance))


def problem(
    shape: Shape,
    dtype: npt.DTypeLike,
    seed: int = 0,
    precision: str | None = None,
    weights: dict[str, Array] | None = None,
) -> Problem:
    """Draw normal inputs, and weights as torch.nn does (uniform within 1 / sqrt(H)) where none are given."""
    rng = np.random.default_rng(seed)
    rows = shape.gates * shape.H
    sizes = {
        "weight_ih_l0": (rows, shape.I),
        "weight_hh_l0": (rows, shape.H),
        "bias_ih_l0": (rows,),
        "bias_hh_l0": (rows,),
    }
    bound = 1 / np.sqrt(shape.H)
    draw: Any = np.dtype(dtype).type
    if weights is None:
        weights = {name: (rng.random(size, draw) * 2 - 1) * draw(bound) for name, size in sizes.items()}
    else:
        weights = {name: value.astype(dtype) for name, value in weights.items()}
    x = rng.standard_normal((shape.T, shape.B, shape.I), draw)
    d_output = rng.standard_normal((shape.T, shape.B, shape.H) if shape.train else 0, draw)
    lengths = shape.lengths()
    if lengths is not None:  # what a user's padding holds is not to be computed with
        x[np.arange(shape.T)[:, None] >= lengths] = 0
    return Problem(shape, weights, x, lengths, d_output, precision)


GRID_SIZES = (
    (64, 1, 1), (128, 1, 1), (256, 1, 1),
    (64, 1, 100), (128, 1, 100), (256, 1, 100), (512, 1, 100), (1024, 1, 50),
    (64, 16, 100), (128, 16, 100), (256, 16, 100), (512, 16, 50), (1024, 16, 25),
    (128, 64, 100), (256, 64, 100), (512, 64, 25),
    (128, 256, 50), (512, 128, 25),
)  # fmt: skip
_PRECISION_SIZES = {
    "LSTM": (
        (64, 1, 100), (256, 1, 100), (512, 1, 100), (1024, 1, 50), (128, 16, 100), (256, 16, 100),
        (256, 64, 100), (512, 128, 25), (128, 256, 50),
    ),
    "GRU": ((64, 1, 100), (256, 1, 100), (512, 1, 100), (256, 64, 100), (512, 128, 25)),
}  # fmt: skip
_STREAM_SIZES = tuple((hidden, rows) for rows in (1, 16, 256) for hidden in (64, 128, 256, 512))
_DEEPBENCH_GRUS = [(H, T) for H in (2816, 2048, 1536, 2560) for T in (1500, 750, 375, 187)]


def grid(cell: str) -> list[Shape]:
    """The 18 shapes that the README's numbers are about; the input is as wide as the state."""
    return [Shape(cell, hidden, hidden, rows, steps) for hidden, rows, steps in GRID_SIZES]


def precision(cell: str) -> list[Shape]:
    """Single rows, whose time is that of reading weights, and batches, whose time is that of products."""
    sizes = _PRECISION_SIZES["LSTM" if cell == "LSTM" else "GRU"]
    return [Shape(cell, hidden, hidden, rows, steps) for hidden, rows, steps in sizes]


def deepbench(cell: str) -> list[Shape]:
    """Baidu DeepBench's RNN inference shapes: 69 for servers, 3 for devices (rnn_problems.h, I = H).

    Its vanilla RNN has a ReLU. The device list's LSTM (256, 1, 150) stands in the server list too and is run
    once. DeepBench leaves the input product out; here it is part of the layer, for everybody.
    """
    if cell == "LSTM":
        layers = [(512, 25), (1024, 25), (2048, 25), (1536, 50), (256, 150)]
        sizes = [(hidden, rows, steps) for hidden, steps in layers for rows in (1, 2, 4)]
    elif cell in ("GRU", "GRU_BEFORE"):
        layers = [*_DEEPBENCH_GRUS, (512, 1), (1024, 1500)]
        sizes = [(hidden, rows, steps) for hidden, steps in layers for rows in (1, 2, 4)]
    else:
        cell = "RNN_RELU"
        sizes = [(32, 1, 672), (64, 1, 96)]
    return [Shape(cell, hidden, hidden, rows, steps) for hidden, rows, steps in sizes]


def deepbench_training(cell: str) -> list[Shape]:
    """Baidu DeepBench's 53 RNN training shapes (rnn_problems.h, I = H).

    The largest need more memory than many machines have; the benchmark's time limit leaves them out first.
    """
    if cell == "LSTM":
        sizes = [(hidden, rows, 25) for hidden in (512, 1024, 2048, 4096) for rows in (16, 32, 64, 128)]
        sizes += [(1536, rows, 50) for rows in (8, 16, 32)] + [(256, rows, 150) for rows in (16, 32, 64)]
    elif cell in ("GRU", "GRU_BEFORE"):
        sizes = [(hidden, 32, steps) for hidden, steps in _DEEPBENCH_GRUS]
        sizes += [(512, 32, 1), (1024, 32, 1500), (1024, 64, 1500)]
    else:
        cell = "RNN_RELU"
        sizes = [(hidden, rows, 50) for hidden in (1760, 2048, 2560) for rows in (16, 32, 64, 128)]
    return [Shape(cell, hidden, hidden, rows, steps) for hidden, rows, steps in sizes]


def streaming(cell: str) -> list[Shape]:
    """One step at a time, with 1, 16 and 256 sessions."""
    return [Shape(cell, hidden, hidden, rows, 1, stream=True) for hidden, rows in _STREAM_SIZES]


def ragged(cell: str) -> list[Shape]:
    """64 rows with lengths log-uniform from 10 to 400."""
    return [Shape(cell, hidden, hidden, 64, 400, shortest=10) for hidden in (64, 128, 256, 512)]


_Rule = tuple[Callable[[str], list[Shape]], tuple[str, ...]]

SETS: dict[str, _Rule] = {
    "grid": (grid, ("LSTM", "GRU")),
    "deepbench": (deepbench, ("LSTM", "GRU", "RNN")),
    "streaming": (streaming, ("LSTM", "GRU")),
    "ragged": (ragged, ("LSTM", "GRU")),
    "precision": (precision, ("LSTM", "GRU")),
}
TRAINING_SETS: dict[str, _Rule] = {
    "grid": (lambda cell: [shape for shape in grid(cell) if shape.T > 1], ("LSTM", "GRU")),
    "deepbench": (deepbench_training, ("LSTM", "GRU", "RNN")),
    "ragged": (ragged, ("LSTM", "GRU")),
    "precision": (lambda cell: [shape for shape in precision(cell) if shape.B > 1], ("LSTM", "GRU")),
}


def select(
    name: str, cells: Sequence[str] | None, only: Sequence[str], *, train: bool = False
) -> list[Shape]:
    """A set's shapes for some cells (None: the set's own) whose label contains any of `only` (none: all)."""
    rule, default_cells = (TRAINING_SETS if train else SETS)[name]
    shapes = [replace(shape, train=train) for cell in cells or default_cells for shape in rule(cell)]
    return [shape for shape in shapes if matches(shape.label, only)]


def matches(label: str, only: Sequence[str]) -> bool:
    """Whether `--only` keeps this label. A blank at its end is kept, so that "T=1 " does not find "T=100"."""
    return not only or any(part in f"{label} " for part in only)
