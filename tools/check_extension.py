"""Refuse a wheel whose extension modules say more than they must (needs pyelftools).

    python tools/check_extension.py WHEEL [SUFFIX]

auditwheel checks what an extension needs. This is about what it has: an exported symbol besides its entry,
a path to search libraries in, symbols and lines for debuggers, another suffix than Python looks for.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Iterator

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection


def problems_of(name: str, content: bytes) -> Iterator[str]:
    """What is wrong with one module."""
    file = ELFFile(io.BytesIO(content))
    symbols, dynamic = (file.get_section_by_name(section) for section in (".dynsym", ".dynamic"))
    assert isinstance(symbols, SymbolTableSection)
    assert isinstance(dynamic, DynamicSection)
    entry = f"PyInit_{name.rsplit('/', 1)[-1].split('.')[0]}"
    exported = {
        symbol.name
        for symbol in symbols.iter_symbols()
        if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] != "STB_LOCAL"
    }
    if exported != {entry}:
        yield f"expected it to export {entry} alone, got {', '.join(sorted(exported)) or 'nothing'}"
    if {tag.entry.d_tag for tag in dynamic.iter_tags()} & {"DT_RPATH", "DT_RUNPATH"}:
        yield "it has an RPATH"
    if kept := [s.name for s in file.iter_sections() if s.name == ".symtab" or s.name.startswith(".debug")]:
        yield f"it is not stripped of {', '.join(kept)}"


def main(path: str, suffix: str = ".so") -> int:
    """Look at all modules of a wheel."""
    with zipfile.ZipFile(path) as wheel:
        modules = [name for name in wheel.namelist() if name.endswith(".so")]
        problems = [
            f"{name}: {problem}" for name in modules for problem in problems_of(name, wheel.read(name))
        ]
    problems += [
        f"{name}: expected a name that ends in {suffix}" for name in modules if not name.endswith(suffix)
    ]
    if not modules:
        problems = ["it has no extension module"]
    for problem in problems:
        print(f"{path}: {problem}", file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
