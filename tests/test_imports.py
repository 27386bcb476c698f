"""No file of the package needs one that needs it, directly or by others; imports in functions count too."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

import gatedrnn

ROOT = Path(gatedrnn.__file__).parent


def modules_in(root):
    """Name of each module: its path, or that of the types of an extension."""
    names = {}
    for path in (*root.rglob("*.py"), *root.rglob("*.pyi")):
        parts = (root.name, *path.relative_to(root).with_suffix("").parts)
        names[".".join(parts).removesuffix(".__init__")] = path
    return names


def imported_by(path, modules):
    """The modules among these that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not looked at"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else node.module for name in inner}
    return found & modules.keys()


def graph_of(root):
    modules = modules_in(root)
    return {name: imported_by(path, modules) for name, path in modules.items()}


def test_no_circles():
    graph = graph_of(ROOT)
    assert len(graph) > 50
    assert graph["gatedrnn._recurrent"] >= {"gatedrnn._module", "gatedrnn._storage"}
    assert graph["gatedrnn._module"] >= {"gatedrnn._packs", "gatedrnn._parameters"}
    graphlib.TopologicalSorter(graph).prepare()  # a CycleError names the circle


def test_a_circle_is_found(tmp_path):
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "a.py").write_text("from house import b\n")
    (tmp_path / "house" / "b.py").write_text("def f():\n    import house.a\n")
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph_of(tmp_path / "house")).prepare()
