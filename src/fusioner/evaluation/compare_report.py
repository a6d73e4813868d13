"""A comparison of two runs for eyes and machines: rows of tables, compare.json, compare.md and compare.html."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

from fusioner.evaluation.compare import Comparison, Difference
from fusioner.evaluation.html import page
from fusioner.evaluation.report import MEASURES, markdown_table, shown
from fusioner.io import atomic_write

HEAD = ("", "A", "B", "B - A [95 %]", "p", "verdict")
NOT_SURE = "within chance"
_FEWER_IS_BETTER = ("false_positive_area", "prompt_ablated_miou")
_SPAN = 300  # px on each side of zero in the picture


def heading(found: Comparison) -> str:
    """`pascal: 252 images that both runs saw`."""
    return f"{found.dataset}: {found.images} images that both runs saw"


def legend(a: str, b: str) -> list[str]:
    """What A, B and p stand for."""
    return [
        f"A: {a}",
        f"B: {b}",
        "per cent; interval: paired bootstrap over images; p: approximate randomisation, of classes Holm-adjusted",
    ]


def figure_rows(found: Comparison) -> list[list[str]]:
    """A row a measure that both runs have, in the order of the reports."""
    return [
        [label, *_cells(found.figures[name], name in _FEWER_IS_BETTER)]
        for name, (label, _) in MEASURES.items()
        if name in found.figures
    ]


def class_rows(found: Comparison) -> list[list[str]]:
    """A row a class, and one more where classes also competed."""
    rows = []
    for i in sorted(found.per_class.keys() | found.argmax_per_class.keys()):
        for table, suffix in ((found.per_class, ""), (found.argmax_per_class, ", argmax")):
            if i in table:
                rows.append([f"{found.classes[i]}{suffix}", *_cells(table[i], False)])
    return rows


def write_comparison(folder: Path, found: Comparison, a: str, b: str) -> list[Path]:
    """Write the three files into `folder` -> their paths.

    Raises:
        FusionerError: no space, no permission; files are whole or absent.
    """
    contents = {
        "compare.json": json.dumps(_plain(found, a, b), indent=2, allow_nan=False) + "\n",
        "compare.md": _markdown(found, a, b),
        "compare.html": _html(found, a, b),
    }
    for name, text in contents.items():
        with atomic_write(folder / name) as beside:
            beside.write_text(text, encoding="utf-8")
    return [folder / name for name in contents]


def _cells(one: Difference, fewer: bool) -> list[str]:
    sign = "+" if one.change.value > 0 else ""
    return [_number(one.first), _number(one.second), sign + shown(one.change), _p(one.p), _verdict(one, fewer)]


def _verdict(one: Difference, fewer: bool) -> str:
    if not one.sure:
        return NOT_SURE
    return "B better" if (one.change.value > 0) != fewer else "A better"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"


def _plain(found: Comparison, a: str, b: str) -> dict[str, object]:
    def table(differences: dict[str, Difference]) -> dict[str, object]:
        return {name: _json(one) for name, one in differences.items()}

    names = found.classes
    return {
        "a": a,
        "b": b,
        "dataset": found.dataset,
        "images": found.images,
        "unit": "per cent",
        "figures": table(found.figures),
        "per_class": table({names[i]: one for i, one in found.per_class.items()}),
        "argmax_per_class": table({names[i]: one for i, one in found.argmax_per_class.items()}),
        "notes": found.notes,
    }


def _json(one: Difference) -> dict[str, object]:
    flat = {"a": one.first, "b": one.second, "change": asdict(one.change), "p": one.p, "sure": one.sure}
    return json.loads(json.dumps(flat).replace("NaN", "null"))


def _markdown(found: Comparison, a: str, b: str) -> str:
    lines = [f"# {heading(found)}", "", *(f"- {line}" for line in [*legend(a, b), *found.notes]), ""]
    lines += markdown_table(list(HEAD), figure_rows(found))
    lines += ["", *markdown_table(list(HEAD), class_rows(found)), ""]
    return "\n".join(lines)


def _html(found: Comparison, a: str, b: str) -> str:
    parts = [f"<h1>{escape(heading(found))}</h1>"]
    parts += ["<ul>" + "".join(f"<li>{escape(line)}</li>" for line in [*legend(a, b), *found.notes]) + "</ul>"]
    shares = {MEASURES[name][0]: one for name, one in found.figures.items() if name in MEASURES}
    classes = {
        found.classes[i] + suffix: table[i]
        for table, suffix in ((found.per_class, ""), (found.argmax_per_class, ", argmax"))
        for i in sorted(table)
    }
    for title, rows, picture in (
        ("Measures", figure_rows(found), {row[0]: shares[row[0]] for row in figure_rows(found)}),
        ("Classes", class_rows(found), {row[0]: classes[row[0]] for row in class_rows(found)}),
    ):
        parts.append(f"<h2>{title}</h2>" + _forest(rows, picture))
    return page(heading(found), parts)


def _forest(rows: Sequence[Sequence[str]], pictured: dict[str, Difference]) -> str:
    """A table with each difference drawn to one scale: a dot with its interval, zero in the middle."""
    ends = [abs(end) for one in pictured.values() for end in (one.change.low, one.change.high) if not math.isnan(end)]
    scale = _SPAN / max([1.0, *ends])
    head = "".join(f"<th>{escape(cell)}</th>" for cell in (HEAD[0], "lower in B | higher in B", *HEAD[1:]))
    body = "".join(
        f"<tr><td>{escape(row[0])}</td><td>{_dot(pictured[row[0]], scale)}</td>"
        + "".join(f"<td class=n>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f"<p>Scale: {_SPAN / scale:.1f} points to either side of zero.</p><table><tr>{head}</tr>{body}</table>"


def _dot(one: Difference, scale: float) -> str:
    low, value, high = (
        _SPAN + scale * (0.0 if math.isnan(v) else v) for v in (one.change.low, one.change.value, one.change.high)
    )
    colour = "#888" if not one.sure else "#2f6fe0"
    return (
        f"<svg width={2 * _SPAN} height=16 role=img aria-label='{one.change.value:.1f} points'>"
        f"<line x1={_SPAN} x2={_SPAN} y1=0 y2=16 stroke=currentColor opacity=.35 />"
        f"<line x1={low:.1f} x2={high:.1f} y1=8 y2=8 stroke='{colour}' stroke-width=3 />"
        f"<circle cx={value:.1f} cy=8 r=5 fill='{colour}' /></svg>"
    )
