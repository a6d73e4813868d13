"""The table of a sweep in the form of the paper's Table 1: one row per encoder pair and method, one column per fold."""

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, TypeAlias

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
_ROW_HEAD = ("image_encoder", "text_encoder", "method")


Content: TypeAlias = dict[str, Any]
"""The values of table.json; the figures of a row by measure and column ("0" ... "3", "mean") are `Estimate`."""


def build(sweep: Sweep, out: Path, failed: Mapping[Cell, str] | None = None, draws: int = 1000) -> Content:
    """Collect the reports of the finished cells; seeds of a fold are averaged. `failed`: reasons by cell."""
    folds = dict.fromkeys(cell.fold for cell in sweep.cells)
    names = dict.fromkeys(cell.row for cell in sweep.cells)
    tested = "" if sweep.test_set == sweep.train_set else f", tested on {sweep.test_set}"
    return {
        "title": f"Sweep of {sweep.train_set}{tested}",
        "unit": "per cent",
        "columns": [*(str(fold) for fold in folds if fold is not None), MEAN],
        "rows": [_row(name, [cell for cell in sweep.cells if cell.row == name], out, draws) for name in names],
        "failed": {cell.title: reason for cell, reason in (failed or {}).items()},
        "settings": sweep.identity(),
    }


def write(content: Content, out: Path) -> list[Path]:
    """Write table.json, table.md and table.html."""
    values = {"generator": "Fusioner"} | content
    texts = {
        "table.json": json.dumps(values, indent=2, allow_nan=False, default=Estimate.to_json) + "\n",
        "table.md": to_markdown(content),
        "table.html": to_html(content),
    }
    return report.write_files(out, texts)


def to_markdown(content: Content) -> str:
    """Return one table per measure, and notes."""
    lines = [f"# {content['title']}", "", _UNIT, ""]
    for label, meaning, table in _measure_tables(content):
        lines += [f"## {label}", "", meaning, "", table.to_markdown(), ""]
    return "\n".join([*lines, *(f"- {note}" for note in _notes(content))]).rstrip() + "\n"


def to_html(content: Content) -> str:
    """Return the same as a page; the best mean of each table is highlighted."""
    parts = [f"<p>{_UNIT}</p>"]
    for label, meaning, table in _measure_tables(content):
        parts += [f"<h2>{escape(label)}</h2><p>{escape(meaning)}</p>", table.to_html()]
    settings = escape(json.dumps(content["settings"], indent=2))
    parts += [report.html_list(_notes(content)), f"<h2>Settings</h2><pre>{settings}</pre>"]
    return report.html_page(content["title"], parts)


def _measure_tables(content: Content) -> Iterator[tuple[str, str, report.Table]]:
    """Yield (label, meaning, table) of each measure that was taken."""
    columns, rows = content["columns"], content["rows"]
    head = ["image encoder", "text encoder", "method", *(f"fold {column}" for column in columns[:-1]), MEAN]
    for measure in (measure for measure in COLUMNS if any(measure in row for row in rows)):
        figures = [row.get(measure, {}) for row in rows]
        texts = [
            [*(row[name] for name in _ROW_HEAD), *(format_estimate(own.get(column)) for column in columns)]
            for row, own in zip(rows, figures, strict=True)
        ]
        complete = [i for i, row in enumerate(rows) if row["cells"] == row["cells_wanted"] and MEAN in figures[i]]
        sign = -1 if measure in LOWER_IS_BETTER else 1
        best = max(complete, key=lambda i: sign * figures[i][MEAN].value, default=None)
        marked = [] if best is None or measure in NOT_RANKED else [(best, len(head) - 1)]
        label, meaning = MEASURES[measure]
        table = report.Table(head, texts, text_columns=range(len(_ROW_HEAD)), best=marked)
        yield label, f"{meaning[0].upper()}{meaning[1:]}.", table


def _notes(content: Content) -> list[str]:
    rows = [(" / ".join(row[name] for name in _ROW_HEAD), row) for row in content["rows"]]
    images = [f"{name}: {row['images']} images" for name, row in rows if row["images"]]
    unfinished = [
        f"{name}: {row['cells']} of {row['cells_wanted']} cells are finished; its mean is of those"
        for name, row in rows
        if row["cells"] < row["cells_wanted"]
    ]
    return [*images, *unfinished, *(f"failed: {cell}: {reason}" for cell, reason in content["failed"].items())]


def _row(name: tuple[str, str, str], cells: Sequence[Cell], out: Path, draws: int) -> dict[str, Any]:
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
    counts = {"images": images, "cells": len(finished), "cells_wanted": len(cells)}
    return dict(zip(_ROW_HEAD, name, strict=True)) | counts | figures
