"""What the tests of gradients share: problems with a loss, slopes by their definition, digests, a tolerance.

The loss of a problem is the sum of all results, each times a random number: the output times `d_output`, the
final state times `d_state_n`. These numbers are then the gradients that `backward` starts from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools

import numpy as np

from helpers import CELLS_AND_PROJECTION, DTYPES, build, directions, flat, normal, state_of
from tolerance import ACTIVATION_ULP, POINTWISE, tolerance

CELLS = (*CELLS_AND_PROJECTION, "lstm_peephole_projected")

# What the library promises of its gradients in float64, against differences.
RELATIVE = 1e-6
# What differences with a short step can tell.
RELATIVE_KINKED = 1e-4

# From d_h to the gradient of a pre-activation: the sum of d_h, its way into d_c and on, the slope, and the
# products of these (LSTM, the longest).
BACKWARD_ROUNDINGS = 10


def plain(cell):
    """The cell without its projection, which is how other helpers know it."""
    return cell.removesuffix("_projected")


def make(cell, input_size=5, hidden_size=7, **options):
    """A module with random parameters, of any of `CELLS`."""
    if cell == "lstm_peephole_projected":
        cell, options = "lstm_peephole", {**options, "proj_size": (hidden_size + 1) // 2}
    return build(cell, input_size, hidden_size, **options)


def parts(state):
    """The arrays of a state, or of its gradient."""
    return state if isinstance(state, tuple) else (state,)


def named(d_x, d_state, gradients):
    """All that `backward` gives, by name."""
    return {"x": d_x, **dict(zip(("h_0", "c_0"), parts(d_state), strict=False)), **gradients}


@dataclasses.dataclass(frozen=True)
class Problem:
    """Arguments of one forward and one backward."""

    cell: str
    module: object
    x: np.ndarray
    state: object
    lengths: object
    d_output: np.ndarray
    d_state_n: object
    dropout_seed: int | None = None

    def forward(self, **options):
        return self.module.forward(
            self.x, self.state, lengths=self.lengths, dropout_seed=self.dropout_seed, **options
        )

    def gradients(self, *, recompute=False, **options):
        """By name: x, h_0, for LSTM c_0, and the parameters."""
        _, _, tape = self.forward(recompute=recompute)
        return named(*self.module.backward(tape, self.d_output, self.d_state_n, **options))

    def results(self):
        """Output and final state; without dropout those of a plain call, which knows nothing of training."""
        if self.dropout_seed is not None:
            return self.forward()[:2]
        return self.module(self.x, self.state, lengths=self.lengths)

    def loss(self):
        weights = (self.d_output, *parts(self.d_state_n))
        return sum(float(np.sum(r * w)) for r, w in zip(flat(self.results()), weights, strict=True))

    @property
    def steps(self):
        return self.x.shape[1] if self.x.ndim == 3 and self.module.batch_first else self.x.shape[0]

    @property
    def pairs(self):
        """Time steps times rows."""
        return int(np.prod(self.x.shape[:-1]))

    @property
    def accumulations(self):
        """Terms of the longest sum on the way forward, as in `helpers.check`."""
        module = self.module
        width = directions(module) * module.hidden_size if module.num_layers > 1 else 0
        return 2 + max(module.input_size, width) + module.hidden_size + getattr(module, "proj_size", 0)


def problem(
    cell,
    input_size=5,
    hidden_size=7,
    batch=3,
    steps=5,
    *,
    lengths=None,
    dtype=np.float64,
    seed=0,
    dropout_seed=None,
    **options,
):
    """A random problem. `batch=None` means unbatched."""
    module = make(cell, input_size, hidden_size, dtype=dtype, seed=seed, **options)
    lead = (steps,) if batch is None else (batch, steps) if module.batch_first else (steps, batch)
    width = directions(module) * (getattr(module, "proj_size", 0) or hidden_size)
    return Problem(
        cell,
        module,
        normal((*lead, input_size), seed=seed + 1, dtype=dtype),
        state_of(module, batch, seed=seed + 2),
        lengths,
        normal((*lead, width), seed=seed + 4, dtype=dtype),
        state_of(module, batch, seed=seed + 5),
        dropout_seed,
    )


# --- slopes by their definition -------------------------------------------------------------------


# Functions that are not smooth.
KINKED = {"relu", "hard_sigmoid", "leaky_relu", "elu", "softsign", "thresholded_relu"}


def is_kinked(p):
    functions = (p.module.activations or {}).values()
    names = {f if isinstance(f, str) else f[0] for f in functions}
    clips = p.module.clip, getattr(p.module, "cell_clip", None)
    return p.cell == "rnn_relu" or names & KINKED or clips not in ((None, None), (None,))


def difference_step(p):
    """How far apart the points are: where the formula's own error, h^4, meets the rounding errors, eps / h.

    Between the kinks of relu there is little to smooth over, and a shorter step meets fewer kinks.
    """
    eps = np.finfo(np.float64).eps
    return eps ** (1 / 3) if is_kinked(p) else eps ** (1 / 5)


def noise(p):
    """What rounding errors of the results do to a difference quotient.

    Each result is off by at most `tolerance`, in either direction, so the loss by that times the root of the
    sum of its squared weights. The quotient below sums four losses with weights of 8/12h and 1/12h, whose
    squares add up to about 1/h^2.
    """
    weights = np.concatenate([np.ravel(a) for a in (p.d_output, *parts(p.d_state_n))])
    largest = max((float(np.abs(a).max()) for a in flat(p.results()) if a.size), default=0.0)
    each = tolerance(
        np.float64, plain(p.cell), p.accumulations, p.steps, p.module.num_layers, max(1.0, largest)
    )
    return each * float(np.linalg.norm(weights)) / difference_step(p)


def slope(p, values, where, direction):
    """The loss's derivative by `values[where]` along `direction`: a central difference of fourth order."""
    step, before = difference_step(p), values[where].copy()

    def at(steps):
        values[where] = before + steps * step * direction
        return p.loss()

    try:
        return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)
    finally:
        values[where] = before


def places(size, elements, rng):
    """(where, direction) pairs: `elements` single ones, and one random direction through all of them."""
    for k in rng.permutation(size)[:elements]:
        yield slice(k, k + 1), np.ones(1)
    direction = rng.standard_normal(size)
    yield slice(None), direction / np.linalg.norm(direction)


def assert_slopes(p, elements=8, gradients=None):
    """Every gradient, at some elements and along a direction through all, is the slope of the loss."""
    gradients = p.gradients() if gradients is None else gradients
    variables = named(p.x, p.state, p.module.parameters())
    assert list(gradients) == list(variables)
    rng, rounding = np.random.default_rng(0), noise(p)
    for name, values in variables.items():
        gradient = gradients[name]
        assert gradient.shape == values.shape
        assert gradient.dtype == values.dtype
        largest = float(np.abs(gradient).max())
        resolved = RELATIVE_KINKED if is_kinked(p) else RELATIVE
        told = rounding <= resolved * largest or largest == 0  # nothing comes through a clip
        assert told, f"{name}: differences would say nothing"
        for where, direction in places(values.size, elements, rng):
            expected = slope(p, values.reshape(-1), where, direction)
            actual = float(np.sum(gradient.reshape(-1)[where] * direction))
            error, allowed = abs(actual - expected), RELATIVE * abs(expected) + rounding
            assert error <= allowed, f"{name}: got {actual}, slope {expected}, allowed error {allowed:.3g}"


# --- comparisons ----------------------------------------------------------------------------------


def assert_same_gradients(actual, expected):
    """The same names, dtypes, shapes and bytes."""
    assert list(actual) == list(expected)
    for name, e in expected.items():
        a = actual[name]
        assert a.dtype == e.dtype, name
        assert a.shape == e.shape, name
        assert np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(e).tobytes(), name


def gradient_tolerance(p):
    """The largest error of a gradient, in parts of the largest value of its array.

    A step backward rounds like one forward (see `tolerance`), with sums over all gates, the kept activations
    and BACKWARD_ROUNDINGS others. A gradient carries the errors of both ways through up to T steps and L
    layers, each in either direction, so they grow with the root of their number; and that of a parameter is
    a sum over T * B pairs, each addition rounding once more.
    """
    module = p.module
    activations, arithmetic = POINTWISE[plain(p.cell)]
    depth = len(module.state_dict()["weight_hh_l0"])
    pointwise = 2 * activations * ACTIVATION_ULP + arithmetic + BACKWARD_ROUNDINGS
    per_step = np.sqrt(p.accumulations) + np.sqrt(depth) + pointwise
    passed = np.sqrt(max(p.steps, 1) * module.num_layers)
    return float(np.finfo(module.dtype).eps * (per_step * passed + np.sqrt(p.pairs)))


def assert_close_gradients(actual, expected, relative):
    """Off by at most `relative` of the largest value of each array."""
    assert list(actual) == list(expected)
    for name, e in expected.items():
        a = actual[name]
        assert a.shape == e.shape, name
        if e.size:
            error, allowed = np.abs(a - e).max(), relative * np.abs(e).max()
            assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"  # false for NaN


# --- digests --------------------------------------------------------------------------------------

# (I, H, B, T, options): tails of every vector width, tiles, several layers, both directions, blocks of time.
SHAPES = [
    (1, 2, 1, 3, {}),
    (7, 9, 15, 4, {"num_layers": 2, "bidirectional": True}),
    (17, 33, 2, 300, {}),
    (129, 31, 7, 5, {"bias": False}),
    (33, 129, 33, 3, {}),
    (5, 17, 9, 6, {"num_layers": 2, "dropout": 0.5}),
]


def digest(gradients):
    return hashlib.sha256(b"".join(a.tobytes() for a in gradients.values())).hexdigest()[:16]


def digests():
    """{description: digest of all gradients}; the same on every machine with FMA."""
    result = {}
    for cell, dtype, (i, h, b, t, options) in itertools.product(CELLS, DTYPES, SHAPES):
        lengths = np.arange(b) % (t + 1) if b > 1 else None
        p = problem(cell, i, h, b, t, lengths=lengths, dtype=dtype, dropout_seed=3, **options)
        result[f"{cell} {np.dtype(dtype).name} I={i} H={h} B={b} T={t} {options}"] = digest(p.gradients())
    return result
