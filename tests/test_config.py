"""Which kernels run, how to force others, and what importing costs."""

from __future__ import annotations

import ctypes
import importlib
import platform
import re
import subprocess
import warnings
from pathlib import Path

import pytest

import gatedrnn as gr
from gatedrnn import _core
from helpers import ISA, run_python

ISA_CODE = "import json; from gatedrnn import _core; print(json.dumps(_core.machine()))"
AVAILABLE = _core.machine()["available"]


def test_show_config(capsys):
    result = gr.show_config()
    text = capsys.readouterr().out + str(result or "")
    assert gr.__version__ in text
    assert ISA in text
    assert str(gr.get_num_threads()) in text
    assert "cuda" in text.lower()
    for isa in AVAILABLE:
        assert isa in text


def test_machine():
    machine = _core.machine()
    assert machine["isa"] in machine["available"]
    assert set(machine["available"]) <= set(machine["compiled"])
    assert machine["available"][0] == machine["compiled"][0]  # the least that its processors have
    assert machine["threads"] == gr.get_num_threads()
    assert 0 < machine["l1"] <= machine["l2"]


def test_features_decide_what_is_available(capsys):
    machine = _core.machine()
    for isa in machine["compiled"]:
        assert (isa in machine["available"]) == (not machine["missing"][isa])
        assert not set(machine["missing"][isa]) & set(machine["features"])
    assert machine["missing"][machine["compiled"][0]] == []
    if platform.machine() in ("x86_64", "AMD64"):
        needed = {"avx2", "fma", "movbe", "lzcnt", "os-ymm"}
        assert "avx2" not in AVAILABLE or needed <= set(machine["features"])
    assert gr.show_config("dict")["processor features"] == machine["features"]


# What each instruction set needs, as Linux names it: words of /proc/cpuinfo on x86-64, bits of AT_HWCAP and
# AT_HWCAP2 on AArch64 (whose /proc/cpuinfo is the host's under an emulator).
X86_64 = {
    "avx2": "pni ssse3 cx16 sse4_1 sse4_2 movbe popcnt lahf_lm abm xsave avx f16c fma bmi1 bmi2 avx2",
    "avx_vnni": "avx2 avx_vnni",
    "avx512": "avx2 avx512f avx512dq avx512cd avx512bw avx512vl",
    "avx512_vnni": "avx512f avx512_vnni",
    "avx512_bf16": "avx512f avx512_vnni avx512_bf16",
    "amx": "avx512f amx_tile amx_int8 amx_bf16",
}
AARCH64 = {"neon_dot": (1 << 7 | 1 << 8 | 1 << 12 | 1 << 20, 0), "neon_bf16": (1 << 20, 1 << 14)}


def instruction_sets_of_this_processor():
    if platform.machine() == "aarch64":
        auxiliary = ctypes.CDLL(None).getauxval
        auxiliary.restype = ctypes.c_ulong
        has = auxiliary(16), auxiliary(26)
        return {"neon"} | {
            isa for isa, needs in AARCH64.items() if all(h & n == n for h, n in zip(has, needs, strict=True))
        }
    (flags, *_) = re.findall(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {"baseline"} | {isa for isa, needs in X86_64.items() if set(needs.split()) <= set(flags.split())}


@pytest.mark.skipif(platform.system() != "Linux", reason="asks Linux what the processor has")
def test_every_instruction_set_of_this_processor_is_available():
    """A build that overlooks one computes several times slower, without a word."""
    expected = instruction_sets_of_this_processor()
    if "os-tmm" in _core.machine()["missing"].get("amx", ()):  # the system keeps its tiles to itself
        expected -= {"amx"}
    assert set(AVAILABLE) == expected
    assert set(gr.show_config("dict")["isa available"]) == expected


def imported_on(monkeypatch, wanted="", **facts):
    """Import the package again on a machine of which these facts hold; the warnings' texts."""
    monkeypatch.setattr(_core, "machine", lambda original=_core.machine: original() | facts)
    monkeypatch.setenv("GATEDRNN_ISA", wanted)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        importlib.reload(gr)
    assert all(warning.category is RuntimeWarning for warning in caught)
    return [str(warning.message) for warning in caught]


HIDDEN = {"isa": "baseline", "features": ["avx2"], "missing": {"baseline": [], "avx2": ["movbe", "fma"]}}


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (HIDDEN, ("movbe, fma", "hypervisor")),
        (HIDDEN | {"missing": {"baseline": [], "avx2": ["os-ymm"]}}, ("operating system", "os-ymm")),
        (HIDDEN | {"missing": {"baseline": []}}, ("this build has no other",)),
    ],
)
def test_baseline_on_a_processor_with_avx2_is_told(monkeypatch, facts, words):
    (text,) = imported_on(monkeypatch, **facts)
    for word in (*words, "baseline", "AVX2", "GATEDRNN_ISA"):
        assert word in text


def test_baseline_that_is_meant_or_all_there_is_is_not_told(monkeypatch):
    assert imported_on(monkeypatch, wanted="baseline", **HIDDEN) == []
    assert imported_on(monkeypatch, **HIDDEN | {"features": ["sse3", "avx"]}) == []
    assert imported_on(monkeypatch, **HIDDEN | {"isa": "avx2"}) == []


@pytest.mark.parametrize("isa", AVAILABLE)
def test_forced_isa_is_what_runs(isa):
    assert run_python(ISA_CODE, isa=isa)["isa"] == isa


def test_best_isa_is_the_default():
    assert run_python(ISA_CODE)["isa"] == AVAILABLE[-1]


@pytest.mark.parametrize("isa", AVAILABLE)
def test_forced_isa_computes(isa):
    """The numbers are right on every instruction set, whatever is promised about the bits."""
    code = """
import json
import numpy as np
from helpers import CELLS, DTYPES, build, check, normal, state_of
for cell in CELLS:
    for dtype in DTYPES:
        for batch in (1, 3, 9, 40):
            module = build(cell, 17, 33, dtype=dtype, num_layers=2, bidirectional=True)
            x = normal((5, batch, 17), dtype=dtype)
            check(module, cell, x, state_of(module, batch))
            check(module, cell, x, state_of(module, batch), np.arange(batch) % 6)
            unpacked = build(cell, 17, 33, dtype=dtype)
            check(unpacked, cell, x)
print(json.dumps(True))
"""
    assert run_python(code, isa=isa) is True


@pytest.mark.parametrize("name", ["sse9", "AVX", "avx2 ", "baseline,avx2", "none"])
def test_unknown_isa_is_an_error_at_import(name):
    child = run_python("import gatedrnn", isa=name, check_status=False)
    assert child.returncode == 1
    last = child.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError")
    assert "GATEDRNN_ISA" in last
    assert name in last


@pytest.mark.parametrize("isa", [i for i in ("avx512", "avx2", "neon") if i not in AVAILABLE])
def test_isa_that_this_machine_lacks_is_an_error_at_import(isa):
    child = run_python("import gatedrnn", isa=isa, check_status=False)
    assert child.returncode == 1
    assert "GATEDRNN_ISA" in child.stderr
    assert isa in child.stderr


def test_import_is_light():
    code = """
import json, sys
import gatedrnn
heavy = ("safetensors", "torch", "onnx", "onnxruntime", "openvino", "matplotlib", "tqdm", "scipy")
print(json.dumps([name for name in heavy if name in sys.modules]))
"""
    assert run_python(code) == []


def test_import_prints_nothing():
    child = run_python("import gatedrnn", check_status=False)
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")


def test_run_python_ends_a_child_that_hangs():
    """The safety net under the tests of processes: a hang fails, it does not last."""
    with pytest.raises(subprocess.TimeoutExpired):
        run_python("import time; time.sleep(60)", timeout=1)
