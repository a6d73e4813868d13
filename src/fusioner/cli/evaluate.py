"""`fusioner evaluate`: measure a model on a data set."""

import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from fusioner.cli.options import COMPUTE, INFERENCE, MODEL, Dataset, Device, MaskValues, Root, TtaScales
from fusioner.data.base import SegmentationData
from fusioner.data.folds import FOLD_DATASETS
from fusioner.data.registry import open_dataset
from fusioner.errors import FusionerError
from fusioner.evaluation.protocols import DEFAULT_OPTIONS, EvaluationOptions, make_plans
from fusioner.evaluation.results import PromptPlan
from fusioner.io import find_path, writable_folder
from fusioner.loading import load
from fusioner.options import InferenceOptions, Mode
from fusioner.progress import progress
from fusioner.segmenter import Segmenter
from fusioner.training.presets import SMALL
from fusioner.weights import DEFAULT_MODEL, weights_file


def evaluate(
    dataset: Dataset,
    /,
    *,
    root: Root,
    mask_values: MaskValues = "",
    model: Annotated[Path | None, Parameter(group=MODEL)] = None,
    method: Annotated[Literal["cosine", "maskclip", "empty", "prompt-ablated"] | None, Parameter(group=MODEL)] = None,
    image_encoder: Annotated[str | None, Parameter(group=MODEL)] = None,
    text_encoder: Annotated[str | None, Parameter(group=MODEL)] = None,
    out: Path = Path("evaluation"),
    fold: Literal["0", "1", "2", "3", "all"] = "all",
    split: str | None = None,
    options: EvaluationOptions = DEFAULT_OPTIONS,
    mode: Annotated[Mode | None, Parameter(group=INFERENCE)] = None,
    tta_scales: Annotated[TtaScales, Parameter(group=INFERENCE)] = (1.0,),
    tta_flip: Annotated[bool, Parameter(group=INFERENCE)] = False,
    guided_filter: Annotated[bool | None, Parameter(group=INFERENCE)] = None,
    cache: Annotated[Path | None, Parameter(group=COMPUTE)] = None,
    allow_leak: bool = False,
    device: Device = "auto",
) -> None:
    """Evaluate a model, print tables, and write metrics.json, report.md and report.html.

    pascal and coco are PASCAL-5i and COCO-20i: every listed (image, class) pair is prompted alone, with further
    measures that this protocol omits (all classes at once, absent classes, a neutral prompt). coco-to-pascal
    evaluates a model of a fold of coco on the PASCAL classes that were not in its training. mosaic4 tiles four
    FSS-1000 images of four classes and prompts the four at once. All other data sets, also a folder of your own, are
    evaluated with all class names at once.

        fusioner evaluate pascal --root data/pascal --fold 2 --model run/best.safetensors --out report
        fusioner evaluate coco --root data/coco --fold all --protocol hsnet
        fusioner evaluate coco-to-pascal --root data/pascal --fold 0 --model coco_fold0.safetensors
        fusioner evaluate mosaic4 --root data/fss1000
        fusioner evaluate ade150 --root data/ade
        fusioner evaluate voc21 --root data/pascal --image-encoder sclip-vit-b16 --text-encoder clip-text-b16
        fusioner evaluate folder --root my/data --split val
        fusioner evaluate pascal --root data/pascal --method maskclip --image-encoder clip-vit-b16 \\
            --text-encoder clip-text-b16

    Args:
        model: Model file of `fusioner train`, or folder of `fusioner export`; default: the bundled model, without a GPU
            in ONNX Runtime.
        method: Untrained baseline in place of a model (cosine, maskclip, empty), or prompt-ablated: the model with one
            neutral text in place of every prompt. Default: the method that the model was trained with. See
            docs/baselines.md.
        image_encoder: Image encoder of a pair that is evaluated without training, or A+B (see docs/training-free.md);
            with --method cosine or maskclip its encoder. Default: none; of these methods effnet-lite2.
        text_encoder: Its text encoder; default: that of the same model.
        out: Folder for the reports.
        fold: Fold of pascal, coco or coco-to-pascal, or all four and their mean.
        split: Split of the data set, as val or test, or all; default: the evaluation split.
        mode: whole: encode the whole image once, resized; slide: slide windows over the full-resolution image. Default:
            whole; of a pair without training, as its method was published (docs/benchmarks.md).
        tta_scales: Sizes whose logits are averaged, as 0.75,1,1.25: multiples of the training size (whole) or of the
            image (slide).
        tta_flip: Average with the logits of the flipped image.
        guided_filter: Align mask edges with image edges (mode whole); default: as the model's card says.
        cache: Feature cache folder for the image tokens (mode whole); default: none.
        allow_leak: Evaluate even on images that the model was trained on, instead of refusing.
    """

    from fusioner.evaluation.evaluate_report import provenance, terminal, write_report
    from fusioner.evaluation.evaluator import evaluate as run_evaluation
    from fusioner.evaluation.predictor import SegmenterPredictor
    from fusioner.evaluation.training_free import load_pair, with_published_names

    if fold != "all":
        options = replace(options, folds=(int(fold),))
    seeded = {"seed": options.seed} if dataset == "mosaic4" else {}
    data = open_dataset(dataset, root, evaluation_split(dataset, root, split), mask_values, **seeded)
    data.require_classes()
    plans = [plan for plan, _ in make_plans(data, options).values()]  # errors here come before the model is loaded
    writable_folder(out)
    protocol = None
    if method is None and (image_encoder or text_encoder):
        if model is not None or image_encoder is None:
            raise FusionerError("a model names its own encoders: give --model, or --image-encoder and --text-encoder")
        segmenter, protocol = load_pair(image_encoder, text_encoder, device, data)
        data, file, cache = with_published_names(data, protocol.synonyms), None, None
        mode = mode or ("slide" if protocol.window else "whole")
        if options.threshold == DEFAULT_OPTIONS.threshold:
            options = replace(options, threshold="model")
    else:
        segmenter, file = _load(model, method, image_encoder, text_encoder, device, dataset)
    mode = mode or "whole"
    notes = _check_overlap(segmenter.card.training, data, plans, allow_leak)
    notes += [f"protocol {protocol}"] if protocol else []
    if options.threshold == "model":
        options = replace(options, threshold=segmenter.card.threshold)
    # In mode slide the scales are those of the predictor.
    segmenter.options = InferenceOptions(mode, (1.0,) if mode == "slide" else tta_scales, guided_filter)
    filtered = segmenter.resolve().guided_filter
    start = time.monotonic()
    with progress() as track:
        predictor = SegmenterPredictor(segmenter, mode, cache, tta_flip, tta_scales)
        result = run_evaluation(predictor, data, options, track)
    inference = {"mode": mode, "tta_scales": tta_scales, "tta_flip": tta_flip, "guided_filter": filtered}
    command = shlex.join(["fusioner", *sys.argv[1:]])
    origin = provenance(command, file, segmenter, inference, time.monotonic() - start)
    card = segmenter.card
    origin["method"] = method or card.config.method
    note = f"method {origin['method']}, encoders {card.image_encoder} and {card.text_encoder}"
    result.notes = [note, *result.notes, *notes]
    Console().print(terminal(result))
    if protocol:
        encoders = f"{card.image_encoder} | {card.text_encoder}"
        print(f"| {encoders} | {dataset} | {result.summary.measures['miou'].value:.1f} | {protocol} |")
    for path in write_report(out, result, origin):
        print(f"wrote {path}")


def evaluation_split(dataset: str, root: Path, split: str | None) -> str | None:
    """Return the split to open: the named one or the data set's default; None stands for every image."""
    if split is not None:
        return None if split == "all" else split
    if dataset == "folder":
        return "val" if find_path("val.txt", root) else None
    return "test" if dataset in ("fss1000", "mosaic4", "camvid") else "val"


def _load(
    model: Path | None, method: str | None, image: str | None, text: str | None, device: str, dataset: str
) -> tuple[Segmenter, Path | None]:
    """Load the segmenter and return it with its model file; official checkpoints are taken to be of `dataset`."""
    from fusioner.training.calibration import ablate_prompts, uncalibrated

    if method is not None and method != "prompt-ablated":
        if model is not None:
            raise FusionerError(f"--method {method} needs no --model; a model is evaluated by its own method")
        pair = image or "effnet-lite2", text or "minilm-embedded"
        return uncalibrated(method, *pair, SMALL.model.resolution, device=device), None  # pyright: ignore
    runtime = "torch" if method and model is None else "auto"  # ablation replaces the embeddings in torch
    segmenter = load(model, device, runtime=runtime, dataset=dataset.partition("-to-")[0])
    return ablate_prompts(segmenter) if method else segmenter, model or weights_file(DEFAULT_MODEL)


def _check_overlap(
    training: dict[str, Any], data: SegmentationData, plans: list[PromptPlan], allow_leak: bool
) -> list[str]:
    """Return notes for the report; refuse an evaluation on trained images unless `allow_leak`."""
    from fusioner.evaluation.train_test_overlap import refuse_trained_images, trained_classes

    items = {image: data.by_id[image] for plan in plans for image in plan.images}
    notes = refuse_trained_images(training, list(items.values()), allow_leak)
    prompted = {class_id for plan in plans for class_id in plan.prompted}
    return notes + (trained_classes(training, data, prompted) if data.name in FOLD_DATASETS else [])
