"""Run one cell: `python -m fusioner.sweep.cell FOLDER` runs the commands in FOLDER/cell.json.

Finished commands are recorded in FOLDER/done.json and not repeated. The process exits when its parent does, however
that ends, because the parent holds the other end of its standard input.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

from fusioner.cli.main import main
from fusioner.io import atomic_write

CELL, DONE = "cell.json", "done.json"


def run(folder: Path) -> int:
    """Run the remaining commands; return the exit code of the first that failed, or 0."""
    commands: dict[str, list[str]] = json.loads((folder / CELL).read_text("utf-8"))["commands"]
    done = read_done(folder)
    for name, words in commands.items():
        if name in done:
            continue
        start = time.monotonic()
        sys.argv = ["fusioner", *words]  # recorded in the model's card and the report
        if code := main(words):
            return code
        done[name] = round(time.monotonic() - start, 1)
        with atomic_write(folder / DONE) as temporary:
            temporary.write_text(json.dumps(done), "utf-8")
    return 0


def read_done(folder: Path) -> dict[str, float]:
    """Return the seconds that each finished command took."""
    try:
        return json.loads((folder / DONE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _exit_with_parent() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock the interpreter needs at exit
        pass
    os._exit(137)


if __name__ == "__main__":
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    sys.exit(run(Path(sys.argv[1])))
