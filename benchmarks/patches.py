"""Average precision of similarity maps before any training: single patches of training images.

    pip install torchmetrics
    python benchmarks/patches.py coco=data/coco --every 6 --bank 60

A patch's score for a name is the sum of the log of the softened posterior mass and the mean logit (`model.similarity`).
Printed in per cent: mean class accuracy of labelled patches among all names; average precision of each name against all
other patches, its mean over names, over the names whose masks are the smallest (the lower half), and of all names in
one list. Rows: hypernyms and affinity refinement on and off; then, with both, another log-posterior in place of the
classifier's own, or its mean with it:

    bank: of the K patches of other training images with the most similar DINOv2 tokens (as in CorrCLIP)
    regions: of the connected group of similar patches that a patch belongs to
    windows: the same, from the classifier's view of a square window around the group (as in OVSeg)
    magnified: of the classifier's view of the image at 1.5 times its size
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision  # pyright: ignore[reportMissingImports]

from fusioner.data.masks import resize_mask
from fusioner.encoders.dense_classifier import Posteriors
from fusioner.encoders.prompt_templates import LabelEmbedder
from fusioner.image import resize_square
from fusioner.model.similarity import affinity
from fusioner.training.build import build_encoders, build_network
from fusioner.training.dataset import build_corpus, open_split
from fusioner.training.presets import preset

SIDE = 336
NEIGHBOURS = 20  # of a patch in the bank
REGION_COSINE = 0.6  # of adjacent patches of one region
WINDOW, WINDOWS = 224, 8  # side in pixels, number per image at most


def log_posterior(scores: Tensor) -> Tensor:
    return (scores / scores.sum(dim=0)).clamp_min(1e-7).log()


def nearest_mean(keys: Tensor, bank: Tensor, values: Tensor) -> Tensor:
    """Return the weighted mean of the values of each key's nearest neighbours: (M, P) from (D, P), (D, N), (M, N)."""
    cosine, index = (keys.T @ bank).topk(NEIGHBOURS, dim=1)
    weights = (10 * cosine).softmax(dim=1)
    return (values[:, index.flatten()].float().unflatten(1, index.shape) * weights).sum(dim=2)


def regions(visual: Tensor, side: int) -> np.ndarray:
    """Return the number of each patch's connected group of similar patches."""
    number = torch.arange(side * side).view(side, side)
    pairs = [(number[:, :-1], number[:, 1:]), (number[:-1], number[1:])]
    first, second = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
    alike = (visual[:, first] * visual[:, second]).sum(dim=0) > REGION_COSINE
    edges = np.ones(int(alike.sum())), (first[alike].numpy(), second[alike].numpy())
    return connected_components(coo_array(edges, shape=(side * side,) * 2), directed=False)[1]


def region_mean(log: Tensor, groups: np.ndarray) -> Tensor:
    """Return the mean over each patch's region."""
    group = torch.from_numpy(groups).long()
    total = log.new_zeros(len(log), int(group.max()) + 1).index_add_(1, group, log)
    return (total / group.bincount())[:, group]


def window_mean(log: Tensor, groups: np.ndarray, rgb: np.ndarray, classifier: Posteriors, side: int) -> Tensor:
    """Return each large region's mean over its cells of a window around it; elsewhere the mean over the region."""
    found, grid = region_mean(log, groups), groups.reshape(side, side)
    sizes = np.bincount(groups)
    large = [i for i in np.argsort(-sizes)[:WINDOWS] if 4 <= sizes[i] < 0.5 * side * side]
    cells = WINDOW // classifier.stride
    for region in large:
        y, x = np.nonzero(grid == region)
        reach = 0.65 * (max(np.ptp(y), np.ptp(x)) + 1)
        scale = np.array(rgb.shape[:2]) / side
        centre = np.array([y.min() + y.max() + 1, x.min() + x.max() + 1]) / 2
        top, left = np.maximum(0, (centre - reach) * scale).astype(int)
        bottom, right = np.ceil((centre + reach) * scale).astype(int)
        window = rgb[top:bottom, left:right]
        crop = resize_square(window, WINDOW)
        height, width = window.shape[:2]
        rows = ((top + (np.arange(cells) + 0.5) * height / cells) / scale[0]).astype(int).clip(max=side - 1)
        columns = ((left + (np.arange(cells) + 0.5) * width / cells) / scale[1]).astype(int).clip(max=side - 1)
        inside = torch.from_numpy(grid[rows][:, columns] == region).flatten()
        if inside.any():
            seen = log_posterior(classifier(crop[None])[0].flatten(1))[:, inside].mean(dim=1)
            found[:, torch.from_numpy(groups == region)] = seen[:, None]
    return found


def precision(scores: Tensor, there: Tensor) -> float:
    return 100 * float(binary_average_precision(scores, there.long()))


def row(name: str, scores: Tensor, truth: Tensor, ids: list[int], area: Tensor) -> str:
    """Return the row of the scores (K, P) of all patches."""
    there = truth == torch.tensor(ids)[:, None]
    shown = there.any(dim=1).nonzero()[:, 0].tolist()
    labelled = there.any(dim=0)
    right = torch.tensor(ids)[scores[:, labelled].argmax(dim=0)] == truth[labelled]
    accuracy = [100 * float(right[truth[labelled] == ids[i]].float().mean()) for i in shown]
    single = torch.tensor([precision(scores[i], there[i]) for i in shown])
    small = area[shown] <= area[shown].median()
    values = np.mean(accuracy), single.mean(), single[small].mean(), precision(scores.flatten(), there.flatten())
    return f"| {name} | " + " | ".join(f"{float(value):.1f}" for value in values) + " |"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("set", metavar="NAME=FOLDER", help="a data set as for fusioner train")
    parser.add_argument("--every", type=int, default=5, help="n-th training image")
    parser.add_argument("--bank", type=int, default=60, help="other training images in the bank")
    given = parser.parse_args()
    torch.set_num_threads(1)
    name, folder = given.set.split("=", 1)
    corpus = build_corpus([open_split(name, Path(folder))], "images")
    items = list({sample.image: sample.item for sample in corpus.samples}.values())
    measured = items[:: given.every]
    others = [item for number, item in enumerate(items) if number % given.every]
    data, config = corpus.splits[0].data, preset("small").override(closed_set_head=False)
    image, text = build_encoders(config, name, torch.device("cpu"))
    classifier = Posteriors()
    ids = list(data.class_ids)
    words = LabelEmbedder(text, config.model.templates)([data.prompts[i] for i in ids])

    def encode(rgb: np.ndarray) -> tuple[Tensor, Tensor]:
        pixels = resize_square(rgb, SIDE)
        visual, scores = image(pixels[None])[0].flatten(1).split([384, 1000])
        return F.normalize(visual, dim=0), log_posterior(scores)

    step = max(1, len(others) // given.bank)
    banked = [encode(data.read(item)[0]) for item in others[::step][: given.bank]]
    keys, values = torch.cat([key for key, _ in banked], dim=1), torch.cat([log.half() for _, log in banked], dim=1)
    side = SIDE // image.stride
    seen: list[tuple[Tensor, dict[str, Tensor]]] = []
    truths: list[Tensor] = []
    for item in measured:
        rgb, mask = data.read(item)
        visual, log = encode(rgb)
        near, groups = nearest_mean(visual, keys, values), regions(visual, side)
        large = resize_square(rgb, SIDE * 3 // 2)
        fine = log_posterior(F.interpolate(classifier(large[None]), size=(side, side), mode="area")[0].flatten(1))
        mean, windows = region_mean(log, groups), window_mean(log, groups, rgb, classifier, side)
        logs = {"none": log, "bank alone": near, "bank": (log + near) / 2, "bank, a quarter": 0.75 * log + 0.25 * near}
        logs |= {"regions": (log + mean) / 2, "windows": (log + windows) / 2, "magnified": (log + fine) / 2}
        seen.append((visual, logs))
        truths.append(torch.from_numpy(resize_mask(mask, (side, side)).astype(np.int64)).flatten())
    truth = torch.cat(truths)
    valid = truth != data.ignore
    shares = [[float((mask == i).float().mean()) for mask in truths if (mask == i).any()] for i in ids]
    area = torch.tensor([float(np.mean(share or [0.0])) for share in shares])

    def measure(label: str, logs: str, hypernyms: bool, refined: bool) -> None:
        network = build_network(config.override(hypernyms=hypernyms, affinity_refinement=refined), image, text).eval()
        assert network.similarity is not None
        similarity = network.similarity
        maps: Callable[..., Tensor] = similarity.maps
        scores = []
        for visual, posteriors in seen:
            features = similarity.embed_tokens(posteriors[logs].softmax(dim=0)[None])
            found = maps(features, words[None])[0, :, :2].sum(dim=1)
            scores.append(found @ affinity(visual[None])[0].T if refined else found)
        print(row(label, torch.cat(scores, dim=1)[:, valid], truth[valid], ids, area), flush=True)

    print(f"{len(measured)} images, {len(banked)} in the bank\n")
    print("| maps | accuracy | average precision | of small names | pooled |\n" + "|---" * 5 + "|")
    measure("plain", "none", False, False)
    measure("hypernyms", "none", True, False)
    measure("affinity refinement", "none", False, True)
    measure("both", "none", True, True)
    for logs in ("bank alone", "bank", "bank, a quarter", "regions", "windows", "magnified"):
        measure(f"both, {logs}", logs, True, True)


if __name__ == "__main__":
    main()
