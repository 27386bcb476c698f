"""Cutting a graph into parts: what ONNX Runtime computes, then what we do, and so on in turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gatedrnn.convert._onnx_graph import subgraphs_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


@dataclass
class Part:
    """Nodes that one side computes, by their places in the graph, and what goes in and comes out."""

    ours: bool
    nodes: dict[int, Any] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def cut(graph: Any, fixed: Fixed, recurrent: Collection[int], views: Collection[int]) -> list[Part]:
    """Cut a graph at its recurrent nodes, which are given by their places in it, as are `views`.

    Parts have numbers, ONNX Runtime's even ones and ours odd ones, and a node goes into the first that has
    all it reads, or can come by it. A view of an output of ours is ours, too, so that a recurrent node on top
    of another needs nothing of ONNX Runtime between the two.
    """
    number_of = {given.name: 0 for given in graph.input}
    parts: dict[int, Part] = {}
    for place, node in enumerate(graph.node):
        if fixed.is_fixed(node):
            continue  # goes with those that read it
        variable = [name for name in reads(node) if name not in fixed]
        unknown = [name for name in variable if name not in number_of]
        if unknown:
            raise ValueError(
                f"model: expected nodes in order, got one that reads {unknown[0]!r} before it is made"
            )
        last = max((number_of[name] for name in variable), default=0)
        ours = place in recurrent or (last % 2 == 1 and place in views)
        number = last if last % 2 == ours else last + 1
        parts.setdefault(number, Part(ours)).nodes[place] = node
        number_of |= {name: number for name in node.output if name}
    wanted = [output.name for output in graph.output]
    unknown = [name for name in wanted if name not in fixed and name not in number_of]
    if unknown:
        raise ValueError(f"model: expected a node that makes the output {unknown[0]!r}, got none")
    if any(name in fixed for name in wanted):  # a constant that the model gives back
        parts.setdefault(0, Part(ours=False))
    in_order = [part for _, part in sorted(parts.items())]
    _connect(in_order, wanted, fixed)
    return in_order


def _connect(parts: list[Part], wanted: list[str], fixed: Fixed) -> None:
    """Fill in what goes between the parts."""
    needed = set(wanted)
    for part in reversed(parts):
        made = dict.fromkeys(name for node in part.nodes.values() for name in node.output if name)
        read = dict.fromkeys(name for node in part.nodes.values() for name in reads(node))
        part.inputs = [name for name in read if name not in made and name not in fixed]
        part.outputs = [name for name in made if name in needed]
        needed |= set(part.inputs)
    if parts:
        parts[0].outputs += [name for name in wanted if name in fixed]


class Fixed:
    """The names that do not depend on what a model is given: initialisers, and what is made of them alone."""

    def __init__(self, graph: Any) -> None:
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.sparse_tensors = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
        self._makers: dict[str, int] = {}
        self._nodes = list(graph.node)
        for place, node in enumerate(graph.node):
            if self.is_fixed(node):
                self._makers |= {name: place for name in node.output if name}

    def __contains__(self, name: str) -> bool:
        return name in self.tensors or name in self.sparse_tensors or name in self._makers

    def is_fixed(self, node: Any) -> bool:
        """Tell whether a node makes the same each time."""
        by_chance = node.op_type.startswith(("Random", "Bernoulli", "Multinomial", "Dropout"))
        return not by_chance and not subgraphs_of(node) and all(name in self for name in node.input if name)

    def nodes_for(self, names: Iterable[str]) -> list[Any]:
        """Return the nodes that make the fixed ones of some names, in order."""
        places: set[int] = set()
        pending = list(names)
        while pending:
            place = self._makers.get(pending.pop())
            if place is not None and place not in places:
                places.add(place)
                pending += self._nodes[place].input
        return [self._nodes[place] for place in sorted(places)]


def reads(node: Any) -> list[str]:
    """Return all names that a node reads, with those that its subgraphs take from outside."""
    names = [name for name in node.input if name]
    for graph in subgraphs_of(node):
        names += free_names(graph)
    return list(dict.fromkeys(names))


def free_names(graph: Any) -> list[str]:
    """Return the names that a subgraph takes from outside."""
    own = {given.name for given in graph.input} | {tensor.name for tensor in graph.initializer}
    own |= {name for node in graph.node for name in node.output}
    read = [name for node in graph.node for name in reads(node)] + [output.name for output in graph.output]
    return [name for name in dict.fromkeys(read) if name not in own]
