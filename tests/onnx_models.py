"""One-node ONNX models of our modules, run by ONNX Runtime, whose layouts and gate orders are its own."""

from __future__ import annotations

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

# Our gates and ONNX's order of them. Coupled LSTMs have no f, where ONNX has rows that it does not use.
GATES = {"LSTM": "ifgo iofg", "COUPLED": "igo iofg", "GRU": "rzn zrn", "RNN": "h h"}
OPERATORS = {
    "lstm": ("LSTM", {}),
    "lstm_peephole": ("LSTM", {}),
    "lstm_coupled": ("LSTM", {"input_forget": 1}),
    "lstm_coupled_peephole": ("LSTM", {"input_forget": 1}),
    "gru": ("GRU", {"linear_before_reset": 1}),
    "gru_reset_before": ("GRU", {"linear_before_reset": 0}),
    "rnn_tanh": ("RNN", {"activations": ["Tanh"]}),
    "rnn_relu": ("RNN", {"activations": ["Relu"]}),
}


def run(cell, parameters, x, state=None, lengths=None, *, bidirectional=False, **options):
    """`output, state_n` of one layer in this library's layout. x is (T, B, I); `options` are attributes."""
    operator, attributes = OPERATORS[cell]
    attributes = {**attributes, **{name: value for name, value in options.items() if value != []}}
    ours, theirs = GATES["COUPLED" if "coupled" in cell else operator].split()
    suffixes = ("_l0", "_l0_reverse")[: 1 + bidirectional]
    hidden_size = parameters["weight_hh_l0"].shape[1]

    def gates(name):
        rows = [dict(zip(ours, np.split(parameters[name + s], len(ours)), strict=True)) for s in suffixes]
        absent = np.zeros_like(rows[0][ours[0]])
        return np.stack([np.concatenate([r.get(gate, absent) for gate in theirs]) for r in rows])

    feeds = {"X": x, "W": gates("weight_ih"), "R": gates("weight_hh")}
    if "bias_ih_l0" in parameters:
        feeds["B"] = np.concatenate([gates("bias_ih"), gates("bias_hh")], axis=1)
    if lengths is not None:
        feeds["sequence_lens"] = np.asarray(lengths, np.int32)
    if state is not None:
        parts = state if operator == "LSTM" else (state,)
        feeds |= dict(zip(("initial_h", "initial_c"), parts, strict=False))
    if "weight_ci_l0" in parameters:
        absent = np.zeros(hidden_size, np.float32)
        feeds["P"] = np.stack(
            [np.concatenate([parameters.get(f"weight_c{g}{s}", absent) for g in "iof"]) for s in suffixes]
        )

    slots = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
    outputs = ["Y", "Y_h", "Y_c"][: 3 if operator == "LSTM" else 2]
    direction = "bidirectional" if bidirectional else "forward"
    if bidirectional and "activations" in attributes:
        attributes = {"activations": attributes["activations"] * 2}
    node = helper.make_node(
        operator,
        [s if s in feeds else "" for s in slots[: 8 if operator == "LSTM" else 6]],
        outputs,
        hidden_size=hidden_size,
        direction=direction,
        **attributes,
    )
    weights = [numpy_helper.from_array(np.ascontiguousarray(feeds.pop(k)), k) for k in "WRBP" if k in feeds]
    types = {k: TensorProto.INT32 if k == "sequence_lens" else TensorProto.FLOAT for k in feeds}
    graph = helper.make_graph(
        [node],
        "one_layer",
        [helper.make_tensor_value_info(k, types[k], v.shape) for k, v in feeds.items()],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, None) for k in outputs],
        initializer=weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y, *state_n = session.run(outputs, feeds)
    output = y.swapaxes(1, 2).reshape(*x.shape[:2], -1)  # (T, D, B, H) -> (T, B, D * H)
    return output, tuple(state_n) if operator == "LSTM" else state_n[0]
