"""Compare modes whole and multicrop of the bundled model on the same images, all names of each set at once.

    python benchmarks/modes.py pascal=data/pascal:val coco=data/coco:val folder=my/data:val --every 3
    python benchmarks/modes.py folder=my/data:val --containing road --names road sky tree building car person

Prints per set and mode: multi-class mIoU (background counted where the set has one) with a 95 % bootstrap interval over
images, their difference with its own interval (paired), the fraction of present classes whose IoU is below 1 %,
false-positive area, specificity and presence MCC (each name alone), and the median seconds per image from pixels to
masks. `--names` prompts and evaluates only these names, `--containing` uses only images that contain a class.
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
    """Return the mIoU in per cent over classes with ground truth, and the fraction of these with an IoU below 1 %."""
    truth, predicted, intersection = matrix.sum(axis=1), matrix.sum(axis=0), np.diag(matrix)
    present = truth > 0
    iou = intersection[present] / (truth + predicted - intersection)[present]
    return 100 * float(iou.mean()), float((iou[present.nonzero()[0] > 0] < 0.01).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sets", nargs="+", metavar="NAME=FOLDER:SPLIT")
    parser.add_argument("--every", type=int, nargs="+", default=[1], help="n-th image, one number or one per set")
    parser.add_argument("--names", nargs="+", help="names to prompt; default: all of the set")
    parser.add_argument("--containing", metavar="NAME", help="use only images that contain this class")
    args = parser.parse_args()
    segmenter = fusioner.load(device="cpu")
    threshold = segmenter.card.threshold
    print(
        "| set | images | mode | mIoU | never found | false-positive area | specificity | presence MCC | s per image |"
    )
    print("|---" * 9 + "|")
    for number, entry in enumerate(args.sets):
        name, _, path = entry.partition("=")
        folder, _, split = path.partition(":")
        data = open_dataset(name, Path(folder), split or None)
        ids = [i for i in data.class_ids if not args.names or data.prompts[i] in args.names]
        prompts = [data.prompts[i] for i in ids]
        label_ids = np.array([0, *ids])
        matrices: dict[str, list[np.ndarray]] = {"whole": [], "multicrop": []}
        areas: dict[str, list[float]] = {"whole": [], "multicrop": []}
        seconds: dict[str, list[float]] = {"whole": [], "multicrop": []}
        presence: dict[str, list[tuple[bool, bool]]] = {"whole": [], "multicrop": []}
        items = data.items[:: args.every[min(number, len(args.every) - 1)]]
        if args.containing:
            required = {i for i in data.class_ids if data.prompts[i] == args.containing}
            items = [item for item in items if required.intersection(np.unique(data.read_mask(item)).tolist())]
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
                decision_start = time.perf_counter()
                logits = segmenter.low_res_logits(image, prompts)
                label_map, _ = decide_logits(logits, mask.shape, threshold, background=not data.ignore_unlabeled)
                seconds[mode].append(
                    time.perf_counter() - decision_start + (crop_time if mode == "multicrop" else after_whole - start)
                )
                pairs = mask[valid].astype(np.int64) * 256 + label_ids[label_map][valid]
                matrices[mode].append(
                    np.bincount(pairs, minlength=256 * 256).reshape(256, 256)[: max(ids) + 1, : max(ids) + 1]
                )
                for row, class_id in enumerate(ids):
                    claimed = float((logits[row] > np.log(threshold / (1 - threshold))).mean())
                    present = bool((mask == class_id).any())
                    presence[mode].append((present, claimed > 0))
                    if not present:
                        areas[mode].append(claimed)
        stacks = {mode: np.stack(per_image) for mode, per_image in matrices.items()}
        draws = np.random.default_rng(0).integers(0, len(items), (RESAMPLES, len(items)))
        weights = np.stack([np.bincount(draw, minlength=len(items)) for draw in draws])
        samples = {
            mode: np.array([mean_iou(np.tensordot(weight, stack, 1))[0] for weight in weights])
            for mode, stack in stacks.items()
        }
        for mode, stack in stacks.items():
            score, missed = mean_iou(stack.sum(axis=0))
            low, high = np.percentile(samples[mode], (2.5, 97.5))
            area, specificity = 100 * np.mean(areas[mode]), 100 * np.mean(np.array(areas[mode]) == 0)
            print(
                f"| {Path(folder).name} | {len(items)} | {mode} | {score:.1f} [{low:.1f}, {high:.1f}] | {missed:.2f} | "
                f"{area:.2f} % | {specificity:.1f} % | {100 * np.corrcoef(np.transpose(presence[mode]))[0, 1]:.1f} | "
                f"{np.median(seconds[mode]):.2f} |",
                flush=True,
            )
        low, high = np.percentile(samples["multicrop"] - samples["whole"], (2.5, 97.5))
        ratio = np.median(seconds["multicrop"]) / np.median(seconds["whole"])
        print(f"| | | difference | [{low:+.1f}, {high:+.1f}] | | | | | {ratio:.1f} x |", flush=True)


if __name__ == "__main__":
    main()
