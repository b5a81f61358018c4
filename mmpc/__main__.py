"""`python -m mmpc COMMAND`: the command line, which lies in mmpc/cli."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
