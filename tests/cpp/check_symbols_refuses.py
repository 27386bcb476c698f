"""check_symbols.py has to refuse each of these object files, and to accept a good one."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from check_symbols import problems_of

GOOD = """
namespace gatedrnn_eigen_avx2 { template <class T> __attribute__((noinline)) T twice(T x) { return x + x; } }
namespace gatedrnn::avx2 {
__attribute__((noinline)) inline int marked(int x) { return gatedrnn_eigen_avx2::twice(x) + 1; }
static int hidden(int x) { return marked(x); }
struct Table { int (*f)(int); };
extern const Table table;
const Table table = {hidden};
}
"""

# name: (added to the good source, part of the complaint)
BAD = {
    "unmarked inline function": (
        "__attribute__((noinline)) inline int unmarked(int x) { return x; }\n"
        "namespace gatedrnn::avx2 { static int (*volatile use)(int) = unmarked;"
        " __attribute__((used)) static int get() { return use(1); } }",
        "weak symbol without the name of avx2: _Z8unmarkedi",
    ),
    "inline function of another instruction set": (
        "namespace gatedrnn::avx512 { __attribute__((noinline)) inline int other(int x) { return x; } }\n"
        "namespace gatedrnn::avx2 { static int (*volatile use)(int) = avx512::other;"
        " __attribute__((used)) static int get() { return use(1); } }",
        "weak symbol without the name of avx2: _ZN8gatedrnn6avx5125otherEi",
    ),
    "unmarked inline variable": (
        "struct Config { static inline int level = 3; };\n"
        "__attribute__((used)) static int get() { return ++Config::level; }",
        "weak symbol without the name of avx2: _ZN6Config5levelE",
    ),
    "static initialiser": (
        "int outside();\nnamespace gatedrnn::avx2 { static int value = outside();"
        " __attribute__((used)) static int get() { return ++value; } }",
        "static initialiser",
    ),
    "static object behind a guard": (
        "int outside();\nnamespace gatedrnn::avx2 {"
        " __attribute__((used)) static int get() { static int value = outside(); return ++value; } }",
        "guarded or destroyed at exit",
    ),
    "second export": (
        "namespace gatedrnn::avx2 { int second(int x) { return x; } }",
        "exports more than its table: _ZN8gatedrnn4avx26secondEi",
    ),
    "exported variable": (
        "namespace gatedrnn::avx2 { int counter = 0; }",
        "exports more than its table: _ZN8gatedrnn4avx27counterE",
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nm", default="nm")
    parser.add_argument("--compiler", default="c++")
    arguments = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as folder:

        def check(name: str, source: str, isa: str, expected: str | None) -> None:
            nonlocal failures
            path = Path(folder) / "kernels.o"
            path.with_suffix(".cpp").write_text(source)
            command = [
                arguments.compiler,
                "-std=c++17",
                "-O1",
                "-c",
                str(path.with_suffix(".cpp")),
                "-o",
                str(path),
            ]
            subprocess.run(command, check=True)
            problems = problems_of(isa, path, arguments.nm)
            good = not problems if expected is None else any(expected in problem for problem in problems)
            failures += not good
            print(f"{'ok' if good else 'FAILED'}: {name}: {problems or 'accepted'}")

        check("good object", GOOD, "avx2", None)
        for name, (source, expected) in BAD.items():
            check(name, GOOD + source, "avx2", expected)
        check("table of another instruction set", GOOD, "baseline", "does not export its table")
        check(
            "no table",
            "static int hidden() { return 1; }\nint (*volatile use)() = hidden;",
            "avx2",
            "does not export its table",
        )
        check("empty object", "", "avx2", "no symbols")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
