"""The help of every verb: options in groups, each with its default."""

import io
import re
from collections.abc import Iterator

from cyclopts import App
from rich.console import Console

from fusioner.cli.main import VERBS, build

PANEL = re.compile(r"╭─ (\w+) ─+╮")
ENTRY = re.compile(r"\n│ +(?:\* +)?(?=(?:--?[a-z]|[A-Z][A-Z_-]+ ))")
DEFAULT = re.compile(r"\[(?:default: .+|required)\]|[Dd]efault: \S")
MOST = 10  # options that a verb may have in a single group


def verbs(app: App, words: list[str]) -> Iterator[list[str]]:
    """Yield the words of every command of an app that has no further ones."""
    names = [name for name in app if not name.startswith("-")]
    for name in names:
        yield from verbs(app[name], [*words, name])
    if not names:
        yield words


def test_options_of_every_verb_are_in_groups_and_show_their_defaults() -> None:
    count = 0
    for verb in VERBS:
        app = build(verb)
        for words in verbs(app[verb], [verb]):
            out = io.StringIO()
            app.help_print(words, console=Console(file=out, width=250, color_system=None))
            _, *panels = PANEL.split(out.getvalue())
            groups = {title: ENTRY.split(body)[1:] for title, body in zip(panels[::2], panels[1::2], strict=True)}
            for title in groups.keys() - {"Arguments"}:
                for entry in groups[title]:
                    assert DEFAULT.search(" ".join(entry.replace("│", " ").split())), f"{words}: {entry}"
            assert groups.keys() - {"Arguments", "Parameters"} or len(groups.get("Parameters", ())) <= MOST, words
            count += 1
    assert count > len(VERBS)
