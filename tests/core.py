"""Run the tests that need nothing but NumPy, safetensors, pytest and hypothesis.

    python tests/core.py [pytest's options]

It is what a wheel has to pass on every machine: where neither PyTorch nor ONNX can be had, and in emulation.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

CORE = ("digests", "config", "errors", "cells", "bits", "stream", "gradients")

if __name__ == "__main__":
    files = [str(Path(__file__).parent / f"test_{name}.py") for name in CORE]
    raise SystemExit(pytest.main([*files, *sys.argv[1:]]))
