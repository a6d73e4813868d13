"""The official training command with its original flags; see `python train.py --help`."""

import sys

from fusioner.cli.official import main

if __name__ == "__main__":
    sys.exit(main("train"))
