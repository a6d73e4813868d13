"""report.html: one file without scripts or links, pictures inside."""

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Integer
from PIL import Image

from fusioner.data.base import SegmentationData
from fusioner.evaluation.bootstrap import Figure
from fusioner.evaluation.evaluate import Outcome, metrics
from fusioner.evaluation.report import MEASURES, class_rows, figure_head, figure_rows, notes, shown, title
from fusioner.evaluation.results import IGNORED, Evidence, Example, Group
from fusioner.visualization import colour, draw_masks

HEIGHT = 200  # of a picture, px
MATRIX = 31  # more classes than this make no readable confusion matrix
_GREY = 120
_SIDES = "Answer left, truth right; grey pixels count nowhere."
_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8882;--bar:#2f6fe0}
body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid var(--line)}
table{border-collapse:collapse}td,th{padding:.25rem .7rem;text-align:left;border-bottom:1px solid var(--line)}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.track{position:relative;width:420px;max-width:50vw;height:14px;background:var(--soft);border-radius:7px}
.bar{position:absolute;inset:0 auto 0 0;background:var(--bar);border-radius:7px}
.whisker{position:absolute;top:5px;height:4px;background:currentColor;opacity:.55}
.cards{display:flex;flex-wrap:wrap;gap:1rem}.card{background:var(--soft);border-radius:8px;padding:.5rem}
.card img{display:block;border-radius:4px;max-width:100%}.card div{margin-top:.3rem;font-size:.85rem}
.chip{display:inline-block;width:.8em;height:.8em;border-radius:3px;margin:0 .25em 0 .5em;vertical-align:-1px}
.matrix td{padding:.15rem .4rem;text-align:right;font-size:.8rem;border:0}.matrix th{font-size:.8rem;border:0}
.matrix thead th{writing-mode:vertical-rl;transform:rotate(180deg)}
pre{background:var(--soft);padding:1rem;overflow:auto;border-radius:8px;white-space:pre-wrap}
"""


def html(outcome: Outcome, origin: dict[str, Any]) -> str:
    """The whole page."""
    name = escape(title(outcome))
    parts = [
        f"<h1>{name}</h1><p>All figures in per cent; brackets and whiskers: bootstrap 95 % interval over images.</p>",
        _table(figure_head(outcome), figure_rows(outcome)),
        "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes(outcome)) + "</ul>",
        "<h2>Classes</h2>" + _bars(outcome),
    ]
    for fold, one in outcome.folds.items():
        where = "" if fold is None else f", fold {fold}"
        parts += [_matrix(group, outcome.data, where) for name, group in one.evidence.groups.items() if name != "seen"]
        parts += _pictures(one.evidence, outcome.data, where)
    details = json.dumps({"settings": metrics(outcome)["settings"], **origin}, indent=2, default=str)
    parts.append(f"<h2>How to repeat this</h2><pre>{escape(origin['command'])}</pre><pre>{escape(details)}</pre>")
    return page(title(outcome), parts)


def page(name: str, parts: Sequence[str]) -> str:
    """A whole document in the style of the reports."""
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escape(name)}</title>"
    return f"<!doctype html><html lang=en>{head}<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(_cell(i, cell, len(row)) for i, cell in enumerate(row)) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _cell(column: int, text: str, columns: int) -> str:
    return f"<td{' class=n' if 0 < column < columns - 1 else ''}>{escape(text)}</td>"


def _bars(outcome: Outcome) -> str:
    s, names = outcome.summary, outcome.data.classes
    heads = ["class", "", "IoU", *(["argmax IoU"] if s.argmax_per_class else [])]
    rows = []
    for (i, figure), texts in zip(sorted(s.per_class.items()), class_rows(outcome), strict=True):
        numbers = "".join(f"<td class=n>{escape(text)}</td>" for text in texts[1:])
        rows.append(f"<tr><td>{escape(names[i])}</td><td>{_bar(figure)}</td>{numbers}</tr>")
    head = "".join(f"<th>{name}</th>" for name in heads)
    blind = s.figures.get("prompt_ablated_miou")
    note = f"<p>{MEASURES['prompt_ablated_miou'][0]} of all classes: {shown(blind)}</p>" if blind else ""
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>{note}"


def _bar(figure: Figure) -> str:
    low, value, high = (0.0 if np.isnan(v) else v for v in (figure.low, figure.value, figure.high))
    whisker = f"<div class=whisker style='left:{low:.1f}%;width:{max(high - low, 0.3):.1f}%'></div>"
    return f"<div class=track><div class=bar style='width:{value:.1f}%'></div>{whisker}</div>"


def _matrix(group: Group, data: SegmentationData, where: str) -> str:
    if len(group.class_ids) > MATRIX:
        return ""
    names = ["background", *(data.classes[i] for i in group.class_ids)]
    share = 100 * group.confusion / np.maximum(group.confusion.sum(axis=1, keepdims=True), 1)
    head = "<th></th>" + "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = [
        f"<tr><th>{escape(name)}</th>"
        + "".join(f"<td style='background:rgb(47 111 224/{v:.0f}%)'>{v:.0f}</td>" for v in values)
        + "</tr>"
        for name, values in zip(names, share, strict=True)
    ]
    return (
        f"<h2>Confusion{where}</h2><p>Argmax of all classes together: where the pixels of each class (rows) went, "
        f"per cent.</p><table class=matrix><thead><tr>{head}</tr></thead>{''.join(rows)}</table>"
    )


def _pictures(evidence: Evidence, data: SegmentationData, where: str) -> list[str]:
    parts = []
    for name, examples in (("Best", evidence.best), ("Worst", evidence.worst)):
        if examples:
            cards = "".join(_card(example, data) for example in examples)
            parts.append(f"<h2>{name} {len(examples)}{where}</h2><p>{_SIDES}</p>")
            parts.append(f"<div class=cards>{cards}</div>")
    return parts


def _card(example: Example, data: SegmentationData) -> str:
    rgb, _ = data.read(data.by_id[example.image])
    here = set(np.unique(example.prediction)) | set(np.unique(example.truth))
    legend = "".join(
        f"<span class=chip style='background:rgb{colour(k)}'></span>{escape(data.classes[i])}"
        for k, i in enumerate(example.labels, start=1)
        if k in here
    )
    sides = [
        _painted(rgb, labels) for labels in (example.prediction, np.where(example.truth < 65535, example.truth, 0))
    ]
    both = Image.fromarray(np.concatenate([sides[0], np.full((HEIGHT, 6, 3), 255, np.uint8), sides[1]], axis=1))
    buffer = io.BytesIO()
    both.save(buffer, format="JPEG", quality=82)
    source = base64.b64encode(buffer.getvalue()).decode()
    text = f"{escape(example.image)}: IoU {100 * example.score:.0f}{legend}"
    return f"<div class=card><img alt='' src='data:image/jpeg;base64,{source}'><div>{text}</div></div>"


def _painted(rgb: np.ndarray, labels: Integer[np.ndarray, "h w"]) -> np.ndarray:
    """The photograph under a label map of any size, at the report's height."""
    width = max(1, round(rgb.shape[1] * HEIGHT / rgb.shape[0]))
    small = np.asarray(Image.fromarray(rgb).resize((width, HEIGHT), Image.Resampling.BOX))
    shrunk = Image.fromarray(labels.astype(np.int32)).resize((width, HEIGHT), Image.Resampling.NEAREST)
    numbers = np.asarray(shrunk)
    ignored = numbers == IGNORED
    painted = draw_masks(small, np.where(ignored, 0, numbers), 0.5)
    return np.where(ignored[..., None], painted // 4 + _GREY, painted)
