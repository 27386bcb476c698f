"""Files with bytes changed, cut off or put in: a module, or a named error, and nothing else."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as serialized

import gatedrnn as gr
from gatedrnn.onnx import InferenceSession
from helpers import build
from onnx_loops import loop_model
from test_convert_onnx import model_of, node_arrays
from test_onnx_session import stacked

ONNX = model_of(
    "LSTM",
    node_arrays("LSTM", 2, peepholes=True),
    direction="bidirectional",
    clip=0.5,
    activations=["HardSigmoid", "Tanh", "Elu"] * 2,
    activation_alpha=[0.3, 0.9] * 2,
).SerializeToString()
SAFETENSORS = serialized(
    {f"a.{name}": value for name, value in build("gru", num_layers=2).state_dict().items()}
)
RUNTIMES_OWN = [
    getattr(onnxruntime.capi.onnxruntime_pybind11_state, name)
    for name in ("Fail", "InvalidArgument", "InvalidGraph", "NotImplemented", "RuntimeException")
]
HEADER = 8 + int.from_bytes(SAFETENSORS[:8], "little")

fuzzed = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def damaged(draw, content, most):
    """The content with one to four places of its first `most` bytes changed, or cut off."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, most - 1))
        kind = draw(st.sampled_from(["change", "insert", "remove"]))
        if kind == "change" and place < len(changed):
            changed[place] = draw(st.integers(0, 255))
        elif kind == "insert":
            changed[place:place] = draw(st.binary(min_size=1, max_size=9))
        else:
            del changed[place : place + draw(st.integers(1, 9))]
    return bytes(changed[: draw(st.sampled_from([len(changed), len(changed) // 2]))])


def is_read_or_refused(read, path, content):
    path.write_bytes(content)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            read(path)
    except ValueError as error:
        message = str(error)
    else:
        return
    assert 0 < len(message) < 2000


@fuzzed
@given(data=st.data())
def test_onnx(data, tmp_path):
    # What names, shapes and attributes are is at both ends; between them are the weights.
    content = data.draw(st.one_of(damaged(ONNX, 400), damaged(ONNX[::-1], 200).map(lambda b: b[::-1])))
    is_read_or_refused(gr.from_onnx, tmp_path / "m.onnx", content)


@pytest.mark.parametrize("which", ["stack", "loop"])
@fuzzed
@given(data=st.data())
def test_session(which, data):
    """A whole model: refused by us, or by ONNX Runtime as it runs, or run."""
    model = stacked(3, 3) if which == "stack" else loop_model("lstm", 2, 3, masked=True)[0]
    shapes = {"x": (4, 2, 3), "h": (1, 2, 3)} if which == "stack" else {"x": (2, 4, 2)}
    feeds = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    feeds |= {} if which == "stack" else {"mask": np.ones((2, 4), bool)}
    content = model.SerializeToString()
    content = data.draw(damaged(content, len(content)))
    onnxruntime.set_default_logger_severity(4)
    with warnings.catch_warnings(), np.errstate(all="ignore"), contextlib.suppress(ValueError, *RUNTIMES_OWN):
        warnings.simplefilter("ignore")
        InferenceSession(content).run(None, feeds)
    onnxruntime.set_default_logger_severity(2)


@fuzzed
@given(data=st.data())
def test_safetensors(data, tmp_path):
    content = data.draw(damaged(SAFETENSORS, HEADER))
    is_read_or_refused(gr.load_parameters, tmp_path / "m.safetensors", content)


def test_they_can_be_read_undamaged(tmp_path):
    for read, name, content in (
        (gr.from_onnx, "m.onnx", ONNX),
        (gr.load_parameters, "m.safetensors", SAFETENSORS),
    ):
        (tmp_path / name).write_bytes(content)
        assert read(tmp_path / name)
    assert onnx.load_from_string(ONNX).graph.node[0].op_type == "LSTM"
    (tmp_path / "m.onnx").write_bytes(ONNX[:50])
    with pytest.raises(ValueError, match="expected an ONNX model"):
        gr.from_onnx(tmp_path / "m.onnx")
