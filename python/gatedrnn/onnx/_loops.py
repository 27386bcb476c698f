"""Loops that exporters made of a recurrent layer.

tf2onnx writes an LSTM, GRU or SimpleRNN that ONNX has no node for, such as the GRU of Keras 2 or a layer with
a mask, as a Loop over time. Its body counts steps, gathers one step of the input (and of the mask), computes
a cell from weights that it hands on unchanged, and gives the outputs of all steps. Which cell that is, is not
read from the nodes: those that the weights' sizes allow are tried, and the one is taken that computes what
the body computes, on random numbers.
"""

from __future__ import annotations

import importlib
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from gatedrnn._modules import GRU, LSTM, RNN
from gatedrnn.convert._onnx_graph import Constants
from gatedrnn.convert._reorder import reorder
from gatedrnn.onnx._cut import free_names
from gatedrnn.onnx._nodes import Operand, tensor_info

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Array = npt.NDArray[Any]

# Keras' orders of gates, by their number.
_CELLS: dict[int, tuple[Any, str]] = {1: (RNN, "h"), 3: (GRU, "zrh"), 4: (LSTM, "ifco")}
_GATE_FUNCTIONS = ("sigmoid", ("hard_sigmoid", 0.2, 0.5), "hardsigmoid")
_FUNCTIONS = ("tanh", "relu", "sigmoid", "softsign", "linear")
_TOLERANCE = 1e-4  # of float32 on both sides


def loop_step(onnx: Any, proto: Any, node: Any, constants: Constants) -> LoopStep | None:
    """Return a Loop as a step of ours, or None where it has nothing of a recurrent layer.

    Raises:
        ValueError: It looks like one, and none of our cells computes what it does.
    """
    try:
        loop = _Loop(onnx, proto, node, constants)
    except LookupError:
        return None  # it lacks what a Loop has
    if not loop.looks_recurrent():
        return None
    for module in loop.candidates():
        for order in itertools.permutations(loop.states):
            if loop.is_computed_by(module, order):
                return LoopStep(loop, module, order, constants)
    raise ValueError("it looks like a recurrent layer, but computes none that is known")


class LoopStep:
    """A Loop whose steps a module computes.

    Args:
        loop: What the Loop says.
        module: The module.
        order: Which carried values are h, for LSTM c, and with a mask the last output.
        constants: What is fixed of the graph around it.
    """

    def __init__(self, loop: _Loop, module: Any, order: tuple[int, ...], constants: Constants) -> None:
        self.module = module
        self._order, self._counter, self._limit = order, loop.counter, loop.limit
        self._x, self._mask = Operand(loop.x, constants), Operand(loop.mask, constants)
        self._initial = [Operand(name, constants) for name in loop.initial]
        *self._finals, self._scan = loop.node.output

    def describe(self, onnx: Any, known: dict[str, Any]) -> None:
        """Add what is known of the outputs to what is known of values, ValueInfoProto by name."""
        operands = (*self._initial, self._x)
        for name, operand in zip((*self._finals, self._scan), operands, strict=True):
            known[name] = tensor_info(onnx, name, operand.element_type(onnx, known))

    def run(self, values: dict[str, Any], run_options: Any) -> None:
        """Compute the Loop's outputs from values by name, and add them."""
        finals = [operand.value(values) for operand in self._initial]
        x, mask, steps = self._x.value(values), self._mask.value(values), int(finals[self._limit])
        if steps > len(x):
            raise ValueError(f"a Loop takes {steps} steps, of an input of shape {x.shape}")
        given = [finals[at] for at in self._order]
        output, *states = run_steps(self.module, x[:steps], None if mask is None else mask[:steps], given)
        finals[self._counter] = np.asarray(max(steps, 0), finals[self._counter].dtype)
        for at, state in zip(self._order, states, strict=True):
            finals[at] = state
        values.update(zip((*self._finals, self._scan), (*finals, output), strict=True))


def run_steps(module: Any, x: Array, mask: Array | None, given: list[Array]) -> list[Array]:
    """Return the outputs, (T, B, H), and what remains: h, for LSTM c, and with a mask the last output.

    Where a step is masked, the output is the one before, at first the last output given.
    """
    is_lstm = isinstance(module, LSTM)
    state = tuple(part[None] for part in given[:2]) if is_lstm else given[0][None]
    if mask is None:
        output, final = module(x, state)
    else:
        output, final = module(x, state, mask=mask[..., 0], mask_output="previous")
    finals = [part[0] for part in (final if is_lstm else (final,))]
    if mask is None:
        return [output, *finals]
    begun = np.logical_or.accumulate(mask, axis=0)
    output = np.where(begun, output, given[-1])
    return [output, *finals, output[-1] if len(output) else given[-1]]


class _Loop:
    """What a Loop of the known form is made of; `looks_recurrent` tells whether it has that form."""

    def __init__(self, onnx: Any, proto: Any, node: Any, constants: Constants) -> None:
        self.node = node
        self._onnx, self._proto = onnx, proto
        self.body = {a.name: a.g for a in node.attribute}["body"]
        self._constants = Constants(onnx, self.body, constants)
        self._outer = constants
        self._makers = {output: maker for maker in self.body.node for output in maker.output}
        self._carried = [given.name for given in self.body.input[2:]]
        count = len(self._carried)
        self.initial = list(node.input[2:])
        if len(self.initial) != count or len(node.output) != len(self.body.output) - 1:
            raise LookupError("a Loop has an initial value and a result for each that it carries")
        self._results = [output.name for output in self.body.output]
        places = range(min(count, len(self._results) - 1))
        self._scans = self._results[1 + count :]
        self._unchanged = [at for at in places if self._origin(self._results[1 + at]) == self._carried[at]]
        counters = [at for at in places if self._is_next(self._results[1 + at], self._carried[at])]
        self.counter = counters[0] if len(counters) == 1 else -1
        self.limit = self._limit() if len(counters) == 1 else -1
        self.states = [at for at in places if at not in (*self._unchanged, self.counter)]
        self._gathers = self._gathered() if len(counters) == 1 else {}
        self._products = [
            maker
            for maker in self.body.node
            if maker.op_type == "MatMul"
            and len(maker.input) == 2
            and self._origin(maker.input[0]) in self._gathers
        ]
        self.x = self._gathers[self._origin(self._products[0].input[0])] if len(self._products) == 1 else ""
        masks = [name for name in self._gathers.values() if name != self.x]
        self.mask = masks[0] if len(masks) == 1 else ""
        self._expected_states = range(1 + bool(masks), 3 + bool(masks)) if len(masks) < 2 else ()

    def looks_recurrent(self) -> bool:
        """Tell whether it has the form."""
        counter = self._outer.get(self.initial[self.counter]) if self.counter >= 0 else None
        return (
            self.limit >= 0
            and len(self._scans) == 1
            and len(self.states) in self._expected_states
            and counter is not None
            and not np.any(counter)
            and bool(self.x)
        )

    def _origin(self, name: str, through: tuple[str, ...] = ("Identity",)) -> str:
        while name in self._makers and self._makers[name].op_type in through:
            name = self._makers[name].input[0]
        return name

    def _is_next(self, name: str, before: str) -> bool:
        """Tell whether a value is another one and 1."""
        maker = self._makers.get(self._origin(name))
        if maker is None or maker.op_type != "Add" or before not in maker.input:
            return False
        other = self._constants.get(next((given for given in maker.input if given != before), before))
        return other is not None and other.size == 1 and bool(np.all(other == 1))

    def _limit(self) -> int:
        """Return which carried value the counter is compared with, or -1."""
        maker = self._makers.get(self._origin(self._results[0]))
        if maker is None or maker.op_type != "Less":
            return -1
        left, right = (self._origin(name, ("Identity", "Cast")) for name in maker.input)
        counted = self._origin(self._results[1 + self.counter]) == left
        limits = [at for at in self._unchanged if self._carried[at] == right]
        return limits[0] if counted and limits else -1

    def _gathered(self) -> dict[str, str]:
        """Return what is taken of outer values at each step: theirs by its name."""
        outer = set(free_names(self.body))
        return {
            maker.output[0]: maker.input[0]
            for maker in self.body.node
            if maker.op_type == "Gather"
            and not any(a.name == "axis" and a.i != 0 for a in maker.attribute)
            and maker.input[0] in outer
            and self._origin(maker.input[1]) in (self._carried[self.counter], self.body.input[0].name)
        }

    # ---- which cell it is ----

    def candidates(self) -> Iterator[Any]:
        """Give the modules that the sizes of its weights allow."""
        W = self._weight(self._products[0].input[1])
        if W is None or W.ndim != 2:
            return
        columns = W.shape[1]
        others = [array for array in self._weights() if array is not W and array.dtype == W.dtype]
        kernels = [array for array in others if array.ndim == 2 and columns % len(array) == 0]
        biases = [array for array in others if array.shape in ((columns,), (2, columns))]
        for R in kernels:
            gates, H = columns // len(R), len(R)
            if R.shape[1] != columns or gates not in _CELLS:
                continue
            for b in [array for array in biases if array is not R] or [np.zeros(columns, W.dtype)]:
                yield from _modules(W, R, b, H, gates)

    def _weight(self, name: str) -> Array | None:
        name = self._origin(name)
        if name in self._carried:
            at = self._carried.index(name)
            return self._outer.get(self.initial[at]) if at in self._unchanged else None
        return self._constants.get(name)

    def _weights(self) -> list[Array]:
        names = [*self._carried, *free_names(self.body), *(tensor.name for tensor in self.body.initializer)]
        found = [self._weight(name) for name in names]
        return [array for array in found if array is not None and array.dtype.kind == "f"]

    def is_computed_by(self, module: Any, order: tuple[int, ...]) -> bool:
        """Tell whether the body computes what a module does in one step, on random numbers."""
        if len(order) != 1 + isinstance(module, LSTM) + bool(self.mask):
            return False
        generator = np.random.default_rng(0)
        batch, H = 4, module.hidden_size

        def noise(*shape: int) -> Array:
            drawn: Array = (2 * generator.standard_normal(shape)).astype(module.dtype)
            return drawn

        x, states = noise(1, batch, module.input_size), [noise(batch, H) for _ in order]
        mask = np.array([True, True, False, False])[None, :, None] if self.mask else None
        try:
            found = self._body_outputs(x, mask, dict(zip(order, states, strict=True)))
        except Exception:  # the evaluator's, of a body that takes other sizes
            return False
        expected = run_steps(module, x, mask, states)
        theirs = [np.asarray(found[at]) for at in (-1, *(1 + at for at in order))]
        theirs[0] = theirs[0][None]
        return all(
            a.dtype == b.dtype and a.shape == b.shape and np.allclose(a, b, _TOLERANCE, _TOLERANCE)
            for a, b in zip(theirs, expected, strict=True)
        )

    def _body_outputs(self, x: Array, mask: Array | None, states: dict[int, Array]) -> list[Any]:
        """Evaluate the body once, at step 0."""
        onnx = self._onnx
        free = free_names(self.body)
        values: dict[str, Any] = {
            self.body.input[0].name: np.int64(0),
            self.body.input[1].name: np.bool_(True),
        }
        for at, name in enumerate(self._carried):
            fixed = self._outer.get(self.initial[at])
            values[name] = states.get(at, fixed if fixed is not None else np.int32(1))  # else the limit
        values |= {
            name: x if name == self.x else mask if name == self.mask else self._outer.get(name)
            for name in free
        }
        graph = onnx.helper.make_graph(
            self.body.node,
            "body",
            [onnx.ValueInfoProto(name=name) for name in values],
            self.body.output,
            self.body.initializer,
        )
        model = onnx.helper.make_model(graph, opset_imports=self._proto.opset_import)
        evaluate: Any = importlib.import_module("onnx.reference").ReferenceEvaluator
        results: list[Any] = evaluate(model).run(None, {k: np.asarray(v) for k, v in values.items()})
        return results


def _modules(W: Array, R: Array, b: Array, H: int, gates: int) -> Iterator[Any]:
    """Give modules with these weights, as Keras lays them out, one for each choice of functions and form."""
    kind, order = _CELLS[gates]
    inputs, hidden = b if b.ndim == 2 else (b, np.zeros_like(b))
    arrays = {"weight_ih_l0": W.T, "weight_hh_l0": R.T, "bias_ih_l0": inputs, "bias_hh_l0": hidden}
    parameters = {
        name: reorder(np.ascontiguousarray(array), gates=order) if gates > 1 else array
        for name, array in arrays.items()
    }
    forms: list[dict[str, Any]] = [{"reset_after": after} for after in (True, False)] if gates == 3 else [{}]
    for form, g in itertools.product(forms, _FUNCTIONS):
        for f in _GATE_FUNCTIONS if gates > 1 else (None,):
            functions = {4: [f, g, g], 3: [f, g], 1: [g]}[gates]
            module = kind(W.shape[0], H, dtype=W.dtype, activations=functions, **form)
            module.load_state_dict(parameters)
            yield module
