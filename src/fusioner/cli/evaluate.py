"""`fusioner evaluate`: figures a researcher can trust, with the honest ones beside them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fusioner.cli.options import TtaScales
from fusioner.data.registry import DatasetName
from fusioner.errors import FusionerError
from fusioner.options import InferenceOptions, Mode

if TYPE_CHECKING:
    from fusioner.data.base import SegmentationData
    from fusioner.evaluation.evaluate import Outcome
    from fusioner.evaluation.results import Plan
    from fusioner.segmenter import Segmenter


def evaluate(
    dataset: DatasetName,
    /,
    *,
    root: Path,
    model: Path | None = None,
    method: Literal["cosine", "maskclip", "empty", "prompt-ablated"] | None = None,
    image_encoder: str = "effnet-lite2",
    text_encoder: str = "minilm-embedded",
    out: Path = Path("evaluation"),
    fold: Literal["0", "1", "2", "3", "all"] = "all",
    protocol: Literal["official", "hsnet", "full"] = "official",
    lists: Literal["official", "hsnet"] = "official",
    images: Literal["fold", "all"] = "fold",
    split: str | None = None,
    mode: Mode = "whole",
    tta_flip: bool = False,
    tta_scales: TtaScales = (1.0,),
    guided_filter: bool | None = None,
    squash: int | None = None,
    threshold: float = 0.5,
    own_threshold: bool = False,
    limit: int | None = None,
    seed: int = 0,
    bootstrap: int = 1000,
    cache: Path | None = None,
    allow_leak: bool = False,
    device: str = "auto",
) -> None:
    """Evaluate a model; prints tables, writes metrics.json, report.md and report.html.

    pascal and coco are PASCAL-5i and COCO-20i: every listed (image, class) pair is prompted alone, beside measures that
    this protocol leaves out (all classes at once, absent classes, a prompt that says nothing). coco-to-pascal asks a
    model of a fold of coco for the PASCAL classes that were not in its training. mosaic4 tiles four
    FSS-1000 images of four classes and prompts the four names at once. All other sets, among them a folder of your own,
    are evaluated with all their class names at once.

        fusioner evaluate pascal --root data/pascal --fold 2 --model run/best.safetensors --out report
        fusioner evaluate coco --root data/coco --fold all --protocol hsnet
        fusioner evaluate coco-to-pascal --root data/pascal --fold 0 --model coco_fold0.safetensors
        fusioner evaluate mosaic4 --root data/fss1000
        fusioner evaluate ade150 --root data/ade
        fusioner evaluate folder --root my/data --split val
        fusioner evaluate pascal --root data/pascal --method maskclip --image-encoder clip-vit-b16 \\
            --text-encoder clip-text-b16

    Parameters
    ----------
    dataset
        What DIR holds for each is in docs/data.md.
    root
        Folder of the data set.
    model
        Model file of `fusioner train`; without it the one inside the package.
    method
        Untrained baseline in place of a model (cosine, maskclip, empty), or prompt-ablated: the model with one neutral
        text in place of every prompt. Default: the method that the model was trained with. See docs/baselines.md.
    image_encoder
        For cosine and maskclip: the frozen image encoder by name.
    text_encoder
        Likewise.
    out
        Folder for the reports.
    fold
        Fold of pascal, coco or coco-to-pascal, or all four and their mean.
    protocol
        official: PASCAL every val pair once, COCO the first 1000; hsnet: 1000 seeded draws; full: every pair.
    lists
        Whose fold lists (their val lists are the same).
    images
        Where the measures beside the protocol are taken: images of the fold's pairs, or all val images (slower).
    split
        val, test ... as the set names them, or all; default: the set's evaluation split.
    mode
        whole: the whole image once; slide: windows over its own pixels.
    tta_flip
        Also look at the mirrored image, and average.
    tta_scales
        Sizes to average, as in 0.75,1,1.25: multiples of the training size (whole) or of the image (slide).
    guided_filter
        Move the edges of masks to edges of the photograph (mode whole); default: as the model does.
    squash
        Score at this side in pixels, as the papers' 224, instead of at each mask's own size.
    threshold
        Probability above which a pixel is taken.
    own_threshold
        Take the model's own in its place, which its training chose on held-out training images.
    limit
        At most so many images of each fold, spread evenly.
    seed
        Of the draws, the mosaics, the choice of absent classes and the bootstrap.
    bootstrap
        Samples of the 95 % intervals.
    cache
        Folder that keeps image tokens between runs (mode whole).
    allow_leak
        Evaluate even on images that the model was trained on; without it that is refused.
    device
        auto, cpu, cuda, cuda:N or mps.
    """
    import shlex
    import sys
    import time
    from dataclasses import replace

    from fusioner.cli.progress import progress
    from fusioner.data.registry import open_dataset
    from fusioner.evaluation.evaluate import Settings, plans
    from fusioner.evaluation.evaluate import evaluate as run
    from fusioner.evaluation.evaluate_report import provenance, write_report
    from fusioner.evaluation.predictor import SegmenterPredictor
    from fusioner.io import writable_folder

    options = {"seed": seed} if dataset == "mosaic4" else {}
    data = open_dataset(dataset, root, evaluation_split(dataset, root, split), **options)
    folds = (0, 1, 2, 3) if fold == "all" else (int(fold),)
    settings = Settings(folds, protocol, lists, images, threshold, squash, limit, seed, bootstrap)
    todo = plans(data, settings)  # what cannot be evaluated is refused before anything is loaded
    writable_folder(out)
    segmenter, file = _load(model, method, (image_encoder, text_encoder), device, dataset)
    notes = _leaks(segmenter.card.training, data, [plan for plan, _ in todo.values()], allow_leak)
    segmenter.options = InferenceOptions(mode, tta_scales, guided_filter)
    filtered = segmenter.resolve().guided_filter
    if own_threshold:
        settings = replace(settings, threshold=segmenter.card.threshold)
    start = time.monotonic()
    with progress() as track:
        predictor = SegmenterPredictor(segmenter, mode, cache, tta_flip, tta_scales)
        outcome = run(predictor, data, settings, lambda items, f: track(items, dataset if f is None else f"fold {f}"))
    outcome.notes += notes
    command = shlex.join(["fusioner", *sys.argv[1:]])
    shown = {"mode": mode, "tta_flip": tta_flip, "tta_scales": tta_scales, "guided_filter": filtered}
    origin = provenance(command, file, segmenter, shown, time.monotonic() - start)
    origin["method"] = method or segmenter.card.config.method
    names = f"{segmenter.image_encoder.name} and {segmenter.text_encoder.name}"
    outcome.notes.insert(0, f"method {origin['method']}, encoders {names}")
    _show(outcome, write_report(out, outcome, origin))


def evaluation_split(dataset: str, root: Path, split: str | None) -> str | None:
    """The split to evaluate on where none is named; None stands for every image."""
    if split is not None:
        return None if split == "all" else split
    if dataset == "folder":
        return "val" if (root / "val.txt").is_file() else None
    return "test" if dataset in ("fss1000", "mosaic4", "camvid") else "val"


def _load(
    model: Path | None, method: str | None, encoders: tuple[str, str], device: str, dataset: str
) -> tuple["Segmenter", Path | None]:
    """The segmenter and the file its network came from; an official checkpoint is taken for one of this data set."""
    from fusioner.encoders.bundled import weights_file
    from fusioner.loading import DEFAULT_MODEL, load_torch

    if method is not None and method != "prompt-ablated":
        from fusioner.training.calibration import uncalibrated
        from fusioner.training.presets import SMALL

        if model is not None:
            raise FusionerError(f"--method {method} needs no --model; a model is evaluated by its own method")
        return uncalibrated(method, *encoders, SMALL.model.resolution, device=device), None  # pyright: ignore
    segmenter = load_torch(model, device, dataset=dataset.partition("-to-")[0])
    if method == "prompt-ablated":
        from fusioner.training.calibration import ablate_prompts

        segmenter = ablate_prompts(segmenter)
    return segmenter, model or weights_file(DEFAULT_MODEL)


def _leaks(training: dict[str, Any], data: "SegmentationData", todo: list["Plan"], allowed: bool) -> list[str]:
    """Notes for the report; refuses an evaluation on trained images unless it is allowed."""
    from fusioner.data.folds import FOLD_DATASETS
    from fusioner.evaluation.train_test_overlap import refuse_trained_images, trained_classes

    images = {image: data.by_id[image] for plan in todo for image in plan.images}
    notes = refuse_trained_images(training, list(images.values()), allowed)
    asked = {i for plan in todo for i in plan.asked}
    return notes + (trained_classes(training, data, asked) if data.name in FOLD_DATASETS else [])


def _show(outcome: "Outcome", paths: list[Path]) -> None:
    from rich.console import Console

    from fusioner.evaluation.evaluate_report import terminal

    console = Console()
    console.print(terminal(outcome))
    for path in paths:
        console.print(f"wrote {path}", soft_wrap=True)
