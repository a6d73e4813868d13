"""Evaluate the closed-set head alone, fitted without one cross-fitting fold and measured on that fold.

    python benchmarks/closed_set.py pascal=data/pascal coco=data/coco folder=data/clothing folder=data/coco_stuff
    python benchmarks/closed_set.py pascal=data/pascal --per-patch     # without self-attention

The rest of the network is not trained and no val image is read. The classes of each data set compete among themselves.
Prints the multi-class mIoU over the names in the masks at native size, without and with affinity refinement (weight one
half). `--per-patch` removes self-attention from the same network.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from iou import foreground_miou
from torch import Tensor, nn

from fusioner.evaluation.evaluator import confusion_matrix
from fusioner.model import closed_set_head
from fusioner.model.fusion import Block
from fusioner.model.similarity import affinity
from fusioner.postprocess import upsample
from fusioner.progress import no_progress
from fusioner.training import closed_set
from fusioner.training.build import build_encoders, build_network, build_sources
from fusioner.training.closed_set import ClosedSetDataset, SampleView, fit_closed_set
from fusioner.training.dataset import build_corpus, cross_fit_fold, open_split
from fusioner.training.presets import preset


class PerPatchBlock(Block):
    """A transformer block without attention."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x + self.mlp(self.norm2(x))


@torch.inference_mode()
def measure(dataset: ClosedSetDataset, network: nn.Module, corpus: Any, fold: int) -> list[list[float]]:
    """Return the mIoU of each data set on a cross-fitting fold, without and with affinity refinement, in per cent."""
    scores = [torch.zeros(2, *2 * (len(split.data.classes),), dtype=torch.int64) for split in corpus.splits]
    numbers = {name: number for number, name in enumerate(corpus.names())}
    for sample in dataset.samples:
        if cross_fit_fold(sample.item.id) != fold:
            continue
        split = corpus.splits[sample.split]
        data = split.data
        tokens, masks = dataset.sources[sample.split].batch([(sample.item, 0)])
        ids = ([] if data.ignore_unlabeled else [0]) + list(split.classes)
        columns = [numbers[data.prompts[i]] if i else -1 for i in ids]
        features = dataset.read([SampleView(sample)]).features
        probabilities = network(features)[0][:, columns].softmax(dim=1).T  # (K, P)
        weights = affinity(dataset.model.split_channels(tokens)[0].flatten(2))[0]
        truth = torch.from_numpy(masks[0]).long()
        truth[truth == data.ignore] = 255
        refined = (probabilities + probabilities @ weights.T) / 2
        for score, maps in zip(scores[sample.split], (probabilities, refined), strict=True):
            planes = upsample(maps.unflatten(1, tokens.shape[-2:]).numpy(), masks[0].shape)
            score += confusion_matrix(torch.tensor(ids)[torch.from_numpy(planes.argmax(axis=0))], truth, len(score))
    return [[foreground_miou(score) for score in pair] for pair in scores]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sets", nargs="+", metavar="NAME=FOLDER", help="data sets of the training")
    parser.add_argument("--per-patch", action="store_true", help="remove self-attention")
    parser.add_argument("--excluded-fold", type=int, default=0, help="cross-fitting fold to measure on")
    parser.add_argument("--patch-ratio", type=float, default=1.0, help="fraction of an image's patches used per step")
    parser.add_argument("--views", type=int, default=1, help="augmented views of each image")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the images")
    parser.add_argument(
        "--logit-adjustment",
        type=float,
        default=closed_set.LOGIT_ADJUSTMENT,
        help="strength of the logit adjustment for class frequency",
    )
    parser.add_argument("--resolution", type=int, default=preset("small").model.resolution)
    parser.add_argument("--cache", type=Path, help="feature cache")
    args = parser.parse_args()
    sets = [entry.split("=", 1) for entry in args.sets]
    config = preset("small").override(
        resolution=args.resolution,
        views=args.views,
        closed_set_epochs=args.epochs,
        closed_set_patch_ratio=args.patch_ratio,
    )
    corpus = build_corpus([open_split(name, Path(folder)) for name, folder in sets], config.data.sampling, 89, 0)
    image, text = build_encoders(config, sets[0][0], torch.device("cpu"))
    model = build_network(config, image, text, len(corpus.names()))
    sources = build_sources(corpus, image, config, args.cache, print)
    dataset = ClosedSetDataset(model, corpus, sources, no_progress)
    closed_set.LOGIT_ADJUSTMENT = args.logit_adjustment
    if args.per_patch:
        closed_set_head.Block = PerPatchBlock  # type: ignore[misc]
    network = fit_closed_set(dataset, config, None, args.excluded_fold)
    print("| set | mIoU | with affinity refinement |\n|---|---|---|")
    scores = measure(dataset, network, corpus, args.excluded_fold)
    for (name, folder), (plain, refined) in zip(sets, scores, strict=True):
        print(f"| {name} {Path(folder).name} | {plain:.1f} | {refined:.1f} |")


if __name__ == "__main__":
    main()
