"""Models of other libraries as ours, and the one function on which all of it stands, `reorder`.

Each conversion proves itself: a small random batch goes through the new module in float64 and through the
source's own equations, written plainly, and an error is raised where the two disagree. Sources of ours, and
parameters with options that only ours have, are compared by names and shapes alone.
"""

from __future__ import annotations

from gatedrnn.convert._flax import from_flax
from gatedrnn.convert._keras import from_keras
from gatedrnn.convert._onnx import from_onnx
from gatedrnn.convert._reorder import reorder
from gatedrnn.convert._state_dicts import load_parameters
from gatedrnn.convert._torch import from_torch, to_torch

__all__ = ["from_flax", "from_keras", "from_onnx", "from_torch", "load_parameters", "reorder", "to_torch"]
