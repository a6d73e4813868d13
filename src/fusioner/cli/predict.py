"""`fusioner predict`: pictures and names in, masks out."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fusioner.errors import FusionerError

if TYPE_CHECKING:
    from fusioner.inference.segmentation import Segmentation
    from fusioner.inference.segmenter import Segmenter


def predict(
    *images: str,
    labels: str | None = None,
    labels_file: Path | None = None,
    out: Path = Path("fusioner-out"),
    model: Path | None = None,
    threshold: float | None = None,
    background: bool = True,
    resolution: Literal["fast", "native"] = "fast",
    device: str = "auto",
    templates: Path | None = None,
) -> int:
    """Find what you name in pictures.

    Writes for each picture NAME.overlay.png (colours and a legend to look at), NAME.png (mask: 0 background, i the
    i-th label) and NAME.json (pixels, mean probability and COCO run lengths of each label). Of two pictures with one
    NAME the later becomes NAME-2. A picture that cannot be read is told on stderr, the others are still done, and the
    exit code is 2.

        fusioner predict photo.jpg --labels "cat, sofa"
        fusioner predict holiday/ "more/*.png" --labels "dog, sky" --out masks

    Parameters
    ----------
    images
        Picture files, folders of pictures, or globs.
    labels
        What to find, separated by commas.
    labels_file
        What to find, one label a line (UTF-8); adds to --labels.
    out
        Folder for the results; results of the same name are replaced.
    model
        Model file of `fusioner train`; without it the one inside the package.
    threshold
        Probability a pixel needs to take a label, 0 to 1; default: the model's own.
    background
        Off: every pixel takes its likeliest label.
    resolution
        fast: look once at the whole picture; native: slide windows over its own pixels (slower, finer).
    device
        auto, cpu, cuda, cuda:N or mps.
    templates
        File of prompt templates, one a line, each with {} for the label.
    """
    from fusioner.cli.inputs import find_images, name_results
    from fusioner.cli.progress import progress
    from fusioner.files import writable_folder

    wanted = _labels(labels, labels_file)
    if threshold is not None and not 0 <= threshold <= 1:
        raise FusionerError(f"--threshold is a probability between 0 and 1, not {threshold}")
    if not images:
        raise FusionerError("name at least one picture, folder or glob")
    paths, errors = find_images(images)
    jobs = name_results(paths, out, (".overlay.png", ".png", ".json"))
    for error in errors:
        _complain(error)
    failed = len(errors)
    if jobs:
        writable_folder(out)
        with progress(after=0.0 if len(jobs) > 1 else 2.0) as track:
            segment = _load(model, device, templates)
            for job in track(jobs, "segmenting"):
                try:
                    result = segment(
                        job.path, wanted, threshold=threshold, background=background, resolution=resolution
                    )
                    overlay = result.save(out, job.stem)["overlay"]
                    print(f"{job.path}: {found_text(result)} -> {overlay}", flush=True)
                except FusionerError as error:
                    _complain(error)
                    failed += 1
    done = len(errors) + len(jobs) - failed
    print(f"{_count(done)} segmented into {out}" + (f", {failed} failed" if failed else ""))
    return 2 if failed else 0


def found_text(result: "Segmentation", most: int = 8) -> str:
    """`cat 61.4 %, sofa 2.8 %; not found: dog`, the largest first and no more than `most` of each."""
    from fusioner.inference.legend import share_text

    found = [f"{label} {share_text(share)}" for label, share in result.found.items()]
    missing = [label for label in result.labels if label not in result.found]
    text = _some(found, most) or "nothing found"
    return f"{text}; not found: {_some(missing, most)}" if found and missing else text


def _some(names: Sequence[str], most: int) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _labels(typed: str | None, file: Path | None) -> list[str]:
    from fusioner.inference.labels import check_labels, parse_labels, read_labels

    if typed is None and file is None:
        raise FusionerError('say what to find: --labels "cat, sofa" or --labels-file FILE')
    return check_labels([*(parse_labels(typed) if typed is not None else ()), *(read_labels(file) if file else ())])


def _load(model: Path | None, device: str, templates: Path | None) -> "Segmenter":
    from fusioner.encoders.prompts import read_templates
    from fusioner.inference.load import load

    return load(model, device, read_templates(templates) if templates else None)


def _complain(error: FusionerError) -> None:
    print(f"error: {error}", file=sys.stderr, flush=True)


def _count(pictures: int) -> str:
    return f"{pictures} picture" + ("" if pictures == 1 else "s")
