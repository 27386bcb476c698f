"""Errors that are of ``torch.nn``'s types too, so that code written for it still catches them."""

from __future__ import annotations

__all__ = ["DtypeError", "ShapeError"]


class ShapeError(ValueError, RuntimeError):
    """A tensor has the wrong shape or is on the wrong device."""


class DtypeError(TypeError, ValueError, RuntimeError):
    """A tensor has the wrong dtype."""
