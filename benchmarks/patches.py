"""What similarity maps are worth before any training: single patches of training images, told apart by them.

    python benchmarks/patches.py pascal=data/pascal --every 5
    python benchmarks/patches.py pascal=data/pascal --every 5 --nearby 0.04

A row for each of kinds and affinity, on and off (`model.similarity`). A patch's score for a name is the sum of the log
of the softened posterior mass and the mean logit. In per cent: mean class accuracy of labelled patches among all names,
and among the five of a PASCAL-5i fold; average precision of each name against all other patches, its mean, and of all
names in one list; the same mean for words for groups (of `train --hypernyms`, that cover at least two classes).
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from groups import covered
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision

from fusioner.data.folds import fold_classes
from fusioner.encoders.prompt_templates import LabelEmbedder
from fusioner.features.dataset import TokenSource
from fusioner.model import similarity
from fusioner.training.build import build_encoders, build_network, build_sources
from fusioner.training.data_loader import resize_mask
from fusioner.training.dataset import Sample, build_corpus, open_split
from fusioner.training.presets import preset


@torch.inference_mode()
def read(model: Any, source: TokenSource, samples: Sequence[Sample], words: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (K, P) of all patches of all images, and the mask value of each."""
    scores, truths = [], []
    for sample in samples:
        tokens, masks = source.batch([(sample.item, 0)])
        seen = model.look(tokens)
        found = model.similarity.maps(seen, words[None])[0, :, :2].sum(dim=1)
        scores.append(found if seen.alike is None else found @ seen.alike[0].T)
        small = resize_mask(masks[0], (tokens.shape[2], tokens.shape[3]))
        truths.append(torch.from_numpy(small.astype(np.int64)).flatten())
    return torch.cat(scores, dim=1), torch.cat(truths)


def accuracy(scores: Tensor, truth: Tensor, ids: list[int], some: list[int]) -> float:
    """Of some classes: the mean share of their patches that are named right among them, per cent."""
    labelled = torch.isin(truth, torch.tensor(some))
    scores, truth = scores[[ids.index(one) for one in some]][:, labelled], truth[labelled]
    right = torch.tensor(some)[scores.argmax(dim=0)] == truth
    return 100 * float(np.mean([float(right[truth == one].float().mean()) for one in truth.unique().tolist()]))


def precision(scores: Tensor, there: Tensor) -> float:
    """Average precision, per cent."""
    return 100 * float(binary_average_precision(scores, there.long()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("set", metavar="NAME=FOLDER", help="a data set as fusioner train has it")
    parser.add_argument("--every", type=int, default=5, help="n-th training image")
    parser.add_argument(
        "--nearby", type=float, default=similarity.NAME_TEMPERATURE, help="temperature of a label's spread"
    )
    parser.add_argument("--cache", type=Path, help="feature cache")
    given = parser.parse_args()
    torch.set_num_threads(1)
    similarity.NAME_TEMPERATURE = given.nearby
    name, folder = given.set.split("=", 1)
    corpus = build_corpus([open_split(name, Path(folder))], "images")
    corpus = replace(corpus, samples=tuple(corpus.unique_images()[:: given.every]))
    data, config = corpus.splits[0].data, preset("small").override(closed_set_head=False)
    image, text = build_encoders(config, name, torch.device("cpu"))
    (source,) = build_sources(corpus, image, config, given.cache, print)
    ids, groups = list(data.class_ids), covered(data)
    words = LabelEmbedder(text, config.model.templates)([*(data.prompts[one] for one in ids), *groups])
    folds = [list(fold_classes(name, fold)[1]) for fold in range(4)] if name == "pascal" else []
    print("| kinds | affinity | all names | of a fold | average precision | pooled | of groups |\n" + "|---" * 7 + "|")
    for kinds, affinity in product((False, True), repeat=2):
        model = build_network(config.override(hypernyms=kinds, affinity_refinement=affinity), image, text).eval()
        scores, truth = read(model, source, corpus.samples, words)
        scores, truth = scores[:, truth != data.ignore], truth[truth != data.ignore]
        there = torch.stack([truth == one for one in ids])
        wide = [torch.isin(truth, torch.tensor(some)) for some in groups.values()]
        single = [precision(scores[row], patches) for row, patches in enumerate(there) if patches.any()]
        grouped = [precision(scores[len(ids) + row], patches) for row, patches in enumerate(wide) if patches.any()]
        among = [accuracy(scores, truth, ids, some) for some in folds]
        pooled = precision(scores[: len(ids)].flatten(), there.flatten())
        found = (
            accuracy(scores, truth, ids, ids),
            *map(float, map(np.mean, (among, single))),
            pooled,
            np.mean(grouped),
        )
        cells = " | ".join([*("on" if one else "off" for one in (kinds, affinity)), *(f"{one:.1f}" for one in found)])
        print(f"| {cells} |", flush=True)


if __name__ == "__main__":
    main()
