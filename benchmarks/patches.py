"""Measure the average precision of similarity maps without any training, on single patches of training images.

    pip install torchmetrics
    python benchmarks/patches.py coco=data/coco --every 6 --bank 60

A patch's score for a name is the sum of the log of the softened posterior mass and the mean logit (`model.similarity`).
Printed in per cent: mean class accuracy of labelled patches among all names; average precision of each name against all
other patches, its mean over names, over the half of the names with the smallest masks, and of all names pooled. Rows:
hypernyms and affinity refinement on and off; then, with both, another log-posterior in place of the classifier's, or
its mean with it:

    bank: of the K patches of other training images with the most similar DINOv2 tokens (as in CorrCLIP)
    regions: of the connected region of similar patches that contains the patch
    windows: of a separately classified square window around the region (as in OVSeg)
    magnified: of the image at 1.5 times its size
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
from torchmetrics.functional.classification import binary_average_precision

from fusioner.data.masks import resize_mask
from fusioner.encoders.dense_classifier import Posteriors
from fusioner.encoders.prompt_templates import LabelEmbedder
from fusioner.image import resize_square
from fusioner.model.similarity import affinity
from fusioner.training.build import build_encoders, build_network
from fusioner.training.dataset import build_corpus, open_split
from fusioner.training.presets import preset

SIDE = 336
NEIGHBOURS = 20  # patches of the bank per patch
REGION_COSINE = 0.6  # smallest cosine of adjacent patches in a region
WINDOW, WINDOWS = 224, 8  # side in pixels, number per image at most


def log_posterior(scores: Tensor) -> Tensor:
    return (scores / scores.sum(dim=0)).clamp_min(1e-7).log()


def nearest_mean(keys: Tensor, bank: Tensor, values: Tensor) -> Tensor:
    """Return the weighted mean of the values of each key's nearest neighbours: (M, P) from (D, P), (D, N), (M, N)."""
    cosine, index = (keys.T @ bank).topk(NEIGHBOURS, dim=1)
    weights = (10 * cosine).softmax(dim=1)
    return (values[:, index.flatten()].float().unflatten(1, index.shape) * weights).sum(dim=2)


def regions(visual: Tensor, side: int) -> np.ndarray:
    """Return the number of each patch's connected region of similar patches."""
    number = torch.arange(side * side).view(side, side)
    pairs = [(number[:, :-1], number[:, 1:]), (number[:-1], number[1:])]
    first, second = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
    similar = (visual[:, first] * visual[:, second]).sum(dim=0) > REGION_COSINE
    edges = np.ones(int(similar.sum())), (first[similar].numpy(), second[similar].numpy())
    return connected_components(coo_array(edges, shape=(side * side,) * 2), directed=False)[1]


def region_mean(log: Tensor, groups: np.ndarray) -> Tensor:
    """Return the mean over each patch's region."""
    group = torch.from_numpy(groups).long()
    total = log.new_zeros(len(log), int(group.max()) + 1).index_add_(1, group, log)
    return (total / group.bincount())[:, group]


def window_mean(log: Tensor, groups: np.ndarray, rgb: np.ndarray, classifier: Posteriors, side: int) -> Tensor:
    """Return region means, for large regions over their cells in a separately classified window."""
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
            mean = log_posterior(classifier(crop[None])[0].flatten(1))[:, inside].mean(dim=1)
            found[:, torch.from_numpy(groups == region)] = mean[:, None]
    return found


def precision(scores: Tensor, target: Tensor) -> float:
    return 100 * float(binary_average_precision(scores, target.long()))


def table_row(name: str, scores: Tensor, truth: Tensor, ids: list[int], area: Tensor) -> str:
    """Format the table row of the scores (K, P) of all patches."""
    target = truth == torch.tensor(ids)[:, None]
    present = target.any(dim=1).nonzero()[:, 0].tolist()
    labelled = target.any(dim=0)
    correct = torch.tensor(ids)[scores[:, labelled].argmax(dim=0)] == truth[labelled]
    accuracy = [100 * float(correct[truth[labelled] == ids[i]].float().mean()) for i in present]
    single = torch.tensor([precision(scores[i], target[i]) for i in present])
    small = area[present] <= area[present].median()
    values = np.mean(accuracy), single.mean(), single[small].mean(), precision(scores.flatten(), target.flatten())
    return f"| {name} | " + " | ".join(f"{float(value):.1f}" for value in values) + " |"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("set", metavar="NAME=FOLDER", help="data set of the training")
    parser.add_argument("--every", type=int, default=5, help="n-th training image")
    parser.add_argument("--bank", type=int, default=60, help="other training images in the bank")
    args = parser.parse_args()
    torch.set_num_threads(1)
    name, folder = args.set.split("=", 1)
    corpus = build_corpus([open_split(name, Path(folder))], "images")
    items = list({sample.image: sample.item for sample in corpus.samples}.values())
    evaluated = items[:: args.every]
    other_items = [item for number, item in enumerate(items) if number % args.every]
    data, config = corpus.splits[0].data, preset("small").override(closed_set_head=False)
    image, text = build_encoders(config, name, torch.device("cpu"))
    classifier = Posteriors()
    ids = list(data.class_ids)
    embeddings = LabelEmbedder(text, config.model.templates)([data.prompts[i] for i in ids])

    def encode(rgb: np.ndarray) -> tuple[Tensor, Tensor]:
        pixels = resize_square(rgb, SIDE)
        visual, scores = image(pixels[None])[0].flatten(1).split([384, 1000])
        return F.normalize(visual, dim=0), log_posterior(scores)

    step = max(1, len(other_items) // args.bank)
    bank = [encode(data.read(item)[0]) for item in other_items[::step][: args.bank]]
    keys, values = torch.cat([key for key, _ in bank], dim=1), torch.cat([log.half() for _, log in bank], dim=1)
    side = SIDE // image.stride
    encoded: list[tuple[Tensor, dict[str, Tensor]]] = []
    masks: list[Tensor] = []
    for item in evaluated:
        rgb, mask = data.read(item)
        visual, log = encode(rgb)
        nearest, groups = nearest_mean(visual, keys, values), regions(visual, side)
        large = resize_square(rgb, SIDE * 3 // 2)
        fine = log_posterior(F.interpolate(classifier(large[None]), size=(side, side), mode="area")[0].flatten(1))
        mean, windows = region_mean(log, groups), window_mean(log, groups, rgb, classifier, side)
        logs = {"none": log, "bank only": nearest, "bank": (log + nearest) / 2}
        logs["bank, a quarter"] = 0.75 * log + 0.25 * nearest
        logs |= {"regions": (log + mean) / 2, "windows": (log + windows) / 2, "magnified": (log + fine) / 2}
        encoded.append((visual, logs))
        masks.append(torch.from_numpy(resize_mask(mask, (side, side)).astype(np.int64)).flatten())
    truth = torch.cat(masks)
    valid = truth != data.ignore
    fractions = [[float((mask == i).float().mean()) for mask in masks if (mask == i).any()] for i in ids]
    area = torch.tensor([float(np.mean(values or [0.0])) for values in fractions])

    def measure(label: str, logs: str, hypernyms: bool, refined: bool) -> None:
        network = build_network(config.override(hypernyms=hypernyms, affinity_refinement=refined), image, text).eval()
        assert network.similarity is not None
        similarity = network.similarity
        maps: Callable[..., Tensor] = similarity.maps
        scores = []
        for visual, posteriors in encoded:
            features = similarity.embed_tokens(posteriors[logs].softmax(dim=0)[None])
            similarities = maps(features, embeddings[None])[0, :, :2].sum(dim=1)
            scores.append(similarities @ affinity(visual[None])[0].T if refined else similarities)
        print(table_row(label, torch.cat(scores, dim=1)[:, valid], truth[valid], ids, area), flush=True)

    print(f"{len(evaluated)} images, {len(bank)} in the bank\n")
    print("| maps | accuracy | average precision | AP of small names | pooled AP |\n" + "|---" * 5 + "|")
    measure("none", "none", False, False)
    measure("hypernyms", "none", True, False)
    measure("affinity refinement", "none", False, True)
    measure("both", "none", True, True)
    for logs in ("bank only", "bank", "bank, a quarter", "regions", "windows", "magnified"):
        measure(f"both, {logs}", logs, True, True)


if __name__ == "__main__":
    main()
