"""Cutting data into batches: shuffled indices, streams of tokens, sequences of different length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gatedrnn import _checks
from gatedrnn.train import _arguments

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["minibatches", "padded", "token_chunks"]


def minibatches(
    rng: np.random.Generator | None, count: int, batch_size: int
) -> Iterator[npt.NDArray[np.intp]]:
    """Deal the indices 0..count-1 out in batches, each index once; the last batch may be smaller.

    Args:
        rng: Shuffles them, at once; None leaves them in order.
        count: Number of examples, at least 1.
        batch_size: At least 1.

    Returns:
        An iterator over arrays of indices.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is outside its range.
    """
    count = _checks.integer("count", count, 1)
    batch_size = _checks.integer("batch_size", batch_size, 1)
    order = np.arange(count)
    if rng is not None:
        _arguments.generator("rng", rng).shuffle(order)
    return (order[start : start + batch_size] for start in range(0, count, batch_size))


def token_chunks(
    tokens: npt.ArrayLike, steps: int, batch_size: int
) -> Iterator[tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.integer[Any]]]]:
    """Cut one long sequence into B streams, and these into chunks of T steps for a language model.

    Row b of each chunk goes on where row b of the chunk before it ended, so the final state of one chunk is
    the initial state of the next (truncated back-propagation through time). The targets are the inputs' next
    tokens. What does not fill all B streams evenly, fewer than B tokens at the end, is left out.

    Args:
        tokens: (N,) integers.
        steps: Time steps in a chunk, T, at least 1. The last chunk may be shorter.
        batch_size: Streams, B, at least 1 and below N.

    Returns:
        An iterator over pairs (inputs, targets), each (T, B): views, so that nothing is copied.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: `tokens` has not one axis, or an argument is outside its range.
    """
    array = _arguments.integer_array("tokens", tokens)
    if array.ndim != 1 or array.size < 2:
        raise ValueError(f"tokens: expected shape (N,) with N of at least 2, got {array.shape}")
    steps = _checks.integer("steps", steps, 1)
    batch_size = _checks.integer("batch_size", batch_size, 1, array.size - 1)
    length = (array.size - 1) // batch_size
    inputs, targets = (
        array[first : first + length * batch_size].reshape(batch_size, length).T for first in (0, 1)
    )
    chunks = (slice(start, start + steps) for start in range(0, length, steps))
    return ((inputs[chunk], targets[chunk]) for chunk in chunks)


def padded(sequences: Sequence[npt.ArrayLike]) -> tuple[npt.NDArray[Any], npt.NDArray[np.intp]]:
    """Put sequences of different length into one array, zeros after their ends.

    Args:
        sequences: B arrays (T_b, ...), alike but for their lengths T_b.

    Returns:
        The array (max T_b, B, ...) and the lengths (B,), which the engine takes as `lengths`.

    Raises:
        TypeError: A sequence has another dtype than the first.
        ValueError: There is none, one has no axis, or one has other axes after its first than the first has.
    """
    arrays = [np.asarray(sequence) for sequence in sequences]
    if not arrays:
        raise ValueError("sequences: expected at least one, got none")
    first = arrays[0]
    for number, array in enumerate(arrays):
        if array.ndim == 0 or array.shape[1:] != first.shape[1:]:
            wanted = ", ".join(["T", *map(str, first.shape[1:])])
            raise ValueError(f"sequences: expected shape ({wanted}) in all, got {array.shape} in {number}")
        if array.dtype != first.dtype:
            raise TypeError(f"sequences: expected {first.dtype} in all, got {array.dtype} in {number}")
    lengths = np.array([len(array) for array in arrays], np.intp)
    batch = np.zeros((lengths.max(), len(arrays), *first.shape[1:]), first.dtype)
    for row, array in enumerate(arrays):
        batch[: len(array), row] = array
    return batch, lengths
