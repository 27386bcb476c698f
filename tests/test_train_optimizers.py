"""gatedrnn.train's optimisers against plain scalar equations; blocks, state, clipping, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gatedrnn import train
from gatedrnn.train import _blocks
from helpers import DTYPES, assert_same_bits, normal
from test_errors import refused

EPS = np.finfo(np.float64).eps
STEPS = 5


def plain_sgd(p, grads, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
    b = None
    for g in grads:
        g = g + weight_decay * p
        b = g if b is None else momentum * b + (1 - dampening) * g
        p = p - lr * (g + momentum * b if nesterov else b if momentum else g)
    return p


def plain_adam(p, grads, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled=False):
    m = v = 0.0
    for k, g in enumerate(grads, 1):
        if decoupled:
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        p = p - lr * (m / (1 - betas[0] ** k)) / (math.sqrt(v / (1 - betas[1] ** k)) + eps)
    return p


def plain_adamw(p, grads, lr, weight_decay=0.01, **options):
    return plain_adam(p, grads, lr, weight_decay=weight_decay, decoupled=True, **options)


def plain_rmsprop(p, grads, lr, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False):
    v = a = b = 0.0
    for g in grads:
        g = g + weight_decay * p
        v = alpha * v + (1 - alpha) * g * g
        a = alpha * a + (1 - alpha) * g
        b = momentum * b + g / (math.sqrt(v - a * a if centered else v) + eps)
        p = p - lr * b
    return p


# Each with the equations and the options of which every one has an effect.
CASES = {
    "sgd": (train.SGD, plain_sgd, {}),
    "sgd_decay": (train.SGD, plain_sgd, {"weight_decay": 0.1}),
    "sgd_momentum": (train.SGD, plain_sgd, {"momentum": 0.9, "weight_decay": 0.1}),
    "sgd_dampening": (train.SGD, plain_sgd, {"momentum": 0.9, "dampening": 0.3}),
    "sgd_nesterov": (train.SGD, plain_sgd, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adam": (train.Adam, plain_adam, {}),
    "adam_options": (train.Adam, plain_adam, {"betas": (0.8, 0.95), "eps": 0.1, "weight_decay": 0.1}),
    "adamw": (train.AdamW, plain_adamw, {}),
    "adamw_options": (train.AdamW, plain_adamw, {"betas": (0.8, 0.95), "eps": 0.1, "weight_decay": 0.3}),
    "rmsprop": (train.RMSprop, plain_rmsprop, {}),
    "rmsprop_options": (train.RMSprop, plain_rmsprop, {"alpha": 0.9, "eps": 0.1, "weight_decay": 0.1}),
    "rmsprop_momentum": (train.RMSprop, plain_rmsprop, {"momentum": 0.9}),
    "rmsprop_centered": (train.RMSprop, plain_rmsprop, {"centered": True, "momentum": 0.5}),
}
cases = pytest.mark.parametrize("case", CASES)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def problem(dtype=np.float64, shapes=((3, 4), (5,))):
    """Parameters, and gradients for each of STEPS steps."""
    parameters = {f"p{i}": normal(shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)}
    gradients = [
        {
            name: normal(p.shape, seed=10 * k + i, dtype=dtype)
            for i, (name, p) in enumerate(parameters.items())
        }
        for k in range(1, STEPS + 1)
    ]
    return parameters, gradients


def make(case, parameters, lr=0.05):
    cls, _, options = CASES[case]
    return cls(parameters, lr, **options)


# ---- what they compute ----


@cases
@dtypes
def test_equations(case, dtype):
    """A step has less than 20 roundings, each of at most eps / 2 of a number of about 1 or below."""
    parameters, gradients = problem(dtype)
    start = {name: p.copy() for name, p in parameters.items()}
    optimizer = make(case, parameters)
    for grads in gradients:
        optimizer.step(grads)
    _, plain, options = CASES[case]
    for name, p in parameters.items():
        assert p.dtype == dtype
        for position in np.ndindex(p.shape):
            history = [float(grads[name][position]) for grads in gradients]
            expected = plain(float(start[name][position]), history, 0.05, **options)
            assert abs(p[position] - expected) <= 20 * STEPS * np.finfo(dtype).eps * max(1, abs(expected))


def test_sgd_small_case():
    """Powers of two: exact."""
    p = np.array([1.0, -2.0])
    optimizer = train.SGD({"p": p}, lr=0.5, momentum=0.5)
    optimizer.step({"p": np.array([1.0, 2.0])})
    np.testing.assert_array_equal(p, [0.5, -3])
    optimizer.step({"p": np.array([1.0, 2.0])})
    np.testing.assert_array_equal(p, [-0.25, -4.5])


def test_defaults_are_those_of_the_papers():
    p = {"p": np.ones(1)}
    adam, adamw, rmsprop, sgd = train.Adam(p), train.AdamW(p), train.RMSprop(p), train.SGD(p)
    assert (adam.lr, adam.betas, adam.eps, adam.weight_decay) == (1e-3, (0.9, 0.999), 1e-8, 0)
    assert (adamw.lr, adamw.betas, adamw.eps, adamw.weight_decay) == (1e-3, (0.9, 0.999), 1e-8, 1e-2)
    assert (rmsprop.lr, rmsprop.alpha, rmsprop.eps, rmsprop.momentum) == (1e-2, 0.99, 1e-8, 0)
    assert (sgd.lr, sgd.momentum, sgd.dampening, sgd.nesterov, sgd.weight_decay) == (1e-3, 0, 0, False, 0)


@cases
def test_gradients_are_left_alone_and_may_have_any_strides(case):
    parameters, gradients = problem()
    same, _ = problem()
    optimizer, other = make(case, parameters), make(case, same)
    for grads in gradients:
        before = {name: g.copy() for name, g in grads.items()}
        optimizer.step(grads)
        other.step({name: np.repeat(g, 2, axis=-1)[..., ::2] for name, g in grads.items()})
        for name, g in grads.items():
            assert_same_bits(g, before[name])
    for name, p in parameters.items():
        assert_same_bits(p, same[name])


@cases
def test_blocks_change_no_bit(case, monkeypatch):
    results = []
    for block in (1 << 15, 7):
        monkeypatch.setattr(_blocks, "BLOCK", block)
        parameters, gradients = problem(np.float32, ((6, 5), (14,), (0,), ()))
        optimizer = make(case, parameters)
        for grads in gradients:
            optimizer.step(grads)
        results.append(parameters)
    for name in results[0]:
        assert_same_bits(results[0][name], results[1][name])


@cases
def test_more_than_one_block(case):
    parameters, gradients = problem(np.float32, ((3, 1 << 15),))
    halves = {f"{i}": row.copy() for i, row in enumerate(parameters["p0"])}
    optimizer, other = make(case, parameters), make(case, halves)
    for grads in gradients[:2]:
        optimizer.step(grads)
        other.step({f"{i}": row for i, row in enumerate(grads["p0"])})
    for i, row in enumerate(parameters["p0"]):
        assert_same_bits(row, halves[f"{i}"])


def test_dtypes_may_be_mixed():
    parameters = {"a": normal((3,)), "b": normal((3,), dtype=np.float64)}
    train.Adam(parameters).step({name: np.ones_like(p) for name, p in parameters.items()})
    assert [p.dtype for p in parameters.values()] == [np.float32, np.float64]


def test_learning_rate_can_be_set():
    p = np.array([1.0])
    optimizer = train.SGD({"p": p}, lr=0.5)
    optimizer.lr = 0.25
    optimizer.step({"p": np.array([1.0])})
    assert p == 0.75
    with refused("lr", ValueError):
        optimizer.lr = -1
    assert optimizer.lr == 0.25


def test_an_optimizer_of_some_parameters_passes_over_other_gradients():
    parameters, gradients = problem()
    before = parameters["p1"].copy()
    optimizer = train.SGD({"p0": parameters["p0"]}, lr=0.5)
    optimizer.step(gradients[0])
    assert_same_bits(parameters["p1"], before)


# ---- state ----


@cases
@dtypes
def test_going_on_from_a_state_gives_the_same_bits(case, dtype):
    parameters, gradients = problem(dtype)
    optimizer = make(case, parameters)
    for grads in gradients[:2]:
        optimizer.step(grads)
    optimizer.lr = 0.01
    state, middle = optimizer.state_dict(), {name: p.copy() for name, p in parameters.items()}
    for grads in gradients[2:]:
        optimizer.step(grads)
    other = make(case, middle)
    other.load_state_dict(state)
    assert (other.steps, other.lr) == (2, 0.01)
    for grads in gradients[2:]:
        other.step(grads)
    for name, p in parameters.items():
        assert_same_bits(middle[name], p)
    for name, array in optimizer.state_dict().items():
        assert_same_bits(other.state_dict()[name], array)


def test_state_names_and_types():
    parameters, _ = problem(np.float32)
    names = {
        "sgd": [],
        "sgd_momentum": ["momentum_buffer"],
        "adam": ["exp_avg", "exp_avg_sq"],
        "adamw": ["exp_avg", "exp_avg_sq"],
        "rmsprop": ["square_avg"],
        "rmsprop_centered": ["variance", "momentum_buffer", "grad_avg"],
    }
    options = {
        "sgd": {"momentum": np.float64, "dampening": np.float64, "nesterov": np.bool_},
        "adam": {"betas": np.float64, "eps": np.float64},
        "rmsprop": {"alpha": np.float64, "eps": np.float64, "momentum": np.float64, "centered": np.bool_},
    }
    for case, buffers in names.items():
        state = make(case, parameters).state_dict()
        own = options[case.split("_")[0].removesuffix("w")]
        assert list(state) == [
            "step",
            *("lr", "weight_decay", *own),
            *(f"{buffer}.{name}" for buffer in buffers for name in parameters),
        ]
        assert (state["step"].dtype, state["lr"].dtype) == (np.int64, np.float64)
        assert {name: state[name].dtype for name in own} == own
        assert all(array.dtype == np.float32 for key, array in state.items() if "." in key)


def test_state_dict_copies():
    parameters, gradients = problem()
    optimizer = train.Adam(parameters)
    state = optimizer.state_dict()
    optimizer.step(gradients[0])
    assert all((array == 0).all() for key, array in state.items() if key == "step" or "." in key)


def test_load_state_dict_refuses():
    parameters, gradients = problem()
    optimizer = train.Adam(parameters)
    optimizer.step(gradients[0])
    good = optimizer.state_dict()
    other = {key: array + 1 if key == "step" or "." in key else array for key, array in good.items()}
    wrong = [
        ("d", None),
        ("d", {}),
        ("d", {**other, "more": np.zeros(1)}),
        ("step", {**other, "step": np.array(-1)}),
        ("step", {**other, "step": np.array(1.5)}),
        ("lr", {**other, "lr": np.array(-1.0)}),
        ("lr", {**other, "lr": np.array([1.0])}),
        ("d", {key: value for key, value in other.items() if key != "lr"}),
        ("eps", {**other, "eps": np.array(-1.0)}),
        (r"betas\[1\].*", {**other, "betas": np.array([0.9, 1.0])}),
        ("betas", {**other, "betas": np.array(0.9)}),
        ("exp_avg_sq.p1", {**other, "exp_avg_sq.p1": np.zeros(4)}),
        ("exp_avg_sq.p1", {**other, "exp_avg_sq.p1": np.zeros(5, np.float32)}),
    ]
    for name, state in wrong:
        with refused(name):
            optimizer.load_state_dict(state)
        for key, array in optimizer.state_dict().items():
            assert_same_bits(array, good[key])


LOADED = {
    "sgd_nesterov": {"lr": 0.5, "momentum": 0.8, "dampening": 0.0, "weight_decay": 0.2, "nesterov": True},
    "adam": {"lr": 0.5, "betas": (0.7, 0.8), "eps": 0.1, "weight_decay": 0.2},
    "adamw": {"lr": 0.5, "betas": (0.7, 0.8), "eps": 0.1, "weight_decay": 0.2},
    "rmsprop": {"lr": 0.5, "alpha": 0.7, "eps": 0.1, "weight_decay": 0.2},
}


@pytest.mark.parametrize("case", LOADED)
def test_a_state_has_all_hyper_parameters(case):
    """None is treated in another way than the others."""
    parameters, _ = problem()
    saved = CASES[case][0](parameters, **LOADED[case])
    other = make(case, parameters)
    other.load_state_dict(saved.state_dict())
    assert other.hyper_parameters() == saved.hyper_parameters()
    assert {name: getattr(other, name) for name in LOADED[case]} == LOADED[case]


@cases
def test_states_of_the_earlier_version(case):
    """They had `step`, `lr` and buffers, of which a centred RMSprop's was the mean square."""
    parameters, gradients = problem()
    optimizer = make(case, parameters)
    for grads in gradients[:3]:
        optimizer.step(grads)
    new = optimizer.state_dict()
    old = {key: array for key, array in new.items() if key in ("step", "lr") or "." in key}
    for name in parameters:
        if f"variance.{name}" in old:
            old[f"square_avg.{name}"] = old.pop(f"variance.{name}") + old[f"grad_avg.{name}"] ** 2
    other = make(case, parameters, lr=0.7)
    given = other.hyper_parameters()
    other.load_state_dict(old)
    assert other.hyper_parameters() == {**given, "lr": 0.05}
    for key, array in other.state_dict().items():
        np.testing.assert_allclose(array, new[key], rtol=20 * EPS, atol=20 * EPS)


def test_a_damaged_state_of_the_earlier_version():
    parameters, gradients = problem()
    optimizer = make("rmsprop_centered", parameters)
    optimizer.step(gradients[0])
    good = optimizer.state_dict()
    old = {key: array for key, array in good.items() if not key.startswith("variance")}
    old |= {f"square_avg.{name}": np.ones_like(p) for name, p in parameters.items()}
    for key, wrong in (("square_avg.p0", np.ones(3)), ("square_avg.p1", [1.0]), ("grad_avg.p0", None)):
        with refused(r"(square|grad)_avg\.p[01]"):
            optimizer.load_state_dict({**old, key: wrong})
    for key, array in optimizer.state_dict().items():
        assert_same_bits(array, good[key])


def test_hyper_parameters_are_checked_when_set():
    optimizer = make("sgd_nesterov", problem()[0])
    before = optimizer.hyper_parameters()
    for name, options in (("momentum", {"momentum": -1}), ("nesterov", {"lr": 0.3, "dampening": 0.1})):
        with refused(name):
            optimizer.set_hyper_parameters(options)
        assert optimizer.hyper_parameters() == before
    optimizer.set_hyper_parameters({"lr": 0.3, "momentum": 0.5})
    assert optimizer.hyper_parameters() == {**before, "lr": 0.3, "momentum": 0.5}


# ---- numbers at the ends of their range ----


@dtypes
def test_the_variance_of_constant_gradients(dtype):
    """It falls by alpha a step, as the equations say: neither below 0, nor to whatever rounding leaves."""
    gradient = normal((64,), dtype=dtype)
    gradient += np.copysign(dtype(0.1), gradient)
    optimizer = train.RMSprop({"p": np.zeros(64, dtype)}, lr=1e-3, centered=True)
    for _ in range(3000):
        optimizer.step({"p": gradient})
    shrunk = 0.99**3000 * (1 - 0.99**3000) * gradient.astype(np.float64) ** 2
    # A step has less than 10 roundings, of which the mean's matter by their share of what is left: a tenth.
    variance = optimizer.state_dict()["variance.p"]
    assert (variance >= 0).all()
    if dtype == np.float64:
        np.testing.assert_allclose(variance, shrunk, rtol=0.1)
    assert np.isfinite(optimizer.state_dict()["grad_avg.p"]).all()


@pytest.mark.parametrize("kind", ["raise", "warn"])
@cases
@dtypes
def test_strict_numpy_does_not_hear_of_underflow(kind, case, dtype):
    """Tests turn warnings into errors."""
    tiny = np.finfo(dtype).tiny
    results = []
    for told in ("ignore", kind):
        parameters = {"p": np.array([1, tiny, -3 * tiny, 0], dtype)}
        optimizer = make(case, parameters)
        for scale in (1, 1e-3, 0.3):
            grads = {"p": np.array([1e-20, tiny / dtype(scale), 1e-30, 1e-10], dtype) * dtype(scale)}
            with np.errstate(all=told):
                optimizer.step(grads)
                train.clip_grad_norm(grads, 1e-30)
        results.append((parameters["p"], grads["p"]))
    assert_same_bits(results[0], results[1])


@cases
@pytest.mark.parametrize("kind", ["raise", "warn", "call"])
def test_a_strict_numpy_leaves_no_step_half_done(case, kind):
    """What it has to say comes when all is done: parameters, buffers and the counter go together."""
    infinite = {"p0": np.full((3, 4), 1e300), "p1": np.full(5, np.inf)}
    states = []
    for told in ("ignore", kind):
        parameters, gradients = problem()
        optimizer = make(case, parameters)
        optimizer.step(gradients[0])
        heard = []
        with np.errstate(all=told, call=lambda *what, heard=heard: heard.append(what)):
            for grads in (infinite, gradients[1]):
                try:
                    optimizer.step(grads)
                except (FloatingPointError, RuntimeWarning) as error:
                    heard.append(str(error))
        assert bool(heard) <= (told != "ignore")
        if told in ("raise", "warn"):
            assert all(f"encountered in {type(optimizer).__name__}.step" in each for each in heard)
        states.append({**optimizer.state_dict(), **parameters})
    assert states[0]["step"] == 3
    for key, array in states[0].items():
        assert_same_bits(states[1][key], array)


# ---- clipping ----


@dtypes
def test_clip_grad_norm(dtype):
    grads = {"a": np.array([[3.0, 0.0]], dtype), "b": np.array([4.0], dtype)}
    before = {name: g.copy() for name, g in grads.items()}
    for max_norm in (5.1, math.inf):
        assert train.clip_grad_norm(grads, max_norm) == 5
        for name, g in grads.items():
            assert_same_bits(g, before[name])
    assert train.clip_grad_norm(grads, 1) == 5
    eps = np.finfo(dtype).eps
    assert np.abs(grads["a"] - [[3 / 5.000001, 0]]).max() <= eps
    assert np.abs(grads["b"] - 4 / 5.000001).max() <= eps
    assert train.clip_grad_norm({}, 1) == 0


def test_norm_is_accumulated_in_float64():
    """The squares are beyond float32, and 2^24 ones are more than float32 can count."""
    assert train.clip_grad_norm({"a": np.full(4, 1e30, np.float32)}, math.inf) == 2 * float(np.float32(1e30))
    count = (1 << 24) + 3
    ones = np.ones(count, np.float32)
    assert train.clip_grad_norm({"a": ones}, math.inf) == math.sqrt(count)


def test_clip_takes_strides_and_spreads_nan():
    whole = np.ones((4, 4))
    assert train.clip_grad_norm({"a": whole[:, ::2]}, 1.0) == math.sqrt(8)
    assert (whole[:, 1::2] == 1).all()
    assert (whole[:, ::2] < 0.5).all()
    grads = {"a": np.array([1.0, np.nan]), "b": np.ones(2)}
    assert math.isnan(train.clip_grad_norm(grads, 1.0))
    assert np.isnan(grads["b"]).all()
    grads = {"a": np.array([1.0, np.inf])}
    assert train.clip_grad_norm(grads, 1.0) == math.inf
    np.testing.assert_array_equal(grads["a"], [0, np.nan])


def test_clip_refuses():
    grads = {"a": np.ones(3), "b": np.ones(3)}
    fixed = np.ones(3)
    fixed.flags.writeable = False
    for max_norm in (-1, math.nan, None, "1", True):
        with refused("max_norm"):
            train.clip_grad_norm(grads, max_norm)
    for name, wrong in (
        ("grads", None),
        ("b", {"b": fixed}),
        ("b", {"b": [1.0]}),
        ("b", {"b": np.ones(3, int)}),
    ):
        with refused(name):
            train.clip_grad_norm({**grads, **wrong} if wrong else wrong, 0.1)
    assert all((g == 1).all() for g in grads.values())


# ---- bad input ----


@pytest.mark.parametrize("cls", [train.SGD, train.Adam, train.AdamW, train.RMSprop])
def test_constructors_refuse(cls):
    fixed = np.ones(3)
    fixed.flags.writeable = False
    for wrong in (None, {}, [np.ones(3)]):
        with refused("parameters"):
            cls(wrong)
    for wrong in (
        fixed,
        [1.0],
        np.ones(3, int),
        np.ones((3, 4)).T,
        np.ones(3, ">f8"),
        np.ones(3, np.float16),
    ):
        with refused("parameters.*p"):
            cls({"p": wrong})
    p = {"p": np.ones(3)}
    for name in ("lr", "weight_decay"):
        for wrong in (-1, math.nan, math.inf, None, "1", True):
            with refused(name):
                cls(p, **{name: wrong})


@pytest.mark.parametrize(
    ("cls", "name", "options"),
    [
        (train.SGD, "momentum", {"momentum": -0.1}),
        (train.SGD, "dampening", {"dampening": -0.1}),
        (train.SGD, "nesterov", {"nesterov": 1, "momentum": 0.9}),
        (train.SGD, "nesterov", {"nesterov": True}),
        (train.SGD, "nesterov", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
        (train.Adam, "betas", {"betas": 0.9}),
        (train.Adam, "betas", {"betas": (0.9,)}),
        (train.Adam, r"betas\[0\].*", {"betas": (1.0, 0.9)}),
        (train.Adam, r"betas\[1\].*", {"betas": (0.9, -0.1)}),
        (train.Adam, "eps", {"eps": -1e-8}),
        (train.AdamW, r"betas\[1\].*", {"betas": (0.9, "x")}),
        (train.AdamW, "eps", {"eps": None}),
        (train.RMSprop, "alpha", {"alpha": 1.0}),
        (train.RMSprop, "eps", {"eps": -1}),
        (train.RMSprop, "momentum", {"momentum": -1}),
        (train.RMSprop, "centered", {"centered": None}),
    ],
)
def test_options_refused(cls, name, options):
    with refused(name):
        cls({"p": np.ones(3)}, **options)


@cases
def test_step_refuses_and_changes_nothing(case):
    parameters, gradients = problem()
    optimizer = make(case, parameters)
    optimizer.step(gradients[0])
    before, state = {name: p.copy() for name, p in parameters.items()}, optimizer.state_dict()
    wrong = [
        ("grads", None),
        ("p1", {"p0": gradients[1]["p0"]}),
        ("p1", {**gradients[1], "p1": np.ones(4)}),
        ("p1", {**gradients[1], "p1": np.ones(5, np.float32)}),
        ("p1", {**gradients[1], "p1": None}),
    ]
    for name, grads in wrong:
        with refused(name):
            optimizer.step(grads)
    for name, p in parameters.items():
        assert_same_bits(p, before[name])
    for key, array in optimizer.state_dict().items():
        assert_same_bits(array, state[key])
