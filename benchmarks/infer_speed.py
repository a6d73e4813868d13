"""Time inference by the number of labels: the official code, and this package with cached label embeddings.

    python benchmarks/infer_speed.py --official DIR --labels 1 20 --rounds 3

CLIP ViT-L/14 sizes with random weights, 224 px, fp32, CPU seconds of one thread. The official code encodes 32 prompts
of every label again with every image and takes some 20 minutes for an image with 150 labels; above `--max-measured`
labels its time is extrapolated from the two largest measured numbers.
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
    parser.add_argument("--max-measured", type=int, default=20, help="largest number of labels measured officially")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    official, encoder, model = Official(args.official.resolve()), clip_large(), Fusioner(FusionerConfig()).eval()
    image = torch.rand(1, 3, SIDE, SIDE)

    @torch.inference_mode()
    def ours(text: torch.Tensor) -> torch.Tensor:
        return model(encoder(image), text, (SIDE, SIDE))

    official_times: dict[int, float] = {}
    print(f"median of {args.rounds} rounds\n\n| labels | official, s | ours, s | ratio |\n|---|---|---|---|")
    for count in args.labels:
        names, text = [f"thing {i}" for i in range(count)], F.normalize(torch.randn(1, count, 768), dim=-1)
        ours(text)
        pairs = [
            (seconds(lambda n=names: official.predict(image, n)) if count <= args.max_measured else 0.0,
             seconds(lambda t=text: ours(t)))
            for _ in range(args.rounds)
        ]  # fmt: skip
        official_seconds, our_seconds = (statistics.median(column) for column in zip(*pairs, strict=True))
        suffix = ""
        if count <= args.max_measured:
            official_times[count] = official_seconds
        else:
            (a, at_a), (b, at_b) = sorted(official_times.items())[-2:]
            official_seconds = at_b + (count - b) * (at_b - at_a) / (b - a)
            suffix = " (extrapolated)"
        ratio = official_seconds / our_seconds
        print(f"| {count} | {official_seconds:.2f}{suffix} | {our_seconds:.2f} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
