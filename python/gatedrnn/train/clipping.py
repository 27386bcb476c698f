"""Gradients whose norm is held below a bound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gatedrnn.train import _arguments
from gatedrnn.train._blocks import blocks_of

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.floating[Any]]

__all__ = ["clip_grad_norm"]


def clip_grad_norm(grads: Mapping[str, Array], max_norm: float) -> float:
    """Scale all gradients in place so that their common norm is at most `max_norm`.

    As ``torch.nn.utils.clip_grad_norm_``: the factor is max_norm / (norm + 1e-6) where that is below 1. The
    norm is accumulated in float64. One that is infinite or NaN makes the gradients 0 or NaN, as in PyTorch.
    Source: Pascanu, Mikolov & Bengio 2013, algorithm 1.

    Args:
        grads: Gradients by name.
        max_norm: At least 0; infinite to change nothing.

    Returns:
        The Euclidean norm of all gradients together, before they were scaled.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: `max_norm` is below 0 or NaN, or a gradient is read-only. In all cases nothing was
            changed.
    """
    max_norm = _arguments.number("max_norm", max_norm, finite=False)
    given = _arguments.mapping("grads", grads)
    arrays = [_arguments.in_place(f"grads[{name!r}]", array) for name, array in given.items()]
    with np.errstate(all="ignore"):
        norm = math.sqrt(sum(map(_sum_of_squares, arrays)))
        factor = max_norm / (norm + 1e-6)
        if not factor >= 1:  # also where it is NaN
            for array in arrays:
                array *= factor
    return norm


def _sum_of_squares(array: Array) -> float:
    """Accumulate in float64."""
    blocks = (block.astype(np.float64, copy=False) for (block,) in blocks_of(array))
    return sum(float(block @ block) for block in blocks)
