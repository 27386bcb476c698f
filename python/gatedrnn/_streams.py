"""What pickles of streams are made of: the parameters of their moment, packed again where they are read."""

from __future__ import annotations

from typing import Any

from gatedrnn import _core, _device


def make_network(
    cell: str, parameters: dict[str, Any], device: str, options: dict[str, Any]
) -> _core.Network | _device.Network:
    """Pack parameters that nobody writes into any more; pickles of the network's streams have them too."""
    make: Any = _device.Network if device == "cuda" else _core.Network
    network: _core.Network | _device.Network = make(cell, parameters, **options)
    network.recipe = cell, parameters, device, options
    return network


def make_stream(network: Any, batch_size: int, state: Any) -> _core.Stream[Any, Any] | _device.Stream:
    """Make a stream that goes on from a state."""
    stream: _core.Stream[Any, Any] | _device.Stream = network.stream(batch_size)
    stream.state = state
    return stream
