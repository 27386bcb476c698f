#!/usr/bin/env python3
"""Refuses a kernel's object file from which a symbol could escape.

The static linker merges inline functions of the same name, so code compiled for a wide instruction set would
run on machines without it, unless everything in the object carries the instruction set's name. So:

- every weak or unique symbol has `gatedrnn::<isa>` or `gatedrnn_eigen_<isa>` in its (mangled) name,
- exactly one strong symbol is exported, `gatedrnn::<isa>::table`,
- nothing runs before main() or is set up behind a guard.

By hand: python tests/check_symbols.py avx2 build/.../kernels_avx2.dir/cpp/kernels/kernels.cpp.o
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

WEAK = set("WVu")
STRONG = set("ABCDGRSTi")
INITIALISERS = ("_GLOBAL__sub_I", "_GLOBAL__I_", "__cxx_global_var_init", "_GLOBAL__sub_D")
GUARDS = ("__cxa_guard_acquire", "__cxa_atexit", "__cxa_thread_atexit", "atexit")
INITIALISER_SECTIONS = (b".init_array", b".ctors", b".preinit_array", b".fini_array")


def mangled(*names: str) -> str:
    """The names as they stand in a mangled symbol: each behind its length."""
    return "".join(f"{len(name)}{name}" for name in names)


def read_symbols(nm: str, path: Path) -> list[tuple[str, str]]:
    """The (type, name) of each symbol; the type's letters are nm's own."""
    text = subprocess.run([nm, "--format=posix", path], check=True, capture_output=True, text=True).stdout
    return [(fields[1], fields[0]) for fields in map(str.split, text.splitlines()) if len(fields) >= 2]


def problems_of(isa: str, path: Path, nm: str = "nm") -> list[str]:
    """What is wrong with the object file, one line each; empty if it is fit to link."""
    symbols = read_symbols(nm, path)
    if not symbols:
        return ["it has no symbols at all"]
    tags = (mangled("gatedrnn", isa), mangled(f"gatedrnn_eigen_{isa}"))
    table = f"_ZN{mangled('gatedrnn', isa, 'table')}E"
    exported = [name for kind, name in symbols if kind in STRONG]

    problems = [
        f"weak symbol without the name of {isa}: {name}"
        for kind, name in symbols
        if kind in WEAK and not any(tag in name for tag in tags)
    ]
    problems += [f"exports more than its table: {name}" for name in exported if name != table]
    if table not in exported:
        problems.append(f"does not export its table, {table}")
    problems += [f"static initialiser: {name}" for _, name in symbols if name.startswith(INITIALISERS)]
    problems += [f"guarded or destroyed at exit: {name}" for _, name in symbols if name in GUARDS]
    contents = path.read_bytes()  # the names of its sections are in it
    problems += [
        f"static initialiser: section {section.decode()}"
        for section in INITIALISER_SECTIONS
        if section + b"\0" in contents or section + b"." in contents
    ]
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nm", default=shutil.which("nm") or "nm", help="the nm to use")
    parser.add_argument("isa", help="baseline, avx2, avx512, neon")
    parser.add_argument("objects", nargs="+", type=Path)
    arguments = parser.parse_args()
    failed = False
    for path in arguments.objects:
        problems = problems_of(arguments.isa, path, arguments.nm)
        for problem in problems:
            print(f"{path}: {problem}", file=sys.stderr)
        failed = failed or bool(problems)
        if not problems:
            print(f"{path}: one exported symbol, nothing unmarked")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
