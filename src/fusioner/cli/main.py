"""The `fusioner` command: lazily imported verbs and one exit path for every error."""

import os
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from typing import Any

from cyclopts import App, CycloptsError, MissingArgumentError, UnusedCliTokensError

from fusioner import __version__
from fusioner.errors import FusionerError, missing_package

BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 2, 130, 141  # exit codes; the last two as shells give for SIGINT and SIGPIPE

VERBS = {
    "predict": ("fusioner.cli.predict:predict", "Segment pictures and videos by text labels."),
    "batch": ("fusioner.cli.batch:batch", "Segment thousands to billions of pictures, each exactly once."),
    "serve": ("fusioner.cli.serve:serve", "Serve a web page and an HTTP API."),
    "train": ("fusioner.cli.train:train", "Train the fusion network on a data set."),
    "evaluate": ("fusioner.cli.evaluate:evaluate", "Evaluate a model on a data set."),
    "compare": ("fusioner.cli.compare:compare", "Test whether two evaluations differ significantly."),
    "sweep": ("fusioner.cli.sweep:sweep", "Train and evaluate many combinations of settings; print a table."),
    "data": ("fusioner.cli.data:app", "Check a data set, make its contact sheet, prepare it."),
    "features": ("fusioner.cli.features:app", "Encode images once and cache the features."),
    "export": ("fusioner.cli.export:export", "Export a model to ONNX or OpenVINO."),
    "models": ("fusioner.cli.models:models", "List the encoders."),
}
"""Verb -> where its function (or App of sub-verbs) is defined, and its line in the overview, which imports none."""

WAIT_POLICY = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "OPENBLAS_NUM_THREADS": "1"}
"""Variables by which torch's waiting threads sleep instead of spinning, and NumPy starts none; read when they are
imported. Beside other busy processes, spinning is many times slower (benchmarks/loaded.py)."""


def build(requested: str | None = None) -> App:
    """Return the command line without running it; the verb `requested` has its full help, the others one line."""
    app = App(
        name="fusioner",
        version=__version__,
        help="Open-vocabulary segmentation: name what you want, get its mask.",
        help_format="markdown",
        suppress_keyboard_interrupt=False,
    )
    for place, (verb, (home, line)) in enumerate(VERBS.items()):
        app.command(home, name=verb, help=None if verb == requested else line, sort_key=place)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: the arguments of the process) and return its exit code.

    0: success; 2: wrong arguments, bad input or a missing package, reported on stderr in one `error:` line;
    130: interrupted.
    """
    for name, value in WAIT_POLICY.items():
        os.environ.setdefault(name, value)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a label in any language must not fail on a narrow terminal
            stream.reconfigure(errors="backslashreplace")
    # cyclopts takes a lone - for an option; as a path, ./- is the same.
    words = ["./-" if word == "-" else word for word in (sys.argv[1:] if arguments is None else arguments)]
    app = build(next(iter(words), None))
    return run(lambda: app(words, exit_on_error=False, print_error=False, result_action="return_value"))


def run(command: Callable[[], Any]) -> int:
    """Run a command, print its errors, and return its exit code; see `main`."""
    try:
        code = command()
        sys.stdout.flush()
    except FusionerError as error:
        return _fail(str(error))
    except CycloptsError as error:
        return _fail(_describe(error))
    except ModuleNotFoundError as error:
        return _fail(str(missing_package(error)))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader (head, less) has ended
        _discard_stdout()
        return BROKEN_PIPE
    except OSError as error:
        if error.filename is not None or not _stdout_is_broken():  # a bug: the error lacks its sentence
            raise
        _discard_stdout()
        return _fail(f"cannot write to the standard output: {error.strerror}")
    return code if isinstance(code, int) else 0


def _describe(error: CycloptsError) -> str:
    """Return one sentence; cyclopts' own is unclear about missing and superfluous arguments."""
    command = " ".join(["fusioner", *(error.command_chain or ())])
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        return f"{command} needs {error.argument.name}: see {command} --help"
    if isinstance(error, UnusedCliTokensError):
        return f"{command} takes no argument {' '.join(error.unused_tokens or ())}: see {command} --help"
    return str(error)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return BAD_INPUT


def _stdout_is_broken() -> bool:
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def _discard_stdout() -> None:
    """Redirect stdout to nowhere, so that the interpreter's last flush does not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
