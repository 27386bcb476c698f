"""``python -m gatedrnn`` is the command ``gatedrnn``."""

import sys

from gatedrnn.cli import main

if __name__ == "__main__":
    sys.exit(main())
