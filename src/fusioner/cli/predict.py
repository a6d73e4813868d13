"""`fusioner predict`: pictures, videos and names in, masks out."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fusioner.errors import FusionerError
from fusioner.export import Runtime

if TYPE_CHECKING:
    from fusioner.base_segmenter import BaseSegmenter
    from fusioner.cli.pieces import Asked


def predict(
    *images: str,
    labels: str | None = None,
    labels_file: Path | None = None,
    out: Path = Path("fusioner-out"),
    format: str | None = None,
    recursive: bool = False,
    every: int = 10,
    skip_existing: bool = False,
    contact_sheet: Path | None = None,
    csv: Path | None = None,
    model: Path | None = None,
    threshold: float | None = None,
    background: bool = True,
    resolution: Literal["fast", "native"] = "fast",
    scales: str = "1",
    refine: bool | None = None,
    device: str = "auto",
    runtime: Runtime = "auto",
    templates: Path | None = None,
    workers: int = 2,
) -> int:
    """Find what you name in pictures and videos.

    Writes for each picture NAME.overlay.png (colours and a legend to look at), NAME.png (mask: 0 background, i the
    i-th label) and NAME.json (pixels, mean probability, outlines of each label). Of two pictures with one NAME the
    later becomes NAME-2. Of a video every 10th frame is taken: its results are NAME-000120.png and so on, its overlay
    is a video, NAME.overlay.mp4. What cannot be read is told on stderr, the rest is still done, and the exit code is 2;
    after Ctrl-C it is 130, and what was finished is kept.

        fusioner predict photo.jpg --labels "cat, sofa"
        fusioner predict holiday/ "more/*.png" --labels "dog, sky" --out masks --contact-sheet sheet.jpg --csv table.csv
        fusioner predict archive/ --recursive --labels "dog" --format mask,coco --skip-existing
        fusioner predict photo.jpg --labels "cat, sofa" --scales 1,1.33
        fusioner predict clip.mp4 --labels "dog, ball" --every 5 --format overlay
        cat photo.jpg | fusioner predict - --labels "cat" --out - > mask.png

    Parameters
    ----------
    images
        Picture files, folders of pictures, globs, video files, or - for a picture on the standard input.
    labels
        What to find, separated by commas.
    labels_file
        What to find, one label a line (UTF-8); adds to --labels.
    out
        Folder for the results; results of the same name are replaced. - writes the one result of one picture to the
        standard output.
    format
        What to write, separated by commas: overlay, mask, json, coco, labelme, yolo, cvat, geojson, npz. Default:
        overlay,mask,json; for --out - mask.
    recursive
        Take the pictures of folders inside folders too; results are put into folders of the same names.
    every
        Of a video take every so many frames.
    skip_existing
        Leave pictures alone whose results are all there, newer than the picture and the --model file, and, where json
        is among them, of the same labels, threshold, background, resolution, scales and refining.
    contact_sheet
        Picture to write (.png or .jpg): all that was segmented on pages of 60, the second named NAME-2.
    csv
        Table to write: per picture and label what was found, pixels, coverage, score and box (x y width height), and
        the errors.
    model
        Model file of `fusioner train`, or folder of `fusioner export`; without it the one inside the package.
    threshold
        Probability a pixel needs to take a label, 0 to 1; default: the model's own.
    background
        Off: every pixel takes its likeliest label.
    resolution
        fast: look once at the whole picture; native: slide windows over its own pixels (slower, finer).
    scales
        Sizes at which fast looks at the picture, as multiples of the training size, their answers averaged; 1,1.33
        takes about three times as long.
    refine
        Move the edges of masks to edges of the photograph (fast only); default: as the model was made for.
    device
        auto, cpu, cuda, cuda:N or mps.
    runtime
        Who computes: torch, or for a folder of `fusioner export` onnx or openvino; auto: torch for a model file, the
        faster of those installed for a folder.
    templates
        File of prompt templates, one a line, each with {} for the label.
    workers
        Threads that read the next pictures, and as many that write results, while the model works; about twice as many
        pictures are held in memory. 0: none.
    """
    wanted = _labels(labels, labels_file)
    if threshold is not None and not 0 <= threshold <= 1:
        raise FusionerError(f"--threshold is a probability between 0 and 1, not {threshold}")
    if not images:
        raise FusionerError("name at least one picture, folder, glob or video")
    for name, number, least in (("every", every, 1), ("workers", workers, 0)):
        if number < least:
            raise FusionerError(f"--{name} is {least} or more, not {number}")

    from fusioner.cli.csv_report import Summary
    from fusioner.cli.inputs import find_inputs, name_results, read_looks
    from fusioner.cli.pieces import Asked
    from fusioner.cli.predict_runner import Run
    from fusioner.cli.progress import progress
    from fusioner.cli.skip_existing import Earlier
    from fusioner.encoders.prompt_templates import read_templates
    from fusioner.formats import FORMATS
    from fusioner.io import writable_folder
    from fusioner.loading import load
    from fusioner.visualization import ContactSheet

    to_stdout = str(out) == "-"
    kinds = _kinds(format or ("mask" if to_stdout else "overlay,mask,json"))
    asked = Asked(wanted, threshold, background, resolution, kinds)
    looks = read_looks(scales, refine, resolution)

    def ready() -> "BaseSegmenter":
        words = read_templates(templates) if templates else None
        return load(model, device, words, runtime=runtime).looking(looks, refine)

    found, errors = find_inputs(images, recursive, out)
    if to_stdout:
        if csv or contact_sheet or skip_existing or errors or len(found) != 1 or len(kinds) != 1:
            raise FusionerError("--out - writes one result: name one picture, one --format and no other file to write")
        return _to_stdout(next(iter(found)), asked, ready)
    jobs = name_results(found, out, [FORMATS[kind].suffix for kind in kinds])
    sheet = ContactSheet(contact_sheet, wanted) if contact_sheet else None
    if contact_sheet:
        results = [job.folder / f"{job.stem}{FORMATS[kind].suffix}" for job in jobs for kind in kinds]
        _keep_apart(contact_sheet, [*found, *results])
    run = Run(asked, workers, Summary(csv) if csv else None, sheet)
    for error in errors:
        run.fail(error)
    if jobs:
        writable_folder(out)
    with progress(after=0.0 if len(jobs) > 1 else 2.0) as work:
        segmenter = ready() if jobs else None
        try:
            if segmenter:
                made_of = [file for file in (model, templates) if file]
                earlier = Earlier(asked.told(segmenter), made_of) if skip_existing else None
                run.segment(jobs, segmenter, every, work.meter("segmenting", len(jobs)), earlier)
        finally:  # also after Ctrl-C
            run.end(out)
    return 2 if run.failed else 0


def _labels(typed: str | None, file: Path | None) -> list[str]:
    from fusioner.labels import check_labels, parse_labels, read_labels

    if typed is None and file is None:
        raise FusionerError('say what to find: --labels "cat, sofa" or --labels-file FILE')
    return check_labels([*(parse_labels(typed) if typed is not None else ()), *(read_labels(file) if file else ())])


def _kinds(names: str) -> tuple[str, ...]:
    from fusioner.formats import get_format

    kinds = tuple(dict.fromkeys(name.strip() for name in names.split(",")))
    for kind in kinds:
        get_format(kind)
    return kinds


def _keep_apart(sheet: Path, others: Sequence[Path]) -> None:
    if os.path.realpath(sheet) in {os.path.realpath(path) for path in others}:
        raise FusionerError(f"--contact-sheet {sheet} would replace a picture or a result: give it another name")


def _to_stdout(path: Path, asked: "Asked", load: "Callable[[], BaseSegmenter]") -> int:
    """Write the one result of one picture there; what is to be told goes to stderr."""
    from fusioner.cli.inputs import STDIN, is_video
    from fusioner.cli.pieces import found_text, read, source

    if is_video(path):
        raise FusionerError("--out - takes a picture, not a video: name a folder with --out")
    result = asked.of(read(source(path)), load())
    result.name = "stdin" if path == STDIN else path.name
    sys.stdout.buffer.write(result.to_bytes(asked.kinds[0]))
    sys.stdout.buffer.flush()
    print(f"{path}: {found_text(result)}", file=sys.stderr)
    return 0
