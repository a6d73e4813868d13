"""The official test command with its original flags; see `python test.py --help`."""

import sys

from fusioner.cli.official import main

if __name__ == "__main__":
    sys.exit(main("test"))
