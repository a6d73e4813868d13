"""Reports of a comparison: terminal tables, compare.json, compare.md and compare.html."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fusioner.evaluation.compare import Comparison, Difference
from fusioner.evaluation.report import MEASURES, Markup, Table, format_estimate, html_list, html_page, write_files

if TYPE_CHECKING:
    from rich.console import RenderableType

_HEAD = ("", "A", "B", "B - A [95 %]", "p", "verdict")
_LOWER_IS_BETTER = ("false_positive_area", "prompt_ablated_miou")
_WIDTH = 300  # px on each side of zero in the plot of a difference


def terminal(found: Comparison, a: Path, b: Path) -> "RenderableType":
    """Return the tables, legend and notes for a rich console."""
    from rich.console import Group

    tables = [table.to_rich() for table, _ in _tables(found)]
    return Group(*tables, *_legend(a, b), *(f"note: {note}" for note in found.notes))


def write_comparison(folder: Path, found: Comparison, a: Path, b: Path) -> list[Path]:
    """Write compare.json, compare.md and compare.html into `folder` and return their paths.

    Raises:
        FusionerError: no space or no permission.
    """
    contents = {
        "compare.json": json.dumps(_to_json(found, a, b), indent=2, allow_nan=False) + "\n",
        "compare.md": _markdown(found, a, b),
        "compare.html": _html(found, a, b),
    }
    return write_files(folder, contents)


def _tables(found: Comparison) -> list[tuple[Table, list[Difference]]]:
    """Return the tables of measures and classes, each with the difference that every row shows."""
    measures = {
        label: (found.measures[name], name in _LOWER_IS_BETTER)
        for name, (label, _) in MEASURES.items()
        if name in found.measures
    }
    classes = {}
    for i in sorted(found.per_class.keys() | found.argmax_per_class.keys()):
        for differences, suffix in ((found.per_class, ""), (found.argmax_per_class, ", multi-class")):
            if i in differences:
                classes[found.classes[i] + suffix] = differences[i], False
    made = []
    for title, named in ((_title(found), measures), ("classes", classes)):
        differences = [difference for difference, _ in named.values()]
        rows = [[label, *_cells(difference, lower)] for label, (difference, lower) in named.items()]
        bold = [number for number, difference in enumerate(differences) if difference.significant]
        made.append((Table(_HEAD, rows, title, text_columns=(0, len(_HEAD) - 1), bold=bold), differences))
    return made


def _cells(difference: Difference, lower_is_better: bool) -> list[str]:
    sign = "+" if difference.change.value > 0 else ""
    values = ["-" if math.isnan(value) else f"{value:.1f}" for value in (difference.first, difference.second)]
    p = f"{difference.p:.3f}" if difference.p >= 0.001 else f"{difference.p:.1g}"
    verdict = "not significant"
    if difference.significant:
        verdict = "B better" if (difference.change.value > 0) != lower_is_better else "A better"
    return [*values, sign + format_estimate(difference.change), p, verdict]


def _title(found: Comparison) -> str:
    return f"{found.dataset}: {found.images} images evaluated by both runs"


def _legend(a: Path, b: Path) -> list[str]:
    method = "interval: paired bootstrap over images; p: approximate randomisation, Holm-adjusted over classes"
    return [f"A: {a}", f"B: {b}", f"per cent; {method}"]


def _to_json(found: Comparison, a: Path, b: Path) -> dict[str, object]:
    def table(differences: dict[str, Difference]) -> dict[str, object]:
        return {name: _difference_to_json(difference) for name, difference in differences.items()}

    names = found.classes
    return {
        "a": str(a),
        "b": str(b),
        "dataset": found.dataset,
        "images": found.images,
        "unit": "per cent",
        "measures": table(found.measures),
        "per_class": table({names[i]: difference for i, difference in found.per_class.items()}),
        "argmax_per_class": table({names[i]: difference for i, difference in found.argmax_per_class.items()}),
        "notes": found.notes,
    }


def _difference_to_json(difference: Difference) -> dict[str, object]:
    values = {
        "a": difference.first,
        "b": difference.second,
        "change": asdict(difference.change),
        "p": difference.p,
        "significant": difference.significant,
    }
    return json.loads(json.dumps(values).replace("NaN", "null"))


def _markdown(found: Comparison, a: Path, b: Path) -> str:
    remarks = "\n".join(f"- {line}" for line in [*_legend(a, b), *found.notes])
    return "\n\n".join([f"# {_title(found)}", remarks, *(table.to_markdown() for table, _ in _tables(found))]) + "\n"


def _html(found: Comparison, a: Path, b: Path) -> str:
    parts = [html_list([*_legend(a, b), *found.notes])]
    for name, (table, differences) in zip(("Measures", "Classes"), _tables(found), strict=True):
        ends = [abs(end) for one in differences for end in (one.change.low, one.change.high) if not math.isnan(end)]
        scale = _WIDTH / max([1.0, *ends])
        rows = [
            [label, _plot(difference, scale), *cells]
            for (label, *cells), difference in zip(table.rows, differences, strict=True)
        ]
        head = [table.head[0], "lower in B | higher in B", *table.head[1:]]
        plotted = replace(table, head=head, rows=rows, text_columns=(0, 1, len(head) - 1))
        parts.append(f"<h2>{name}</h2><p>Scale: {_WIDTH / scale:.1f} points to either side of zero.</p>")
        parts.append(plotted.to_html())
    return html_page(_title(found), parts)


def _plot(difference: Difference, scale: float) -> Markup:
    """Draw a difference as a dot with its interval, zero in the middle; `scale` in px per point."""
    change = difference.change
    low, value, high = (_WIDTH + scale * (0.0 if math.isnan(v) else v) for v in (change.low, change.value, change.high))
    colour = "#2f6fe0" if difference.significant else "#888"
    return Markup(
        f"<svg width={2 * _WIDTH} height=16 role=img aria-label='{change.value:.1f} points'>"
        f"<line x1={_WIDTH} x2={_WIDTH} y1=0 y2=16 stroke=currentColor opacity=.35 />"
        f"<line x1={low:.1f} x2={high:.1f} y1=8 y2=8 stroke='{colour}' stroke-width=3 />"
        f"<circle cx={value:.1f} cy=8 r=5 fill='{colour}' /></svg>"
    )
