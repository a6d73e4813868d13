"""What each idea is worth: the preset `small` with one setting changed at a time, on classes never trained on.

    python benchmarks/ablation.py --root data/pascal --fold 2 --steps 150 --out ablation
    python benchmarks/ablation.py --root data/pascal --fold 2 --out ablation --rows small,affinity-off

Each row is a `fusioner train --fold` of the same images, steps and seed in a process of its own; a row whose result is
there already is not made again. It is measured on *training* images that show unseen classes, which were background
when it was trained: choosing by this table costs no val image. Masks at native size; at the level that is best on these
images, and at 0.5: single-prompt mIoU, argmax mIoU of the five, area claimed for absent names, absent names refused.
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

from fusioner.data.folds import fold_classes
from fusioner.evaluation.evaluator import binary_counts, class_iou, confusion_matrix
from fusioner.evaluation.predictor import SegmenterPredictor
from fusioner.loading import load
from fusioner.postprocess import decide, sigmoid, upsample
from fusioner.sweep.plan import flag_words
from fusioner.training.dataset import open_split

WORDS = {"similarity": "none", "affinity_refinement": False}
ROWS: dict[str, dict[str, Any]] = {
    "small": {},
    "similarity-off": WORDS,
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
LEVELS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7)


def train(row: str, given: argparse.Namespace, folder: Path) -> Path:
    """The row's model; raises CalledProcessError where the training fails."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["--root", given.root, "--fold", given.fold, "--steps", given.steps, "--seed", given.seed]
    words += ["--out", folder, "--resume", *(["--cache", given.cache] if given.cache else []), *flag_words(ROWS[row])]
    command = [sys.executable, "-m", "fusioner", "train", "pascal", *map(str, words)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return folder / "best.safetensors"


@torch.inference_mode()
def measure(model: Path, given: argparse.Namespace) -> dict[str, list[float]]:
    """Measure -> its value at each of `LEVELS`, per cent."""
    data = open_split("pascal", given.root).data
    asked = SegmenterPredictor(load(model), cache=given.cache)
    unseen = fold_classes("pascal", given.fold)[1]
    shown = sorted({image for image, _ in data.pairs(unseen)})
    some = np.random.default_rng(0).permutation(len(shown))[: given.images]
    single = torch.zeros(len(LEVELS), len(unseen), 2, 2, dtype=torch.int64)
    chosen = torch.zeros(len(LEVELS), len(unseen) + 1, len(unseen) + 1, dtype=torch.int64)
    absent: list[list[float]] = [[] for _ in LEVELS]
    number = np.zeros(256, np.int64)
    number[list(unseen)], number[data.ignore] = np.arange(1, len(unseen) + 1), data.ignore
    for image in (data.by_id[shown[i]] for i in sorted(some)):
        rgb, mask = data.read(image)
        logits = asked.logits(asked.encode(rgb, image.image), [data.prompts[class_id] for class_id in unseen])
        likely = torch.from_numpy(sigmoid(upsample(np.asarray(logits), mask.shape)))
        ignored, truth = torch.from_numpy(mask == data.ignore), torch.from_numpy(number[mask])
        for at, level in enumerate(LEVELS):
            chosen[at] += confusion_matrix(torch.from_numpy(decide(likely.numpy(), level)), truth, len(unseen) + 1)
            for row, class_id in enumerate(unseen):
                claimed = (likely[row] > level) & ~ignored
                if (mask == class_id).any():
                    single[at, row] += binary_counts(claimed, torch.from_numpy(mask == class_id), ignored)
                else:
                    absent[at].append(float(claimed.float().mean()))
    return {
        "single": (100 * (single[:, :, 1, 0] / single[:, :, 1, 1].clamp(min=1)).mean(dim=1)).tolist(),
        "argmax": [100 * float(class_iou(one)[1:].nanmean()) for one in chosen],
        "area": [100 * float(np.mean(areas)) for areas in absent],
        "refused": [100 * float(np.mean(np.array(areas) == 0)) for areas in absent],
    }


def line(row: str, found: dict[str, list[float]]) -> str:
    """A row of the table: at the level of the best sum of both mIoU, and at 0.5."""
    best = int(np.argmax(np.add(found["single"], found["argmax"])))
    at = {"best": best, "half": LEVELS.index(0.5)}
    cells = [f"{found[name][place]:.1f}" for place in at.values() for name in ("single", "argmax", "area", "refused")]
    return f"| {row} | {LEVELS[best]:g} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="a PASCAL tree")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fold", type=int, default=2)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--cache", type=Path, help="feature cache")
    parser.add_argument("--rows", default=",".join(ROWS), help="names with commas between them, of those in ROWS")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| `small`, but | level | single | argmax | absent area | refused | at 0.5: single | argmax | area | refused |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in (name for name in ROWS if name in given.rows.split(",")):
        folder = given.out / f"{row}-{given.fold}".replace(" ", "-")
        result = folder / "found.json"
        if not result.is_file():
            found = measure(train(row, given, folder), given)
            result.write_text(json.dumps(found))
        print(line(row, json.loads(result.read_text())), flush=True)


if __name__ == "__main__":
    main()
