"""`python -m fusioner` is the `fusioner` command."""

import sys

from fusioner.cli.main import main

sys.exit(main())
