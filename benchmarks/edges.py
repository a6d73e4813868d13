"""What moving edges is worth: masks as they are, by the guided filter, and by PAMR (arXiv 2005.08104) as a peer.

    python benchmarks/edges.py run/best.safetensors --sets pascal=data/pascal folder=my/data
    python benchmarks/edges.py fold0/best.safetensors fold1/best.safetensors --sets pascal=data/pascal

On training images only: those that a training held out, all names of a set together; of a fold's model 80 that show its
unseen classes (background when it was trained), those five. Argmax mIoU of each set, background not counted, masks
at their own size, the model's own threshold; per cent. "Single" is the mean IoU of classes prompted alone where they
are, "refused" the share of absent names without a pixel.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from held_out import read_given, set_aside
from torch import Tensor

from fusioner.data.folds import fold_classes
from fusioner.evaluation.evaluator import class_iou, confusion_matrix
from fusioner.evaluation.predictor import SegmenterPredictor
from fusioner.image import resize_square
from fusioner.loading import load
from fusioner.options import InferenceOptions
from fusioner.postprocess import GUIDE_SIZE, GuidedFilter, decide, sigmoid, upsample
from fusioner.training.dataset import open_split

SIDE = GUIDE_SIZE
SHOWN = 80  # images of a fold's unseen classes
STEPS, DILATIONS = 5, (1, 2, 4)  # of PAMR

Move = Callable[[Tensor, np.ndarray], Tensor]
"""Logits (K, h, w) and the photograph -> logits."""


class Shown(NamedTuple):
    """An image of the set of that number: its mask (255 counts nowhere), what is asked, and its logits."""

    split: int
    rgb: np.ndarray
    mask: np.ndarray
    ids: tuple[int, ...]
    logits: Tensor
    background: bool


def guided(radius: int, epsilon: float, side: int = SIDE) -> Move:
    """The filter of the package."""
    return lambda logits, rgb: torch.from_numpy(
        GuidedFilter(resize_square(rgb, side).numpy(), radius, epsilon)(logits.numpy())
    )


def pamr(logits: Tensor, rgb: np.ndarray) -> Tensor:
    """Probabilities averaged again and again over neighbours of like colour."""
    guide, p = resize_square(rgb, SIDE)[None], torch.from_numpy(sigmoid(upsample(logits.numpy(), (SIDE, SIDE))))[None]

    def around(x: Tensor) -> Tensor:  # (1, C, S, S) -> (1, N, C, S, S)
        found = []
        for d in DILATIONS:
            padded = F.pad(x, (d, d, d, d), mode="replicate")
            places = [(y, z) for y in range(3) for z in range(3) if (y, z) != (1, 1)]
            found += [padded[..., y * d : y * d + SIDE, z * d : z * d + SIDE] for y, z in places]
        return torch.stack(found, dim=1)

    near = around(guide)
    spread = torch.cat([near, guide[:, None]], dim=1).std(dim=1, keepdim=True)
    share = -((near - guide[:, None]).abs() / (0.1 * spread + 1e-8)).mean(dim=2, keepdim=True)
    share = share.softmax(dim=1)
    for _ in range(STEPS):
        p = (around(p) * share).sum(dim=1)
    return p[0].clamp(1e-5, 1 - 1e-5).logit()


MOVES: dict[str, Move] = {
    "as they are": lambda logits, rgb: logits,
    "guided, radius 2": guided(2, 1e-4),
    "guided, radius 4 (the package's)": guided(4, 1e-4),
    "guided, radius 8": guided(8, 1e-4),
    "guided, radius 4, guide of 168": guided(4, 1e-4, 168),
    "PAMR": pamr,
}


def shown(model: Path, named: list[list[str]], cache: Path | None) -> tuple[list[Shown], float]:
    """What the model is asked and says, and its threshold."""
    segmenter = load(model)
    segmenter.options = InferenceOptions(guided_filter=False)
    fold = segmenter.card.training["fold"]
    asked = SegmenterPredictor(segmenter, cache=cache)
    splits = [open_split(name, Path(folder)) for name, folder in named]
    if fold is None:
        chosen = [(e.split, e.item, splits[e.split].classes) for e in set_aside(segmenter.card, splits)]
    else:
        data, unseen = splits[0].data, fold_classes(named[0][0], fold)[1]
        order = (data.items[i] for i in np.random.default_rng(0).permutation(len(data.items)))
        showing = (item for item in order if np.isin(data.read_mask(item), unseen).any())
        chosen = [(0, item, unseen) for item, _ in zip(showing, range(SHOWN), strict=False)]
    found = []
    for split, item, ids in chosen:
        data = splits[split].data
        rgb, mask = data.read(item)
        logits = asked.logits(asked.encode(rgb, item.image), [data.prompts[i] for i in ids])
        mask = np.where(mask == data.ignore, 255, np.where(np.isin(mask, ids), mask, 0))
        found.append(Shown(split, rgb, mask, tuple(ids), logits, not data.ignore_unlabeled))
    return found, segmenter.card.threshold


def rows(model: Path, named: list[list[str]], cache: Path | None) -> Iterator[str]:
    """Of the table, one a way."""
    images, level = shown(model, named, cache)
    for name, move in MOVES.items():
        scores = [torch.zeros(256, 256, dtype=torch.int64) for _ in named]
        over: dict[tuple[int, int], np.ndarray] = {}
        refused, seconds = [], 0.0
        for one in images:
            begun = time.perf_counter()
            logits = move(one.logits, one.rgb)
            seconds += time.perf_counter() - begun
            likely = sigmoid(upsample(np.asarray(logits), one.mask.shape))
            found = torch.from_numpy(np.array([0, *one.ids])[decide(likely, level, background=one.background)])
            truth = torch.from_numpy(one.mask).long()
            scored = truth if one.background else truth.masked_fill(truth == 0, 255)
            scores[one.split] += confusion_matrix(found, scored, 256)
            counts = truth != 255
            for row, i in enumerate(one.ids):
                claimed, there = (likely[row] > level) & counts, truth == i
                if there.any():
                    both = np.array([int((claimed & there).sum()), int((claimed | there).sum())])
                    over[one.split, i] = over.get((one.split, i), 0) + both
                elif one.background:
                    refused.append(not bool((likely[row] > level).any()))
        cells = [100 * float(class_iou(score)[1:].nanmean()) for score in scores]
        cells += [100 * float(np.mean([a / b for a, b in over.values()])), 100 * float(np.mean(refused))]
        cells.append(1000 * seconds / len(images))
        yield f"| {model.parent.name} | {name} | {' | '.join(f'{cell:.1f}' for cell in cells)} |"


def main() -> None:
    given = read_given(__doc__ or "")
    print(f"| model | edges | {given.heads} | single | refused | ms an image |")
    print("|" + "---|" * (len(given.named) + 5))
    with torch.inference_mode():
        for model in given.models:
            for row in rows(model, given.named, given.cache):
                print(row, flush=True)


if __name__ == "__main__":
    main()
