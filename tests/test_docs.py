"""Python blocks of README.md and docs/*.md run, a page in one namespace; links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]*)(?:#([^)]+))?\)")  # to a file or heading, no address
SOURCE = re.compile(r"`((?:bench|cpp|docs|examples|python|tests)/[^`\s]*)`")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MORE_PAGES = [ROOT / name for name in ("CONTRIBUTING.md", "bench/README.md", "examples/README.md")]
# Blocks that import these are passed over where they are missing; only the extra `peers` brings them.
OPTIONAL = ("torch",)


def name_of(page):
    return page.relative_to(ROOT).as_posix()


pages = pytest.mark.parametrize("page", PAGES, ids=name_of)


def blocks_of(page):
    """(number of lines before the block, its code) for each block."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in BLOCK.finditer(text)]


def can_run(code):
    imported = rf"^(import|from) (gatedrnn\.)?({'|'.join(OPTIONAL)})\b"
    names = {match[3] for match in re.finditer(imported, code, re.MULTILINE)}
    return all(importlib.util.find_spec(name) for name in names)


@pages
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where examples save their files
    namespace = {"__name__": page.stem}
    for lines_before, code in blocks_of(page):
        if can_run(code):  # in a traceback the line numbers are those of the page
            exec(compile("\n" * lines_before + code, str(page), "exec"), namespace)


def anchors_of(page):
    """What links call the headings of a page: as GitHub names them."""
    headings = HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


all_pages = pytest.mark.parametrize("page", [*PAGES, *MORE_PAGES], ids=name_of)


@all_pages
def test_links_lead_somewhere(page):
    lost = []
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        there = page.parent / target if target else page
        if not there.exists() or (anchor and anchor not in anchors_of(there)):
            lost.append((target, anchor))
    assert lost == []


@all_pages
def test_source_files_exist(page):
    paths = SOURCE.findall(page.read_text(encoding="utf-8"))
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_there_are_examples():
    """The tests above would say nothing if what they look for were not found."""
    counts = {name_of(page): len(blocks_of(page)) for page in PAGES}
    wanted = ("which-gru", "lengths", "streaming", "threads-and-containers", "same-bits", "errors")
    assert counts["README.md"] == 1
    links = LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert ("docs/which-gru.md", "") in links
    assert ("docs/performance.md", "how-it-works") in links
    assert ("", "speed") in links
    architecture = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert "cpp/src/network.cpp" in SOURCE.findall(architecture)
    assert all(counts[f"docs/{name}.md"] >= 2 for name in wanted)
