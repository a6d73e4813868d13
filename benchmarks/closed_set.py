"""Accuracy of the closed-set head alone, fitted without a part of the training images and measured on that part.

    python benchmarks/closed_set.py pascal=data/pascal coco=data/coco folder=data/clothing folder=data/coco_stuff
    python benchmarks/closed_set.py pascal=data/pascal --alone     # without self-attention

No network is trained and no val image is read. Names compete within their own data set. Printed is the multi-class mIoU
over the names in the masks, at the masks' own size; without and with affinity refinement (weight one half). `--alone`
removes attention from the same network.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusioner.evaluation.evaluator import class_iou, confusion_matrix
from fusioner.model import closed_set_head as memory
from fusioner.model.fusion import Block
from fusioner.model.similarity import affinity
from fusioner.postprocess import upsample
from fusioner.progress import no_progress
from fusioner.training import closed_set as training
from fusioner.training.build import build_encoders, build_network, build_sources
from fusioner.training.closed_set import ClosedSetDataset, SampleView, fit_closed_set
from fusioner.training.dataset import build_corpus, cross_fit_fold, open_split
from fusioner.training.presets import preset


class Alone(Block):
    """A transformer block without attention."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x + self.mlp(self.norm2(x))


@torch.inference_mode()
def measure(lessons: ClosedSetDataset, network: nn.Module, corpus: Any, without: int) -> list[list[float]]:
    """Of each data set, plain and averaged: mIoU in per cent on the images of the portion that was left out."""
    scores = [torch.zeros(2, *2 * (len(split.data.classes),), dtype=torch.int64) for split in corpus.splits]
    rows = {name: row for row, name in enumerate(corpus.names())}
    for sample in lessons.samples:
        if cross_fit_fold(sample.item.id) != without:
            continue
        split = corpus.splits[sample.split]
        data = split.data
        tokens, masks = lessons.sources[sample.split].batch([(sample.item, 0)])
        lesson = lessons.read([SampleView(sample)])
        ids = ([] if data.ignore_unlabeled else [0]) + list(split.classes)
        of = [rows[data.prompts[i]] if i else -1 for i in ids]
        shares = network(lesson.features)[0][:, of].softmax(dim=1).T  # (names, P)
        alike = affinity(lessons.model.split_channels(tokens)[0].flatten(2))[0]
        truth = torch.from_numpy(masks[0]).long()
        truth[truth == data.ignore] = 255
        for score, maps in zip(scores[sample.split], (shares, (shares + shares @ alike.T) / 2), strict=True):
            found = torch.from_numpy(
                upsample(maps.unflatten(1, tokens.shape[-2:]).numpy(), masks[0].shape).argmax(axis=0)
            )
            score += confusion_matrix(torch.tensor(ids)[found], truth, len(score))
    return [[100 * float(class_iou(score)[1:].nanmean()) for score in both] for both in scores]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sets", nargs="+", metavar="NAME=FOLDER", help="data sets as fusioner train has them")
    parser.add_argument("--alone", action="store_true", help="no patch looks at another")
    parser.add_argument("--without", type=int, default=0, help="the portion of the images that is left out")
    parser.add_argument("--share", type=float, default=1.0, help="of an image's patches that a step looks at")
    parser.add_argument("--views", type=int, default=1, help="of each image that is learnt from")
    parser.add_argument("--passes", type=int, default=8, help="over the images")
    parser.add_argument(
        "--adjustment", type=float, default=training.LOGIT_ADJUSTMENT, help="of the logits, see training.closed_set"
    )
    parser.add_argument("--resolution", type=int, default=preset("small").model.resolution)
    parser.add_argument("--cache", type=Path, help="feature cache")
    given = parser.parse_args()
    named = [one.split("=", 1) for one in given.sets]
    config = preset("small").override(
        resolution=given.resolution,
        views=given.views,
        closed_set_epochs=given.passes,
        closed_set_patch_ratio=given.share,
    )
    corpus = build_corpus([open_split(name, Path(folder)) for name, folder in named], config.data.sampling, 89, 0)
    image, text = build_encoders(config, named[0][0], torch.device("cpu"))
    model = build_network(config, image, text, len(corpus.names()))
    sources = build_sources(corpus, image, config, given.cache, print)
    lessons = ClosedSetDataset(model, corpus, sources, no_progress)
    training.LOGIT_ADJUSTMENT = given.adjustment
    if given.alone:
        memory.Block = Alone  # type: ignore[misc]
    network = fit_closed_set(lessons, config, None, given.without)
    print("| set | mIoU | averaged over like patches |\n|---|---|---|")
    for (name, folder), (plain, averaged) in zip(named, measure(lessons, network, corpus, given.without), strict=True):
        print(f"| {name} {Path(folder).name} | {plain:.1f} | {averaged:.1f} |")


if __name__ == "__main__":
    main()
