"""``python -m gatedrnn.bench``."""

from __future__ import annotations

import sys

from gatedrnn.bench.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
