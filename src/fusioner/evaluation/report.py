"""An outcome for eyes and machines: a table in the terminal, metrics.json, report.md and report.html."""

import hashlib
import json
import math
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table

from fusioner.evaluation.bootstrap import Figure, Summary
from fusioner.evaluation.evaluate import Outcome, metrics
from fusioner.evaluation.store import write_evidence
from fusioner.io import atomic_write

if TYPE_CHECKING:
    from fusioner.segmenter import Segmenter

MEASURES = {
    "miou": ("mIoU", "mean IoU of the named classes under the protocol"),
    "fb_iou": ("FB-IoU", "mean of foreground and background IoU, all classes as one"),
    "argmax_miou": (
        "multi-class mIoU (argmax)",
        "all unseen classes prompted together, the likeliest wins, background competes",
    ),
    "seen_argmax_miou": ("multi-class mIoU, seen classes", "the same with the classes of training"),
    "harmonic": ("harmonic mean", "of multi-class mIoU, unseen and seen"),
    "background_iou": ("background IoU", "of the argmax; only pas20b, pas21 and coco-object count it in the mean"),
    "single_prompt_miou": ("single-prompt mIoU", "each name of an image prompted alone instead of together"),
    "prompt_ablated_miou": (
        "prompt-ablated mIoU",
        "one neutral text prompted alone for every name: what saliency alone earns",
    ),
    "false_positive_area": (
        "false-positive area",
        "share of the image claimed for a class that is not in it (lower is better)",
    ),
    "specificity": ("specificity", "share of such prompts for which not one pixel was claimed"),
}
"""Figures in the order of the reports: name, what it says."""


def provenance(
    command: str, model: Path | None, segmenter: "Segmenter", shown: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """What one needs to repeat an evaluation: the command, versions, weights' hashes, how images were shown."""
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
    content |= {"device": str(segmenter.device), **shown, "training": _short(segmenter.card.training)}
    return content


def title(outcome: Outcome) -> str:
    """`pascal fold 2, protocol official: 252 images, 317 pairs`."""
    folds = [str(fold) for fold in outcome.folds if fold is not None]
    which = f" fold{'s' if len(folds) > 1 else ''} {', '.join(folds)}" if folds else ""
    summary = outcome.summary
    pairs = f", {summary.pairs} pairs" if summary.pairs else ""
    protocol = next(iter(outcome.folds.values())).evidence.plan.protocol
    return f"{outcome.data.name}{which}, protocol {protocol}: {summary.images} images{pairs}"


def terminal(outcome: Outcome) -> RenderableType:
    """Tables for the console: classes, then figures with their intervals, then what is missing."""
    classes = Table(title=title(outcome), title_justify="left", title_style="bold")
    for head, justify in zip(_class_head(outcome), ("left", "right", "right"), strict=False):
        classes.add_column(head, justify=justify)  # pyright: ignore[reportArgumentType]
    for row in class_rows(outcome):
        classes.add_row(*row)
    figures = Table(show_lines=False)
    heads = figure_head(outcome)
    for i, head in enumerate(heads):
        figures.add_column(head, justify="left" if i in (0, len(heads) - 1) else "right", no_wrap=i < len(heads) - 1)
    for row in figure_rows(outcome):
        figures.add_row(*row, style="bold" if row[0] == "mIoU" else "")
    return Group(classes, figures, *(f"note: {note}" for note in notes(outcome)))


def class_rows(outcome: Outcome) -> list[list[str]]:
    """A row a class: name, IoU with its interval, and, where classes also competed, the argmax IoU."""
    s, names = outcome.summary, outcome.data.classes
    rows = []
    for i, figure in sorted(s.per_class.items()):
        row = [names[i], shown(figure)]
        rows.append([*row, shown(s.argmax_per_class[i])] if i in s.argmax_per_class else row)
    return rows


def figure_head(outcome: Outcome) -> list[str]:
    """Column heads of figure_rows()."""
    folds = [f"fold {fold}" for fold in outcome.folds] if len(outcome.folds) > 1 else []
    return ["measure", *folds, "mean [95 %]" if folds else "value [95 %]", "what it says"]


def figure_rows(outcome: Outcome) -> list[list[str]]:
    """A row a measure: name, a column a fold where there are several, value with interval, meaning."""
    folds = [one.summary for one in outcome.folds.values()] if len(outcome.folds) > 1 else []
    rows = []
    for name, (label, meaning) in MEASURES.items():
        if name in outcome.summary.figures:
            apart = [_value(fold, name) for fold in folds]
            rows.append([label, *apart, shown(outcome.summary.figures[name]), meaning])
    return rows


def notes(outcome: Outcome) -> list[str]:
    """What a reader must know: pairs not on disk, problems of the data set, leaks."""
    lost = [
        f"fold {fold}: {one.missing.listed - one.missing.present} of {one.missing.listed} listed pairs are not on disk"
        for fold, one in outcome.folds.items()
        if one.missing and one.missing.present < one.missing.listed
    ]
    return [*outcome.notes, *lost]


def shown(figure: Figure) -> str:
    """`41.2 [38.0, 44.9]`; a dash where nothing was measured."""
    if math.isnan(figure.value):
        return "-"
    return f"{figure.value:.1f} [{figure.low:.1f}, {figure.high:.1f}]"


def markdown(outcome: Outcome, origin: dict[str, Any]) -> str:
    """The same tables as Markdown, and how to repeat them."""
    lines = [f"# {title(outcome)}", "", "All figures in per cent; brackets: bootstrap 95 % interval over images.", ""]
    lines += markdown_table(figure_head(outcome), figure_rows(outcome))
    lines += ["", *markdown_table(_class_head(outcome), class_rows(outcome)), ""]
    lines += [f"- {note}" for note in notes(outcome)]
    details = json.dumps({"settings": metrics(outcome)["settings"], **origin}, indent=2, default=str)
    lines += ["", f"    {origin['command']}", "", "```json", details, "```", ""]
    return "\n".join(lines)


def write_report(folder: Path, outcome: Outcome, origin: dict[str, Any]) -> list[Path]:
    """Write metrics.json, report.md, report.html and evidence.npz into `folder` (made if need be).

    Raises:
        FusionerError: no space, no permission; files are whole or absent.
    """
    from fusioner.evaluation.html import html

    contents = {
        "metrics.json": json.dumps(metrics(outcome) | origin, indent=2, allow_nan=False, default=str) + "\n",
        "report.md": markdown(outcome, origin),
        "report.html": html(outcome, origin),
    }
    paths = []
    for name, text in contents.items():
        with atomic_write(folder / name) as beside:
            beside.write_text(text, encoding="utf-8")
        paths.append(folder / name)
    return [*paths, write_evidence(folder, outcome)]


def _class_head(outcome: Outcome) -> list[str]:
    return ["class", "IoU [95 %]", *(["argmax IoU [95 %]"] if outcome.summary.argmax_per_class else [])]


def _value(summary: Summary, name: str) -> str:
    return f"{summary.figures[name].value:.1f}" if name in summary.figures else "-"


def markdown_table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    body = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in body]


def _short(training: dict[str, Any]) -> dict[str, Any]:
    """The card's entry without its list of thousands of image marks; their number stays."""
    return {k: len(v) if k == "images" and isinstance(v, list) else v for k, v in training.items()}


def _versions() -> dict[str, str]:
    found = {}
    for package in ("fusioner", "torch", "transformers", "numpy", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = "source tree"
    return found
