"""Losses, each with its derivative by the input: ``loss, d_input = loss_function(input, targets, mask)``.

A loss is the mean over all positions, or over those that `mask` selects, as a float accumulated in float64.
What is masked out is never looked at: it may be padding of any value, NaN and targets out of range included,
costs no time, and its derivative is 0. Infinite or NaN inputs that count, as of a run that diverges, make a
loss of the same kind, and nothing is said of them, nor of an underflow, whatever `numpy.seterr` was told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gatedrnn import _checks
from gatedrnn.train import _arguments

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.floating[Any]]

__all__ = ["binary_cross_entropy", "mask_of", "mse", "softmax_cross_entropy"]


def mask_of(lengths: npt.ArrayLike, steps: int) -> npt.NDArray[np.bool_]:
    """Mark the valid steps of rows of different length.

    Args:
        lengths: B integers in 0..T, as the engine takes them.
        steps: Number of time steps, T.

    Returns:
        Booleans (T, B), True at step t of row b where t < lengths[b]. Transposed they serve ``batch_first``.

    Raises:
        TypeError: `lengths` or `steps` are not integers.
        ValueError: `lengths` has not one axis, or a length is outside 0..T; or `steps` is below 0.
    """
    steps = _checks.integer("steps", steps, 0)
    array = _arguments.integer_array("lengths", lengths)
    if array.ndim != 1:
        raise ValueError(f"lengths: expected shape (B,), got {array.shape}")
    _arguments.within("lengths", array, 0, steps)
    marks: npt.NDArray[np.bool_] = np.arange(steps)[:, None] < array
    return marks


def softmax_cross_entropy(
    logits: Array, targets: npt.ArrayLike, mask: npt.ArrayLike | None = None
) -> tuple[float, Array]:
    """Compute -log softmax(logits)[target], mean over positions; as ``torch.nn.functional.cross_entropy``.

    Args:
        logits: (..., C), float32 or float64, classes on the last axis (torch has them on the second).
        targets: Integers in 0..C-1, of shape (...).
        mask: Booleans of shape (...), True where a position counts; None: all count.

    Returns:
        The loss, and its derivative by `logits`, of their shape and dtype.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument has the wrong shape, a target that counts is outside 0..C-1, or no position
            counts.
    """
    _arguments.float_array("logits", logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits: expected (..., C) with at least one class, got {logits.shape}")
    positions, classes = logits.shape[:-1], logits.shape[-1]
    labels = _arguments.integer_array("targets", targets)
    if labels.shape != positions:
        raise ValueError(f"targets: expected shape {positions}, got {labels.shape}")
    chosen = _chosen("logits", logits, mask, leading=False)
    rows, labels = logits[chosen].reshape(-1, classes), labels[chosen].reshape(-1)
    _arguments.within("targets", labels, 0, classes - 1)
    loss, d_rows = _softmax_cross_entropy(rows, labels)
    return loss, _spread(d_rows, logits, chosen)


def _softmax_cross_entropy(rows: Array, labels: npt.NDArray[np.integer[Any]]) -> tuple[float, Array]:
    """With logits (N, C) that all count."""
    target = np.arange(len(rows)), labels.astype(np.intp)
    with np.errstate(all="ignore"):
        shifted = rows - rows.max(axis=-1, keepdims=True)  # the largest is 0: no sum overflows or is 0
        picked = shifted[target]
        d_rows = np.exp(shifted, out=shifted)
        sums = d_rows.sum(axis=-1, keepdims=True)
        loss = float(np.sum(np.log(sums[:, 0], dtype=np.float64) - picked) / len(rows))
        d_rows /= sums
        d_rows[target] -= 1
        d_rows /= len(rows)
    return loss, d_rows


def mse(prediction: Array, target: npt.ArrayLike, mask: npt.ArrayLike | None = None) -> tuple[float, Array]:
    """Compute the mean of (prediction - target)^2; as ``torch.nn.functional.mse_loss``.

    Args:
        prediction: Any shape, float32 or float64.
        target: Real numbers of the same shape, rounded to the dtype of `prediction`.
        mask: Booleans of that shape or of its first axes, such as (T, B) for (T, B, O), True where a position
            counts; None: all count.

    Returns:
        The loss, and its derivative by `prediction`, of its shape and dtype.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument has the wrong shape, or no position counts.
    """
    wanted = _arguments.real_array("target", target, _shape("prediction", prediction), prediction.dtype)
    chosen = _chosen("prediction", prediction, mask, leading=True)
    with np.errstate(all="ignore"):
        difference = prediction[chosen] - wanted[chosen]
        loss = float(np.square(difference, dtype=np.float64).sum() / difference.size)
        difference *= 2 / difference.size
    return loss, _spread(difference, prediction, chosen)


def binary_cross_entropy(
    logits: Array, targets: npt.ArrayLike, mask: npt.ArrayLike | None = None
) -> tuple[float, Array]:
    """Compute the mean of -t log s(x) - (1 - t) log(1 - s(x)) with the logistic function s of logits x.

    As ``torch.nn.functional.binary_cross_entropy_with_logits``, accurate for logits of any size.

    Args:
        logits: Any shape, float32 or float64.
        targets: Numbers in 0..1 of the same shape: booleans, integers, or probabilities.
        mask: Booleans of that shape or of its first axes, True where a position counts; None: all count.

    Returns:
        The loss, and its derivative by `logits`, of their shape and dtype.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument has the wrong shape, a target that counts is outside 0..1, or no position
            counts.
    """
    wanted = _arguments.real_array("targets", targets, _shape("logits", logits), logits.dtype)
    chosen = _chosen("logits", logits, mask, leading=True)
    x, t = logits[chosen], wanted[chosen]
    with np.errstate(invalid="ignore"):
        outside = ~((t >= 0) & (t <= 1))  # NaN is
    if outside.any():
        raise ValueError(f"targets: expected numbers in 0..1, got {t[outside].flat[0]}")
    with np.errstate(all="ignore"):
        e = np.exp(-np.abs(x))  # at most 1: overflows for no x
        losses = np.maximum(x, 0) - x * t + np.log1p(e)
        d_x = np.where(x >= 0, x.dtype.type(1), e) / (1 + e) - t
        d_x /= x.size
    return float(losses.sum(dtype=np.float64) / x.size), _spread(d_x, logits, chosen)


def _shape(name: str, value: object) -> tuple[int, ...]:
    return _arguments.float_array(name, value).shape


def _chosen(name: str, values: Array, mask: object, *, leading: bool) -> Any:
    """Return an index that selects what counts: of `values` in its first axes."""
    if mask is not None:
        shape = values.shape if leading else values.shape[:-1]
        return _arguments.mask("mask", mask, shape, leading=leading)
    if not values.size:
        raise ValueError(f"{name}: expected at least one number, got shape {values.shape}")
    return ...


def _spread(d_chosen: Array, values: Array, chosen: Any) -> Array:
    """Put derivatives back where `values[chosen]` came from, and 0 elsewhere."""
    if chosen is ...:
        return d_chosen.reshape(values.shape)
    d_values = np.zeros(values.shape, values.dtype)
    d_values[chosen] = d_chosen.reshape(-1, *values.shape[chosen.ndim :])
    return d_values
