"""Loops as tf2onnx writes them for recurrent layers that ONNX has no node for."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT32, BOOL = TensorProto.FLOAT, TensorProto.INT32, TensorProto.BOOL


def loop_model(cell, input_size, hidden_size, *, masked=False, seed=0, change=None):
    """Return a model x (B, T, I) [, mask (B, T)] -> y (B, T, H), h (B, H), and the weights, in Keras' layout.

    `cell` is "lstm", "gru", "gru_after" or "rnn"; `change` is given each node of the body, and may alter it.
    """
    gates = {"lstm": 4, "gru": 3, "gru_after": 3, "rnn": 1}[cell]
    drawn = np.random.default_rng(seed)
    shapes = {"K": (input_size, gates * hidden_size), "U": (hidden_size, gates * hidden_size)}
    shapes["b"] = (2, gates * hidden_size) if cell == "gru_after" else (gates * hidden_size,)
    weights = {name: drawn.uniform(-0.7, 0.7, shape).astype(np.float32) for name, shape in shapes.items()}
    carried = {"time": INT32, "h": FLOAT} | ({"c": FLOAT} if cell == "lstm" else {})
    carried |= {"last": FLOAT} if masked else {}
    handed_on = {"steps": INT32} | dict.fromkeys(weights, FLOAT)

    body = _step(cell, hidden_size) + _next_states(carried, masked)
    body += [
        helper.make_node("Add", ["time", "one"], ["next_time"]),
        helper.make_node("Cast", ["next_time"], ["next_time_float"], to=FLOAT),
        helper.make_node("Cast", ["steps"], ["steps_float"], to=FLOAT),
        helper.make_node("Less", ["next_time_float", "steps_float"], ["go_on"]),
    ]
    for node in body:
        if change is not None:
            change(node)
    outputs = [("go_on", BOOL), *((f"next_{name}", kind) for name, kind in carried.items())]
    outputs += [*handed_on.items(), ("next_output", FLOAT)]
    inputs = [("number", TensorProto.INT64), ("condition", BOOL), *carried.items(), *handed_on.items()]
    graph = helper.make_graph(body, "body", [_info(*i) for i in inputs], [_info(*o) for o in outputs])

    initial = ["time_0", *["zeros"] * (len(carried) - 1), "steps_0", *(f"{name}_0" for name in weights)]
    finals = [f"final_{name}" for name in (*carried, *handed_on)]
    nodes = [
        helper.make_node("Transpose", ["x"], ["x_by_time"], perm=[1, 0, 2]),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "one_64"], ["steps_64"]),
        helper.make_node("Cast", ["steps_64"], ["steps_0"], to=INT32),
        helper.make_node("Gather", ["shape", "zero_64"], ["batch"]),
        helper.make_node("Concat", ["batch_1", "size"], ["states"], axis=0),
        helper.make_node("ConstantOfShape", ["states"], ["zeros"]),
        helper.make_node(
            "Loop", ["", "start", *initial], [*finals, "y_by_time"], name="the_loop", body=graph
        ),
        helper.make_node("Transpose", ["y_by_time"], ["y"], perm=[1, 0, 2]),
        helper.make_node("Identity", ["final_h"], ["h_n"]),
    ]
    nodes.insert(5, helper.make_node("Unsqueeze", ["batch", "axis_0"], ["batch_1"]))
    given = [_info("x", FLOAT, ["B", "T", input_size])]
    if masked:
        given.append(_info("mask", BOOL, ["B", "T"]))
        nodes.insert(0, helper.make_node("Transpose", ["mask"], ["mask_by_time_2"], perm=[1, 0]))
        nodes.insert(1, helper.make_node("Unsqueeze", ["mask_by_time_2", "axis_2"], ["mask_by_time"]))
    constants = {f"{name}_0": value for name, value in weights.items()}
    constants |= {"time_0": np.int32(0), "one": np.int32(1), "one_64": np.int64(1), "zero_64": np.int64(0)}
    constants |= {"start": np.bool_(True), "size": np.array([hidden_size]), "one_float": np.float32(1)}
    constants |= {"axis_0": np.array([0]), "axis_2": np.array([2])}
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    results = [_info("y", FLOAT, ["B", "T", hidden_size]), _info("h_n", FLOAT, ["B", hidden_size])]
    whole = helper.make_graph(nodes, "layer", given, results, tensors)
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), weights


def _info(name, kind, shape=None):
    scalars = ("number", "condition", "time", "steps", "next_time", "go_on")
    return helper.make_tensor_value_info(name, kind, [] if name in scalars else shape)


def _step(cell, hidden_size):
    """Return the nodes that compute new_h, and of an LSTM new_c, from one step of x, h and c."""
    nodes = [
        helper.make_node("Gather", ["x_by_time", "time"], ["x_t"]),
        helper.make_node("MatMul", ["x_t", "K"], ["from_x"]),
    ]

    def add(kind, *names, **attributes):
        nodes.append(helper.make_node(kind, list(names[:-1]), [names[-1]], **attributes))

    if cell == "gru_after":
        nodes.append(helper.make_node("Split", ["b"], ["b_x_1", "b_h_1"], axis=0))
        add("Squeeze", "b_x_1", "b_x")
        add("Squeeze", "b_h_1", "b_h")
        add("Add", "from_x", "b_x", "a_x")
        add("MatMul", "h", "U", "from_h")
        add("Add", "from_h", "b_h", "a_h")
    elif cell == "gru":
        add("Add", "from_x", "b", "a_x")
        for name, first, last in (("U_zr", 0, 2 * hidden_size), ("U_n", 2 * hidden_size, 3 * hidden_size)):
            for number, value in (("from", first), ("to", last)):
                nodes.append(helper.make_node("Constant", [], [f"{name}_{number}"], value_ints=[value]))
            nodes.append(helper.make_node("Constant", [], [f"{name}_axis"], value_ints=[1]))
            add("Slice", "U", f"{name}_from", f"{name}_to", f"{name}_axis", name)
    else:
        add("MatMul", "h", "U", "from_h")
        add("Add", "from_x", "from_h", "sums")
        add("Add", "sums", "b", "a")
    if cell == "rnn":
        add("Tanh", "a", "new_h")
    elif cell == "lstm":
        nodes.append(helper.make_node("Split", ["a"], ["a_i", "a_f", "a_g", "a_o"], axis=1))
        for gate in "ifo":
            add("Sigmoid", f"a_{gate}", gate)
        add("Tanh", "a_g", "g")
        add("Mul", "f", "c", "kept")
        add("Mul", "i", "g", "added")
        add("Add", "kept", "added", "new_c")
        add("Tanh", "new_c", "squashed")
        add("Mul", "o", "squashed", "new_h")
    else:
        nodes.append(helper.make_node("Split", ["a_x"], ["x_z", "x_r", "x_n"], axis=-1))
        if cell == "gru":
            add("MatMul", "h", "U_zr", "a_h")
            nodes.append(helper.make_node("Split", ["a_h"], ["h_z", "h_r"], axis=-1))
        else:
            nodes.append(helper.make_node("Split", ["a_h"], ["h_z", "h_r", "h_n"], axis=-1))
        for gate in "zr":
            add("Add", f"x_{gate}", f"h_{gate}", f"a_{gate}")
            add("Sigmoid", f"a_{gate}", gate)
        if cell == "gru":
            add("Mul", "r", "h", "reset")
            add("MatMul", "reset", "U_n", "of_state")
        else:
            add("Mul", "r", "h_n", "of_state")
        add("Add", "x_n", "of_state", "a_n")
        add("Tanh", "a_n", "n")
        add("Sub", "one_float", "z", "not_z")
        add("Mul", "z", "h", "kept")
        add("Mul", "not_z", "n", "added")
        add("Add", "kept", "added", "new_h")
    return nodes


def _next_states(carried, masked):
    """Return the nodes that make of what is new, and of the mask, what the next step begins with."""
    if not masked:
        names = [name for name in carried if name != "time"]
        nodes = [helper.make_node("Identity", [f"new_{name}"], [f"next_{name}"]) for name in names]
        return [*nodes, helper.make_node("Identity", ["new_h"], ["next_output"])]
    nodes = [helper.make_node("Gather", ["mask_by_time", "time"], ["mask_t"])]
    sources = {"h": "new_h", "c": "new_c", "last": "new_h"}
    for name in (name for name in carried if name != "time"):
        nodes.append(helper.make_node("Where", ["mask_t", sources[name], name], [f"next_{name}"]))
    return [*nodes, helper.make_node("Identity", ["next_last"], ["next_output"])]
