"""Seconds an image takes with some labels: the official code and ours, which keeps the labels' vectors.

    python benchmarks/infer_speed.py --official DIR --labels 1 20 --rounds 3

CLIP ViT-L/14 sizes with random weights, 224 px, fp32, CPU seconds of one thread. The official code encodes 32 prompts
of every label anew with every image, so its time grows with each; 150 labels take it some 20 minutes an image, so
`--most` (20) bounds what is run, and more is drawn as a line through the two largest that were.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from official import Official
from paper_size import SIDE, clip_large

from fusioner.model.config import FusionerConfig
from fusioner.model.fusioner import Fusioner


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--official", type=Path, required=True, help="checkout of the official repository")
    parser.add_argument("--labels", type=int, nargs="+", default=[1, 20, 150])
    parser.add_argument("--most", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    official, encoder, model = Official(given.official.resolve()), clip_large(), Fusioner(FusionerConfig()).eval()
    image = torch.rand(1, 3, SIDE, SIDE)

    @torch.inference_mode()
    def ours(text: torch.Tensor) -> torch.Tensor:
        return model(encoder(image), text, (SIDE, SIDE))

    theirs: dict[int, float] = {}
    print(f"median of {given.rounds} rounds\n\n| labels | official, s | ours, s | ratio |\n|---|---|---|---|")
    for count in given.labels:
        names, text = [f"thing {i}" for i in range(count)], F.normalize(torch.randn(1, count, 768), dim=-1)
        ours(text)
        pairs = [
            (seconds(lambda n=names: official.predict(image, n)) if count <= given.most else 0.0,
             seconds(lambda t=text: ours(t)))
            for _ in range(given.rounds)
        ]  # fmt: skip
        one, other = (statistics.median(column) for column in zip(*pairs, strict=True))
        if count <= given.most:
            theirs[count] = one
        else:
            (a, at_a), (b, at_b) = sorted(theirs.items())[-2:]
            one = at_b + (count - b) * (at_b - at_a) / (b - a)
        print(f"| {count} | {one:.2f}{'' if count <= given.most else ' (line)'} | {other:.2f} | {one / other:.1f} |")


if __name__ == "__main__":
    main()
