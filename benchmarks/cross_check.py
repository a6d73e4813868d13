# pyright: reportMissingImports=false
"""Compare per-class IoU and run lengths with those of seven other packages on the same label maps.

    pip install --no-deps --target pkgs scikit-learn scipy joblib threadpoolctl torchmetrics lightning-utilities \\
        cityscapesScripts appdirs mmsegmentation mmengine addict yapf termcolor prettytable wcwidth platformdirs \\
        segmentation-models-pytorch monai faster-coco-eval
    PYTHONPATH=pkgs python benchmarks/cross_check.py

Prints the largest difference over classes with ground truth, and the IoU of a class that is only predicted, for which
packages differ. Packages that are not installed are skipped.
"""

import contextlib
import importlib.util
import io
import sys
import tempfile
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from fusioner.data.registry import open_dataset
from fusioner.data.shapes import fill_runs
from fusioner.evaluation.evaluator import evaluate
from fusioner.evaluation.predictor import FunctionPredictor
from fusioner.evaluation.protocols import EvaluationOptions
from fusioner.regions import encode_mask

CLASSES, IGNORE = 19, 255
Pairs = Sequence[tuple[np.ndarray, np.ndarray]]
"""(prediction, truth) per image: class ids (H, W), uint8."""


def make_pairs(images: int = 12, seed: int = 0) -> Pairs:
    """Return smooth random label maps with ignored pixels; the last class is only predicted."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(images):
        noise = rng.normal(size=(CLASSES, *rng.integers(60, 200, 2)))
        fields = gaussian_filter(noise, (0, 9, 9))
        prediction = fields.argmax(axis=0).astype(np.uint8)
        fields[:-1] += 0.5 * gaussian_filter(rng.normal(size=noise[:-1].shape), (0, 9, 9))
        truth = fields[:-1].argmax(axis=0).astype(np.uint8)
        truth[fields.std(axis=0) < np.quantile(fields.std(axis=0), 0.1)] = IGNORE
        pairs.append((prediction, truth))
    return pairs


def fusioner_iou(pairs: Pairs) -> np.ndarray:
    """Return the per-class IoU that `fusioner evaluate` reports, of a data set whose images are the predictions."""

    def predict(rgb: np.ndarray, labels: Sequence[str]) -> np.ndarray:
        return np.stack([rgb[..., 0] == int(label.removeprefix("class ")) for label in labels]).astype(np.float32)

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for part, kind in enumerate(("images", "masks")):
            (root / kind).mkdir()
            for number, pair in enumerate(pairs):
                Image.fromarray(pair[part]).save(root / kind / f"{number:03}.png")
        (root / "classes.txt").write_text("".join(f"class {number}\n" for number in range(CLASSES)))
        options = EvaluationOptions(n_resamples=1)
        reported = evaluate(FunctionPredictor(predict), open_dataset("folder", root), options).summary.per_class
    # ids are mask values plus 1, as class 0 is no background here
    return np.array([reported[i].value / 100 if i in reported else np.nan for i in range(1, CLASSES + 1)])


def sklearn_iou(pairs: Pairs) -> np.ndarray:
    """Return the per-class IoU of scikit-learn."""
    from sklearn.metrics import jaccard_score

    prediction, truth = _flat(pairs)
    options: dict[str, Any] = {"average": None, "zero_division": 0}  # the signature names types that it does not need
    return np.asarray(jaccard_score(truth, prediction, labels=range(CLASSES), **options))


def torchmetrics_iou(pairs: Pairs) -> np.ndarray:
    """Return the per-class IoU of torchmetrics."""
    from torchmetrics.classification import MulticlassJaccardIndex

    metric = MulticlassJaccardIndex(CLASSES, average="none", ignore_index=IGNORE)
    for prediction, truth in pairs:
        metric.update(torch.from_numpy(prediction).long(), torch.from_numpy(truth).long())
    return metric.compute().numpy()


def cityscapes_iou(pairs: Pairs) -> np.ndarray:
    """Return the per-class IoU of cityscapesScripts, which reads PNG files."""
    import cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling as scorer  # noqa: N813
    from cityscapesscripts.helpers.labels import labels, trainId2label

    label_ids = np.zeros(256, np.uint8)  # unlabeled
    for train_id in range(CLASSES):
        label_ids[train_id] = trainId2label[train_id].id
    scorer.args.evalInstLevelScore, scorer.args.JSONOutput, scorer.args.quiet = False, False, True
    scorer.args.evalLabels = [label.id for label in labels if label.id >= 0]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        files = []
        for number, pair in enumerate(pairs):
            paths = [str(Path(folder) / f"{kind}{number}.png") for kind in ("prediction", "truth")]
            for path, ids in zip(paths, pair, strict=True):
                Image.fromarray(label_ids[ids]).save(path)
            files.append(paths)
        result = scorer.evaluateImgLists(*map(list, zip(*files, strict=True)), scorer.args)
    scores = result["classScores"]
    return np.array([scores[trainId2label[train_id].name] for train_id in range(CLASSES)])


def mmseg_iou(pairs: Pairs) -> np.ndarray:
    """Return the per-class IoU of mmsegmentation, loaded without the package's check for mmcv."""
    from mmengine.registry import METRICS

    sys.modules.setdefault("mmseg", types.ModuleType("mmseg"))
    registry = types.ModuleType("mmseg.registry")
    vars(registry)["METRICS"] = METRICS
    sys.modules["mmseg.registry"] = registry
    metric = _load("mmseg", "evaluation/metrics/iou_metric.py").IoUMetric
    areas = zip(
        *(metric.intersect_and_union(*map(torch.from_numpy, pair), CLASSES, IGNORE) for pair in pairs), strict=True
    )
    return np.asarray(metric.total_area_to_metrics(*map(sum, areas), metrics=["mIoU"])["IoU"])


def smp_iou(pairs: Pairs) -> np.ndarray:
    """Return the per-class IoU of segmentation-models-pytorch."""
    functional = _load("segmentation_models_pytorch", "metrics/functional.py")
    flat = [torch.from_numpy(part)[None].long() for part in _flat(pairs, ignored=True)]
    stats = functional.get_stats(*flat, mode="multiclass", num_classes=CLASSES, ignore_index=IGNORE)
    return functional.iou_score(*stats)[0].numpy()


def monai_iou(pairs: Pairs) -> np.ndarray:
    """Return the per-class IoU from MONAI's confusion matrix."""
    from monai.metrics import get_confusion_matrix

    one_hot = [np.eye(CLASSES)[part].T[None, :, :, None] for part in _flat(pairs)]
    tp, fp, _, fn = get_confusion_matrix(*map(torch.from_numpy, one_hot), include_background=True)[0].numpy().T
    return tp / (tp + fp + fn)


SCORERS: dict[str, Callable[[Pairs], np.ndarray]] = {
    "scikit-learn": sklearn_iou,
    "torchmetrics": torchmetrics_iou,
    "cityscapesScripts": cityscapes_iou,
    "mmsegmentation": mmseg_iou,
    "segmentation-models-pytorch": smp_iou,
    "MONAI": monai_iou,
}


def run_length_differences(pairs: Pairs) -> int:
    """Return the number of masks whose run lengths differ from faster-coco-eval's or do not decode to the mask."""
    from faster_coco_eval.core import mask as coco

    differences = 0
    for prediction, _ in pairs:
        for class_id in range(CLASSES):
            bits = prediction == class_id
            ours, theirs = encode_mask(bits)["counts"], coco.encode(np.asfortranarray(bits.astype(np.uint8)))["counts"]
            ours, theirs = (text.decode() if isinstance(text, bytes) else text for text in (ours, theirs))
            differences += ours != theirs or not np.array_equal(fill_runs(ours, bits.shape, column_major=True), bits)
    return differences


def _flat(pairs: Pairs, ignored: bool = False) -> list[np.ndarray]:
    """Concatenate all predicted and all true ids, by default without ignored pixels."""
    prediction, truth = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    valid = slice(None) if ignored else truth != IGNORE
    return [prediction[valid], truth[valid]]


def _load(package: str, file: str) -> types.ModuleType:
    """Load one module of a package without importing the package."""
    files = (Path(folder) / package / file for folder in sys.path)
    found = next(filter(Path.is_file, files), None)
    if found is None:
        raise ModuleNotFoundError(f"no module of {package}", name=package)
    spec = importlib.util.spec_from_file_location(f"{package}_{found.stem}", found)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Print a row per package."""
    pairs = make_pairs()
    ours = fusioner_iou(pairs)
    print("| package | largest difference | a class that is only predicted |\n|---|---|---|")
    print(f"| fusioner | | {ours[-1]:.2f} |")
    for name, scorer in SCORERS.items():
        try:
            theirs = scorer(pairs)
        except ModuleNotFoundError as error:
            print(f"| {name} | not installed ({error.name}) | |")
            continue
        print(f"| {name} | {np.abs(theirs - ours)[:-1].max():.1e} | {theirs[-1]:.2f} |")
    try:
        print(f"run lengths: {run_length_differences(pairs)} of {len(pairs) * CLASSES} differ from faster-coco-eval's")
    except ModuleNotFoundError as error:
        print(f"run lengths: not installed ({error.name})")
    with_class = np.where(np.isnan(ours), 0, ours).mean()
    print(f"mIoU {100 * np.nanmean(ours):.2f} without the class that is only predicted, {100 * with_class:.2f} with it")


if __name__ == "__main__":
    main()
