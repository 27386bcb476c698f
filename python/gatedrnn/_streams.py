"""What pickles of streams are made of: the parameters of their moment, packed again where they are read."""

from __future__ import annotations

from typing import Any


def make_network(make: Any, cell: str, parameters: dict[str, Any], options: dict[str, Any]) -> Any:
    """Pack parameters that nobody writes into any more by `make`, the class of `_core` or `_device`."""
    network = make(cell, parameters, **options)
    network.recipe = make, cell, parameters, options  # of pickles of its own streams
    return network


def make_stream(network: Any, batch_size: int, state: Any) -> Any:
    """Make a stream that goes on from a state."""
    stream = network.stream(batch_size)
    stream.state = state
    return stream
