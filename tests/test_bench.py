"""The benchmark's set beside others: that it measures what it says, and that its busy process always ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from gatedrnn.bench import beside_others, cli
from helpers import run_python

linux = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="only Linux tells and sets a process's CPUs"
)
SHORT = ["--set", "beside-others", "--seconds", "0.01", "--slice", "1", "--repeats", "1"]


def alive(process):
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_every_situation_gives_rows_with_goals(tmp_path, capsys):
    file = tmp_path / "results.json"
    only = ["--only", "LSTM H=64 B=1 T=100", "--only", "blas", "--only", "callers: LSTM"]
    assert cli.main([*SHORT, *only, "--json", str(file)]) == 0
    situations = {each["situation"]: each for each in json.loads(file.read_text())["beside-others"]}
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
    assert cli.main(["--set", "beside-others", "--list"]) == 0
    labels = capsys.readouterr().out.splitlines()
    of = {name: [x.split(": ")[1] for x in labels if x.startswith(f"{name}: ")] for name in ("alone", "busy")}
    assert of["alone"] == of["busy"]
    assert len(set(of["alone"])) == len(of["alone"])
    for label in ("LSTM H=64 B=1 T=100", "LSTM H=512 B=1 T=100", "GRU H=256 B=1 T=1 stream"):
        assert label in of["alone"]


@pytest.mark.parametrize("more", [["--set", "grid"], ["--threads", "2"], ["--train"]])
def test_it_goes_alone(more, capsys):
    with pytest.raises(SystemExit):
        cli.main([*SHORT, *more])
    assert "goes without" in capsys.readouterr().err


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
    last = beside_others.processors()[-1]
    with contextlib.suppress(KeyboardInterrupt), beside_others.BusyProcess(last) as busy:
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
from gatedrnn.bench.beside_others import BusyProcess
with BusyProcess() as busy:
    print(busy._process.pid, flush=True)
    time.sleep(60)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
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
