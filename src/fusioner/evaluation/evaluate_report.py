"""Reports of an evaluation: terminal tables, metrics.json, report.md, report.html and the saved counts."""

import base64
import io
import json
import platform
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from PIL import Image
from rich.console import Group, RenderableType

from fusioner import __version__
from fusioner.data.base import SegmentationData
from fusioner.evaluation.bootstrap import Estimate
from fusioner.evaluation.evaluator import EvaluationResult, to_metrics
from fusioner.evaluation.report import MEASURES, Markup, Table, format_estimate, html_list, html_page, write_files
from fusioner.evaluation.results import IGNORED, Counts, Example, GroupCounts, save_counts
from fusioner.model.checkpoint import model_digest
from fusioner.segmenter import Segmenter
from fusioner.visualization import colour, draw_masks, resize_with_maps

_HEIGHT = 200  # of an example, px
_MAX_MATRIX = 31  # classes; larger confusion matrices are unreadable
_GREY = 120
_SEPARATOR = 6  # px between prediction and ground truth


def write_report(folder: Path, result: EvaluationResult, origin: dict[str, Any]) -> list[Path]:
    """Write all files of a report into `folder`, created if missing, and return their paths; `origin`: `provenance`."""
    metrics = {"generator": "Fusioner"} | to_metrics(result) | origin
    contents = {
        "metrics.json": json.dumps(metrics, indent=2, allow_nan=False, default=str) + "\n",
        "report.md": markdown(result, origin),
        "report.html": _html(result, origin),
    }
    paths = write_files(folder, contents)
    counts = {fold: fold_result.counts for fold, fold_result in result.folds.items()}
    return [*paths, save_counts(folder, result.data.name, result.data.classes, counts)]


def provenance(
    command: str, model: Path | None, segmenter: Segmenter, options: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Return what is needed to repeat an evaluation: command, versions, hashes of the weights, inference options."""
    packages = {name: version(name) for name in ("torch", "transformers", "numpy", "pillow")}
    content: dict[str, Any] = {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "versions": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "fusioner": __version__,
            **packages,
        },
    }
    if model is not None:
        content["model"] = {"file": str(model), "sha256": model_digest(model)}
    training, network = segmenter.card.training, segmenter.network
    for kind in ("image_encoder", "text_encoder"):
        encoder = getattr(network, kind, None)  # absent from exported models: its digest is that of the training
        digest = encoder.fingerprint() if encoder else training.get("encoders", {}).get(kind.removesuffix("_encoder"))
        content[kind] = {"name": getattr(segmenter.card, kind), "sha256": digest}
    images = {"images": len(training["images"])} if isinstance(training.get("images"), list) else {}
    system = {"device": str(network.device), "runtime": network.runtime}
    return {**content, **system, **options, "training": training | images}


def title(result: EvaluationResult) -> str:
    """Return the heading of a report, as `pascal fold 2, protocol official: 252 images, 317 pairs`."""
    folds = [str(fold) for fold in result.folds if fold is not None]
    which = f" fold{'s' if len(folds) > 1 else ''} {', '.join(folds)}" if folds else ""
    summary = result.summary
    pairs = f", {summary.pairs} pairs" if summary.pairs else ""
    protocol = next(iter(result.folds.values())).counts.plan.protocol
    return f"{result.data.name}{which}, protocol {protocol}: {summary.images} images{pairs}"


def class_table(result: EvaluationResult) -> Table:
    """Return the IoU of each class and, where classes also competed, its IoU of the argmax."""
    summary, names = result.summary, result.data.classes
    multiclass = ["multi-class IoU [95 %]"] if summary.argmax_per_class else []
    rows = []
    for i, iou in sorted(summary.per_class.items()):
        row = [names[i], format_estimate(iou)]
        rows.append([*row, format_estimate(summary.argmax_per_class.get(i))] if multiclass else row)
    bars = [_bar(iou) for _, iou in sorted(summary.per_class.items())]
    return Table(["class", "IoU [95 %]", *multiclass], rows, title(result), plots=bars)


def measure_table(result: EvaluationResult) -> Table:
    """Return all measures with their meaning, and a column for each of several folds."""
    folds = result.folds if len(result.folds) > 1 else {}
    head = ["measure", *(f"fold {fold}" for fold in folds), "mean [95 %]" if folds else "value [95 %]", "meaning"]
    rows = []
    for name, (label, meaning) in MEASURES.items():
        if name in result.summary.measures:
            by_fold = [fold_result.summary.measures.get(name) for fold_result in folds.values()]
            values = ["-" if value is None else f"{value.value:.1f}" for value in by_fold]
            rows.append([label, *values, format_estimate(result.summary.measures[name]), meaning])
    bold = [number for number, row in enumerate(rows) if row[0] == "mIoU"]
    return Table(head, rows, text_columns=(0, len(head) - 1), bold=bold)


def notes(result: EvaluationResult) -> list[str]:
    """Return remarks on pairs that are not on disk, problems of the data set and overlap with training data."""
    found = list(result.notes)
    for fold, fold_result in result.folds.items():
        listed, present = fold_result.coverage or (0, 0)
        if present < listed:
            found.append(f"fold {fold}: {listed - present} of {listed} listed pairs are not on disk")
    return found


def terminal(result: EvaluationResult) -> RenderableType:
    """Return the tables and notes for a rich console."""
    tables = class_table(result).to_rich(), measure_table(result).to_rich()
    return Group(*tables, *(f"note: {note}" for note in notes(result)))


def markdown(result: EvaluationResult, origin: dict[str, Any]) -> str:
    """Return the tables, notes and provenance in Markdown."""
    parts = [
        f"# {title(result)}",
        "All values in per cent; brackets: bootstrap 95 % interval over images.",
        measure_table(result).to_markdown(),
        class_table(result).to_markdown(),
        "\n".join(f"- {note}" for note in notes(result)),
        f"    {origin['command']}",
        f"```json\n{_details(result, origin)}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _details(result: EvaluationResult, origin: dict[str, Any]) -> str:
    return json.dumps({"settings": to_metrics(result)["settings"], **origin}, indent=2, default=str)


def _html(result: EvaluationResult, origin: dict[str, Any]) -> str:
    parts = [
        "<p>All values in per cent; brackets and whiskers: bootstrap 95 % interval over images.</p>",
        measure_table(result).to_html(),
        html_list(notes(result)),
        "<h2>Classes</h2>" + class_table(result).to_html(),
    ]
    for fold, fold_result in result.folds.items():
        suffix = "" if fold is None else f", fold {fold}"
        groups = [group for name, group in fold_result.counts.groups.items() if name != "seen"]
        parts += [_matrix(group, result.data, suffix) for group in groups if len(group.class_ids) <= _MAX_MATRIX]
        parts += _examples(fold_result.counts, result.data, suffix)
    command, details = escape(origin["command"]), escape(_details(result, origin))
    parts.append(f"<h2>How to repeat this</h2><pre>{command}</pre><pre>{details}</pre>")
    return html_page(title(result), parts)


def _bar(estimate: Estimate) -> Markup:
    low, value, high = (0.0 if np.isnan(v) else v for v in (estimate.low, estimate.value, estimate.high))
    whisker = f"<div class=whisker style='left:{low:.1f}%;width:{max(high - low, 0.3):.1f}%'></div>"
    return Markup(f"<div class=track><div class=bar style='width:{value:.1f}%'></div>{whisker}</div>")


def _matrix(group: GroupCounts, data: SegmentationData, suffix: str) -> str:
    names = ["background", *(data.classes[i] for i in group.class_ids)]
    share = 100 * group.confusion / np.maximum(group.confusion.sum(axis=1, keepdims=True), 1)
    rows = [
        [name, *(Markup(f"<div style='background:rgb(47 111 224/{v:.0f}%)'>{v:.0f}</div>") for v in row)]
        for name, row in zip(names, share, strict=True)
    ]
    text = "Argmax of all classes: share of the pixels of each class (rows) by predicted class, per cent."
    table = Table(["", *names], rows).to_html()
    return f"<h2>Confusion{suffix}</h2><p>{text}</p><div class=matrix>{table}</div>"


def _examples(counts: Counts, data: SegmentationData, suffix: str) -> list[str]:
    parts = []
    for name, examples in (("Best", counts.best), ("Worst", counts.worst)):
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
    gap = np.full((_HEIGHT, _SEPARATOR, 3), 255, np.uint8)
    sides = np.concatenate([_draw(rgb, example.prediction), gap, _draw(rgb, example.truth)], axis=1)
    buffer = io.BytesIO()
    Image.fromarray(sides).save(buffer, format="JPEG", quality=82)
    source = base64.b64encode(buffer.getvalue()).decode()
    text = f"{escape(example.image)}: IoU {100 * example.score:.0f}{legend}"
    return f"<div class=card><img alt='' src='data:image/jpeg;base64,{source}'><div>{text}</div></div>"


def _draw(rgb: np.ndarray, labels: Integer[np.ndarray, "h w"]) -> np.ndarray:
    """Draw a label map of any size over an image, at the height of an example."""
    size = max(1, round(rgb.shape[1] * _HEIGHT / rgb.shape[0])), _HEIGHT
    small, (numbers,) = resize_with_maps(rgb, [labels], size, Image.Resampling.BOX)
    ignored = numbers == IGNORED
    drawn = draw_masks(small, [np.where(ignored, 0, numbers)], 0.5)
    return np.where(ignored[..., None], drawn // 4 + _GREY, drawn)
