"""Reports of an evaluation: terminal tables, metrics.json, report.md, report.html and the saved counts."""

import base64
import hashlib
import io
import json
import platform
from datetime import UTC, datetime
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Integer
from PIL import Image

from fusioner.data.base import SegmentationData
from fusioner.evaluation.bootstrap import Figure
from fusioner.evaluation.evaluate import Outcome, metrics
from fusioner.evaluation.report import MEASURES, Markup, Table, format_estimate, html_list, html_page, write_files
from fusioner.evaluation.results import IGNORED, Evidence, Example, Group
from fusioner.evaluation.store import write_evidence
from fusioner.visualization import colour, draw_masks

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fusioner.segmenter import Segmenter

_HEIGHT = 200  # of an example, px
_MAX_MATRIX = 31  # classes; larger confusion matrices are unreadable
_GREY = 120
_SEPARATOR = 6  # px between prediction and ground truth


def write_report(folder: Path, outcome: Outcome, origin: dict[str, Any]) -> list[Path]:
    """Write all files of a report into `folder`, created if missing, and return their paths.

    Args:
        origin: see `provenance`.

    Raises:
        FusionerError: no space or no permission.
    """
    contents = {
        "metrics.json": json.dumps(metrics(outcome) | origin, indent=2, allow_nan=False, default=str) + "\n",
        "report.md": markdown(outcome, origin),
        "report.html": _html(outcome, origin),
    }
    return [*write_files(folder, contents), write_evidence(folder, outcome)]


def provenance(
    command: str, model: Path | None, segmenter: "Segmenter", options: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Return what is needed to repeat an evaluation: command, versions, hashes of the weights, inference options."""
    content: dict[str, Any] = {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "versions": {"python": platform.python_version(), "platform": platform.platform(), **_versions()},
    }
    if model is not None:
        content["model"] = {"file": str(model), "sha256": hashlib.sha256(model.read_bytes()).hexdigest()}
    for kind, encoder in (("image", segmenter.image_encoder), ("text", segmenter.text_encoder)):
        content[f"{kind}_encoder"] = {"name": encoder.name, "sha256": encoder.fingerprint()}
    training = segmenter.card.training
    images = {"images": len(training["images"])} if isinstance(training.get("images"), list) else {}
    return content | {"device": str(segmenter.device), **options, "training": training | images}


def _versions() -> dict[str, str]:
    found = {}
    for package in ("fusioner", "torch", "transformers", "numpy", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = "source tree"
    return found


def title(outcome: Outcome) -> str:
    """Return the heading of a report, as `pascal fold 2, protocol official: 252 images, 317 pairs`."""
    folds = [str(fold) for fold in outcome.folds if fold is not None]
    which = f" fold{'s' if len(folds) > 1 else ''} {', '.join(folds)}" if folds else ""
    summary = outcome.summary
    pairs = f", {summary.pairs} pairs" if summary.pairs else ""
    protocol = next(iter(outcome.folds.values())).evidence.plan.protocol
    return f"{outcome.data.name}{which}, protocol {protocol}: {summary.images} images{pairs}"


def class_table(outcome: Outcome) -> Table:
    """Return the IoU of each class and, where classes also competed, its IoU of the argmax."""
    summary, names = outcome.summary, outcome.data.classes
    multiclass = ["multi-class IoU [95 %]"] if summary.argmax_per_class else []
    rows = []
    for i, iou in sorted(summary.per_class.items()):
        row = [names[i], format_estimate(iou)]
        rows.append([*row, format_estimate(summary.argmax_per_class.get(i))] if multiclass else row)
    return Table(["class", "IoU [95 %]", *multiclass], rows, title(outcome))


def measure_table(outcome: Outcome) -> Table:
    """Return all measures with their meaning, and a column for each of several folds."""
    folds = outcome.folds if len(outcome.folds) > 1 else {}
    head = ["measure", *(f"fold {fold}" for fold in folds), "mean [95 %]" if folds else "value [95 %]", "meaning"]
    rows = []
    for name, (label, meaning) in MEASURES.items():
        if name in outcome.summary.figures:
            by_fold = [one.summary.figures.get(name) for one in folds.values()]
            values = ["-" if value is None else f"{value.value:.1f}" for value in by_fold]
            rows.append([label, *values, format_estimate(outcome.summary.figures[name]), meaning])
    bold = [number for number, row in enumerate(rows) if row[0] == "mIoU"]
    return Table(head, rows, text_columns=(0, len(head) - 1), bold=bold)


def notes(outcome: Outcome) -> list[str]:
    """Return remarks on pairs that are not on disk, problems of the data set and overlap with training data."""
    missing = [
        f"fold {fold}: {one.missing.listed - one.missing.present} of {one.missing.listed} listed pairs are not on disk"
        for fold, one in outcome.folds.items()
        if one.missing and one.missing.present < one.missing.listed
    ]
    return [*outcome.notes, *missing]


def terminal(outcome: Outcome) -> "RenderableType":
    """Return the tables and notes for a rich console."""
    from rich.console import Group as Rows

    tables = class_table(outcome).to_rich(), measure_table(outcome).to_rich()
    return Rows(*tables, *(f"note: {note}" for note in notes(outcome)))


def markdown(outcome: Outcome, origin: dict[str, Any]) -> str:
    """Return the tables, notes and provenance in Markdown."""
    parts = [
        f"# {title(outcome)}",
        "All values in per cent; brackets: bootstrap 95 % interval over images.",
        measure_table(outcome).to_markdown(),
        class_table(outcome).to_markdown(),
        "\n".join(f"- {note}" for note in notes(outcome)),
        f"    {origin['command']}",
        f"```json\n{_details(outcome, origin)}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _details(outcome: Outcome, origin: dict[str, Any]) -> str:
    return json.dumps({"settings": metrics(outcome)["settings"], **origin}, indent=2, default=str)


def _html(outcome: Outcome, origin: dict[str, Any]) -> str:
    parts = [
        "<p>All values in per cent; brackets and whiskers: bootstrap 95 % interval over images.</p>",
        measure_table(outcome).to_html(),
        html_list(notes(outcome)),
        "<h2>Classes</h2>" + _class_bars(outcome),
    ]
    for fold, one in outcome.folds.items():
        suffix = "" if fold is None else f", fold {fold}"
        groups = [group for name, group in one.evidence.groups.items() if name != "seen"]
        parts += [_matrix(group, outcome.data, suffix) for group in groups if len(group.class_ids) <= _MAX_MATRIX]
        parts += _examples(one.evidence, outcome.data, suffix)
    command, details = escape(origin["command"]), escape(_details(outcome, origin))
    parts.append(f"<h2>How to repeat this</h2><pre>{command}</pre><pre>{details}</pre>")
    return html_page(title(outcome), parts)


def _class_bars(outcome: Outcome) -> str:
    table = class_table(outcome)
    bars = [_bar(iou) for _, iou in sorted(outcome.summary.per_class.items())]
    rows = [[name, bar, *values] for (name, *values), bar in zip(table.rows, bars, strict=True)]
    ablated = outcome.summary.figures.get("prompt_ablated_miou")
    note = f"<p>{MEASURES['prompt_ablated_miou'][0]} of all classes: {format_estimate(ablated)}</p>" if ablated else ""
    return Table([table.head[0], "", *table.head[1:]], rows, text_columns=(0, 1)).to_html() + note


def _bar(estimate: Figure) -> Markup:
    low, value, high = (0.0 if np.isnan(v) else v for v in (estimate.low, estimate.value, estimate.high))
    whisker = f"<div class=whisker style='left:{low:.1f}%;width:{max(high - low, 0.3):.1f}%'></div>"
    return Markup(f"<div class=track><div class=bar style='width:{value:.1f}%'></div>{whisker}</div>")


def _matrix(group: Group, data: SegmentationData, suffix: str) -> str:
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
        f"<h2>Confusion{suffix}</h2><p>Argmax of all classes: share of the pixels of each class (rows) by predicted "
        f"class, per cent.</p><table class=matrix><thead><tr>{head}</tr></thead>{''.join(rows)}</table>"
    )


def _examples(evidence: Evidence, data: SegmentationData, suffix: str) -> list[str]:
    parts = []
    for name, examples in (("Best", evidence.best), ("Worst", evidence.worst)):
        if examples:
            cards = "".join(_card(example, data) for example in examples)
            parts.append(f"<h2>{name} {len(examples)}{suffix}</h2>")
            parts.append("<p>Prediction left, ground truth right; grey pixels are ignored.</p>")
            parts.append(f"<div class=cards>{cards}</div>")
    return parts


def _card(example: Example, data: SegmentationData) -> str:
    rgb, _ = data.read(data.by_id[example.image])
    visible = set(np.unique(example.prediction)) | set(np.unique(example.truth))
    legend = "".join(
        f"<span class=chip style='background:rgb{colour(k)}'></span>{escape(data.classes[i])}"
        for k, i in enumerate(example.labels, start=1)
        if k in visible
    )
    sides = [_draw(rgb, labels) for labels in (example.prediction, example.truth)]
    gap = np.full((_HEIGHT, _SEPARATOR, 3), 255, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate([sides[0], gap, sides[1]], axis=1)).save(buffer, format="JPEG", quality=82)
    source = base64.b64encode(buffer.getvalue()).decode()
    text = f"{escape(example.image)}: IoU {100 * example.score:.0f}{legend}"
    return f"<div class=card><img alt='' src='data:image/jpeg;base64,{source}'><div>{text}</div></div>"


def _draw(rgb: np.ndarray, labels: Integer[np.ndarray, "h w"]) -> np.ndarray:
    """Draw a label map of any size over an image, at the height of an example."""
    width = max(1, round(rgb.shape[1] * _HEIGHT / rgb.shape[0]))
    small = np.asarray(Image.fromarray(rgb).resize((width, _HEIGHT), Image.Resampling.BOX))
    numbers = np.asarray(Image.fromarray(labels.astype(np.int32)).resize((width, _HEIGHT), Image.Resampling.NEAREST))
    ignored = numbers == IGNORED
    drawn = draw_masks(small, np.where(ignored, 0, numbers), 0.5)
    return np.where(ignored[..., None], drawn // 4 + _GREY, drawn)
