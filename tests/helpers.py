"""What several test files need: modules by cell name, random data, comparison of bits, child processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import gatedrnn as gr
import reference
from gatedrnn import _core
from tolerance import assert_close, wide

CLASSES = {
    "lstm": (gr.LSTM, {}),
    "lstm_peephole": (gr.LSTM, {"peephole": True}),
    "lstm_coupled": (gr.LSTM, {"coupled": True}),
    "lstm_coupled_peephole": (gr.LSTM, {"coupled": True, "peephole": True}),
    "gru": (gr.GRU, {}),
    "gru_reset_before": (gr.GRU, {"reset_after": False}),
    "rnn_tanh": (gr.RNN, {}),
    "rnn_relu": (gr.RNN, {"nonlinearity": "relu"}),
}
CELLS = tuple(CLASSES)
BENCH = Path(__file__).parent.parent / "bench"  # pytest has it on its path, see pyproject.toml
# Whether everything, child processes included, computes on the threads of PyTorch's OpenMP.
BORROWED = os.environ.get("GATEDRNN_TEST_THREADS") == "borrowed"

# With the projection, which is an option of a cell and not one, but changes as much in the engine.
CELLS_AND_PROJECTION = (*CELLS, "lstm_projected")
DTYPES = (np.float32, np.float64)

# Which kernels run here, and whether they promise the same bits as every other machine's.
ISA = _core.machine()["isa"]
FMA_ISAS = [isa for isa in _core.machine()["available"] if isa != "baseline"]
HAS_FMA = ISA != "baseline"


def build(cell, input_size=5, hidden_size=7, *, seed=0, dtype=np.float32, **options):
    """A module with every parameter drawn from `seed`, uniform in +-1/sqrt(H)."""
    if cell == "lstm_projected":
        cell = "lstm"
        options["proj_size"] = (hidden_size + 1) // 2
    constructor, own = CLASSES[cell]
    module = constructor(input_size, hidden_size, dtype=dtype, **own, **options)
    rng = np.random.default_rng([seed, input_size, hidden_size])
    bound = hidden_size**-0.5
    values = {k: rng.uniform(-bound, bound, v.shape).astype(dtype) for k, v in module.state_dict().items()}
    module.load_state_dict(values)
    return module


def normal(shape, *, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def directions(module):
    return 1 + module.bidirectional


def state_of(module, batch, *, seed=1):
    """A random initial state for `batch` rows; `batch=None` means unbatched."""
    rows = () if batch is None else (batch,)
    lead = (module.num_layers * directions(module), *rows)
    h = normal((*lead, getattr(module, "proj_size", 0) or module.hidden_size), seed=seed, dtype=module.dtype)
    if not isinstance(module, gr.LSTM):
        return h
    return h, normal((*lead, module.hidden_size), seed=seed + 1, dtype=module.dtype)


def flat(result):
    """All arrays of `(output, state_n)`, in order."""
    output, state = result
    return [output, *state] if isinstance(state, tuple) else [output, state]


def rows_of(state, rows):
    """The same rows of an array of states (L * D, B, S), or of each of a pair."""
    if state is None:
        return None
    return tuple(s[:, rows] for s in state) if isinstance(state, tuple) else state[:, rows]


def in_pieces(module, x, state=None, lengths=None):
    """The `(output, state_n)` of a call, from each row alone and, in one direction, each step alone.

    These go other ways through the engine than the call does: other tiles, other plans, other blocks of time.
    """
    if x.ndim == 2:
        return _in_steps(module, x, state, time=0)
    time = 1 if module.batch_first else 0
    steps, batch = x.shape[time], x.shape[1 - time]
    outputs, states = [], []
    for row in range(batch):
        one, length = slice(row, row + 1), steps if lengths is None else lengths[row]
        x_row = x[one, :length] if module.batch_first else x[:length, one]
        output, end = _in_steps(module, x_row, rows_of(state, one), time)
        padding = [(0, 0)] * 3
        padding[time] = (0, steps - length)
        outputs.append(np.pad(output, padding))
        states.append(end if isinstance(end, tuple) else (end,))
    joined = tuple(np.concatenate(rows, axis=1) for rows in zip(*states, strict=True))
    return np.concatenate(outputs, axis=1 - time), joined if len(joined) > 1 else joined[0]


def _in_steps(module, x, state, time):
    if module.bidirectional or x.shape[time] == 0:
        return module(x, state)
    outputs = []
    for t in range(x.shape[time]):
        output, state = module(x[:, t : t + 1] if time else x[t : t + 1], state)
        outputs.append(output)
    return np.concatenate(outputs, axis=time), state


def assert_same_bits(actual, expected):
    """Arrays, or `(output, state_n)`: the same dtype, shape and bytes."""
    if isinstance(actual, tuple):
        actual, expected = flat(actual), flat(expected)
        assert len(actual) == len(expected)
    else:
        actual, expected = [actual], [expected]
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert a.shape == e.shape
        bits = f"u{a.dtype.itemsize}"
        np.testing.assert_array_equal(np.ascontiguousarray(a).view(bits), np.ascontiguousarray(e).view(bits))


def truth(module, cell, x, state=None, lengths=None, dtype=None):
    """The reference's `(output, state_n)` for this module, in a wider type than the module's own."""
    return reference.forward(
        cell,
        module.state_dict(),
        x,
        state,
        lengths,
        layers=module.num_layers,
        directions=directions(module),
        batch_first=module.batch_first,
        dtype=dtype or wide(module.dtype),
        activations=module.activations,
        clip=module.clip,
        cell_clip=getattr(module, "cell_clip", None),
        layer_norm=getattr(module, "layer_norm", None),
        layer_norm_eps=getattr(module, "layer_norm_eps", 1e-5),
    )


def check(module, cell, x, state=None, lengths=None):
    """Run the module, compare dtype and numbers with the reference, and return what it returned."""
    result = module(x, state, lengths=lengths)
    assert all(a.dtype == module.dtype for a in flat(result))
    steps = x.shape[1] if x.ndim == 3 and module.batch_first else x.shape[0]
    width = max(module.input_size, directions(module) * module.hidden_size if module.num_layers > 1 else 0)
    assert_close(
        flat(result),
        flat(truth(module, cell, x, state, lengths)),
        cell=cell,
        accumulations=2 + width + module.hidden_size + getattr(module, "proj_size", 0),
        steps=steps,
        layers=module.num_layers,
    )
    return result


def run_python(code, *arguments, isa=None, timeout=120, check_status=True, environment=()):
    """Run `code` in a new interpreter that can import what tests can; its last line is JSON and is returned.

    `code` is text, or the path of a script. A child that hangs is ended by the time-out and fails the test.
    With `check_status=False` the finished process itself is returned.
    """
    environment = {k: v for k, v in os.environ.items() if k != "GATEDRNN_ISA"} | dict(environment)
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), str(BENCH), environment.get("PYTHONPATH", "")]
    )
    if isa is not None:
        environment["GATEDRNN_ISA"] = isa
    if BORROWED and not isinstance(code, Path):
        code = code.replace("import gatedrnn as gr\n", "import gatedrnn as gr\nimport gatedrnn.torch\n", 1)
    child = subprocess.run(
        [sys.executable, *([code] if isinstance(code, Path) else ["-c", code]), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if not check_status:
        return child
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])
