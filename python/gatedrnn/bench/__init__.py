"""``gatedrnn bench``: this library beside every installed peer, in one process, on named sets of shapes.

Nothing outside of NumPy is imported before it is used; a peer that is not installed is named in the output.
"""

from __future__ import annotations

from gatedrnn.bench.cli import main

__all__ = ["main"]
