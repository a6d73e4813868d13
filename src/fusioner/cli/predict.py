"""`fusioner predict`: segment pictures and videos by text labels."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

import fusioner
from fusioner.cli.inputs import STDIN, find_inputs, is_video, name_results
from fusioner.cli.options import (
    COMPUTE,
    Device,
    InferenceFlags,
    Labels,
    ModelFlags,
    Positive,
    RuntimeName,
    print_notes,
    read_label_flags,
)
from fusioner.cli.predict_runner import CSV_MARK, Run, found_text, read_stdin
from fusioner.encoders.prompt_templates import IMAGENET
from fusioner.errors import FusionerError
from fusioner.formats import default_formats, get_format, split_formats
from fusioner.image import read_image
from fusioner.io import check_replaceable, writable_folder
from fusioner.labels import label_warnings
from fusioner.progress import progress
from fusioner.segmenter import Segmenter
from fusioner.visualization import ContactSheet, format_coverage


def predict(
    *images: str,
    labels: Labels,
    out: Path = Path("fusioner-out"),
    format: str | None = None,
    recursive: bool = False,
    frame_step: Positive = 10,
    skip_existing: bool = False,
    contact_sheet: Path | None = None,
    csv: Path | None = None,
    options: InferenceFlags = InferenceFlags(),
    model: ModelFlags = ModelFlags(),
    device: Device = "auto",
    runtime: RuntimeName = "auto",
    workers: Annotated[int, Parameter(group=COMPUTE, validator=validators.Number(gte=0))] = 2,
) -> int:
    """Segment pictures and videos by text labels.

    Writes for each picture NAME.overlay.png (coloured masks and a legend), NAME.png (mask: 0 background, i the i-th
    label) and NAME.json (pixels, mean probability and outlines of each label). The second of two pictures with the same
    name becomes NAME-2. Every 10th frame of a video is segmented: its results are NAME-000120.png and so on, its
    overlay is a video, NAME.overlay.mp4. Errors are printed on stderr, the remaining inputs are processed, and the exit
    code is 2; after Ctrl-C it is 130, and finished results are kept.

        fusioner predict photo.jpg --labels "cat, sofa"
        fusioner predict holiday/ "more/*.png" --labels labels.txt --out masks --contact-sheet sheet.jpg --csv table.csv
        fusioner predict archive/ --recursive --labels "dog" --format mask,coco --skip-existing
        fusioner predict photo.jpg --labels "cat, sofa" --tta-scales 1,1.33
        fusioner predict photo.jpg --labels "cat, sofa" --image-encoder clip-vit-b16+dinov2-b
        fusioner predict scene.tif --labels "building, road" --format geotiff,geojson
        fusioner predict clip.mp4 --labels "dog, ball" --frame-step 5 --format overlay
        cat photo.jpg | fusioner predict - --labels "cat" --out - > mask.png

    Args:
        images: Picture files, folders of pictures, globs, video files, or - for a picture on the standard input.
        out: Folder of the results; earlier results of the same name are replaced, other files never. - writes the one
            result of one picture to the standard output.
        format: Output formats, separated by commas: overlay, mask, binary, json, coco, labelme, yolo, cvat, geojson,
            npz. Default: overlay,mask,json (with --overlap binary instead of mask); for --out - mask. geotiff, alone
            or with geojson: a mask and polygons in the CRS of a GeoTIFF, which is read window by window.
        recursive: Include the subfolders of folders; results are written to subfolders of the same names.
        frame_step: Segment every n-th frame of a video.
        skip_existing: Skip pictures whose results all exist, are newer than the picture, --model and --templates, and
            (with json among the formats) have the same labels, options and encoders.
        contact_sheet: Picture (.png or .jpg) of all results, 60 to a page; further pages are NAME-2, NAME-3 ...
            Default: none.
        csv: Table (.csv) with a row per picture and label (found, pixels, coverage, score, peak, outscored_by, box as
            x y width height) and per error; with --instances a row per region. Default: none.
        workers: Threads that read pictures ahead, and as many that write results. About twice as many pictures are in
            memory.
    """
    if not images:
        raise FusionerError("name at least one picture, folder, glob or video")
    label_list = read_label_flags(labels)
    to_stdout = str(out) == "-"
    if csv and csv.suffix.lower() != ".csv":
        raise FusionerError(f"the name of a table must end in .csv, not {csv.name!r}")

    print_notes(label_warnings(label_list))
    names = split_formats(format or ("mask" if to_stdout else ",".join(default_formats(options))))
    load = partial(fusioner.load, device=device, runtime=runtime, **model.arguments())
    found, errors = find_inputs(images, recursive, out)
    dependencies = tuple(file for file in (model.model, model.templates) if file and str(file) != IMAGENET)
    run = Run(label_list, options, names, frame_step, workers, skip_existing, dependencies)
    if "csv" in names:
        raise FusionerError("csv is no --format: the table of all pictures is written by --csv TABLE.csv")
    if "geotiff" in names:
        if csv or contact_sheet:
            raise FusionerError("--format geotiff writes neither --csv nor --contact-sheet: omit them")
        return _rasters(run, found, errors, out, load)
    formats = [get_format(name, options) for name in names]
    if skip_existing and model.image_encoder and "json" not in names:
        raise FusionerError("--skip-existing with --image-encoder needs json among the formats: it names the encoders")
    if to_stdout:
        if csv or contact_sheet or skip_existing or errors or len(found) != 1 or len(formats) != 1:
            raise FusionerError("--out - writes one result: name one picture, one --format and no other file to write")
        return _to_stdout(run, next(iter(found)), load)
    sources = name_results(found, out, [output.suffix for output in formats])
    if csv:
        check_replaceable(csv, CSV_MARK)
    if contact_sheet:
        results = [source.folder / f"{source.stem}{output.suffix}" for source in sources for output in formats]
        if os.path.realpath(contact_sheet) in {os.path.realpath(path) for path in (*found, *results)}:
            raise FusionerError(
                f"--contact-sheet {contact_sheet} would replace a picture or a result: give it another name"
            )
        run.sheet = ContactSheet(contact_sheet, label_list)
    for error in errors:
        run.fail(error)
    if sources:
        writable_folder(out)
    with progress(after=0.0 if len(sources) > 1 else 2.0) as bar:
        segmenter = load() if sources else None
        try:
            if segmenter:
                run.segment(sources, segmenter, bar.task("segmenting", len(sources)))
        finally:  # also after Ctrl-C
            run.end(out, csv)
    return 2 if run.failed else 0


def _rasters(
    run: Run, found: dict[Path, Path], errors: list[FusionerError], out: Path, load: Callable[[], Segmenter]
) -> int:
    """Segment GeoTIFF files window by window."""
    from fusioner.geo import SUFFIXES, raster_options, segment_raster

    if not set(run.formats) <= SUFFIXES.keys() or run.options.mode not in ("auto", "slide") or str(out) == "-":
        raise FusionerError("--format geotiff is written to a folder, in --mode slide and together with geojson only")
    if STDIN in found:
        raise FusionerError("--format geotiff reads windows of a file, not the standard input: name a file")
    raster_options(run.options)
    sources = name_results(found, out, [SUFFIXES[name] for name in run.formats])
    for error in errors:
        run.fail(error)
    segmenter = None
    for source in sources:
        outputs = {name: source.folder / f"{source.stem}{SUFFIXES[name]}" for name in run.formats}
        if run.is_newer(outputs.values(), source.path):
            print(f"{source.path}: skipped (its results are there)")
            continue
        segmenter = segmenter or load()
        notes: list[str] = []
        try:
            with progress(after=2.0) as bar:
                task = bar.task(f"segmenting {source.name}", None)
                shares = segment_raster(
                    segmenter, source.path, run.labels, outputs, run.options, on_progress=task, on_note=notes.append
                )
            text = ", ".join(f"{label} {format_coverage(share)}" for label, share in shares.items())
            print(f"{source.path}: {text} -> {outputs['geotiff']}")
        except FusionerError as error:
            run.fail(error, source.path)
        print_notes(notes)
    return 2 if run.failed else 0


def _to_stdout(run: Run, path: Path, load: Callable[[], Segmenter]) -> int:
    """Write the one result of one picture to stdout; the summary goes to stderr."""
    if is_video(path):
        raise FusionerError("--out - takes a picture, not a video: name a folder with --out")
    name = "standard input" if path == STDIN else str(path)
    notes: list[str] = []
    image = read_image(read_stdin() if path == STDIN else path, name, notes.append)
    result = load()(image, run.labels, run.options)
    result.name = "stdin" if path == STDIN else path.name
    sys.stdout.buffer.write(result.to_bytes(run.formats[0]))
    sys.stdout.buffer.flush()
    print_notes(notes)
    print(f"{path}: {found_text(result)}", file=sys.stderr)
    return 0
