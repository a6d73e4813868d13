"""Modes whole and multicrop of the bundled model side by side on the same images, all names of each set at once.

    python benchmarks/modes.py pascal=data/pascal:val coco=data/coco:val folder=my/data:val --every 3
    python benchmarks/modes.py folder=my/data:val --shows road --names road sky tree building car person

Prints per set and mode: multi-class mIoU (background counted where the set has one) with a 95 % bootstrap interval over
images, their difference with its own interval (paired), the share of present classes whose IoU is below 1 %,
false-positive area, specificity and presence MCC (each name alone), and the median seconds per image from pixels to
masks. `--names` prompts and evaluates these alone, `--shows` measures only images with that class.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import fusioner
from fusioner.data.registry import open_dataset
from fusioner.postprocess import decide_logits

RESAMPLES = 1000


def mean_iou(matrix: np.ndarray) -> tuple[float, float]:
    """Return the mIoU in per cent over classes with ground truth, and the share of them below 1 %."""
    truth, found, both = matrix.sum(axis=1), matrix.sum(axis=0), np.diag(matrix)
    present = truth > 0
    iou = both[present] / (truth + found - both)[present]
    return 100 * float(iou.mean()), float((iou[present.nonzero()[0] > 0] < 0.01).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sets", nargs="+", metavar="NAME=FOLDER:SPLIT")
    parser.add_argument("--every", type=int, nargs="+", default=[1], help="n-th image, one number or one per set")
    parser.add_argument("--names", nargs="+", help="names to prompt; default: all of the set")
    parser.add_argument("--shows", help="name of a class that the images must show")
    given = parser.parse_args()
    segmenter = fusioner.load(device="cpu")
    threshold = segmenter.card.threshold
    print(
        "| set | images | mode | mIoU | never found | false-positive area | specificity | presence MCC | s per image |"
    )
    print("|---" * 9 + "|")
    for number, entry in enumerate(given.sets):
        name, _, place = entry.partition("=")
        folder, _, split = place.partition(":")
        data = open_dataset(name, Path(folder), split or None)
        ids = [i for i in data.class_ids if not given.names or data.prompts[i] in given.names]
        prompts = [data.prompts[i] for i in ids]
        numbers = np.array([0, *ids])
        matrices: dict[str, list[np.ndarray]] = {"whole": [], "multicrop": []}
        areas: dict[str, list[float]] = {"whole": [], "multicrop": []}
        seconds: dict[str, list[float]] = {"whole": [], "multicrop": []}
        presence: dict[str, list[tuple[bool, bool]]] = {"whole": [], "multicrop": []}
        items = data.items[:: given.every[min(number, len(given.every) - 1)]]
        if given.shows:
            shown = {i for i in data.class_ids if data.prompts[i] == given.shows}
            items = [item for item in items if shown.intersection(np.unique(data.read_mask(item)).tolist())]
        for item in items:
            rgb, mask = data.read(item)
            mask = np.where(np.isin(mask, [*ids, data.ignore]), mask, 0)
            start = time.perf_counter()
            encoded = segmenter.encode(rgb, mode="whole")
            after_whole = time.perf_counter()
            crops = segmenter.encode(rgb, mode="multicrop")
            crop_time = time.perf_counter() - after_whole
            valid = mask != data.ignore
            if data.ignore_unlabeled:
                valid &= mask != 0
            for mode, image in (("whole", replace(encoded, logits_cache={})), ("multicrop", crops)):
                begun = time.perf_counter()
                logits = segmenter.low_res_logits(image, prompts)
                found, _ = decide_logits(logits, mask.shape, threshold, background=not data.ignore_unlabeled)
                seconds[mode].append(
                    time.perf_counter() - begun + (crop_time if mode == "multicrop" else after_whole - start)
                )
                pairs = mask[valid].astype(np.int64) * 256 + numbers[found][valid]
                matrices[mode].append(
                    np.bincount(pairs, minlength=256 * 256).reshape(256, 256)[: max(ids) + 1, : max(ids) + 1]
                )
                for row, class_id in enumerate(ids):
                    claimed = float((logits[row] > np.log(threshold / (1 - threshold))).mean())
                    present = bool((mask == class_id).any())
                    presence[mode].append((present, claimed > 0))
                    if not present:
                        areas[mode].append(claimed)
        sums = {mode: np.stack(each) for mode, each in matrices.items()}
        draws = np.random.default_rng(0).integers(0, len(items), (RESAMPLES, len(items)))
        weights = np.stack([np.bincount(draw, minlength=len(items)) for draw in draws])
        samples = {
            mode: np.array([mean_iou(np.tensordot(weight, each, 1))[0] for weight in weights])
            for mode, each in sums.items()
        }
        for mode, each in sums.items():
            score, never = mean_iou(each.sum(axis=0))
            low, high = np.percentile(samples[mode], (2.5, 97.5))
            area, refused = 100 * np.mean(areas[mode]), 100 * np.mean(np.array(areas[mode]) == 0)
            print(
                f"| {Path(folder).name} | {len(items)} | {mode} | {score:.1f} [{low:.1f}, {high:.1f}] | {never:.2f} | "
                f"{area:.2f} % | {refused:.1f} % | {100 * np.corrcoef(np.transpose(presence[mode]))[0, 1]:.1f} | "
                f"{np.median(seconds[mode]):.2f} |",
                flush=True,
            )
        low, high = np.percentile(samples["multicrop"] - samples["whole"], (2.5, 97.5))
        ratio = np.median(seconds["multicrop"]) / np.median(seconds["whole"])
        print(f"| | | difference | [{low:+.1f}, {high:+.1f}] | | | | | {ratio:.1f} x |", flush=True)


if __name__ == "__main__":
    main()
