"""The table of a sweep in the form of the paper's Table 1: one row per encoder pair and method, one column per fold."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from fusioner.evaluation import report
from fusioner.evaluation.bootstrap import Estimate, summarize
from fusioner.evaluation.report import MEASURES, format_estimate
from fusioner.evaluation.results import load_counts
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
"""Measures with a table of their own, if they were taken."""
LOWER_IS_BETTER, NOT_RANKED = ("false_positive_area",), ("prompt_ablated_miou",)
MEAN = "mean"
_UNIT = "Per cent; brackets: bootstrap 95 % interval over images."
_ROW_HEAD = ["image encoder", "text encoder", "method"]


@dataclass(frozen=True)
class Row:
    """Figures of one encoder pair and method by measure and column ("0" ... "3", "mean"), of `cells` of `wanted`."""

    name: tuple[str, str, str]
    figures: Mapping[str, Mapping[str, Estimate]]
    images: int
    cells: int
    wanted: int


@dataclass(frozen=True)
class SweepTable:
    """All rows; `failed`: the reason of each cell that could not be finished."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    failed: Mapping[str, str]
    identity: Mapping[str, Any]


def build(sweep: Sweep, out: Path, failed: Mapping[Cell, str] | None = None, draws: int = 1000) -> SweepTable:
    """Collect the reports of the finished cells; seeds of a fold are averaged."""
    folds = dict.fromkeys(cell.fold for cell in sweep.cells)
    columns = (*(str(fold) for fold in folds if fold is not None), MEAN)
    names = dict.fromkeys(cell.row for cell in sweep.cells)
    rows = tuple(_row(name, [cell for cell in sweep.cells if cell.row == name], out, draws) for name in names)
    tested = "" if sweep.test_set == sweep.train_set else f", tested on {sweep.test_set}"
    reasons = {cell.title: reason for cell, reason in (failed or {}).items()}
    return SweepTable(f"Sweep of {sweep.train_set}{tested}", columns, rows, reasons, sweep.identity())


def write(table: SweepTable, out: Path) -> list[Path]:
    """Write table.json, table.md and table.html."""
    contents = {
        "table.json": json.dumps({"generator": "Fusioner"} | to_json(table), indent=2, allow_nan=False) + "\n",
        "table.md": to_markdown(table),
        "table.html": to_html(table),
    }
    return report.write_files(out, contents)


def to_json(table: SweepTable) -> dict[str, Any]:
    """Return plain values: per cent with the bounds of the 95 % interval."""
    rows = [
        dict(zip(("image_encoder", "text_encoder", "method"), row.name, strict=True))
        | {"images": row.images, "cells": row.cells, "cells_wanted": row.wanted}
        | {measure: {column: figure.to_json() for column, figure in by.items()} for measure, by in row.figures.items()}
        for row in table.rows
    ]
    head = {"title": table.title, "unit": "per cent", "columns": list(table.columns), "rows": rows}
    return head | {"failed": dict(table.failed), "settings": dict(table.identity)}


def to_markdown(table: SweepTable) -> str:
    """Return one table per measure, and notes."""
    lines = [f"# {table.title}", "", _UNIT, ""]
    for label, meaning, measure_table in _measure_tables(table):
        lines += [f"## {label}", "", meaning, "", measure_table.to_markdown(), ""]
    return "\n".join([*lines, *(f"- {note}" for note in _notes(table))]).rstrip() + "\n"


def to_html(table: SweepTable) -> str:
    """Return the same as a page; the best mean of each table is highlighted."""
    parts = [f"<p>{_UNIT}</p>"]
    for label, meaning, measure_table in _measure_tables(table):
        parts += [f"<h2>{escape(label)}</h2><p>{escape(meaning)}</p>", measure_table.to_html()]
    settings = escape(json.dumps(table.identity, indent=2))
    parts += [report.html_list(_notes(table)), f"<h2>Settings</h2><pre>{settings}</pre>"]
    return report.html_page(table.title, parts)


def _measure_tables(table: SweepTable) -> Iterator[tuple[str, str, report.Table]]:
    """Yield (label, meaning, table) of each measure that was taken."""
    for name in COLUMNS:
        if any(name in row.figures for row in table.rows):
            label, meaning = MEASURES[name]
            yield label, f"{meaning[0].upper()}{meaning[1:]}.", _measure_table(table, name)


def _measure_table(table: SweepTable, measure: str) -> report.Table:
    head = [*_ROW_HEAD, *(column if column == MEAN else f"fold {column}" for column in table.columns)]
    estimates = [[row.figures.get(measure, {}).get(column) for column in table.columns] for row in table.rows]
    rows = [[*row.name, *map(format_estimate, cells)] for row, cells in zip(table.rows, estimates, strict=True)]
    complete = [
        number
        for number, row in enumerate(table.rows)
        if row.cells == row.wanted and MEAN in row.figures.get(measure, {}) and measure not in NOT_RANKED
    ]
    sign = -1 if measure in LOWER_IS_BETTER else 1
    best = max(complete, key=lambda number: sign * table.rows[number].figures[measure][MEAN].value, default=None)
    marked = [] if best is None else [(best, len(head) - 1)]
    return report.Table(head, rows, text_columns=range(len(_ROW_HEAD)), best=marked)


def _notes(table: SweepTable) -> list[str]:
    images = [f"{' / '.join(row.name)}: {row.images} images" for row in table.rows if row.images]
    unfinished = [
        f"{' / '.join(row.name)}: {row.cells} of {row.wanted} cells are finished; its mean is of those"
        for row in table.rows
        if row.cells < row.wanted
    ]
    return [*images, *unfinished, *(f"failed: {cell}: {reason}" for cell, reason in table.failed.items())]


def _row(name: tuple[str, str, str], cells: Sequence[Cell], out: Path, draws: int) -> Row:
    finished = [cell for cell in cells if is_done(out, cell)]
    evidence = {cell: list(load_counts(folder_of(out, cell) / "report").folds.values()) for cell in finished}
    columns = {MEAN: finished} if finished else {}
    for cell in finished:
        if cell.fold is not None:
            columns.setdefault(str(cell.fold), []).append(cell)
    figures: dict[str, dict[str, Estimate]] = {}
    images = 0
    for column, column_cells in columns.items():
        summary = summarize([fold for cell in column_cells for fold in evidence[cell]], draws)
        images = max(images, summary.images)
        for measure, figure in summary.measures.items():
            figures.setdefault(measure, {})[column] = figure
    return Row(name, figures, images, len(finished), len(cells))
