"""Whole ONNX models: their recurrent nodes run here, all else in ONNX Runtime.

``gatedrnn.onnx.InferenceSession(path).run(names, feeds)`` is called as ONNX Runtime's is. `Backend` is the
interface that the package ``onnx`` tests runtimes by.
"""

from __future__ import annotations

from gatedrnn.onnx._backend import Backend
from gatedrnn.onnx._session import InferenceSession, NodeArg

__all__ = ["Backend", "InferenceSession", "NodeArg"]
