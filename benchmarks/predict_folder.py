"""Time `fusioner predict` on a folder of large JPEGs, with and without threads that read and write.

    python benchmarks/predict_folder.py --pictures 16 --rounds 3

The folder holds parts of the sample photographs, enlarged to 12 megapixels. Every round runs all of `--workers` over
the same folder with the same model, one after another, so that the ratios hold on a busy machine too. The model's share
is the fraction of the wall time in which an image is segmented; in the rest the loop waits for reading or writing.
"""

import argparse
import contextlib
import io
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from fusioner.cli.inputs import find_inputs, name_results
from fusioner.cli.predict_runner import Run
from fusioner.formats import FORMATS
from fusioner.loading import load
from fusioner.options import InferenceOptions, Mode
from fusioner.progress import progress
from fusioner.segmenter import Segmenter

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
SIZE = 4000, 3000


def make_pictures(folder: Path, count: int) -> None:
    samples = [Image.open(path).convert("RGB") for path in sorted(SAMPLES.glob("*.jpg"))]
    for i in range(count):
        sample = samples[i % len(samples)]
        inset = i % 7
        part = sample.crop((inset, inset, sample.width - inset, sample.height - inset))
        part.resize(SIZE, Image.Resampling.BICUBIC).save(folder / f"{i:03}.jpg", quality=90)


class TimedSegmenter(Segmenter):
    """A segmenter that adds up its run time in `busy`, s."""

    busy = 0.0

    def __call__(self, *values: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return super().__call__(*values, **options)
        finally:
            self.busy += time.perf_counter() - start


def seconds(
    segmenter: TimedSegmenter, folder: Path, formats: tuple[str, ...], workers: int, mode: Mode
) -> tuple[float, float]:
    """Return the wall time of a run over the folder, and the model's share of it."""
    segmenter.busy = 0.0
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()), progress() as bar:
        jobs = name_results(find_inputs([str(folder)])[0], Path(out), [FORMATS[name].suffix for name in formats])
        run = Run(["cat", "person", "cup"], InferenceOptions(mode=mode), formats, workers=workers)
        start = time.perf_counter()
        run.segment(jobs, segmenter, bar.task("segmenting", len(jobs)))
        elapsed = time.perf_counter() - start
    if run.pictures != len(jobs):
        sys.exit(f"{run.failed} of {len(jobs)} pictures failed")
    return elapsed, segmenter.busy / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--format", default="overlay,mask,json")
    parser.add_argument("--mode", choices=("auto", "whole", "multicrop"), default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    formats = tuple(options.format.split(","))
    loaded = load(device=options.device, threads=options.threads)
    segmenter = TimedSegmenter(loaded.network)
    segmenter.auto_mode = loaded.auto_mode
    times: dict[int, list[float]] = {workers: [] for workers in options.workers}
    shares: dict[int, list[float]] = {workers: [] for workers in options.workers}
    with tempfile.TemporaryDirectory() as folder:
        make_pictures(Path(folder), options.pictures)
        seconds(segmenter, Path(folder), formats, 1, options.mode)  # warm-up
        for _ in range(options.rounds):
            for workers in options.workers:
                elapsed, share = seconds(segmenter, Path(folder), formats, workers, options.mode)
                times[workers].append(elapsed)
                shares[workers].append(share)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB on Linux
                print(f"workers {workers}: {times[workers][-1]:.2f} s, peak memory so far {peak:.2f} GiB", flush=True)
    print(f"\n{options.pictures} pictures of {SIZE[0]} x {SIZE[1]}, {options.format}, {segmenter.network.device}")
    print("| workers | images/s (median) | speed-up, median of rounds | model's share of the time |")
    print("|---|---|---|---|")
    for workers, values in times.items():
        ratio = statistics.median(
            baseline / value for baseline, value in zip(times[options.workers[0]], values, strict=True)
        )
        share = statistics.median(shares[workers])
        print(f"| {workers} | {options.pictures / statistics.median(values):.2f} | {ratio:.2f} x | {share:.0%} |")


if __name__ == "__main__":
    main()
