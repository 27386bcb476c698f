"""gatedrnn inspect and gatedrnn convert: what they print and write; one line and status 2 for an error."""

from __future__ import annotations

import onnx
import pytest
from safetensors.numpy import save_file

import gatedrnn as gr
from gatedrnn.cli import main
from helpers import assert_same_bits, build, normal
from test_convert_onnx import model_of, node_arrays


def failing(capsys, *arguments):
    """The one line that a command prints before it ends with status 2."""
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    (line,) = err.splitlines()
    return line


@pytest.fixture
def two(tmp_path):
    """A file of two modules and other things."""
    modules = {"encoder.rnn.": build("lstm", num_layers=2), "decoder.": gr.GRUCell(3, 4)}
    tensors = {p + key: value for p, m in modules.items() for key, value in m.state_dict().items()}
    save_file(tensors, tmp_path / "two.safetensors")
    return str(tmp_path / "two.safetensors")


def test_inspect(two, capsys):
    assert main(["inspect", two]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "name          module                    parameters",
        "decoder.      GRUCell(3, 4)                    108",
        "encoder.rnn.  LSTM(5, 7, num_layers=2)         840",
    ]


def test_inspect_an_onnx_file(tmp_path, capsys):
    path = tmp_path / "m.onnx"
    onnx.save(model_of("GRU", node_arrays("GRU", 1), name="a/gru", producer="pytorch"), path)
    assert main(["inspect", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "a/gru" in out
    assert "GRU(5, 7, reset_after=False)" in out
    assert err.startswith("gatedrnn inspect: warning: GRU 'a/gru': the file was written by PyTorch")


def test_inspect_our_own_file(tmp_path, capsys):
    build("gru_reset_before").save(tmp_path / "m.safetensors")
    assert main(["inspect", str(tmp_path / "m.safetensors")]) == 0
    assert "GRU(5, 7, reset_after=False)" in capsys.readouterr().out


def test_convert(two, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    assert main(["convert", two, str(out), "--name", "encoder.rnn."]) == 0
    assert capsys.readouterr().out == f"{out}: LSTM(5, 7, num_layers=2)\n"
    x = normal((4, 3, 5))
    assert_same_bits(gr.load(out)(x), build("lstm", num_layers=2)(x))
    onnx.save(model_of("LSTM", node_arrays("LSTM", 1)), tmp_path / "one.onnx")
    assert main(["convert", str(tmp_path / "one.onnx"), str(out)]) == 0  # the only one needs no name
    assert repr(gr.load(out)) == "LSTM(5, 7)"


def test_errors(two, tmp_path, capsys):
    out = str(tmp_path / "out.safetensors")
    line = failing(capsys, "convert", two, out)
    assert line == "gatedrnn convert: error: --name: expected one of 'decoder.', 'encoder.rnn.', got None"
    line = failing(capsys, "convert", two, out, "--name", "decoder.")
    assert (
        line == "gatedrnn convert: error: decoder.: a GRUCell, which takes one step, has no file of its own"
    )
    assert "No such file" in failing(capsys, "inspect", str(tmp_path / "none.onnx"))
    (tmp_path / "bad.onnx").write_bytes(b"nothing\nof the kind")
    assert "expected an ONNX model" in failing(capsys, "inspect", str(tmp_path / "bad.onnx"))
    (tmp_path / "m.txt").write_text("")
    assert "expected a name that ends with .onnx, .keras" in failing(
        capsys, "inspect", str(tmp_path / "m.txt")
    )
    save_file({"a": normal((2, 2))}, tmp_path / "other.safetensors")
    line = failing(capsys, "inspect", str(tmp_path / "other.safetensors"))
    assert line.endswith("other.safetensors: expected recurrent layers, got none")
    line = failing(capsys, "convert", two, str(tmp_path / "none" / "m"), "--name", "encoder.rnn.")
    assert "No such file or directory" in line
