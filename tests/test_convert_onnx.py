"""from_onnx: one-node models run by ONNX Runtime, weights as exporters write them, refusals."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import gatedrnn as gr
from helpers import normal

I, H = 5, 7  # noqa: E741 - as in the specification
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
FUNCTIONS = {"LSTM": 3, "GRU": 2, "RNN": 1}


def node_arrays(kind, directions, *, bias=True, peepholes=False, dtype=np.float32, seed=0):
    """W, R, B and P of a node, as far as it has them."""
    rng = np.random.default_rng(seed)
    rows = GATES[kind] * H
    shapes = {"W": (rows, I), "R": (rows, H), "B": (2 * rows,), "P": (3 * H,)}
    wanted = "WR" + "B" * bias + "P" * peepholes
    return {
        name: rng.uniform(-0.5, 0.5, (directions, *shape)).astype(dtype)
        for name, shape in shapes.items()
        if name in wanted
    }


def model_of(kind, arrays, *, inputs=(), initializers=(), nodes=(), name="rnn", producer="", **attributes):
    """A model of one node, whose further inputs are graph inputs (name, shape) or initialisers by name."""
    arrays = dict(arrays)
    places = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
    computed = {output for node in nodes for output in node.output}
    given = {"X", *arrays, *(n for n, *_ in inputs), *(n for n, _ in initializers), *computed}
    names = [place if place in given else "" for place in places[: 8 if kind == "LSTM" else 6]]
    while not names[-1]:
        names.pop()
    dtype = (
        helper.np_dtype_to_tensor_dtype(next(iter(arrays.values())).dtype) if arrays else TensorProto.FLOAT
    )
    outputs = ["Y", "Y_h", "Y_c"][: 3 if kind == "LSTM" else 2]
    node = helper.make_node(kind, names, outputs, name=name, hidden_size=H, **attributes)
    graph_inputs = [helper.make_tensor_value_info("X", dtype, None)]
    graph_inputs += [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs]
    graph = helper.make_graph(
        [*nodes, node],
        "g",
        graph_inputs,
        [helper.make_tensor_value_info(o, dtype, None) for o in outputs],
        [numpy_helper.from_array(v, n) for n, v in [*arrays.items(), *initializers]],
    )
    opset = [helper.make_opsetid("", 14)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name=producer)


def run(model, x, **feeds):
    """Y in our layout, and Y_h."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y, y_h, *_ = session.run(None, {"X": x, **feeds})
    steps, directions, batch, width = y.shape
    return y.transpose(0, 2, 1, 3).reshape(steps, batch, directions * width), y_h


def h_of(state):
    return state[0] if isinstance(state, tuple) else state


def agree(module, model, x, state=None, **feeds):
    y, y_h = run(model, x, **feeds)
    output, after = module(x, state, lengths=feeds.get("sequence_lens"))
    np.testing.assert_allclose(output, y, rtol=0, atol=2e-6)
    np.testing.assert_allclose(h_of(after), y_h, rtol=0, atol=2e-6)


CASES = [
    ("LSTM", {}, {}),
    ("LSTM", {"peepholes": True}, {}),
    ("LSTM", {"peepholes": True}, {"input_forget": 1}),
    ("LSTM", {"bias": False}, {"clip": 0.3}),
    ("LSTM", {}, {"activations": ["HardSigmoid", "Softsign", "ScaledTanh"]}),
    ("GRU", {}, {"linear_before_reset": 1}),
    ("GRU", {}, {}),
    ("GRU", {"bias": False}, {"activations": ["HardSigmoid", "Relu"], "linear_before_reset": 1}),
    ("RNN", {}, {}),
    ("RNN", {}, {"activations": ["Relu"]}),
    ("RNN", {}, {"activations": ["Affine"], "clip": 0.5}),
]
WITH_NUMBERS = {
    "HardSigmoid": ([0.3], [0.4]),
    "ScaledTanh": ([0.8], [1.3]),
    "Affine": ([0.6], [-0.1]),
}


def attributes_for(given, directions):
    """Of as many directions, with alphas and betas for the functions that have them."""
    given = dict(given)
    if "activations" in given:
        functions = given["activations"] * directions
        alphas = [a for f in functions for a in WITH_NUMBERS.get(f, ([], []))[0]]
        betas = [b for f in functions for b in WITH_NUMBERS.get(f, ([], []))[1]]
        given["activations"] = functions
        given |= {"activation_alpha": alphas} if alphas else {}
        given |= {"activation_beta": betas} if betas else {}
    return given


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("kind", "has", "attributes"), CASES, ids=str)
def test_onnx_runtimes_values(kind, has, attributes, direction):
    directions = 1 + (direction == "bidirectional")
    attributes = attributes_for(attributes, directions)
    arrays = node_arrays(kind, directions, **has)
    model = model_of(kind, arrays, direction=direction, **attributes)
    modules = gr.from_onnx(model)
    assert list(modules) == ["rnn"]
    module = modules["rnn"]
    assert type(module).__name__ == kind
    x = normal((6, 3, I))
    agree(module, model, x)

    inputs = [("sequence_lens", TensorProto.INT32, [3]), ("initial_h", TensorProto.FLOAT, [directions, 3, H])]
    inputs += [("initial_c", TensorProto.FLOAT, [directions, 3, H])] if kind == "LSTM" else []
    model = model_of(kind, arrays, inputs=inputs, direction=direction, **attributes)
    h, c = normal((directions, 3, H), seed=1), normal((directions, 3, H), seed=2)
    feeds = {"sequence_lens": np.array([6, 2, 4], np.int32), "initial_h": h}
    feeds |= {"initial_c": c} if kind == "LSTM" else {}
    agree(gr.from_onnx(model)["rnn"], model, x, (h, c) if kind == "LSTM" else h, **feeds)


def test_alphas_that_are_not_given_are_the_operators():
    model = model_of("RNN", node_arrays("RNN", 1), activations=["LeakyRelu"])
    assert gr.from_onnx(model)["rnn"].activations == {"h": ("leaky_relu", 0.01)}
    model = model_of("GRU", node_arrays("GRU", 1), activations=["hardsigmoid", "TANH"])
    assert gr.from_onnx(model)["rnn"].activations == {
        "r": ("hard_sigmoid", 0.2, 0.5),
        "z": ("hard_sigmoid", 0.2, 0.5),
    }


def test_double_precision_and_halves():
    for dtype, ours in ((np.float64, np.float64), (np.float16, np.float32)):
        model = model_of("GRU", node_arrays("GRU", 1, dtype=dtype), linear_before_reset=1)
        assert gr.from_onnx(model)["rnn"].dtype == ours


def test_batch_first():
    module = gr.from_onnx(model_of("LSTM", node_arrays("LSTM", 1), layout=1))["rnn"]
    assert module.batch_first
    plain = gr.from_onnx(model_of("LSTM", node_arrays("LSTM", 1)))["rnn"]
    x = normal((3, 6, I))
    np.testing.assert_array_equal(module(x)[0], plain(x.swapaxes(0, 1))[0].swapaxes(0, 1))


def test_constant_initial_states_are_learnt_ones():
    h, c = normal((1, 1, H), seed=1), normal((1, 1, H), seed=2)
    arrays = node_arrays("LSTM", 1)
    model = model_of("LSTM", arrays, initializers=[("initial_h", h), ("initial_c", c)])
    module = gr.from_onnx(model)["rnn"]
    assert module.learn_state
    agree(module, model, normal((4, 1, I)))
    zeros = np.zeros((1, 3, H), np.float32)
    model = model_of("LSTM", arrays, initializers=[("initial_h", zeros), ("initial_c", zeros)])
    assert not gr.from_onnx(model)["rnn"].learn_state
    different = normal((1, 3, H))
    model = model_of("LSTM", arrays, initializers=[("initial_h", different), ("initial_c", zeros)])
    assert not gr.from_onnx(model)["rnn"].learn_state  # the caller's, then


def test_weights_that_other_nodes_compute():
    arrays = node_arrays("GRU", 1)
    scale, zero = np.float32(1 / 127), np.int8(0)
    quantized = np.round(arrays["R"] * 127).astype(np.int8)
    nodes = [
        helper.make_node(
            "Constant", [], ["W_T"], value=numpy_helper.from_array(arrays["W"].swapaxes(1, 2).copy())
        ),
        helper.make_node("Transpose", ["W_T"], ["W"], perm=[0, 2, 1]),
        helper.make_node("DequantizeLinear", ["R_q", "R_s", "R_z"], ["R"]),
        helper.make_node("Concat", ["B_1", "B_2"], ["B"], axis=1),
    ]
    parts = np.split(arrays["B"], 2, axis=1)
    initializers = [("R_q", quantized), ("R_s", scale), ("R_z", zero), ("B_1", parts[0]), ("B_2", parts[1])]
    model = model_of("GRU", {}, nodes=nodes, initializers=initializers, linear_before_reset=1)
    agree(gr.from_onnx(model)["rnn"], model, normal((6, 3, I)))


@pytest.mark.parametrize("per_channel", [False, True])
def test_quantized_nodes(per_channel, tmp_path):
    """ONNX Runtime's, whose weights have 8 bits; it rounds inputs and states as it runs, too."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    onnx.save(model_of("LSTM", node_arrays("LSTM", 2), direction="bidirectional"), tmp_path / "m.onnx")
    # In 7 bits: with 8 its sums of two products overflow 16 bits on processors without VNNI.
    options = dict(weight_type=QuantType.QInt8, per_channel=per_channel, reduce_range=True)
    quantize_dynamic(tmp_path / "m.onnx", tmp_path / "q.onnx", **options)
    model = onnx.load(tmp_path / "q.onnx")
    assert [node.op_type for node in model.graph.node] == ["DynamicQuantizeLSTM"]
    (module,) = gr.from_onnx(tmp_path / "q.onnx").values()
    exact = gr.from_onnx(tmp_path / "m.onnx")["rnn"]
    error = np.abs(module.weight_hh_l0 - exact.weight_hh_l0).max()
    assert 0 < error < 0.01
    x = normal((6, 3, I))
    np.testing.assert_allclose(module(x)[0], run(model, x)[0], rtol=0, atol=0.02)


def test_a_file_and_nodes_without_names(tmp_path):
    onnx.save(model_of("RNN", node_arrays("RNN", 1), name=""), tmp_path / "m.onnx")
    assert list(gr.from_onnx(tmp_path / "m.onnx")) == ["Y"]


def test_nodes_within_a_branch():
    """Of an If, with weights from the graph around it."""
    arrays = node_arrays("RNN", 1)
    inner = helper.make_graph(
        [helper.make_node("RNN", ["X", "W", "R", "B"], ["Y_in"], name="inner", hidden_size=H)],
        "branch",
        [],
        [helper.make_tensor_value_info("Y_in", TensorProto.FLOAT, None)],
    )
    outer = helper.make_graph(
        [helper.make_node("If", ["condition"], ["Y"], then_branch=inner, else_branch=inner)],
        "g",
        [
            helper.make_tensor_value_info("X", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, n) for n, v in arrays.items()],
    )
    with pytest.raises(ValueError, match="expected nodes of different names, got 'inner' twice"):
        gr.from_onnx(helper.make_model(outer))
    outer.node[0].attribute[1].g.node[0].name = "other"
    assert list(gr.from_onnx(helper.make_model(outer))) == ["inner", "other"]


def test_pytorchs_forgotten_attribute():
    model = model_of("GRU", node_arrays("GRU", 1), producer="pytorch")
    with pytest.warns(UserWarning, match="GRU 'rnn': the file was written by PyTorch"):
        assert not gr.from_onnx(model)["rnn"].reset_after
    assert gr.from_onnx(model, linear_before_reset=True)["rnn"].reset_after
    assert not gr.from_onnx(model, linear_before_reset=False)["rnn"].reset_after
    other = model_of("GRU", node_arrays("GRU", 1))
    assert not gr.from_onnx(other, linear_before_reset=True)["rnn"].reset_after  # not PyTorch's


def changed(name, value):
    return lambda arrays: arrays | {name: value}


ZEROS = np.zeros((1, 28, 7), np.float32)
BROKEN = [
    (changed("W", ZEROS[:, :27]), {}, r"expected W of \(1, 28, I\) and R of \(1, 28, H\)"),
    (changed("W", ZEROS[0]), {}, "expected W of 3 dimensions"),
    (changed("R", np.zeros((1, 28, 0), np.float32)), {}, "expected R of 3 dimensions"),
    (changed("B", ZEROS[:, :, 0]), {}, r"expected B of \(1, 56\), got shape \(1, 28\)"),
    (changed("R", np.full_like(ZEROS, np.nan)), {}, "R: expected finite numbers"),
    (changed("R", ZEROS.astype(np.int32)), {}, "expected floating-point numbers in R, got dtype int32"),
    (lambda arrays: {"R": arrays["R"]}, {}, "expected a constant W"),
    (
        dict,
        {"direction": "sideways"},
        "expected a direction forward, reverse or bidirectional, got 'sideways'",
    ),
    (dict, {"activations": ["Tanh"]}, "expected 3 activations, got 1"),
    (dict, {"activations": ["Gelu", "Tanh", "Tanh"]}, "expected activations of relu, tanh"),
]


@pytest.mark.parametrize(("change", "attributes", "message"), BROKEN, ids=[message for *_, message in BROKEN])
def test_what_cannot_be_read(change, attributes, message):
    model = model_of("LSTM", change(node_arrays("LSTM", 1)), **attributes)
    with pytest.raises(ValueError, match=message) as raised:
        gr.from_onnx(model)
    assert str(raised.value).startswith("LSTM 'rnn': ")


def test_other_functions_in_the_other_direction():
    model = model_of("RNN", node_arrays("RNN", 2), direction="bidirectional", activations=["Tanh", "Relu"])
    with pytest.raises(ValueError, match="the same activations in both directions"):
        gr.from_onnx(model)


def test_broken_files(tmp_path):
    with pytest.raises(TypeError, match=r"model: expected a path, .* or an onnx\.ModelProto, got 3"):
        gr.from_onnx(3)
    with pytest.raises(FileNotFoundError):
        gr.from_onnx(tmp_path / "none.onnx")
    content = model_of("LSTM", node_arrays("LSTM", 1)).SerializeToString()
    for broken in (content[:-100], b"nothing of the kind"):
        (tmp_path / "bad.onnx").write_bytes(broken)
        with pytest.raises(ValueError, match="expected an ONNX model"):
            gr.from_onnx(tmp_path / "bad.onnx")
    with pytest.raises(TypeError, match="linear_before_reset"):
        gr.from_onnx(tmp_path / "none.onnx", linear_before_reset=1)


def test_nothing_is_read_outside_the_models_folder(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "secret").write_bytes(bytes(4 * 28 * I))
    model = model_of("LSTM", node_arrays("LSTM", 1))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    path = tmp_path / "models" / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="expected an ONNX model"):
        gr.from_onnx(path)
