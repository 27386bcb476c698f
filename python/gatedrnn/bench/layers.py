"""The recurrent layers of a model's file as shapes with weights of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gatedrnn.bench.shapes import ENGINES, Array, Shape

_CELLS = {engine: cell for cell, engine in ENGINES.items()}


class Layers:
    """The layers of some modules, each in its forward direction, as far as peers can compute them.

    Args:
        modules: By name.

    Attributes:
        weights: Of each layer, by its name, as torch.nn has them for a single layer.
        left: What peers cannot compute, by name, with the reason.
    """

    def __init__(self, modules: Mapping[str, Any]) -> None:
        self.weights: dict[str, dict[str, Array]] = {}
        self.left: dict[str, str] = {}
        self._cells: dict[str, str] = {}
        for name, module in modules.items():
            cell = _CELLS.get(module._cell)
            if cell is None or getattr(module, "proj_size", 0) > 0:
                self.left[name or "the module"] = f"peers have no {module!r}"
                continue
            count = getattr(module, "num_layers", 1)
            for layer in range(count):
                label = f"{name} layer {layer}".strip() if count > 1 else name or "the module"
                self._cells[label], self.weights[label] = cell, _weights(module, layer)

    def shapes(self, batch: Sequence[int], steps: Sequence[int]) -> list[Shape]:
        """Return each layer with each number of rows and of steps; a single step is a stream's."""
        found = []
        for label, weights in self.weights.items():
            H, inputs = weights["weight_hh_l0"].shape[1], weights["weight_ih_l0"].shape[1]
            for B in batch:
                found += [
                    Shape(self._cells[label], inputs, H, B, T, None, T == 1, layer=label) for T in steps
                ]
        return found


def _weights(module: Any, layer: int) -> dict[str, Array]:
    """Return the parameters of a layer's forward direction, under the names of a first layer."""
    state = module.state_dict()
    suffix = f"_l{layer}" if f"weight_ih_l{layer}" in state else ""  # cells have none
    rows = len(state[f"weight_ih{suffix}"])
    return {
        f"{name}_l0": state.get(f"{name}{suffix}", np.zeros(rows, module.dtype))
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
