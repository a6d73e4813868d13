"""Compare the masks of words for people, such as "woman" or "rider", with the mask of *person*.

    python benchmarks/words.py data/coco
    python benchmarks/words.py data/coco --images 40 --mode multicrop

Each word is prompted alone. Prints per word the IoU of its mask with that of "person" over all images together, and the
mean over words with a 95 % bootstrap interval over images. The images are spread evenly over those of COCO val in which
persons cover at least 1 %, including images where "person" gets no pixels.
"""

import argparse
from pathlib import Path

import numpy as np

import fusioner
from fusioner.data.registry import open_dataset

WORDS = (
    "man", "woman", "boy", "girl", "child", "kid", "baby", "adult", "men", "women", "boys", "girls", "children", "kids",
    "people", "rider", "cyclist", "pedestrian", "passenger", "player", "skier", "surfer", "policeman", "tourist",
    "farmer",
)  # fmt: skip
MIN_FRACTION, RESAMPLES = 0.01, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("root", type=Path, help="folder of COCO 2014")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--mode", default="whole")
    args = parser.parse_args()
    segmenter = fusioner.load(device="cpu")
    data = open_dataset("coco", args.root, "val")
    person = data.prompts.index("person")
    items = [item for item in data.items if (data.read_mask(item) == person).mean() >= MIN_FRACTION]
    items = items[:: max(1, len(items) // args.images)][: args.images]
    counts = np.zeros((len(items), len(WORDS), 2))  # intersection and union, px
    for row, item in enumerate(items):
        encoded = segmenter.encode(item.image, mode=args.mode)
        names = ["person", *WORDS]
        planes = segmenter.low_res_logits(encoded, names)  # labels are independent
        masks = [
            segmenter.decide(encoded, [name], plane[None]).mask(name) for name, plane in zip(names, planes, strict=True)
        ]
        counts[row] = [((mask & masks[0]).sum(), (mask | masks[0]).sum()) for mask in masks[1:]]
    draws = np.random.default_rng(0).integers(0, len(items), (RESAMPLES, len(items)))
    iou = np.stack(
        [total[:, 0] / total[:, 1] for total in (counts.sum(axis=0), *(counts[draw].sum(0) for draw in draws))]
    )
    means = iou.mean(axis=1)
    low, high = np.percentile(means[1:], [2.5, 97.5])
    print(
        f"{len(items)} images, mode {segmenter.resolve(mode=args.mode).mode}\n\n| word | IoU with person |\n|---|---|"
    )
    for word, value in zip(WORDS, iou[0], strict=True):
        print(f"| {word} | {value:.3f} |")
    print(f"| mean | {means[0]:.3f} [{low:.3f}, {high:.3f}] |")


if __name__ == "__main__":
    main()
