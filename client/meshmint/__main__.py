"""Lets `python -m meshmint` be the command `meshmint`."""

import sys

from meshmint.cli import main

if __name__ == "__main__":
    sys.exit(main())
