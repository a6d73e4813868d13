"""Time the commands that lead from images with masks to a trained model and its report.

    python benchmarks/end_to_end.py --root data/pascal --photographs 1250

Links photographs of PASCAL VOC as a custom data set (images/, masks/, classes.txt; every fifth is held back for
evaluation), and runs `fusioner data check`, `features build`, `train` and `evaluate` on it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fusioner.data.classes import PASCAL_CLASSES


def make_dataset(root: Path, folder: Path, count: int) -> Path:
    """Link the files of a custom data set and return its folder."""
    lists = root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    names = (lists / "train_aug.txt").read_text().split()
    names += [name for name in (lists / "val.txt").read_text().split() if name not in set(names)]
    names = names[:count]
    for kind, suffix, source in (
        ("images", ".jpg", root / "VOCdevkit" / "VOC2012" / "JPEGImages"),
        ("masks", ".png", root / "SegmentationClassAug"),
    ):
        (folder / kind).mkdir(parents=True)
        for name in names:
            (folder / kind / f"{name}{suffix}").symlink_to((source / f"{name}{suffix}").resolve())
    (folder / "classes.txt").write_text("\n".join(PASCAL_CLASSES) + "\n")
    for split, members in (("val", names[::5]), ("train", [name for i, name in enumerate(names) if i % 5])):
        (folder / f"{split}.txt").write_text("\n".join(members) + "\n")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of PASCAL VOC")
    parser.add_argument("--photographs", type=int, default=1250)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_dataset(args.root, Path(scratch) / "data", args.photographs)
        run, cache, report = (str(Path(scratch) / name) for name in ("run", "cache", "report"))
        dataset = ["folder", "--root", str(folder)]
        commands = {
            "check the data": ["data", "check", *dataset],
            "encode every image once": ["features", "build", *dataset, "--out", cache],
            "train": ["train", *dataset, "--cache", cache, "--out", run, "--steps", str(args.steps)],
            "evaluate": ["evaluate", *dataset, "--cache", cache, "--model", f"{run}/best.safetensors", "--out", report],
        }
        times: dict[str, tuple[float, float]] = {}
        for name, arguments in commands.items():
            start, cpu_before = time.monotonic(), os.times().children_user + os.times().children_system
            subprocess.run([sys.executable, "-m", "fusioner", *arguments], check=True)
            cpu_after = os.times().children_user + os.times().children_system
            times[name] = (time.monotonic() - start, cpu_after - cpu_before)
    print(f"\n{args.photographs} photographs, {args.steps} steps, {os.cpu_count()} cores\n")
    print("| | minutes | CPU minutes |\n|---|---|---|")
    total = tuple(sum(column) for column in zip(*times.values(), strict=True))
    for name, (wall, cpu) in (times | {"total": total}).items():
        print(f"| {name} | {wall / 60:.1f} | {cpu / 60:.1f} |")


if __name__ == "__main__":
    main()
