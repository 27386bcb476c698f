"""Whole ONNX models: recurrent nodes here, the rest in ONNX Runtime."""

from __future__ import annotations

import functools
import re
import threading
import unittest
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import gatedrnn as gr
from gatedrnn.onnx import Backend, InferenceSession
from onnx_loops import loop_model

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
TOLERANCE = dict(rtol=1e-5, atol=2e-6)


def runtime(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def weights_of(kind, name, input_size, hidden_size, directions=1, seed=0):
    drawn = np.random.default_rng(seed)
    rows = GATES[kind] * hidden_size
    shapes = {"W": (rows, input_size), "R": (rows, hidden_size), "B": (2 * rows,)}
    return {
        name + letter: drawn.uniform(-0.4, 0.4, (directions, *shape)).astype(np.float32)
        for letter, shape in shapes.items()
    }


def model_of(text, weights, opset=17):
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for n, v in weights.items())
    return model


def same(model, feeds, **options):
    """Compare with ONNX Runtime; return the session."""
    session = InferenceSession(model, **options)
    for ours, theirs in zip(session.run(None, feeds), runtime(model).run(None, feeds), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.flags.c_contiguous
        np.testing.assert_allclose(ours, theirs, **TOLERANCE)
    return session


def normal(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def stacked(width=7, H=9):
    """Return a bidirectional LSTM below a GRU, with other nodes before, between the two and after."""
    weights = weights_of("LSTM", "l", width, H, 2) | weights_of("GRU", "g", 2 * H, H)
    weights["V"] = normal(H, 3)
    given, results = f"float[T, B, {width}] x, float[1, B, {H}] h", f"float[T, B, 3] y, float[1, B, {H}] h_n"
    text = f"""stack ({given}) => ({results}) {{
        scaled = Tanh(x)
        l_y = LSTM <hidden_size: int = {H}, direction: string = "bidirectional"> (scaled, lW, lR, lB)
        by_row = Transpose <perm: ints = [0, 2, 1, 3]> (l_y)
        flat = Reshape (by_row, sizes)
        g_y, h_n = GRU <hidden_size: int = {H}, linear_before_reset: int = 1> (flat, gW, gR, gB, , h)
        g_flat = Squeeze (g_y, one)
        y = MatMul (g_flat, V)
    }}"""
    return model_of(text, weights | {"sizes": np.array([0, 0, -1]), "one": np.array([1])})


# ---- models ----


@pytest.mark.parametrize(("T", "B"), [(1, 1), (7, 9), (33, 1), (5, 17)])
def test_a_stack_with_other_nodes_around(T, B):
    session = same(stacked(), {"x": normal(T, B, 7), "h": normal(1, B, 9)})
    assert [type(module).__name__ for module in session.modules.values()] == ["LSTM", "GRU"]
    assert session.left == {}


def test_the_bits_are_those_of_the_modules():
    model, x, h = stacked(), normal(12, 3, 7), normal(1, 3, 9)
    lstm, gru = gr.from_onnx(model).values()
    session = InferenceSession(model)
    (h_n,) = session.run(["h_n"], {"x": x, "h": h})
    (scaled,) = runtime(model_of("g (float[T, B, 7] x) => (float[T, B, 7] y) { y = Tanh(x) }", {})).run(
        None, {"x": x}
    )
    np.testing.assert_array_equal(h_n, gru(lstm(scaled)[0], h)[1])


def test_layers_on_each_other_need_nothing_between():
    session = InferenceSession(stacked())
    parts = [type(step).__name__ for step in session._steps]
    assert parts == [
        "RuntimePart", "RecurrentStep", "ViewStep", "ViewStep", "RecurrentStep", "ViewStep", "RuntimePart",
    ]  # fmt: skip


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("given", ["nothing", "states", "lengths", "both"])
def test_lengths_and_states(kind, direction, given):
    H, T, B = 9, 7, 4
    D = 2 if direction == "bidirectional" else 1
    inputs, feeds = ["float[T, B, 5] x"], {"x": normal(T, B, 5)}
    lengths, states = "", ""
    if given in ("lengths", "both"):
        inputs.append("int32[B] lengths")
        feeds["lengths"] = np.array([7, 3, 0, 1], np.int32)
        lengths = "lengths"
    if given in ("states", "both"):
        names = ["h", "c"] if kind == "LSTM" else ["h"]
        inputs += [f"float[{D}, B, {H}] {name}" for name in names]
        feeds |= {name: normal(D, B, H, seed=7 + len(name)) for name in names}
        states = ", " + ", ".join(names)
    c_n = ", c_n" if kind == "LSTM" else ""
    results = "".join(f", float[{D}, B, {H}] {name}" for name in ("h_n", "c_n")[: 2 if c_n else 1])
    text = f"""layer ({", ".join(inputs)}) => (float[T, {D}, B, {H}] y{results}) {{
        y, h_n{c_n} = {kind} <hidden_size: int = {H}, direction: string = "{direction}">
            (x, W, R, B, {lengths}{states})
    }}"""
    same(model_of(text, weights_of(kind, "", 5, H, D)), feeds)


def test_one_state_of_two():
    text = """layer (float[T, B, 5] x, float[1, B, 9] c) => (float[1, B, 9] h_n, float[1, B, 9] c_n) {
        y, h_n, c_n = LSTM <hidden_size: int = 9> (x, W, R, B, , , c)
    }"""
    same(model_of(text, weights_of("LSTM", "", 5, 9)), {"x": normal(4, 3, 5), "c": normal(1, 3, 9)})


def test_layout_1_which_onnx_runtime_refuses():
    text = """layer (float[B, T, 5] x, float[B, 1, 9] h) => (float[B, T, 1, 9] y, float[B, 1, 9] h_n) {{
        y, h_n = GRU <hidden_size: int = 9, layout: int = {layout}> (x, W, R, B, , h)
    }}"""
    weights = weights_of("GRU", "", 5, 9)
    batch_first = InferenceSession(model_of(text.format(layout=1), weights))
    x, h = normal(3, 6, 5), normal(3, 1, 9)
    y, h_n = batch_first.run(None, {"x": x, "h": h})
    time_first = (
        text.replace("[B, T,", "[T, B,").replace("[B, 1, 9]", "[1, B, 9]").replace("T, 1, 9", "1, B, 9")
    )
    time_first = model_of(time_first.format(layout=0).replace("[T, B, 1, 9] y", "[T, 1, B, 9] y"), weights)
    expected, expected_h = runtime(time_first).run(None, {"x": x.swapaxes(0, 1), "h": h.swapaxes(0, 1)})
    np.testing.assert_allclose(y, expected.transpose(2, 0, 1, 3), **TOLERANCE)
    np.testing.assert_allclose(h_n, expected_h.swapaxes(0, 1), **TOLERANCE)


def test_fixed_lengths_and_states():
    text = """layer (float[T, 2, 5] x) => (float[T, 1, 2, 9] y, float[1, 2, 9] h_n) {
        y, h_n = GRU <hidden_size: int = 9> (x, W, R, B, lengths, h)
    }"""
    fixed = {"lengths": np.array([4, 2], np.int32), "h": normal(1, 2, 9)}
    same(model_of(text, weights_of("GRU", "", 5, 9) | fixed), {"x": normal(4, 2, 5)})


def test_double():
    text = """layer (double[T, B, 5] x) => (double[T, 1, B, 9] y) {
        y = LSTM <hidden_size: int = 9> (x, W, R, B)
    }"""
    weights = {name: value.astype(np.float64) for name, value in weights_of("LSTM", "", 5, 9).items()}
    model = model_of(text, weights)
    session = InferenceSession(model, precision="bfloat16")  # that is for float32
    (module,) = session.modules.values()
    assert module.dtype == np.float64
    assert module.precision is None
    x = normal(4, 2, 5).astype(np.float64)
    (y,) = session.run(None, {"x": x})  # ONNX Runtime has no LSTM of doubles
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y[:, 0], module(x)[0])


def test_half():
    text = """layer (float16[T, B, 5] x) => (float16[T, 1, B, 9] y) {
        y = LSTM <hidden_size: int = 9> (x, W, R, B)
    }"""
    weights = {name: value.astype(np.float16) for name, value in weights_of("LSTM", "", 5, 9).items()}
    x = normal(4, 2, 5).astype(np.float16)
    (y,) = InferenceSession(model_of(text, weights)).run(None, {"x": x})
    single = text.replace("float16", "float")
    wide = model_of(single, {name: value.astype(np.float32) for name, value in weights.items()})
    (expected,) = runtime(wide).run(None, {"x": x.astype(np.float32)})
    assert y.dtype == np.float16
    np.testing.assert_allclose(y, expected, atol=1e-3)


def test_outputs_that_are_constants_or_inputs():
    text = """odd (float[N] x) => (float[N] y, float[2] fixed, float[2] computed, float[2] also_used) {
        computed = Neg (fixed)
        also_used = Identity (computed)
        last = ReduceMax (also_used)
        y = Add (x, last)
    }"""
    same(model_of(text, {"fixed": np.array([1, 2], np.float32)}), {"x": normal(3)})


def test_outputs_share_no_memory_and_keep_their_shape():
    results = "float[T, 1, B, 9] y, float[T, B, 9] flat, float total, float[T, B, 5] same"
    text = (
        f"layer (float[T, B, 5] x) => ({results})"
        + """ {
        y = LSTM <hidden_size: int = 9> (x, W, R, B)
        flat = Squeeze (y, one)
        total = ReduceSum <keepdims: int = 0> (flat)
        same = Identity (x)
    }"""
    )
    model = model_of(text, weights_of("LSTM", "", 5, 9) | {"one": np.array([1])})
    x = normal(4, 2, 5)
    y, flat, total, given_back = InferenceSession(model).run(None, {"x": x})
    assert np.shape(total) == ()
    assert not any(np.shares_memory(a, b) for a, b in ((y, flat), (x, given_back)))


def test_outputs_that_hand_a_loops_weights_on_are_copies():
    model, weights = loop_model("gru", 6, 5)
    model.graph.output.append(helper.make_tensor_value_info("final_K", TensorProto.FLOAT, [6, 15]))
    session, feeds = InferenceSession(model), {"x": normal(2, 3, 6)}
    session.run(None, feeds)[-1].fill(0)
    np.testing.assert_array_equal(session.run(None, feeds)[-1], weights["K"])


def test_a_recurrent_node_of_constants_is_one():
    text = """layer (float[N] x) => (float[N] y) {
        fixed = RNN <hidden_size: int = 9> (c, W, R, B)
        last = ReduceMax (fixed)
        y = Add (x, last)
    }"""
    model = model_of(text, weights_of("RNN", "", 5, 9) | {"c": normal(3, 1, 5)})
    graph = model.graph  # ReduceMax keeps four dimensions, and the sum has them, too
    graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    assert same(model, {"x": normal(4)}).modules == {}


def test_a_model_without_recurrent_nodes():
    model = model_of("plain (float[N] x) => (float[N] y) { y = Tanh (x) }", {})
    assert same(model, {"x": normal(3)}).modules == {}


def test_a_random_node_is_not_taken_for_a_constant():
    model = model_of("noise (float[N] x) => (float[4] y) { y = RandomNormal <shape: ints = [4]> () }", {})
    session = InferenceSession(model)
    first, second = (session.run(None, {"x": normal(1)})[0] for _ in range(2))
    assert (first != second).any()


def test_functions_are_looked_into():
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    whole (float[T, B, 5] x) => (float[T, 1, B, 9] y) { y = own.layer (x, W, R, B) }
    <domain: "own", opset_import: ["" : 17]>
    layer (x, w, r, b) => (y) { y = LSTM <hidden_size: int = 9> (x, w, r, b) }"""
    model = parser.parse_model(text)
    tensors = weights_of("LSTM", "", 5, 9).items()
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in tensors)
    assert len(gr.from_onnx(model)) == 1
    assert len(same(model, {"x": normal(4, 2, 5)}).modules) == 1


def test_nodes_within_if_are_left_and_said():
    inner = helper.make_graph(
        [helper.make_node("LSTM", ["x", "W", "R", "B"], ["inner_y"], name="inner", hidden_size=9)],
        "then", [], [helper.make_tensor_value_info("inner_y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Neg", ["outer"], ["outer_y"])],
        "else", [], [helper.make_tensor_value_info("outer_y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    text = """whole (float[T, B, 5] x, bool choice) => (float[T, 1, B, 9] y) {
        outer = LSTM <hidden_size: int = 9> (x, W, R, B)
    }"""
    model = model_of(text, weights_of("LSTM", "", 5, 9))
    model.graph.node.append(
        helper.make_node("If", ["choice"], ["y"], name="if", then_branch=inner, else_branch=other)
    )
    for choice in (True, False):
        session = same(model, {"x": normal(4, 2, 5), "choice": np.array(choice)})
    assert list(session.modules) == ["outer"]
    assert session.left == {"inner": "it is within If 'if'"}


def test_a_node_that_modules_cannot_be_is_left_and_said():
    text = """layer (float[T, B, 5] x) => (float[T, 2, B, 9] y) {
        y = RNN <hidden_size: int = 9, direction: string = "bidirectional",
                 activations: strings = ["Tanh", "Relu"]> (x, W, R, B)
    }"""
    session = same(model_of(text, weights_of("RNN", "", 5, 9, 2)), {"x": normal(4, 2, 5)})
    assert session.modules == {}
    assert "both directions" in session.left["y"]


# ---- Loops ----


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_after", "rnn"])
@pytest.mark.parametrize(("input_size", "H"), [(6, 5), (5, 5), (1, 7), (3, 1), (4, 2)])
def test_loops_of_recurrent_layers(cell, masked, input_size, H):
    model, _ = loop_model(cell, input_size, H, masked=masked)
    for B, T in ((3, 7), (1, 1), (2, 0)):
        feeds = {"x": normal(B, T, input_size)}
        if masked:
            feeds["mask"] = np.random.default_rng(2).random((B, T)) < 0.5
        if T:
            session = same(model, feeds)
        else:  # ONNX Runtime takes a step all the same, of the zeros that it finds
            assert InferenceSession(model).run(None, feeds)[0].shape == (B, 0, H)
    (module,) = session.modules.values()
    assert type(module).__name__.lower() == cell[:4].rstrip("_")
    assert session.left == {}


def test_a_loop_that_computes_something_else_is_left_and_said():
    def change(node):
        if node.op_type == "Tanh" and node.output[0] == "n":
            node.op_type = "Sin"

    model, _ = loop_model("gru", 6, 5, change=change)
    session = same(model, {"x": normal(3, 7, 6)})
    assert session.modules == {}
    assert "computes none that is known" in session.left["the_loop"]


def test_a_loop_of_anything_else_is_not_spoken_of():
    text = """count (int64 n, float[N] x) => (float[N] y) {
        y = Loop (n, , x) <body = step (int64 i, bool go, float[N] h) => (bool on, float[N] more) {
            on = Identity (go)
            more = Add (h, h)
        }>
    }"""
    session = same(model_of(text, {}), {"n": np.array(3), "x": normal(4)})
    assert session.left == {}


def test_a_loop_of_more_steps_than_there_are():
    model, _ = loop_model("gru", 6, 5)
    steps = next(node for node in model.graph.node if node.output[0] == "steps_0")
    model.graph.node.remove(steps)
    model.graph.input.append(helper.make_tensor_value_info("steps_0", TensorProto.INT32, []))
    session = InferenceSession(model)
    x = normal(3, 7, 6)
    assert session.run(["y"], {"x": x, "steps_0": np.int32(4)})[0].shape == (3, 4, 5)
    with pytest.raises(ValueError, match="a Loop takes 8 steps, of an input of shape"):
        session.run(None, {"x": x, "steps_0": np.int32(8)})


# ---- formats ----


@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16x3", "int8"])
def test_precision(precision):
    model, feeds = stacked(33, 33), {"x": normal(9, 4, 33), "h": normal(1, 4, 33)}
    session = InferenceSession(model, precision)
    assert {module.precision for module in session.modules.values()} == {precision}
    (y, _), (expected, _) = session.run(None, feeds), runtime(model).run(None, feeds)
    np.testing.assert_allclose(y, expected, atol=0.1)
    assert (y != expected).any()


def test_quantised_nodes_are_computed_in_8_bits():
    H = 65
    whole = weights_of("LSTM", "", 33, H)
    weights = {"B": whole["B"]}
    for name in "WR":
        scale = np.abs(whole[name]).max() / 127
        weights[name] = np.round(whole[name] / scale).astype(np.int8).swapaxes(1, 2)
        weights |= {f"{name}s": np.full(1, scale, np.float32), f"{name}z": np.zeros(1, np.int8)}
    text = f"""layer (float[T, B, 33] x) => (float[T, 1, B, {H}] y) {{
        y = com.microsoft.DynamicQuantizeLSTM <hidden_size: int = {H}>
            (x, W, R, B, , , , , Ws, Wz, Rs, Rz)
    }}"""
    model = model_of(text, weights)
    session = InferenceSession(model)
    (module,) = session.modules.values()
    assert module.precision == "int8"
    x = normal(9, 4, 33)
    y, theirs = session.run(None, {"x": x})[0], runtime(model).run(None, {"x": x})[0]
    exact = InferenceSession(model, "bfloat16x3").run(None, {"x": x})[0]
    assert np.abs(y - exact).max() < np.abs(theirs - exact).max()  # which rounds its inputs to 8 bits, too


# ---- the interface ----


def test_arguments_are_described_as_onnx_runtime_does():
    for model in (stacked(), loop_model("lstm", 6, 5, masked=True)[0]):
        ours, theirs = InferenceSession(model), runtime(model)
        for a, b in ((ours.get_inputs(), theirs.get_inputs()), (ours.get_outputs(), theirs.get_outputs())):
            assert [tuple(arg) for arg in a] == [(arg.name, arg.type, arg.shape) for arg in b]


def test_paths_bytes_and_models(tmp_path):
    model, feeds = stacked(), {"x": normal(4, 2, 7), "h": normal(1, 2, 9)}
    onnx.save(model, tmp_path / "model.onnx")
    sources = (model, model.SerializeToString(), tmp_path / "model.onnx", str(tmp_path / "model.onnx"))
    results = [InferenceSession(source).run(["y"], feeds)[0] for source in sources]
    assert all((result == results[0]).all() for result in results)


def test_outputs_by_name_in_order():
    session, feeds = InferenceSession(stacked()), {"x": normal(4, 2, 7), "h": normal(1, 2, 9)}
    y, h_n = session.run(None, feeds)
    twice = session.run(["h_n", "y", "h_n"], feeds)
    for ours, expected in zip(twice, (h_n, y, h_n), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_lists_are_converted():
    session = InferenceSession(stacked())
    x, h = normal(4, 2, 7), normal(1, 2, 9)
    np.testing.assert_array_equal(
        session.run(["y"], {"x": x.tolist(), "h": h.tolist()})[0], session.run(["y"], {"x": x, "h": h})[0]
    )


def test_threads_share_a_session():
    session = InferenceSession(stacked(33, 33))
    feeds = [{"x": normal(9, B, 33, seed=B), "h": normal(1, B, 33)} for B in range(1, 5)]
    expected = [session.run(None, given)[0] for given in feeds]
    wrong: list[int] = []

    def work(number):
        for _ in range(20):
            if (session.run(None, feeds[number])[0] != expected[number]).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_onnx_runtime_is_needed_only_for_the_rest(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    text = """layer (float[T, B, 5] x) => (float[T, 1, B, 9] y) {
        y = LSTM <hidden_size: int = 9> (x, W, R, B)
    }"""
    session = InferenceSession(model_of(text, weights_of("LSTM", "", 5, 9)))
    assert session.run(None, {"x": normal(4, 2, 5)})[0].shape == (4, 1, 2, 9)
    with pytest.raises(ImportError, match=r"gatedrnn\.onnx needs the package onnxruntime"):
        InferenceSession(stacked())


def test_a_gru_of_pytorch_that_says_0():
    text = """layer (float[T, B, 5] x) => (float[T, 1, B, 9] y) {
        y = GRU <hidden_size: int = 9> (x, W, R, B)
    }"""
    model = model_of(text, weights_of("GRU", "", 5, 9))
    model.producer_name = "pytorch"
    with pytest.warns(UserWarning, match="linear_before_reset"):
        InferenceSession(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(model, {"x": normal(4, 2, 5)}, linear_before_reset=False)
        (module,) = InferenceSession(model, linear_before_reset=True).modules.values()
    assert module.reset_after


# ---- errors ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "input_feed: expected x, h; 'x' is missing"),
        ({"z": normal(1)}, "input_feed: expected x, h; got 'z'"),
        ({"x": normal(4, 2, 7).astype(np.float64)}, "x: expected dtype float32, got float64"),
        ({"x": normal(4, 2, 8)}, r"x: expected shape \('T', 'B', 7\), got \(4, 2, 8\)"),
        ({"x": normal(4, 7)}, r"x: expected shape \('T', 'B', 7\), got \(4, 7\)"),
        ({"h": normal(1, 3, 9)}, r"g_y: state: expected \(1, 2, 9\), got \(1, 3, 9\)"),
    ],
)
def test_feeds_are_checked(change, message):
    feeds = {"x": normal(4, 2, 7), "h": normal(1, 2, 9)} | change
    with pytest.raises(ValueError, match=message):
        InferenceSession(stacked()).run(None, {name: v for name, v in feeds.items() if v is not None})


def test_other_errors(tmp_path):
    session, feeds = InferenceSession(stacked()), {"x": normal(4, 2, 7), "h": normal(1, 2, 9)}
    with pytest.raises(ValueError, match="output_names: expected some of y, h_n, got 'z'"):
        session.run(["z"], feeds)
    with pytest.raises(TypeError, match="input_feed: expected a dict, got"):
        session.run(None, [feeds])
    with pytest.raises(ValueError, match="precision"):
        InferenceSession(stacked(), "int4")
    with pytest.raises(TypeError, match="model: expected a path, the bytes of a file or an onnx"):
        InferenceSession(3)
    with pytest.raises(ValueError, match="model: expected an ONNX model"):
        InferenceSession(stacked().SerializeToString()[:-100])
    with pytest.raises(OSError, match="absent"):
        InferenceSession(tmp_path / "absent.onnx")


def test_a_graph_out_of_order():
    model = stacked()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    with pytest.raises(ValueError, match="model: expected nodes in order, got one that reads 'g_flat'"):
        InferenceSession(model)


def test_a_graph_that_onnx_runtime_refuses():
    model = model_of("odd (float[N] x) => (float[N] y) { y = own.Unknown (x) }", {})
    with pytest.raises(ValueError, match="model: ONNX Runtime refuses it: "):
        InferenceSession(model)


# ---- the package's own tests of recurrent nodes ----


@functools.cache
def node_tests():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other operators' tests, while they are made
        import onnx.backend.test

        runner = onnx.backend.test.BackendTest(Backend, __name__)
    runner.include("test_(lstm|gru|rnn|simple_rnn)_")
    return runner.test_cases["OnnxBackendNodeModelTest"]


def test_the_packages_tests_of_recurrent_nodes():
    pattern = re.compile("test_(lstm|gru|rnn|simple_rnn)_.*_cpu")
    names = [name for name in dir(node_tests()) if pattern.fullmatch(name)]
    assert len(names) >= 18
    result = unittest.TestResult()
    for name in names:
        node_tests()(name).run(result)
    assert result.testsRun == len(names)
    assert [text for _, text in (*result.errors, *result.failures)] == []
    assert result.skipped == []


def test_backend_runs_models_and_nodes():
    model, feeds = stacked(), {"x": normal(4, 2, 7), "h": normal(1, 2, 9)}
    expected = InferenceSession(model).run(None, feeds)
    for inputs in (feeds, list(feeds.values())):
        for ours, theirs in zip(Backend.run_model(model, inputs), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    weights = weights_of("GRU", "", 5, 9)
    node = helper.make_node("GRU", ["x", *weights], ["y", "h_n"], hidden_size=9)
    x = normal(4, 2, 5)
    y, h_n = Backend.run_node(node, [x, *weights.values()])
    np.testing.assert_array_equal(y[-1], h_n)
    (tanh,) = Backend.run_node(helper.make_node("Tanh", ["x"], ["y"]), [x])
    np.testing.assert_allclose(tanh, np.tanh(x), **TOLERANCE)
    assert Backend.supports_device("CPU")
    assert not Backend.supports_device("CUDA:0")
    with pytest.raises(ValueError, match="device: expected CPU, got 'CUDA'"):
        Backend.prepare(model, "CUDA")
    with pytest.raises(ValueError, match="inputs: expected 2, got 1"):
        Backend.prepare(model).run([feeds["x"]])
