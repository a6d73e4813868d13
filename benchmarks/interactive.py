"""Time label queries on one image: the first result, and labels added, changed and removed afterwards.

    python benchmarks/interactive.py --repeats 5

The bundled model on samples/chelsea.jpg, at its own size and enlarged to 12 megapixels. The first result includes
reading and encoding the image; the others are `Segmenter.segment` after `set_image`, with labels that are not cached.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image

import fusioner
from fusioner.loading import load

SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "chelsea.jpg"
LABELS = ["cat", "dog", "sofa", "table", "chair", "lamp", "rug", "window", "door", "plant"]


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def photograph(megapixels: float) -> bytes:
    """Return the sample as a JPEG of the given size."""
    with Image.open(SAMPLE) as image:
        scale = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
        file = BytesIO()
        image.resize((round(image.width * scale), round(image.height * scale))).save(file, "JPEG", quality=92)
    return file.getvalue()


def time_queries(segmenter: fusioner.Segmenter, photo: bytes, repeat: int) -> dict[str, float]:
    """Time each query once, with new labels."""
    first, second, third = (f"{word} number {repeat}" for word in LABELS[:3])
    segmenter.embed._cache.clear()
    return {
        "first result, one label": seconds(lambda: segmenter.set_image(photo).segment([first])),
        "a label added": seconds(lambda: segmenter.segment([first, second])),
        "the label changed": seconds(lambda: segmenter.segment([third])),
        "a label removed": seconds(lambda: segmenter.segment([first])),
        "first result, ten labels": seconds(lambda: segmenter(photo, LABELS)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    segmenter = load(device="cpu")
    segmenter(photograph(0.1), LABELS)  # warm-up
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, median of {args.repeats}\n")
    print("| | 0.14 MP | relative | 12 MP | relative |\n|---|---|---|---|---|")
    columns = []
    for megapixels in (0.135, 12.0):
        photo = photograph(megapixels)
        runs = [time_queries(segmenter, photo, repeat) for repeat in range(args.repeats)]
        columns.append({name: statistics.median(run[name] for run in runs) for name in runs[0]})
    for name in columns[0]:
        cells = [f"{column[name]:.2f} s | {column[name] / column['first result, one label']:.0%}" for column in columns]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
