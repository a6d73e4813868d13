"""Ablate the preset `small`, one setting at a time, on classes that are not trained on.

    python benchmarks/ablation.py --root data/pascal --fold 2 --steps 150 --out ablation
    python benchmarks/ablation.py --root data/pascal --fold 2 --out ablation --rows small affinity-off

Each row is a separate `fusioner train --fold` of the same images, steps and seed; rows with a result in `--out` are not
trained again. Models are evaluated on *training* images that show unseen classes, which were background in training, so
that no choice is made on val images. Masks at native size; at the threshold that is best on these images, and at 0.5:
single-prompt mIoU, multi-class mIoU (argmax), false-positive area, and specificity (absent names without any pixel).
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from iou import foreground_miou

from fusioner.data.folds import fold_classes
from fusioner.evaluation.evaluator import binary_counts, confusion_matrix
from fusioner.evaluation.predictor import SegmenterPredictor
from fusioner.loading import load
from fusioner.postprocess import decide, sigmoid, upsample
from fusioner.sweep.plan import flag_words
from fusioner.training.dataset import open_split

ROWS: dict[str, dict[str, Any]] = {
    "small": {},
    "similarity-off": {"similarity": "none", "affinity_refinement": False},
    "hypernym-matching-off": {"hypernyms": False},
    "affinity-off": {"affinity_refinement": False},
    "residual-head": {"residual_head": True},
    "logit-bias-off": {"logit_bias": False},
    "prompt-dropout-off": {"prompt_dropout": 0.0},
    "cross-entropy-off": {"ce_weight": 0.0},
    "one-prompt": {"prompts": 1},
    "eight-prompts": {"prompts": 8, "batch_size": 3},
    "instance-norm": {"decoder_norm": "instance"},
    "synonyms": {"synonym_file": "packaged"},
    "hypernyms": {"hypernym_file": "packaged"},
    "unseen-ignored": {"unseen_pixels": "ignore"},
    "flip-off": {"horizontal_flip": False},
    "late": {"method": "late"},
}
THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7)


def train(row: str, args: argparse.Namespace, folder: Path) -> Path:
    """Train a row's model and return its file; raise CalledProcessError if the training fails."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["--root", args.root, "--fold", args.fold, "--steps", args.steps, "--seed", args.seed]
    flags += ["--out", folder, "--resume", *(["--cache", args.cache] if args.cache else []), *flag_words(ROWS[row])]
    command = [sys.executable, "-m", "fusioner", "train", "pascal", *map(str, flags)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return folder / "best.safetensors"


@torch.inference_mode()
def measure(model: Path, args: argparse.Namespace) -> dict[str, list[float]]:
    """Return each measure at each of `THRESHOLDS`, in per cent."""
    data = open_split("pascal", args.root).data
    predictor = SegmenterPredictor(load(model), cache=args.cache)
    unseen = fold_classes("pascal", args.fold)[1]
    image_ids = sorted({image for image, _ in data.pairs(unseen)})
    drawn = np.random.default_rng(0).permutation(len(image_ids))[: args.images]
    binary = torch.zeros(len(THRESHOLDS), len(unseen), 2, 2, dtype=torch.int64)
    confusion = torch.zeros(len(THRESHOLDS), len(unseen) + 1, len(unseen) + 1, dtype=torch.int64)
    areas: list[list[float]] = [[] for _ in THRESHOLDS]
    class_numbers = np.zeros(256, np.int64)
    class_numbers[list(unseen)], class_numbers[data.ignore] = np.arange(1, len(unseen) + 1), data.ignore
    for image in (data.by_id[image_ids[i]] for i in sorted(drawn)):
        rgb, mask = data.read(image)
        logits = predictor.logits(predictor.encode(rgb, image.image), [data.prompts[class_id] for class_id in unseen])
        probabilities = torch.from_numpy(sigmoid(upsample(np.asarray(logits), mask.shape)))
        ignored, truth = torch.from_numpy(mask == data.ignore), torch.from_numpy(class_numbers[mask])
        for i, threshold in enumerate(THRESHOLDS):
            confusion[i] += confusion_matrix(
                torch.from_numpy(decide(probabilities.numpy(), threshold)), truth, len(unseen) + 1
            )
            for row, class_id in enumerate(unseen):
                claimed = (probabilities[row] > threshold) & ~ignored
                if (mask == class_id).any():
                    binary[i, row] += binary_counts(claimed, torch.from_numpy(mask == class_id), ignored)
                else:
                    areas[i].append(float(claimed.float().mean()))
    return {
        "single": (100 * (binary[:, :, 1, 0] / binary[:, :, 1, 1].clamp(min=1)).mean(dim=1)).tolist(),
        "multi-class": [foreground_miou(matrix) for matrix in confusion],
        "area": [100 * float(np.mean(claimed)) for claimed in areas],
        "specificity": [100 * float(np.mean(np.array(claimed) == 0)) for claimed in areas],
    }


def table_row(name: str, metrics: dict[str, list[float]]) -> str:
    """Format the metrics at the threshold with the best sum of both mIoU, and at 0.5."""
    best = int(np.argmax(np.add(metrics["single"], metrics["multi-class"])))
    cells = [f"{values[i]:.1f}" for i in (best, THRESHOLDS.index(0.5)) for values in metrics.values()]
    return f"| {name} | {THRESHOLDS[best]:g} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of PASCAL VOC")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fold", type=int, default=2)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--cache", type=Path, help="feature cache")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help="names of `ROWS`")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| `small`, but | threshold | single | argmax | false-positive area | specificity "
        "| at 0.5: single | argmax | false-positive area | specificity |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in (name for name in ROWS if name in args.rows):
        folder = args.out / f"{row}-{args.fold}".replace(" ", "-")
        result = folder / "metrics.json"
        if not result.is_file():
            result.write_text(json.dumps(measure(train(row, args, folder), args)))
        print(table_row(row, json.loads(result.read_text())), flush=True)


if __name__ == "__main__":
    main()
