"""The tools that make wheels refuse what is wrong; that they make good ones is seen when one is installed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent / "tools"
SUFFIX = ".cpython-311-x86_64-linux-gnu.so"
MODULE = """
extern "C" __attribute__((visibility("default"))) void* PyInit_module() { return nullptr; }
extern "C" __attribute__((visibility("default"))) int another() { return 1; }
"""
ENTRY_ALONE = "{ global: PyInit_module; local: *; };"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="they run on Linux")


def run(tool, *arguments):
    return subprocess.run(
        [sys.executable, str(TOOLS / tool), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def wheel_of(folder, *flags, exported=ENTRY_ALONE, name=f"module{SUFFIX}"):
    """A wheel with one module, built by the compiler of this machine."""
    (folder / "module.cpp").write_text(MODULE)
    (folder / "exports.map").write_text(exported)
    module = folder / "module.so"
    script = f"-Wl,--version-script={folder / 'exports.map'}"
    command = ["c++", "-shared", "-fPIC", "-g", *flags, script, "-o", str(module), str(folder / "module.cpp")]
    subprocess.run(command, check=True)
    wheel = folder / "module-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(module, f"package/{name}")
    return wheel


@pytest.mark.parametrize(
    ("flags", "options", "complaint"),
    [
        (["-s"], {}, None),
        (
            ["-s"],
            {"exported": "{ global: *; };"},
            "PyInit_module alone, got PyInit_module, another",
        ),
        (["-s"], {"exported": "{ local: *; };"}, "PyInit_module alone, got nothing"),
        (["-s", "-Wl,-rpath,/somewhere"], {}, "it has an RPATH"),
        ([], {}, "it is not stripped of .debug_"),
        (["-s"], {"name": "module.so"}, f"expected a name that ends in {SUFFIX}"),
        (["-s"], {"name": "module.txt"}, "it has no extension module"),
    ],
)
def test_what_a_wheel_has_is_checked(tmp_path, flags, options, complaint):
    result = run("check_extension.py", wheel_of(tmp_path, *flags, **options), SUFFIX)
    if complaint is None:
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    else:
        assert result.returncode == 1
        assert complaint in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "OUT"),
        (["{folder}", "--target", "plan9"], "invalid choice: 'plan9'"),
        (["{file}"], "OUT: expected a folder, got the file"),
        (["{folder}", "--cache", "{file}"], "--cache: expected a folder, got the file"),
    ],
)
def test_wrong_arguments_are_refused_before_work(tmp_path, arguments, complaint):
    file = tmp_path / "file"
    file.write_text("")
    folder = tmp_path / "folder"
    result = run("wheels.py", *(each.format(file=file, folder=folder) for each in arguments))
    assert result.returncode == 2
    assert complaint in result.stderr
    assert not folder.exists()
