"""The `fusioner` command: verbs that are imported when they run, and one way out for every error."""

import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from cyclopts import App, CycloptsError

from fusioner import __version__
from fusioner.errors import FusionerError

BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 2, 130, 141  # exit codes: ours, then the shell's for SIGINT and SIGPIPE

VERBS = {
    "predict": ("fusioner.cli.predict:predict", "Find what you name in pictures."),
    "batch": ("fusioner.cli.batch:batch", "Find it in thousands to billions of pictures, each exactly once."),
    "serve": ("fusioner.cli.serve:serve", "Serve a page and an HTTP API."),
    "train": ("fusioner.cli.train:train", "Train the fusion network on a data set."),
    "evaluate": ("fusioner.cli.evaluate:evaluate", "Measure a model on a data set."),
    "compare": ("fusioner.cli.compare:compare", "Test whether two evaluations differ by more than chance."),
    "sweep": ("fusioner.cli.sweep:sweep", "Train and evaluate many combinations; make a table."),
    "data": ("fusioner.cli.data:app", "Look into a data set: count and check it, or make a contact sheet."),
    "features": ("fusioner.cli.features:app", "Encode images once and keep the features."),
    "export": ("fusioner.cli.export:export", "Write a model that answers without torch."),
    "models": ("fusioner.cli.models:models", "List the encoders that can be named."),
}
"""Verb -> where its function (or App of sub-verbs) lives, and its line in the overview, which imports none of them."""


def build(asked: str | None = None) -> App:
    """The command line without running it; the verb `asked` for keeps its own, longer help with examples."""
    app = App(
        name="fusioner",
        version=__version__,
        help="Name things in words, get their masks: open-vocabulary segmentation.",
        help_format="markdown",
        suppress_keyboard_interrupt=False,
    )
    for place, (verb, (home, line)) in enumerate(VERBS.items()):
        app.command(home, name=verb, help=None if verb == asked else line, sort_key=place)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: the process's own) -> exit code.

    0: done; 2: wrong arguments or bad input, said on stderr in one `error:` line; 130: interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a label in any language must not fail on a narrow terminal
            stream.reconfigure(errors="backslashreplace")
    # cyclopts takes a lone - for an option; as a path, ./- is the same.
    words = ["./-" if word == "-" else word for word in (sys.argv[1:] if arguments is None else arguments)]
    try:
        code = build(next(iter(words), None))(
            words,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
        sys.stdout.flush()
    except (FusionerError, CycloptsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader (head, less) has seen enough
        _mute()
        return BROKEN_PIPE
    except OSError as error:
        if error.filename is not None:  # a file's error should have become a FusionerError: a bug
            raise
        _mute()
        print(f"error: cannot write to the standard output: {error.strerror}", file=sys.stderr)
        return BAD_INPUT
    return code if isinstance(code, int) else 0


def _mute() -> None:
    """Send what stdout still holds nowhere, so that the interpreter's last flush does not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
