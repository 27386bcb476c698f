"""The benchmarks: that they measure what they say, and that the busy process beside them always ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

import against_self
import gatedrnn as gr
from gatedrnn.bench import cli, shapes
from gatedrnn.bench.busy_process import BusyProcess, processors
from gatedrnn.bench.layers import Layers
from gatedrnn.convert._any_file import modules_in
from helpers import run_python

linux = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="only Linux tells and sets a process's CPUs"
)
SHORT = ["--seconds", "0.01", "--slice", "1", "--repeats", "1"]


def alive(process):
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ---- gatedrnn bench ----


def test_ours_beside_a_peer(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    file = tmp_path / "results.json"
    sets = ["--set", "grid", "--set", "streaming", "--set", "ragged"]
    only = ["--only", "GRU H=64 B=1 T=1 ", "--only", "GRU H=64 B=64 T=10..400"]
    assert cli.main([*SHORT, *sets, *only, "--peers", "onnxruntime", "--no-pin", "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    labels = {part["set"]: [row["label"] for row in part["rows"]] for part in content["sets"]}
    assert labels == {
        "grid": ["GRU H=64 B=1 T=1"],
        "streaming": ["GRU H=64 B=1 T=1 stream"],
        "ragged": ["GRU H=64 B=64 T=10..400"],
    }
    text = capsys.readouterr().out
    for row in (row for part in content["sets"] for row in part["rows"]):
        assert row["label"] in text
        assert row["limit_seconds"] > 0
        ours, *others = row["entries"]
        peer = next(entry for entry in others if entry["is_peer"])
        assert (peer["name"], peer["problem"], row["fastest_peer"]) == ("ONNX Runtime", "", "ONNX Runtime")
        ratios = [b / a for a, b in zip(ours["rounds"], peer["rounds"], strict=True)]
        assert peer["ratio"] == row["fastest_ratio"] == pytest.approx(statistics.median(ratios))


# On processors without AVX-512 PyTorch 2.13 has no LSTM in bfloat16, and says so with an error.
NO_RESULT = ("none",) if "avx512" in gr.show_config(mode="dict")["isa available"] else ("none", "fails")


@pytest.fixture
def torch_as_before(one_torch_thread):
    """A benchmark sets how PyTorch computes in float32."""
    torch = pytest.importorskip("torch")
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("precision", "without"),
    [
        ("bfloat16", ["ONNX Runtime: its recurrent operators do not compute in bfloat16"]),
        ("bfloat16x3", []),
        (
            "int8",
            ["ONNX Runtime: quantizes no recurrent operator but LSTM", "OpenVINO: quantizes no"],
        ),
    ],
)
def test_a_lower_precision(precision, without, tmp_path, capsys, torch_as_before):
    """Beside our float32 and every peer that has it; who has not is named."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    file = tmp_path / "results.json"
    only = ["--only", "LSTM H=64 B=1 T", "--only", "GRU H=64 B=1 T"]
    assert cli.main([*SHORT, "--precision", precision, *only, "--no-pin", "--json", str(file)]) == 0
    text = capsys.readouterr().out
    (part,) = json.loads(file.read_text())["sets"]
    assert [row["label"] for row in part["rows"]] == ["LSTM H=64 B=1 T=100", "GRU H=64 B=1 T=100"]
    for row in part["rows"]:
        ours, in_float32, *peers = row["entries"]
        assert not in_float32["is_peer"]
        assert in_float32["error"][0] < 1e-5
        measured = [ours, in_float32, *(peer for peer in peers if peer["problem"] not in NO_RESULT)]
        assert len(measured) > 2 or row["label"].startswith("LSTM")
        for entry in measured:
            largest, mean = entry["error"]
            assert 0 < mean < largest < {"bfloat16": 0.02, "bfloat16x3": 2e-5, "int8": 0.06}[precision]
            assert f"{largest:.1e} {mean:.1e}" in text
            assert entry["ratio"] > 0
    assert {"gatedrnn float32", "PyTorch"} <= set(part["summary"]["smallest_ratio"])
    for reason in without:
        assert reason in text


@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16x3"])
def test_training_in_a_lower_precision(precision, tmp_path, torch_as_before):
    file = tmp_path / "results.json"
    arguments = ["--precision", precision, "--train", "--only", "LSTM H=128 B=16", "--no-pin"]
    assert cli.main([*SHORT, *arguments, "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())["sets"][0]["rows"]
    assert [entry["name"] for entry in row["entries"]] == ["gatedrnn", "gatedrnn float32", "PyTorch"]
    assert all(entry["ratio"] for entry in row["entries"] if entry["problem"] not in NO_RESULT)


def test_our_own_numbers_are_checked_in_a_lower_precision(monkeypatch, capsys):
    """There all are compared with float64."""
    monkeypatch.setitem(shapes._ROUNDOFF, "bfloat16", 1e-12)
    arguments = ["--precision", "bfloat16", "--only", "GRU H=64", "--peers", "none", "--no-pin"]
    assert cli.main([*SHORT, *arguments]) == 1
    assert "skipped: ours disagrees: output differs from float64 by" in capsys.readouterr().out


def test_labels_are_listed(capsys):
    assert cli.main(["--list", "--only", "H=1024 B=1 "]) == 0
    expected = ["grid: LSTM H=1024 B=1 T=50", "grid: GRU H=1024 B=1 T=50"]
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--train", "--set", "streaming"], "--train has the sets grid, deepbench, ragged, precision, not"),
        (["--train", "--precision", "int8"], "--precision int8 is for inference"),
        (["--dtype", "float64", "--precision", "int8"], "--precision int8 does not go with --dtype float64"),
        (["--only", "H=3 "], "no label of --set grid contains"),
        (["--json", "nowhere/x.json"], "there is no such directory"),
        (["--cells", "GRU,LTSM"], "'LTSM' is none of"),
        (["--repeats", "0"], "0 is not positive"),
    ],
)
def test_wrong_options_are_refused(arguments, error, capsys):
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert error in capsys.readouterr().err


# ---- gatedrnn against itself ----


@pytest.mark.parametrize("measure", against_self.MEASURES, ids=lambda measure: measure.name)
def test_a_pair_of_every_measure(measure, tmp_path, capsys, monkeypatch, request):
    """The shortest of them: a ratio is the time of one over that of the other, per amount of work."""
    if measure.needs:
        request.getfixturevalue("one_torch_thread")  # it sets their number
    monkeypatch.setattr(against_self.placement, "pin", lambda count: None)
    file = tmp_path / "results.json"
    assert against_self.main([measure.name, "--list"]) == 0
    labels = [line.removeprefix(f"{measure.name}: ") for line in capsys.readouterr().out.splitlines()]
    assert len(labels) == len(set(labels)) > 2
    shortest = min(labels, key=size_of)
    arguments = [measure.name, *SHORT, "--only", f"{shortest} ", "--json", str(file)]
    assert against_self.main(arguments) == 0
    (result,) = json.loads(file.read_text())["measures"]
    row = result["rows"][0]
    assert row["label"] == shortest
    rounds = row["rounds"]
    ratios = [a / b for a, b in zip(rounds["measured"], rounds["base"], strict=True)]
    assert row["ratio"] == pytest.approx(statistics.median(ratios) / row["scale"])
    assert result["largest"] == max(row["ratio"] for row in result["rows"])
    assert shortest in capsys.readouterr().out


def size_of(label):
    """Multiply-adds, roughly."""
    numbers = {key: int(value) for key, value in re.findall(r"([HBT])=(?:\d+\.\.)?(\d+)", label)}
    return numbers["H"] ** 2 * numbers["B"] * numbers["T"]


def test_only_known_measures(capsys):
    with pytest.raises(SystemExit):
        against_self.main(["gru", "grus"])
    assert "'grus' is none of gru, gru-training" in capsys.readouterr().err


# ---- beside others ----


def test_every_situation_gives_rows_with_goals(tmp_path, capsys):
    file = tmp_path / "results.json"
    only = ["--only", "LSTM H=64 B=1 T=100", "--only", "blas", "--only", "callers: LSTM"]
    assert cli.main(["--set", "beside-others", *SHORT, *only, "--json", str(file)]) == 0
    situations = {each["situation"]: each for each in json.loads(file.read_text())["situations"]}
    assert {name: each["goal"] for name, each in situations.items()} == {
        "alone": 1.05,
        "busy": 1.25,
        "blas": 0.75,
        "callers": 0.9,
    }
    text = capsys.readouterr().out
    for each in situations.values():
        assert each["title"] in text
        for row in each["rows"]:
            assert row["label"] in text
            assert row["default"] > 0
            assert row["other"] > 0
            at_least = each["situation"] == "callers"
            assert row["reached"] == (row["ratio"] >= 0.9 if at_least else row["ratio"] <= each["goal"])


def test_the_shapes_alone_and_beside_a_busy_process_are_the_same(capsys):
    assert cli.main(["--set=beside-others", "--list"]) == 0
    labels = capsys.readouterr().out.splitlines()
    of = {name: [x.split(": ")[1] for x in labels if x.startswith(f"{name}: ")] for name in ("alone", "busy")}
    assert of["alone"] == of["busy"]
    assert len(set(of["alone"])) == len(of["alone"])
    for label in ("LSTM H=64 B=1 T=100", "LSTM H=512 B=1 T=100", "GRU H=256 B=1 T=1 stream"):
        assert label in of["alone"]


@linux
def test_one_processor():
    """It says so; the busy process is on that one too."""
    code = """
import json, os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from gatedrnn.bench import cli
status = cli.main(["--set", "beside-others", "--seconds", "0.01", "--slice", "1", "--repeats", "1",
                             "--only", "GRU H=64 B=1 T=1 ", "--only", "callers: GRU"])
print(json.dumps(status))
"""
    child = run_python(code, check_status=False)
    assert child.returncode == 0, child.stderr
    assert "one processor" in child.stdout
    assert "busy: " in child.stdout


@linux
def test_busy_process_keeps_to_its_processor_and_ends():
    last = processors()[-1]
    with contextlib.suppress(KeyboardInterrupt), BusyProcess(last) as busy:
        process = busy._process.pid
        assert os.sched_getaffinity(process) == {last}
        assert alive(process)
        raise KeyboardInterrupt
    assert not alive(process)
    assert not busy.running


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_busy_process_ends_with_its_parent(number):
    """However the parent ends."""
    code = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from gatedrnn.bench.busy_process import BusyProcess
with BusyProcess() as busy:
    print(busy._process.pid, flush=True)
    time.sleep(60)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    process = int(parent.stdout.readline())
    assert alive(process)
    parent.send_signal(number)
    parent.wait(30)
    parent.stdout.close()
    end = time.monotonic() + 30
    while alive(process) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(process)


# ---- gatedrnn bench FILE ----


def files_layers(tmp_path):
    """A file with three layers of a kind that peers have, and one that they have not."""
    file = tmp_path / "model.safetensors"
    parts = {
        "a": gr.GRU(7, 9, num_layers=2, seed=0),
        "b": gr.LSTM(5, 6, seed=1),
        "c": gr.LSTM(5, 6, peephole=True, seed=2),
    }
    save_file({f"{k}.{n}": v for k, m in parts.items() for n, v in m.state_dict().items()}, file)
    return file, parts


def test_layers_of_a_file(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    file, _ = files_layers(tmp_path)
    arguments = [str(file), *SHORT, "--peers", "onnxruntime", "--no-pin", "--json", str(tmp_path / "r.json")]
    assert cli.main([*arguments, "--batch", "1,3", "--steps", "1,4"]) == 0
    (part,) = json.loads((tmp_path / "r.json").read_text())["sets"]
    sizes = ["B=1 T=1 stream", "B=1 T=4", "B=3 T=1 stream", "B=3 T=4"]
    layers = ["a. layer 0 GRU I=7 H=9", "a. layer 1 GRU H=9", "b. LSTM I=5 H=6"]
    assert [row["label"] for row in part["rows"]] == [f"{layer} {size}" for layer in layers for size in sizes]
    assert all(row["fastest_peer"] == "ONNX Runtime" for row in part["rows"])
    assert "c.: left out, peers have no LSTM(5, 6, peephole=True)" in capsys.readouterr().out


def test_layers_have_the_weights_of_the_file(tmp_path):
    file, parts = files_layers(tmp_path)
    layers = Layers(modules_in(file))
    assert list(layers.weights) == ["a. layer 0", "a. layer 1", "b."]
    for layer in (0, 1):
        for name, value in layers.weights[f"a. layer {layer}"].items():
            expected = parts["a"].state_dict()[name.replace("_l0", f"_l{layer}")]
            np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("more", [["--precision", "int8"], ["--precision", "bfloat16"], ["--train"]])
def test_layers_of_a_file_otherwise(tmp_path, capsys, more):
    file, _ = files_layers(tmp_path)
    assert cli.main([str(file), *SHORT, "--peers", "none", "--no-pin", "--only", "b. ", *more]) == 0
    assert "b. LSTM I=5 H=6 B=1 T=100" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{file}", "--set", "grid"], "--set and FILE do not go together"),
        (["{file}", "--only", "none"], "model.safetensors contains"),
        (["{file}", "--batch", "0"], "0 is not positive"),
        (["{folder}/absent.onnx"], "absent.onnx"),
        (["{folder}/model.txt"], "expected a name that ends with"),
    ],
)
def test_errors_of_files(tmp_path, capsys, arguments, message):
    file, _ = files_layers(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main([argument.format(file=file, folder=tmp_path) for argument in arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_file_of_which_peers_can_compute_nothing(tmp_path, capsys):
    gr.LSTM(5, 6, proj_size=2).save(tmp_path / "m.safetensors")
    with pytest.raises(SystemExit):
        cli.main([str(tmp_path / "m.safetensors")])
    assert "peers have no LSTM(5, 6, proj_size=2)" in capsys.readouterr().err
