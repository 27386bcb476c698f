"""device="cuda" against the processor's engine.

The tests run on a device where there is one, and without one in an emulation (tests/cuda), which the C++
build makes and GATEDRNN_TEST_CUDA names. What needs neither comes first.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import importlib
import importlib.util
import os
import pickle
import sys
import types
import weakref

import numpy as np
import pytest

import beside_cudnn
import gatedrnn as gr
from gatedrnn import _device
from gradients import (
    CELLS,
    assert_close_gradients,
    assert_same_gradients,
    gradient_tolerance,
    make,
    named,
    parts,
    plain,
    problem,
)
from helpers import (
    CELLS_AND_PROJECTION,
    CLASSES,
    assert_same_bits,
    build,
    flat,
    normal,
    run_python,
    state_of,
)
from test_cell_options import limits, mixed
from tolerance import assert_close

EMULATION = os.environ.get("GATEDRNN_TEST_CUDA")

every_cell = pytest.mark.parametrize("cell", CELLS)
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


def load_emulation():
    spec = importlib.util.spec_from_file_location("gatedrnn._cuda", EMULATION)
    sys.modules["gatedrnn._cuda"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


if EMULATION:
    load_emulation()


def missing():
    """Why the tests of the device cannot run, or None."""
    try:
        _device.backend()
    except RuntimeError as error:
        return str(error)
    return None


# ---- without a device ----


FAKE = """
import json, sys, types
import gatedrnn as gr
module = types.ModuleType("gatedrnn._cuda")
module.devices = lambda: {found}
sys.modules["gatedrnn._cuda"] = module
try:
    gr.GRU(3, 4, device="cuda")
except RuntimeError as error:
    print(json.dumps([str(error), gr.show_config("dict")["cuda"]]))
"""


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"driver": 0, "names": [], "error": None}, "needs a driver, and none is installed"),
        (
            {"driver": 13000, "names": [], "error": "no device"},
            "needs a device, and the driver finds none (no device)",
        ),
    ],
)
def test_what_is_missing_is_named(found, message):
    assert run_python(FAKE.format(found=found)) == [f"device: 'cuda' {message}", message]


def test_missing_backend_is_named():
    message, listed = run_python("""
import json, sys
import gatedrnn as gr
class Hidden:
    def find_spec(name, *_):
        if name == "gatedrnn._cuda":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden)
try:
    gr.LSTM(3, 4).to("cuda")
except RuntimeError as error:
    print(json.dumps([str(error), gr.show_config("dict")["cuda"]]))
""")
    expected = "device: 'cuda' needs the device backend, which this build has not; install it with: "
    assert message == expected + "pip install . -C cmake.define.GATEDRNN_CUDA=ON"
    assert listed is False


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"device": "gpu"}, ValueError, "device: expected 'cpu' or 'cuda', got 'gpu'"),
        ({"device": 0}, TypeError, "device: expected 'cpu' or 'cuda', got 0 (int)"),
        (
            {"precision": "tf32"},
            ValueError,
            "precision: expected 'bfloat16' or 'bfloat16x3' or 'int8' on 'cpu', got 'tf32'",
        ),
        (
            {"device": "cuda", "precision": "tf32", "dtype": np.float64},
            ValueError,
            "precision: expected None for float64, got 'tf32'",
        ),
        (
            {"device": "cuda", "precision": "int8"},
            ValueError,
            "precision: expected 'tf32' or 'float16' or 'bfloat16' on 'cuda', got 'int8'",
        ),
    ],
)
def test_bad_device(arguments, error, message):
    with pytest.raises(error) as raised:
        gr.LSTM(3, 4, **arguments)
    assert str(raised.value) == message


def test_the_processor_is_a_device():
    module = gr.GRU(3, 4, seed=0)
    assert (module.device, module.precision) == ("cpu", None)
    x = normal((5, 2, 3))
    expected = module(x)
    assert module.to("cpu") is module
    assert_same_bits(module(x), expected)


def test_benchmark_needs_a_device(capsys):
    torch = sys.modules.get("torch") or (
        importlib.util.find_spec("torch") and importlib.import_module("torch")
    )
    if torch and torch.cuda.is_available():
        pytest.skip("the device's tests: there is one")
    with pytest.raises(SystemExit):
        beside_cudnn.main(["--train"])
    expected = "this PyTorch has no device" if torch else "needs PyTorch, which is not installed"
    assert expected in capsys.readouterr().err


# ---- on the device ----

on_device = pytest.mark.skipif(missing() is not None, reason=f"the device's tests: {missing()}")


def both(p):
    """The problem for the processor, and the same for the device."""
    return p, dataclasses.replace(p, module=copy.deepcopy(p.module).to("cuda"))


# (I, H, B, T, options), for the persistent kernel and for a kernel a step: a device of the emulation has
# few processors, and room for little. One step is never worth a persistent kernel.
SHAPES = [
    (1, 2, 1, 2, {}),
    (7, 9, 3, 4, {}),
    (5, 8, 2, 4, {"num_layers": 2, "bidirectional": True}),
    (4, 6, 3, 3, {"bias": False, "batch_first": True}),
    (3, 5, None, 4, {}),
    (5, 7, 4, 1, {"bidirectional": True}),
    (9, 5, 33, 2, {"batch_first": True, "bidirectional": True}),
    (3, 70, 5, 3, {}),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=[str(shape) for shape in SHAPES])


def problem_of(cell, shape, dtype=np.float64, **more):
    input_size, hidden_size, batch, steps, options = shape
    return problem(cell, input_size, hidden_size, batch, steps, dtype=dtype, **options, **more)


def compare(p):
    """Results and gradients of the device are those of the processor but for rounding."""
    host, device = both(p)
    options = {"cell": plain(p.cell), "accumulations": p.accumulations, "steps": p.steps}
    assert_close(flat(device.results()), flat(host.results()), layers=p.module.num_layers, **options)
    assert_close_gradients(device.gradients(), host.gradients(), 2 * gradient_tolerance(p))


@on_device
@every_cell
@shapes
def test_results_and_gradients(cell, shape):
    compare(problem_of(cell, shape))


@on_device
@pytest.mark.parametrize("cell", CELLS_AND_PROJECTION)
def test_float32(cell):
    compare(problem_of(cell, (7, 9, 3, 6, {"num_layers": 2}), np.float32))


@on_device
def test_plans_differ():
    """The shapes above are of both kinds."""
    persistent = set()
    for input_size, hidden_size, batch, steps, options in SHAPES:
        module = gr.GRU(input_size, hidden_size, **options, device="cuda")
        persistent.add(module._packed().plan(steps, batch or 1)["forward"]["persistent"])
    assert persistent == {True, False} or not EMULATION


# (H, B), for groups of one row and of many, several of them, and products in several chunks. With more
# units on a device, whose blocks would have all of so few.
MORE_UNITS = 0 if EMULATION else 128
GROUPS = [
    (hidden + MORE_UNITS, batch)
    for hidden, batch in [(130, 1), (24, 3), (40, 12), (40, 33), (72, 33), (9, 130), (9, 200)]
]


# (H, B), for blocks that have all units: one row or two, more blocks than processors, all units there may be.
UNDIVIDED = [(1, 1), (7, 3), (33, 7), (66, 2), (9, 129), (128, 5), (31, 13)]


@pytest.fixture
def more_memory(monkeypatch):
    monkeypatch.setenv("GATEDRNN_EMULATED_SHARED_KB", "160")


@pytest.fixture
def no_registers(monkeypatch):
    monkeypatch.setenv("GATEDRNN_EMULATED_REGISTERS", "0")


@on_device
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell != "rnn_relu" and "projected" not in cell])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("shape", GROUPS)
@pytest.mark.usefixtures("more_memory", "no_registers")
def test_groups_of_rows(cell, ragged, shape):
    hidden, batch = shape
    lengths = (np.arange(batch) * 7 + 1) % 4 if ragged else None
    compare(problem_of(cell, (3, hidden, batch, 3, {"bidirectional": ragged}), lengths=lengths))


@on_device
@pytest.mark.usefixtures("more_memory", "no_registers")
def test_groups_differ():
    """The shapes above have groups of all kinds."""
    plans = [gr.GRU(3, hidden, device="cuda")._packed().plan(3, batch) for hidden, batch in GROUPS]
    groups = [plan[direction] for plan in plans for direction in ("forward", "backward")]
    assert {1, 4, 16, 32, 64} <= {group["rows"] for group in groups if group["persistent"]} or not EMULATION
    assert not any(group["undivided"] for group in groups)
    assert max(group["row_groups"] for group in groups) >= 4
    assert max(group["unit_groups"] for group in groups) >= 3


@on_device
@pytest.mark.parametrize("cell", [cell for cell in CELLS if "projected" not in cell])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("shape", UNDIVIDED)
@pytest.mark.usefixtures("more_memory")
def test_undivided(cell, ragged, shape):
    hidden, batch = shape
    lengths = (np.arange(batch) * 7 + 1) % 4 if ragged else None
    compare(problem_of(cell, (3, hidden, batch, 3, {"bidirectional": ragged}), np.float32, lengths=lengths))


@on_device
@pytest.mark.usefixtures("more_memory")
def test_undivided_differ():
    """The shapes above are of all kinds."""
    plans = [gr.LSTM(3, hidden, device="cuda")._packed().plan(3, batch) for hidden, batch in UNDIVIDED]
    for direction in ("forward", "backward"):
        groups = [plan[direction] for plan in plans if plan[direction]["undivided"]]
        assert {group["rows"] for group in groups} == {1, 2} or not EMULATION
        assert {group["units"] for group in groups} == {hidden for hidden, _ in UNDIVIDED}


@on_device
@every_cell
@pytest.mark.parametrize("lengths", [[4, 0, 2, 4, 1], [0] * 5, [1] * 5])
@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths(cell, lengths, batch_first):
    options = {"bidirectional": True, "num_layers": 2, "batch_first": batch_first}
    compare(problem_of(cell, (3, 6, 5, 4, options), lengths=lengths))


@on_device
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before", "lstm_projected"])
@pytest.mark.parametrize("lengths", [None, np.arange(34) % 4])
def test_lengths_of_many_rows(cell, lengths):
    compare(problem_of(cell, (3, 5, 34, 3, {"bidirectional": True}), lengths=lengths))


@on_device
@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (3, 0), (0, 0)])
@every_cell
def test_nothing_to_do(cell, steps, batch):
    compare(problem_of(cell, (3, 4, batch, steps, {"num_layers": 2, "bidirectional": True})))


@on_device
@every_cell
def test_dropout_has_the_masks_of_the_processor(cell):
    p = problem_of(
        cell, (3, 8, 4, 3, {"num_layers": 3, "dropout": 0.4, "bidirectional": True}), dropout_seed=5
    )
    host, device = both(dataclasses.replace(p, lengths=[3, 1, 0, 2]))
    options = {"cell": plain(cell), "accumulations": p.accumulations, "steps": 3, "layers": 3}
    assert_close(flat(device.forward()[:2]), flat(host.forward()[:2]), **options)
    assert_close_gradients(device.gradients(), host.gradients(), 4 * gradient_tolerance(p))


@on_device
@every_cell
@pytest.mark.parametrize("lengths", [None, [4, 1, 0]], ids=str)
@pytest.mark.parametrize("steps", [4, 1])
def test_reverse(cell, lengths, steps):
    lengths = lengths and [min(length, steps) for length in lengths]
    options = {"num_layers": 2, "direction": "reverse"}
    compare(problem_of(cell, (5, 7, 3, steps, options), lengths=lengths))
    compare(
        problem_of(cell, (3, 70, 3, steps, {"direction": "reverse", "batch_first": True}), lengths=lengths)
    )


@on_device
@every_cell
@pytest.mark.parametrize("merge", ["sum", "mul", "mean"])
def test_merge(cell, merge):
    p = problem_of(
        cell, (5, 7, 3, 4, {"num_layers": 2, "bidirectional": True, "merge": merge}), lengths=[4, 1, 0]
    )
    p = dataclasses.replace(p, d_output=normal(p.results()[0].shape, seed=4, dtype=np.float64))
    compare(p)
    _, device = both(p)
    expected = device.results()[0]
    out = np.empty((4, 6, expected.shape[2]))[:, ::2]
    assert device.module(p.x, p.state, lengths=p.lengths, out=out)[0] is out
    np.testing.assert_array_equal(out, expected)
    module = device.module
    with pytest.raises(ValueError, match="out: expected a writable NumPy array of float64 and shape"):
        module(p.x, out=np.empty((4, 3, 14 + expected.shape[2])))
    with pytest.raises(TypeError, match="x: expected an array of NumPy, PyTorch or CuPy with merge="):
        module(Foreign(p.x, "dlpack"))
    _, _, tape = module.forward(p.x)
    _, _, plain_tape = make(
        cell, 5, 7, num_layers=2, bidirectional=True, dtype=np.float64, device="cuda"
    ).forward(p.x)
    kept = 4 * 3 * 2 * expected.shape[2] * 8 if merge == "mul" else 0
    assert tape.nbytes == plain_tape.nbytes + kept


LEARNT = [
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 2, "direction": "reverse"},
    {"bidirectional": True, "merge": "mul", "batch_first": True},
]


@on_device
@every_cell
@pytest.mark.parametrize("options", LEARNT, ids=str)
@pytest.mark.parametrize(("hidden", "steps"), [(7, 4), (70, 3), (9, 1)])
@pytest.mark.parametrize("recompute", [False, True])
def test_learnt_states(cell, options, hidden, steps, recompute):
    """Those of the processor but for rounding; and the very numbers of states that are given."""
    host = make(cell, 5, hidden, learn_state=True, dtype=np.float64, **options)
    device = copy.deepcopy(host).to("cuda")
    lead, lengths = (steps, 3), [steps, 0, 1]
    x = normal((*(lead[::-1] if host.batch_first else lead), 5), dtype=np.float64)
    results, gradients = [], []
    for module in (host, device):
        output, state_n, tape = module.forward(x, lengths=lengths, recompute=recompute)
        d_output = normal(output.shape, seed=2, dtype=np.float64)
        d_x, d_state, of_parameters = module.backward(tape, d_output, state_of(module, 3, seed=3))
        results.append(flat((output, state_n)))
        gradients.append({"x": d_x, **of_parameters})
        for name, part in zip(("h_0", "c_0"), parts(d_state), strict=False):
            np.testing.assert_allclose(of_parameters[name], part.sum(1), rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(output, module(x, lengths=lengths)[0])
    for actual, expected in zip(*results[::-1], strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-11)
    assert_close_gradients(gradients[1], gradients[0], 1e-11)
    learnt = [
        np.repeat(host.state_dict()[name][:, np.newaxis], 3, axis=1)
        for name in host.state_dict()
        if "_0" in name
    ]
    state = tuple(learnt) if len(learnt) > 1 else learnt[0]
    for actual, expected in zip(
        flat(device(x, lengths=lengths)), flat(device(x, state, lengths=lengths)), strict=True
    ):
        np.testing.assert_array_equal(actual, expected)
    alone = x[0] if host.batch_first else x[:, 0]
    first = tuple(part[:, 0] for part in learnt) if len(learnt) > 1 else learnt[0][:, 0]
    np.testing.assert_array_equal(device(alone)[0], device(alone, first)[0])

    into = {name: np.ones_like(value) for name, value in gradients[1].items() if name != "x"}
    device.backward(tape, d_output, state_of(device, 3, seed=3), accumulate_into=into)
    for name, value in into.items():
        np.testing.assert_allclose(value, 1 + gradients[1][name], rtol=1e-12, atol=1e-12)
    output, _, tape = device.forward(x, state)
    of_parameters = device.backward(tape, output)[2]
    assert not of_parameters["h_0"].any()
    with pytest.raises(ValueError, match="accumulate_into: h_0: expected an array, got nothing of this name"):
        device.backward(tape, output, accumulate_into={n: v for n, v in into.items() if n != "h_0"})


@on_device
def test_a_part_of_a_learnt_state():
    module = make("lstm", 5, 7, learn_state=True, device="cuda")
    x, (h, c) = normal((4, 3, 5)), state_of(module, 3)
    h_0, c_0 = [np.repeat(module.state_dict()[name][:, np.newaxis], 3, axis=1) for name in ("h_0", "c_0")]
    assert_same_bits(module(x, (h, None)), module(x, (h, c_0)))
    assert_same_bits(module(x, (None, c)), module(x, (h_0, c)))
    output, _, tape = module.forward(x, (h, None))
    _, (_, d_c), gradients = module.backward(tape, output)
    assert not gradients["h_0"].any()
    np.testing.assert_allclose(gradients["c_0"], d_c.sum(1), rtol=1e-6, atol=1e-6)


@on_device
@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (3, 0)])
def test_learnt_states_and_nothing_to_do(steps, batch):
    module = make("lstm", 5, 7, learn_state=True, device="cuda")
    output, _, tape = module.forward(np.zeros((steps, batch, 5), np.float32))
    d_state = state_of(module, batch)
    gradients = module.backward(tape, output, d_state)[2]
    np.testing.assert_allclose(gradients["h_0"], d_state[0].sum(1), rtol=1e-6, atol=1e-6)
    assert not gradients["weight_hh_l0"].any()


@on_device
@every_cell
def test_streams_begin_with_learnt_states(cell):
    module = make(cell, 5, 7, learn_state=True, num_layers=2, device="cuda")
    host = copy.deepcopy(module).to("cpu")
    for batch in (1, 3, 5):
        stream, expected = module.stream(batch), host.stream(batch)
        assert_same_bits(stream.state, expected.state)
        stream.step(normal((batch, 5)))
        went_on = stream.state
        stream.reset([0, 0])
        for part, initial, before in zip(*map(parts, (stream.state, expected.state, went_on)), strict=True):
            assert_same_bits(part[:, 0], initial[:, 0])
            assert_same_bits(part[:, 1:], before[:, 1:])
        stream = pickle.loads(pickle.dumps(stream))
        stream.reset()
        assert_same_bits(stream.state, expected.state)
        if len(parts(went_on)) == 2:
            stream.state = expected.state = (went_on[0], None)
            assert_same_bits(stream.state, expected.state)
        stream.state = None
        expected.reset()
        assert_same_bits(stream.state, expected.state)


@on_device
def test_learnt_states_with_arrays_of_the_device():
    module = make("gru", 5, 7, learn_state=True, bidirectional=True, device="cuda")
    x = normal((4, 3, 5))
    expected, _, tape = module.forward(x)
    gradients = module.backward(tape, expected)[2]
    there = Foreign(x, "dlpack")
    output, _, tape = module.forward(there)
    np.testing.assert_array_equal(output.numpy(), expected)
    got = module.backward(tape, Foreign(expected, "dlpack"))[2]
    assert list(got) == list(module.state_dict())
    for name, value in gradients.items():
        np.testing.assert_array_equal(got[name].numpy(), value)


@on_device
@every_cell
def test_recompute(cell):
    """Products have other sizes, of which cuBLAS makes what it likes."""
    p = problem_of(cell, (3, 5, 3, 34, {"bidirectional": True}), lengths=[34, 33, 17])
    _, device = both(p)
    recomputed, expected = device.gradients(recompute=True), device.gradients()
    assert_close_gradients(recomputed, expected, gradient_tolerance(p))
    kept, recomputed = (device.forward(recompute=flag)[2].nbytes for flag in (False, True))
    assert recomputed < kept or "rnn" in cell


@on_device
@every_cell
def test_a_tape_may_be_used_twice_and_gradients_accumulate(cell):
    _, device = both(problem_of(cell, (3, 5, 3, 4, {})))
    _, _, tape = device.forward()
    backward = device.module.backward
    first = named(*backward(tape, device.d_output, device.d_state_n))
    assert_same_gradients(named(*backward(tape, device.d_output, device.d_state_n)), first)
    into = {name: np.ones_like(value) for name, value in device.module.state_dict().items()}
    d_x, _, total = backward(
        tape, device.d_output, device.d_state_n, accumulate_into=into, input_gradient=False
    )
    assert d_x is None
    assert total is into
    for name, value in into.items():
        np.testing.assert_allclose(value, 1 + first[name], rtol=1e-12, atol=1e-12)


@on_device
@every_cell
def test_the_same_call_gives_the_same_bits(cell):
    _, device = both(problem_of(cell, (3, 9, 3, 4, {"num_layers": 2}), np.float32))
    assert_same_bits(device.results(), device.results())
    assert_same_gradients(device.gradients(), device.gradients())


@on_device
@pytest.mark.parametrize(
    ("precision", "eps"), [("tf32", 2.0**-10), ("float16", 2.0**-10), ("bfloat16", 2.0**-7)]
)
@pytest.mark.parametrize("cell", CELLS_AND_PROJECTION)
def test_precision(cell, precision, eps):
    """Off by roundings of inputs, weights and states, each by eps / 2 of values of order one."""
    p = problem_of(cell, (5, 8, 3, 4, {"num_layers": 2}), np.float32)
    host = p
    device = dataclasses.replace(p, module=copy.deepcopy(p.module).to("cuda", precision))
    assert device.module.precision == precision
    for actual, expected in zip(flat(device.results()), flat(host.results()), strict=True):
        assert actual.dtype == np.float32
        assert np.abs(actual - expected).max() <= 16 * eps * max(1, np.abs(expected).max())
        assert precision == "tf32" or not np.array_equal(actual, expected)
    assert_close_gradients(device.gradients(), host.gradients(), 32 * eps)


@on_device
@pytest.mark.parametrize("cell", CELLS_AND_PROJECTION)
def test_stream(cell):
    module = build(cell, 3, 5, num_layers=2, dtype=np.float64)
    host, device = module.stream(2), copy.deepcopy(module).to("cuda").stream(2)
    x = normal((4, 2, 3), dtype=np.float64)
    for x_t in x[:2]:
        np.testing.assert_allclose(device.step(x_t), host.step(x_t), rtol=1e-12, atol=1e-12)
    state = state_of(module, 2)
    host.state = device.state = state
    host.reset([1]), device.reset([1])
    out = np.empty((2, module.hidden_size if cell != "lstm_projected" else 3))
    assert device.step(x[2], out) is out
    np.testing.assert_allclose(out, host.step(x[2]), rtol=1e-12, atol=1e-12)
    for actual, expected in zip(parts(device.state), parts(host.state), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)
    device.reset()
    assert not any(part.any() for part in parts(device.state))
    assert device.batch_size == 2


@on_device
@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_copies_of_a_stream(cell, precision):
    """They go on by themselves, with the parameters of their moment."""
    module = build(cell, 3, 5).to("cuda", precision)
    x = normal((4, 2, 3))
    stream = module.stream(2)
    expected = [stream.step(x_t) for x_t in x]
    stream = module.stream(2)
    for x_t in x[:2]:
        stream.step(x_t)
    module.load_state_dict(build(cell, 3, 5, seed=1).state_dict())
    for copied in (copy.copy(stream), copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))):
        assert_same_bits(copied.step(x[2]), expected[2])
        assert_same_bits(pickle.loads(pickle.dumps(copied)).step(x[3]), expected[3])
    assert_same_bits(stream.step(x[2]), expected[2])


@on_device
def test_states_of_a_lone_row():
    module = build("gru", 3, 5, num_layers=2).to("cuda")
    x, state = normal((4, 3)), normal((2, 5))
    expected = module(x, state)
    for actual, wanted in zip(module(x, state[:, np.newaxis]), expected, strict=True):
        assert_same_bits(actual, wanted)
    stream = module.stream()
    stream.state = state
    np.testing.assert_allclose(np.stack([stream.step(x_t) for x_t in x]), expected[0], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="read-only"):
        stream.state[:, 0] = 0
    stream.reset([True])
    assert not stream.state.any()


@on_device
def test_what_numpy_reads_is_taken_too():
    module = build("gru", 3, 5).to("cuda")
    x = normal((4, 2, 3))
    expected = module(x)
    for form in (x.tolist(), x.astype(">f4"), memoryview(x)):
        assert_same_bits(module(form)[0], expected[0])
        assert_same_bits(
            module.stream(2).step(form[0] if not isinstance(form, memoryview) else x[0]), expected[0][0]
        )
    with pytest.raises(TypeError, match=r"^x: expected .*floating-point"):
        module([[1, 2, 3]])


@on_device
@pytest.mark.parametrize(
    "where", ["host", "device", "device, batch first", "device, unbatched", "device, strides"]
)
def test_x_may_be_written_after_forward(where):
    module = build("gru", 3, 5, num_layers=2, batch_first="first" in where).to("cuda")
    x = normal((4, 3) if "unbatched" in where else (4, 2, 3))
    array = x
    if where != "host":
        array = _device.backend().Array(x)
    if "strides" in where:
        array = Strided(_device.backend().Array(normal((4, 4, 6))))
    output, _, tape = module.forward(array)
    d_output = np.ones(output.shape, np.float32)
    if where != "host":
        d_output = _device.backend().Array(d_output)

    def gradients():
        values = named(*module.backward(tape, d_output))
        return {name: value if where == "host" else value.numpy() for name, value in values.items()}

    expected = gradients()
    if where == "host":
        x[...] = 7
    elif EMULATION:
        memory_of(array)[...] = 7
    else:
        torch = pytest.importorskip("torch")
        torch.as_tensor(array, device="cuda").fill_(7)
    for name, gradient in gradients().items():
        assert_same_bits(gradient, expected[name])


class Strided:
    """Every other row of an array of ours, and of those the first half of the features."""

    def __init__(self, array):
        self.array = array

    @property
    def __cuda_array_interface__(self):
        whole = self.array.__cuda_array_interface__
        steps, rows, width = whole["shape"]
        strides = rows * width * 4, 2 * width * 4, 4
        return {**whole, "shape": (steps, rows // 2, width // 2), "strides": strides}


def memory_of(array):
    """The memory of an array of the emulation, which is the host's."""
    interface = array.__cuda_array_interface__
    as_host = type("AsHost", (), {"__array_interface__": {**interface, "version": 3}})()
    return np.asarray(as_host)


@on_device
def test_out_and_strides():
    module = make("gru", 3, 4, dtype=np.float64)
    x = normal((5, 4, 6), dtype=np.float64)[:, ::2, ::2]
    expected, device = module(x), copy.deepcopy(module).to("cuda")
    out = np.full((5, 2, 8), np.nan)[:, :, ::2]
    output, _ = device(x, out=out)
    assert output is out
    np.testing.assert_allclose(out, expected[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(device(x.astype(np.float32))[0], expected[0], atol=1e-6)


@on_device
def test_a_module_moves_and_changes():
    module = make("lstm", 3, 4)
    x = normal((5, 2, 3))
    before = module(x)
    assert module.to("cuda").device == "cuda"
    moved = module(x)
    module.weight_hh_l0[0, 0] += 1
    assert not np.array_equal(module(x)[0], moved[0])
    module.weight_hh_l0[0, 0] -= 1
    assert_same_bits(module.to("cpu")(x), before)
    _, _, tape = module.to("cuda").forward(x)
    with pytest.raises(TypeError, match=r"tape: expected what forward returned on 'cpu'"):
        module.to("cpu").backward(tape, before[0])
    with pytest.raises(ValueError, match="tape: expected one that this module's forward returned"):
        copy.deepcopy(module).to("cuda").backward(tape, before[0])


@on_device
def test_copies_and_files(tmp_path):
    module = gr.GRU(3, 4, seed=0, device="cuda", precision="bfloat16")
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert (copied.device, copied.precision) == ("cuda", "bfloat16")
    module.save(tmp_path / "gru.safetensors")
    assert gr.load(tmp_path / "gru.safetensors").device == "cpu"


@on_device
def test_devices_are_listed():
    assert gr.show_config("dict")["cuda"] == _device.backend().devices()["names"]


class Foreign:
    """An array of some other library, by one of the protocols."""

    def __init__(self, values, protocol):
        self.array = (
            values if isinstance(values, _device.backend().Array) else _device.backend().Array(values)
        )
        if protocol == "dlpack":
            self.__class__ = ForeignDlpack
        else:
            self.__class__ = ForeignInterface


class ForeignDlpack(Foreign):
    asked = None

    def __dlpack__(self, **options):
        self.asked = options
        return self.array.__dlpack__(**options)


class ForeignInterface(Foreign):
    @property
    def __cuda_array_interface__(self):
        return self.array.__cuda_array_interface__


@on_device
@pytest.mark.parametrize("protocol", ["dlpack", "interface"])
@pytest.mark.parametrize("cell", CELLS_AND_PROJECTION)
def test_arrays_of_the_device(cell, protocol):
    """What is on the device stays there, and the numbers are those of NumPy's arrays."""
    p = problem_of(cell, (3, 5, 3, 4, {"batch_first": True}), np.float32, lengths=[4, 1, 0])
    _, device = both(p)
    module = device.module
    expected, wanted = device.results(), device.gradients()

    def there(value):
        if isinstance(value, tuple):
            return tuple(there(part) for part in value)
        return Foreign(value, protocol)

    output, state_n = module(there(p.x), there(p.state), lengths=p.lengths)
    assert output.dtype == "float32"
    assert output.shape == expected[0].shape
    for actual, e in zip(flat((output, state_n)), flat(expected), strict=True):
        np.testing.assert_array_equal(actual.numpy(), e)
    output, _, tape = module.forward(there(p.x), there(p.state), lengths=p.lengths)
    gradients = named(*module.backward(tape, there(p.d_output), there(p.d_state_n)))
    assert_same_gradients({name: value.numpy() for name, value in gradients.items()}, wanted)
    out = _device.backend().Array(np.empty(expected[0].shape, np.float32))
    assert module(there(p.x), there(p.state), lengths=p.lengths, out=out)[0] is out
    np.testing.assert_array_equal(out.numpy(), expected[0])
    stream, on_host = module.stream(3), copy.deepcopy(module).stream(3)
    x_t = p.x[:, 0]
    np.testing.assert_array_equal(stream.step(there(x_t)).numpy(), on_host.step(x_t))


@on_device
@dtypes
@pytest.mark.parametrize("name", CLASSES)
def test_single_steps(name, dtype):
    """Cells, and their gradients, within what sums of so many terms may differ by."""
    cls, own = CLASSES[name]
    cell = getattr(gr, cls.__name__ + "Cell")(5, 7, seed=0, dtype=dtype, **own)
    there = copy.deepcopy(cell).to("cuda")
    assert there.device == "cuda"
    x, h = normal((3, 5), dtype=dtype), normal((3, 7), seed=1, dtype=dtype)
    state = (h, h) if cls is gr.LSTM else h
    close = dict(rtol=0, atol=64 * float(np.finfo(dtype).eps))

    def assert_like(actual, expected):
        for a, e in zip(parts(actual), parts(expected), strict=True):
            np.testing.assert_allclose(a, e, **close)

    assert_like(there(x.tolist(), state), cell(x, state))
    results = [c.backward(c.forward(x, state)[1], state) for c in (there, cell)]
    assert_like(results[0][0], results[1][0])
    assert_like(results[0][1], results[1][1])
    assert list(results[0][2]) == list(results[1][2])
    assert_like(tuple(results[0][2].values()), tuple(results[1][2].values()))


@on_device
@every_cell
@dtypes
def test_functions_and_clips(cell, dtype):
    """Of general cells, whose steps are kernels of their own: results, gradients, and streams."""
    first = CELLS.index(cell)
    options = {"activations": mixed(plain(cell), first), **limits(plain(cell))}
    p = problem(cell, 9, 17, 5, 6, dtype=dtype, lengths=[6, 0, 3, 5, 1], num_layers=2, **options)
    there = dataclasses.replace(p, module=copy.deepcopy(p.module).to("cuda"))
    assert_close(
        flat(there.results()), flat(p.results()), cell=plain(cell), accumulations=28, steps=2 * 6, layers=2
    )
    assert_close_gradients(there.gradients(), p.gradients(), 2 * gradient_tolerance(p))
    stream = there.module.stream(5)
    outputs = np.stack([stream.step(x) for x in p.x])
    expected = p.module(p.x)[0]
    assert_close(outputs, expected, cell=plain(cell), accumulations=28, steps=2 * 6, layers=2)


@on_device
def test_streams_of_other_libraries():
    """They are told which stream comes after theirs, and which one ours are made on."""
    module = make("gru", 3, 4).to("cuda")
    x = Foreign(normal((5, 2, 3)).astype(np.float32), "dlpack")
    output, _ = module(x)
    assert x.asked == {"stream": 1}
    assert output.__cuda_array_interface__["stream"] == 1
    for stream in (None, -1, 1, 2):
        assert "dltensor" in repr(output.__dlpack__(stream=stream, max_version=(1, 0)))
    with pytest.raises(TypeError):
        output.__dlpack__(1)


class StandInArray:
    """An array of CuPy."""

    __module__ = "cupy"

    def __init__(self, array):
        self.array = array

    shape = property(lambda self: self.array.shape)
    dtype = property(lambda self: self.array.dtype)
    nbytes = property(lambda self: self.array.numpy().nbytes)

    def __getitem__(self, where):
        return StandIn.asarray(self.array.numpy()[where].copy())

    def __setitem__(self, where, values):
        assert where is ...
        self.array = values.array

    def __mul__(self, other):
        factor = other.array.numpy() if isinstance(other, StandInArray) else other
        return StandIn.asarray(self.array.numpy() * factor)

    def __add__(self, other):
        return StandIn.asarray(self.array.numpy() + other.array.numpy())

    def __dlpack__(self, *, stream=None):
        assert stream == -1  # no waiting: calls are given to CuPy's current stream
        return self.array.__dlpack__(stream=stream)


class StandInStream:
    """A stream of CuPy: current within a `with` block, and gone with its object."""

    current = None
    ptr = 0

    def __enter__(self):
        StandInStream.current = self
        return self

    def __exit__(self, *_):
        StandInStream.current = None


class StandIn:
    """What calls use of CuPy, for machines without it."""

    ndarray = StandInArray
    cuda = types.SimpleNamespace(
        Stream=StandInStream, get_current_stream=lambda: StandInStream.current or StandInStream()
    )

    @staticmethod
    def asarray(values):
        return StandInArray(_device.backend().Array(values))

    @staticmethod
    def concatenate(parts, axis):
        return StandIn.asarray(np.concatenate([part.array.numpy() for part in parts], axis))

    @staticmethod
    def from_dlpack(array):
        assert "dltensor" in repr(array.__dlpack__(stream=1))
        return StandInArray(array)

    @staticmethod
    def asnumpy(array):
        return array.array.numpy()


@pytest.fixture
def cupy(monkeypatch):
    """CuPy, where it and a device are."""
    if not EMULATION and importlib.util.find_spec("cupy"):
        return importlib.import_module("cupy")
    monkeypatch.setitem(sys.modules, "cupy", StandIn)
    return StandIn


@on_device
@pytest.mark.parametrize("cell", CELLS_AND_PROJECTION)
def test_arrays_of_cupy(cell, cupy):
    p = problem_of(cell, (3, 33, 3, 7, {}), np.float32)
    _, device = both(p)
    expected, wanted = device.results(), device.gradients()

    def there(value):
        return tuple(map(there, value)) if isinstance(value, tuple) else cupy.asarray(value)

    output, state_n, tape = device.module.forward(there(p.x), there(p.state))
    gradients = named(*device.module.backward(tape, there(p.d_output), there(p.d_state_n)))
    for actual, e in zip(flat((output, state_n)), flat(expected), strict=True):
        assert isinstance(actual, cupy.ndarray)
        np.testing.assert_array_equal(cupy.asnumpy(actual), e)
    assert_same_gradients({name: cupy.asnumpy(value) for name, value in gradients.items()}, wanted)


@on_device
@pytest.mark.parametrize("merge", ["sum", "mul", "mean"])
def test_merged_arrays_of_cupy(merge, cupy):
    """Their own operators merge them."""
    module = make("lstm", 3, 9, bidirectional=True, merge=merge, learn_state=True, device="cuda")
    x = normal((5, 4, 3))
    expected, _, tape = module.forward(x)
    d_output = normal(expected.shape, seed=2)
    wanted = named(*module.backward(tape, d_output))
    there = cupy.asarray(x)
    assert_same_bits(cupy.asnumpy(module(there)[0]), expected)
    out = cupy.asarray(np.zeros_like(expected))
    assert module(there, out=out)[0] is out
    assert_same_bits(cupy.asnumpy(out), expected)
    output, _, there_tape = module.forward(there)
    assert_same_bits(cupy.asnumpy(output), expected)
    gradients = named(*module.backward(there_tape, cupy.asarray(d_output)))
    assert_same_gradients({name: cupy.asnumpy(value) for name, value in gradients.items()}, wanted)
    assert there_tape.nbytes == tape.nbytes
    with pytest.raises(ValueError, match=r"out: expected float32 of shape \(5, 4, 9\), got float32 of"):
        module(there, out=cupy.asarray(np.zeros((5, 4, 18), np.float32)))
    for of, d in ((tape, cupy.asarray(d_output)), (there_tape, d_output)):
        with pytest.raises(TypeError, match=r"d_output: expected an array of \w+, as x was, got an "):
            module.backward(of, d)


@on_device
@pytest.mark.parametrize("of", ["output", "state", "tape", "gradients"])
def test_streams_of_cupy_outlive_what_was_made_on_them(of, cupy):
    module = make("gru", 3, 4).to("cuda")
    stream = cupy.cuda.Stream()
    alive = weakref.ref(stream)
    with stream:
        x = cupy.asarray(normal((5, 2, 3)).astype(np.float32))
        output, state, tape = module.forward(x)
        made = {"output": output, "state": state, "tape": tape}
        if of == "gradients":
            made[of] = module.backward(tape, output)[2]["weight_hh_l0"]
    kept = made.pop(of)
    del stream, x, output, state, tape, made
    gc.collect()
    assert alive() is not None
    del kept
    gc.collect()
    assert alive() is None


@on_device
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_arrays_of_other_types(dtype):
    """The results are of x's type; inside it is the module's precision."""
    module = make("gru", 3, 4).to("cuda")
    x = normal((5, 2, 3)).astype(dtype)
    output, h_n = module(_device.backend().Array(x))
    assert (output.dtype, h_n.dtype) == (np.dtype(dtype).name,) * 2
    expected, _ = module(x.astype(np.float32))
    np.testing.assert_array_equal(output.numpy(), expected.astype(dtype))


@on_device
def test_bfloat16_arrays():
    array = _device.backend().Array
    module = make("gru", 3, 4).to("cuda", "bfloat16")
    x = normal((5, 2, 3))
    output, _ = module(array(x))
    assert output.dtype == "float32"
    np.testing.assert_array_equal(output.numpy(), module(x)[0])


ERRORS = {
    "x: shape": (lambda m, a: m(a((4, 2, 5))), ValueError, "x: expected (T, B, 3) or (T, 3), got (4, 2, 5)"),
    "x: type": (
        lambda m, a: m([["1", "2", "3"]]),
        TypeError,
        "x: expected an array of floating-point numbers, got list of <U1",
    ),
    "x: integers": (
        lambda m, a: m(np.zeros((4, 2, 3), int)),
        TypeError,
        "x: expected an array of floating-point numbers, got dtype int64",
    ),
    "state: place": (
        lambda m, a: m(a((4, 2, 3)), np.zeros((1, 2, 4), np.float32)),
        TypeError,
        "state: expected an array on the device, like x, got a NumPy array",
    ),
    "state: shape": (
        lambda m, a: m(a((4, 2, 3)), a((1, 3, 4))),
        ValueError,
        "state: expected (1, 2, 4), got (1, 3, 4)",
    ),
    "lengths": (
        lambda m, a: m(a((4, 2, 3)), lengths=[1, 5]),
        ValueError,
        "lengths: expected 2 integers in 0 .. 4, got 5 at position 1",
    ),
    "out: shape": (
        lambda m, a: m(a((4, 2, 3)), out=a((4, 2, 5))),
        ValueError,
        "out: expected shape (4, 2, 4), got shape (4, 2, 5)",
    ),
    "out: NumPy": (
        lambda m, a: m(np.zeros((4, 2, 3), np.float32), out=np.zeros((4, 2, 4))),
        TypeError,
        "out: expected a writable NumPy array of float32 and shape (4, 2, 4), got dtype float64",
    ),
    "d_output": (
        lambda m, a: m.backward(m.forward(a((4, 2, 3)))[2], a((4, 2, 3))),
        ValueError,
        "d_output: expected (4, 2, 4), got (4, 2, 3)",
    ),
    "accumulate_into": (
        lambda m, a: m.backward(m.forward(a((4, 2, 3)))[2], None, accumulate_into={}),
        ValueError,
        "accumulate_into: weight_ih_l0: expected an array, got nothing of this name",
    ),
    "tape": (
        lambda m, a: m.backward(None, None),
        TypeError,
        "tape: expected what forward returned, got None",
    ),
    "step": (lambda m, a: m.stream(2).step(a((3, 3))), ValueError, "x: expected (2, 3), got (3, 3)"),
}


@on_device
@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    run, error, message = ERRORS[case]
    module = make("gru", 3, 4).to("cuda")
    with pytest.raises(error) as raised:
        run(module, lambda shape: _device.backend().Array(np.zeros(shape, np.float32)))
    assert str(raised.value) == message


@on_device
@pytest.mark.skipif(not EMULATION, reason="the device's tests: there is one")
def test_emulation_without_a_device():
    code = "import json, test_cuda as t; print(json.dumps(t.missing()))"
    environment = {"GATEDRNN_EMULATED_DEVICES": "0"}
    assert "the driver finds none" in run_python(code, environment=environment)


@on_device
@pytest.mark.skipif(bool(EMULATION), reason="the device's tests: needs PyTorch with the device")
@pytest.mark.parametrize("cell", CELLS_AND_PROJECTION)
def test_tensors_on_their_stream(cell):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("the device's tests: this PyTorch has no device")
    p = problem_of(cell, (3, 33, 3, 40, {}), np.float32)
    _, device = both(p)
    expected, wanted = device.results(), device.gradients()

    def there(value):
        return tuple(map(there, value)) if isinstance(value, tuple) else torch.from_numpy(value).cuda()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        output, state_n, tape = device.module.forward(there(p.x), there(p.state))
        gradients = named(*device.module.backward(tape, there(p.d_output), there(p.d_state_n)))
    stream.synchronize()
    assert output.is_cuda
    for actual, e in zip(flat((output, state_n)), flat(expected), strict=True):
        np.testing.assert_array_equal(actual.cpu().numpy(), e)
    assert_same_gradients({name: value.cpu().numpy() for name, value in gradients.items()}, wanted)
