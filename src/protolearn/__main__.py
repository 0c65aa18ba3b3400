"""``python -m protolearn``: the command line."""

from __future__ import annotations

import sys

from protolearn.cli import main

if __name__ == "__main__":
    sys.exit(main())
