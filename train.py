"""The official training command, every flag as it was; `python train.py --help`."""

import sys

from fusioner.cli.official import main

if __name__ == "__main__":
    sys.exit(main("train"))
