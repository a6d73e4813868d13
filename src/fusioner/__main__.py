"""Run the `fusioner` command as `python -m fusioner`."""

import sys

from fusioner.cli.main import main

sys.exit(main())
