"""Tables of results for terminals, Markdown and HTML, and the HTML page around them."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rich.table import Table as RichTable

from fusioner.evaluation.bootstrap import Estimate
from fusioner.io import atomic_write, check_replaceable

MEASURES = {
    "miou": ("mIoU", "mean IoU of the named classes under the protocol"),
    "fb_iou": ("FB-IoU", "mean of foreground and background IoU, all classes taken as one"),
    "argmax_miou": (
        "multi-class mIoU (argmax)",
        "all unseen classes prompted together; the likeliest or background wins",
    ),
    "seen_argmax_miou": ("multi-class mIoU, seen classes", "the same with the classes of training"),
    "harmonic": ("harmonic mean", "of multi-class mIoU, unseen and seen"),
    "background_iou": (
        "background IoU",
        "of the argmax; part of the mean only in pas20b, voc21, context60 and coco-object",
    ),
    "single_prompt_miou": ("single-prompt mIoU", "each class of an image prompted alone instead of together"),
    "prompt_ablated_miou": ("prompt-ablated mIoU", "one neutral text in place of every class name"),
    "false_positive_area": ("false-positive area", "share of the image assigned to an absent class (lower is better)"),
    "specificity": ("specificity", "share of absent classes to which no pixel is assigned"),
    "presence_mcc": ("presence MCC", "correlation of finding any pixel with presence; 0: chance, 100: perfect"),
}
"""Measures in the order of the reports: label and meaning."""

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8882;--bar:#2f6fe0}
body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid var(--line)}
table{border-collapse:collapse}td,th{padding:.25rem .7rem;text-align:left;border-bottom:1px solid var(--line)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.best{background:var(--soft);font-weight:600}
.track{position:relative;width:420px;max-width:50vw;height:14px;background:var(--soft);border-radius:7px}
.bar{position:absolute;inset:0 auto 0 0;background:var(--bar);border-radius:7px}
.whisker{position:absolute;top:5px;height:4px;background:currentColor;opacity:.55}
.cards{display:flex;flex-wrap:wrap;gap:1rem}.card{background:var(--soft);border-radius:8px;padding:.5rem}
.card img{display:block;border-radius:4px;max-width:100%}.card div{margin-top:.3rem;font-size:.85rem}
.chip{display:inline-block;width:.8em;height:.8em;border-radius:3px;margin:0 .25em 0 .5em;vertical-align:-1px}
.matrix td,.matrix th{padding:.15rem;font-size:.8rem;border:0}
.matrix th{writing-mode:vertical-rl;transform:rotate(180deg)}
pre{background:var(--soft);padding:1rem;overflow:auto;border-radius:8px;white-space:pre-wrap}
"""


class Markup(str):
    """HTML that `Table.to_html` inserts without escaping."""


@dataclass(frozen=True)
class Table:
    """A table of text cells."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    text_columns: Collection[int] = (0,)  # left-aligned; all others are right-aligned and do not wrap
    bold: Collection[int] = ()  # rows, in the terminal
    best: Collection[tuple[int, int]] = ()  # (row, column) of cells highlighted in HTML
    plots: Sequence[Markup] = ()  # a drawing for each row, the second column in HTML, under `plot_head`
    plot_head: str = ""

    def to_rich(self) -> RichTable:
        """Return the table for a rich console."""
        table = RichTable(title=self.title or None, title_justify="left", title_style="bold")
        for column, name in enumerate(self.head):
            is_text = column in self.text_columns
            table.add_column(name, justify="left" if is_text else "right", no_wrap=not is_text)
        for number, row in enumerate(self.rows):
            table.add_row(*row, style="bold" if number in self.bold else "")
        return table

    def to_markdown(self) -> str:
        """Return the table in Markdown, without its title."""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

    def to_html(self) -> str:
        """Return the table in HTML, without its title."""
        rows = [self._html_row("th", None, self.head, self.plot_head)]
        for number, row in enumerate(self.rows):
            rows.append(self._html_row("td", number, row, self.plots[number] if self.plots else ""))
        return f"<table>{''.join(rows)}</table>"

    def _html_row(self, tag: str, number: int | None, cells: Sequence[str], plot: str) -> str:
        html = [f"<{tag}{self._attributes(number, i)}>{_escape(cell)}</{tag}>" for i, cell in enumerate(cells)]
        if self.plots:
            html.insert(1, f"<{tag}>{_escape(plot)}</{tag}>")
        return f"<tr>{''.join(html)}</tr>"

    def _attributes(self, row: int | None, column: int) -> str:
        classes = [] if column in self.text_columns else ["n"]
        classes += ["best"] if (row, column) in self.best else []
        return f" class='{' '.join(classes)}'" if classes else ""


def html_page(title: str, parts: Sequence[str]) -> str:
    """Return a standalone HTML document without scripts or links."""
    metadata = (
        "<meta charset=utf-8><meta name=generator content=Fusioner><meta name=viewport content='width=device-width'>"
    )
    head = f"{metadata}<title>{escape(title)}</title>"
    body = f"<h1>{escape(title)}</h1>{''.join(parts)}"
    return f"<!doctype html><html lang=en>{head}<style>{_STYLE}</style><body>{body}</body></html>\n"


def html_list(items: Sequence[str]) -> str:
    """Return a bulleted list in HTML."""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def format_estimate(estimate: Estimate | None) -> str:
    """Format a value with its interval, as `41.2 [38.0, 44.9]`; a dash if it was not measured."""
    if estimate is None or math.isnan(estimate.value):
        return "-"
    return f"{estimate.value:.1f} [{estimate.low:.1f}, {estimate.high:.1f}]"


def write_files(folder: Path, contents: Mapping[str, str]) -> list[Path]:
    """Write text files atomically into a folder, created if missing, and return their paths.

    Raises FusionerError if a file cannot be written or another program's file of that name is there.
    """
    for name in contents:
        check_replaceable(folder / name)
    for name, text in contents.items():
        with atomic_write(folder / name) as beside:
            beside.write_text(text + ("\n<!-- Fusioner -->\n" if name.endswith(".md") else ""), encoding="utf-8")
    return [folder / name for name in contents]


def _escape(cell: str) -> str:
    return cell if isinstance(cell, Markup) else escape(cell)
