"""The table of a sweep in the shape of the paper's Table 1: a row an encoder pair and method, a column a fold."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from fusioner.evaluation import report
from fusioner.evaluation.bootstrap import Figure, summarise
from fusioner.evaluation.report import MEASURES, format_estimate
from fusioner.evaluation.store import read_evidence
from fusioner.io import atomic_write
from fusioner.sweep.plan import Cell, Sweep
from fusioner.sweep.run import folder_of, is_done

COLUMNS = (
    "miou",
    "argmax_miou",
    "prompt_ablated_miou",
    "false_positive_area",
    "specificity",
    "single_prompt_miou",
    "harmonic",
)
"""Measures that get a table, where they were taken."""
LOWER, UNJUDGED = ("false_positive_area",), ("prompt_ablated_miou",)
"""Better when lower; neither better nor worse by itself."""
MEAN = "mean"
_HEAD = ["image encoder", "text encoder", "method"]
_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8882}
body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid var(--line)}
table{border-collapse:collapse}td,th{padding:.3rem .8rem;text-align:left;border-bottom:1px solid var(--line)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.n small{display:block;opacity:.65}td.best{background:var(--soft);font-weight:600}
pre{background:var(--soft);padding:1rem;overflow:auto;border-radius:8px;white-space:pre-wrap}
"""


@dataclass(frozen=True)
class Row:
    """One row: figures by measure, then by column ("0" ... "3", or "mean"); `cells` of `wanted` are finished."""

    name: tuple[str, str, str]
    figures: Mapping[str, Mapping[str, Figure]]
    images: int
    cells: int
    wanted: int


@dataclass(frozen=True)
class Table:
    """All rows; `failed`: cells that could not be finished, with the reason."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    failed: Mapping[str, str]
    identity: Mapping[str, Any]


def build(sweep: Sweep, out: Path, failed: Mapping[Cell, str] | None = None, draws: int = 1000) -> Table:
    """From the reports of the finished cells; seeds of a fold are averaged.

    Raises:
        FusionerError: a report is damaged.
    """
    folds = list(dict.fromkeys(cell.fold for cell in sweep.cells))
    columns = (*(str(fold) for fold in folds if fold is not None), MEAN)
    names = dict.fromkeys(cell.row for cell in sweep.cells)
    rows = tuple(_row(name, [cell for cell in sweep.cells if cell.row == name], out, draws) for name in names)
    tested = "" if sweep.test_set == sweep.train_set else f", tested on {sweep.test_set}"
    why = {cell.title: reason for cell, reason in (failed or {}).items()}
    return Table(f"Sweep of {sweep.train_set}{tested}", columns, rows, why, sweep.identity())


def write(table: Table, out: Path) -> list[Path]:
    """Write table.json, table.md and table.html; FusionerError when the system refuses."""
    contents = {
        "table.json": json.dumps(to_json(table), indent=2, allow_nan=False) + "\n",
        "table.md": to_markdown(table),
        "table.html": to_html(table),
    }
    for name, text in contents.items():
        with atomic_write(out / name) as beside:
            beside.write_text(text, "utf-8")
    return [out / name for name in contents]


def to_json(table: Table) -> dict[str, Any]:
    """Plain values: per cent with the bounds of the 95 % interval."""
    rows = [
        dict(zip(("image_encoder", "text_encoder", "method"), row.name, strict=True))
        | {"images": row.images, "cells": row.cells, "cells_wanted": row.wanted}
        | {measure: {c: _numbers(f) for c, f in by.items()} for measure, by in row.figures.items()}
        for row in table.rows
    ]
    return {"title": table.title, "unit": "per cent", "columns": list(table.columns), "rows": rows} | {
        "failed": dict(table.failed),
        "settings": dict(table.identity),
    }


def to_markdown(table: Table) -> str:
    """A table a measure."""
    lines = [f"# {table.title}", "", "Per cent; brackets: bootstrap 95 % interval over images.", ""]
    for measure in measures(table):
        label, meaning = MEASURES[measure]
        body = [[*row.name, *(_text(row, measure, column) for column in table.columns)] for row in table.rows]
        lines += [f"## {label}", "", f"{meaning[0].upper()}{meaning[1:]}.", ""]
        lines += [report.Table([*_HEAD, *_column_heads(table)], body).to_markdown(), ""]
    lines += [f"- {note}" for note in notes(table)]
    return "\n".join(lines).rstrip() + "\n"


def to_html(table: Table) -> str:
    """One file without scripts or links; the best mean of each table is marked."""
    parts = [
        f"<h1>{escape(table.title)}</h1>",
        "<p>Per cent; below each figure its bootstrap 95 % interval over images.</p>",
    ]
    heads = "".join(f"<th>{one}</th>" for one in _HEAD) + "".join(f"<th class=n>{c}</th>" for c in _column_heads(table))
    for measure in measures(table):
        label, meaning = MEASURES[measure]
        best = _best(table, measure)
        body = "".join(
            "<tr>"
            + "".join(f"<td>{escape(one)}</td>" for one in row.name)
            + "".join(_cell(row, measure, column, row is best and column == MEAN) for column in table.columns)
            + "</tr>"
            for row in table.rows
        )
        parts.append(f"<h2>{escape(label)}</h2><p>{escape(meaning[0].upper() + meaning[1:])}.</p>")
        parts.append(f"<table><tr>{heads}</tr>{body}</table>")
    parts.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes(table)) + "</ul>")
    parts.append(f"<h2>Settings</h2><pre>{escape(json.dumps(table.identity, indent=2))}</pre>")
    title = escape(table.title)
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{title}</title>"
    return f"<!doctype html><html lang=en>{head}<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"


def measures(table: Table) -> list[str]:
    """Those that any row has."""
    return [measure for measure in COLUMNS if any(measure in row.figures for row in table.rows)]


def notes(table: Table) -> list[str]:
    """What a reader must know: rows that lack cells, and the cells that failed."""
    short = [
        f"{' / '.join(row.name)}: {row.cells} of {row.wanted} cells are finished; its mean is of those"
        for row in table.rows
        if row.cells < row.wanted
    ]
    images = [f"{' / '.join(row.name)}: {row.images} images" for row in table.rows if row.images]
    return [*images, *short, *(f"failed: {cell}: {reason}" for cell, reason in table.failed.items())]


def _row(name: tuple[str, str, str], cells: Sequence[Cell], out: Path, draws: int) -> Row:
    finished = [cell for cell in cells if is_done(out, cell)]
    evidence = {cell: list(read_evidence(folder_of(out, cell) / "report").folds.values()) for cell in finished}
    groups = {MEAN: finished}
    groups |= {str(f): [c for c in finished if c.fold == f] for f in dict.fromkeys(c.fold for c in finished)}
    groups.pop("None", None)
    figures: dict[str, dict[str, Figure]] = {}
    images = 0
    for column, some in groups.items():
        if not some:
            continue
        summary = summarise([one for cell in some for one in evidence[cell]], draws)
        images = max(images, summary.images)
        for measure, figure in summary.figures.items():
            figures.setdefault(measure, {})[column] = figure
    return Row(name, figures, images, len(finished), len(cells))


def _column_heads(table: Table) -> list[str]:
    return [column if column == MEAN else f"fold {column}" for column in table.columns]


def _text(row: Row, measure: str, column: str) -> str:
    figure = row.figures.get(measure, {}).get(column)
    return "-" if figure is None else format_estimate(figure)


def _cell(row: Row, measure: str, column: str, best: bool) -> str:
    text, _, interval = _text(row, measure, column).partition(" ")
    return f"<td class='n{' best' if best else ''}'>{text}<small>{interval}</small></td>"


def _best(table: Table, measure: str) -> Row | None:
    """The row of the best mean among those that are complete."""
    if measure in UNJUDGED:
        return None
    known = [row for row in table.rows if row.cells == row.wanted and MEAN in row.figures.get(measure, {})]
    sign = -1 if measure in LOWER else 1
    return max(known, key=lambda row: sign * row.figures[measure][MEAN].value, default=None)


def _numbers(figure: Figure) -> dict[str, float | None]:
    values = {"value": figure.value, "low": figure.low, "high": figure.high}
    return {name: None if math.isnan(value) else round(value, 4) for name, value in values.items()}
