"""Evaluate the closed-set head alone on further features of the bundled encoders, on training images.

    python benchmarks/head_features.py pascal=data/pascal coco=data/coco folder=data/coco_stuff --every 4 1 1

Each image is encoded once: DINOv2's tokens, EfficientNet-Lite2's log-posterior at 336 px and at 504 px (averaged to the
same grid), its features before the classifier, and those of stage 5, the last ones without dilation. For each set of
features in `VARIANTS` the head is fitted without one half of the images and measured on that half: multi-class mIoU
over the names in the masks at 168 px, in brackets after affinity refinement with weight one half.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from iou import foreground_miou
from torch import Tensor

from fusioner.data.base import Item
from fusioner.data.masks import resize_mask
from fusioner.encoders.bundled import Dinov2
from fusioner.encoders.dense_classifier import Posteriors
from fusioner.evaluation.evaluator import confusion_matrix
from fusioner.image import resize_square
from fusioner.model.closed_set_head import ClosedSetSegmenter, log_posterior
from fusioner.model.similarity import affinity
from fusioner.postprocess import upsample
from fusioner.progress import no_progress
from fusioner.training.closed_set import ClosedSetDataset, SampleView, fit_closed_set
from fusioner.training.dataset import Corpus, DatasetSplit, build_corpus, cross_fit_fold, open_split
from fusioner.training.presets import preset

SIDE, LARGE_SIDE, GRID, MASK_SIDE = 336, 504, 24, 168
TOKEN_WIDTH, CLASSES = 384, 1000
LAST_BLOCK_OF_STAGE_5 = 14
VARIANTS = {
    "as the bundled model": ("tokens", "small"),
    "504 px": ("tokens", "large"),
    "336 and 504 px, mean": ("tokens", "mean"),
    "336 and 504 px": ("tokens", "large", "small"),
    "before the classifier": ("tokens", "before", "small"),
    "stage 5": ("tokens", "stage 5", "small"),
    "336 and 504 px, mean, and stage 5": ("tokens", "stage 5", "mean"),
}
"""Features of each variant; the last of them is the log-posterior."""


class Encoders:
    """The bundled image encoders with further features of the classifier."""

    def __init__(self) -> None:
        self.dino, self.classifier = Dinov2(), Posteriors()
        self.outputs: dict[str, Tensor] = {}
        network = self.classifier.network
        for name, module in (("stage 5", network.blocks[LAST_BLOCK_OF_STAGE_5]), ("before", network.bn1)):
            module.register_forward_hook(lambda _, inputs, output, name=name: self.outputs.update({name: output}))

    @torch.inference_mode()
    def __call__(self, rgb: np.ndarray) -> dict[str, np.ndarray]:
        """Return the features of an image, (channels, GRID, GRID) each."""
        large = log_posterior(self.classifier(resize_square(rgb, LARGE_SIDE)[None]))
        pixels = resize_square(rgb, SIDE)[None]
        maps = {"large": F.interpolate(large, (GRID, GRID), mode="area"), "tokens": self.dino(pixels)}
        maps["small"] = log_posterior(self.classifier(pixels))
        maps["mean"] = (maps["large"] + maps["small"]) / 2
        maps["stage 5"], maps["before"] = self.outputs["stage 5"], F.relu6(self.outputs["before"])
        return {name: values[0, :, :GRID, :GRID].half().numpy() for name, values in maps.items()}


class StoredFeatures:
    """Features on disk, in place of the tokens of the feature cache; missing ones are encoded."""

    views = 1

    def __init__(self, split: DatasetSplit, folder: Path, encoders: Encoders, names: Sequence[str]) -> None:
        self.data, self.folder, self.encoders, self.names = split.data, folder, encoders, names

    def batch(self, views: Sequence[tuple[Item, int]]) -> tuple[Tensor, list[np.ndarray]]:
        """Return the features of one image and its mask, `MASK_SIDE` px wide and high."""
        ((item, _),) = views
        path = self.folder / f"{item.id.replace('/', '_')}.npz"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **self.encoders(self.data.read(item)[0]))  # pyright: ignore[reportArgumentType]
        with np.load(path) as stored:
            parts = [torch.from_numpy(stored[name]).float() for name in self.names]
        parts[-1] = parts[-1].softmax(dim=0)
        return torch.cat(parts)[None], [resize_mask(self.data.read_mask(item), (MASK_SIDE, MASK_SIDE))]


@torch.inference_mode()
def measure(dataset: ClosedSetDataset, network: ClosedSetSegmenter, corpus: Corpus, fold: int) -> list[str]:
    """Return the mIoU of each data set on a cross-fitting fold, plain and refined."""
    scores = [torch.zeros(2, *2 * (len(split.data.classes),), dtype=torch.int64) for split in corpus.splits]
    rows = {name: row for row, name in enumerate(corpus.names())}
    for sample in dataset.samples:
        if cross_fit_fold(sample.item.id) != fold:
            continue
        data, classes = corpus.splits[sample.split].data, corpus.splits[sample.split].classes
        ids = ([] if data.ignore_unlabeled else [0]) + list(classes)
        features = dataset.read([SampleView(sample)]).features
        probabilities = network(features)[0][:, [rows[data.prompts[i]] if i else -1 for i in ids]].softmax(dim=1).T
        refined = (probabilities + probabilities @ affinity(features[:, :, :TOKEN_WIDTH].mT)[0]) / 2
        truth = torch.from_numpy(dataset.sources[sample.split].batch([(sample.item, 0)])[1][0].astype(np.int64))
        truth[truth == data.ignore] = 255
        for score, maps in zip(scores[sample.split], (probabilities, refined), strict=True):
            planes = upsample(maps.unflatten(1, (GRID, GRID)).numpy(), (MASK_SIDE, MASK_SIDE))
            score += confusion_matrix(torch.tensor(ids)[torch.from_numpy(planes.argmax(axis=0))], truth, len(score))
    values = [[foreground_miou(score) for score in pair] for pair in scores]
    return [f"{plain:.1f} ({refined:.1f})" for plain, refined in values]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sets", nargs="+", metavar="NAME=FOLDER", help="data sets of the training")
    parser.add_argument("--every", type=int, nargs="+", default=[1], help="n-th training image, one number or several")
    parser.add_argument("--excluded-folds", type=int, nargs="+", default=[0, 1], help="folds to measure on, in turn")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--cache", type=Path, default=Path("head-features"), help="folder for the features")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sets = [entry.split("=", 1) for entry in args.sets]
    corpus = build_corpus([open_split(name, Path(folder)) for name, folder in sets], "images", 0, 0)
    every = args.every * len(sets) if len(args.every) == 1 else args.every
    parts = [[sample for sample in corpus.images if sample.split == i] for i in range(len(sets))]
    samples = tuple(sample for part, step in zip(parts, every, strict=True) for sample in part[::step])
    corpus, encoders = Corpus(corpus.splits, samples, ()), Encoders()
    config = preset("small").override(views=1, closed_set_epochs=12, closed_set_patch_ratio=0.25)
    print(f"| features | excluded fold | {' | '.join(Path(folder).name for _, folder in sets)} |")
    print("|---" * (2 + len(sets)) + "|")
    for variant in args.variants:
        sources: Any = [
            StoredFeatures(split, args.cache / Path(folder).name, encoders, VARIANTS[variant])
            for split, (_, folder) in zip(corpus.splits, sets, strict=True)
        ]
        width = sources[0].batch([(samples[0].item, 0)])[0].shape[1] - CLASSES
        network_config = SimpleNamespace(visual_dim=width, similarity_dim=CLASSES)
        model: Any = SimpleNamespace(
            config=network_config, split_channels=lambda maps, width=width: maps.split([width, CLASSES], dim=1)
        )
        dataset = ClosedSetDataset(model, corpus, sources, no_progress)
        for fold in args.excluded_folds:
            cells = measure(dataset, fit_closed_set(dataset, config, None, fold), corpus, fold)
            print(f"| {variant} | {fold} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
