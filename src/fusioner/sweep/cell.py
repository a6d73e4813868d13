"""One cell in a process of its own: `python -m fusioner.sweep.cell FOLDER` runs the command lines in FOLDER/cell.json.

What is done is written to FOLDER/done.json, so that it is not done again. The process ends with the one that started
it, however that ends: it holds the other end of this one's standard input.
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
    """Run what is not done yet -> exit code of the first command that failed, or 0."""
    commands: dict[str, list[str]] = json.loads((folder / CELL).read_text("utf-8"))["commands"]
    done = read_done(folder)
    for name, words in commands.items():
        if name in done:
            continue
        begun = time.monotonic()
        sys.argv = ["fusioner", *words]  # what the model's card and the report quote
        if code := main(words):
            return code
        done[name] = round(time.monotonic() - begun, 1)
        with atomic_write(folder / DONE) as beside:
            beside.write_text(json.dumps(done), "utf-8")
    return 0


def read_done(folder: Path) -> dict[str, float]:
    """Command -> the seconds it took, of those that are done."""
    try:
        return json.loads((folder / DONE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _end_with_parent() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock the interpreter wants when it ends
        pass
    os._exit(137)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(run(Path(sys.argv[1])))
