"""From a folder of photographs with masks to a trained model and its table, as a user types it, with the time of each.

    python benchmarks/end_to_end.py --root shared/data/pascal --photographs 1250

Takes photographs of a PASCAL tree as a data set of one's own (images/, masks/, classes.txt; every fifth
is held back for the table), then runs `fusioner data check`, `features build`, `train` and `evaluate` on it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fusioner.data.classes import PASCAL_CLASSES


def own_folder(root: Path, folder: Path, count: int) -> Path:
    """The data set, its files linked; FileNotFoundError where the tree is another."""
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
    for split, some in (("val", names[::5]), ("train", [name for i, name in enumerate(names) if i % 5])):
        (folder / f"{split}.txt").write_text("\n".join(some) + "\n")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="a PASCAL tree")
    parser.add_argument("--photographs", type=int, default=1250)
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = own_folder(given.root, Path(place) / "data", given.photographs)
        run, cache, report = (str(Path(place) / name) for name in ("run", "cache", "report"))
        here = ["folder", "--root", str(folder)]
        commands = {
            "check": ["data", "check", *here],
            "encode once": ["features", "build", *here, "--out", cache],
            "train": ["train", *here, "--cache", cache, "--out", run, "--steps", str(given.steps)],
            "the table": ["evaluate", *here, "--cache", cache, "--model", f"{run}/best.safetensors", "--out", report],
        }
        taken: dict[str, tuple[float, float]] = {}
        for name, words in commands.items():
            start, busy = time.monotonic(), os.times().children_user + os.times().children_system
            subprocess.run([sys.executable, "-m", "fusioner", *words], check=True)
            now = os.times().children_user + os.times().children_system
            taken[name] = (time.monotonic() - start, now - busy)
    print(f"\n{given.photographs} photographs, {given.steps} steps, {os.cpu_count()} cores\n")
    print("| | minutes | CPU minutes |\n|---|---|---|")
    total = tuple(sum(column) for column in zip(*taken.values(), strict=True))
    for name, (wall, cpu) in (taken | {"together": total}).items():
        print(f"| {name} | {wall / 60:.1f} | {cpu / 60:.1f} |")


if __name__ == "__main__":
    main()
