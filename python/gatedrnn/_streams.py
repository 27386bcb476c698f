"""What pickles of streams are made of: the parameters of their moment, packed again where they are read."""

from __future__ import annotations

from typing import Any


def make_network(make: Any, cell: str, parameters: dict[str, Any], options: dict[str, Any]) -> Any:
    """Pack parameters that nobody writes into any more; pickles of the network's streams have them too.

    Args:
        make: The class of the network, of `_core` or `_device`.
        cell: The engine's name for the cell.
        parameters: By name.
        options: The other arguments of the class.
    """
    network = make(cell, parameters, **options)
    network.recipe = make, cell, parameters, options
    return network


def make_stream(network: Any, batch_size: int, state: Any) -> Any:
    """Make a stream that goes on from a state."""
    stream = network.stream(batch_size)
    stream.state = state
    return stream
