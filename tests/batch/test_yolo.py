"""The data set written by `fusioner batch --format yolo`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw, ImageOps
from skimage import data

from fusioner.batch.plan import make_plan
from fusioner.batch.run import BatchJob
from fusioner.batch.worker import Worker
from fusioner.batch.yolo import write_data_yaml
from fusioner.cli.main import main
from fusioner.loading import load
from fusioner.options import InferenceOptions

MakeJob = Callable[..., BatchJob]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Write a PNG, a turned JPEG, a JPEG in a subfolder, and a file that is not a picture."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    photo = Image.fromarray(data.astronaut()).crop((100, 0, 260, 100))
    photo.save(folder / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(folder / "b.jpg", exif=exif)
    (folder / "c.jpg").write_text("no picture")
    photo.save(folder / "more" / "a.jpg")
    return folder


def write_dataset(job: BatchJob) -> Path:
    plan = make_plan(job.source, job.out, 3, {})
    worker = Worker(job)
    for number in range(plan.shards):
        worker.run(number)
    write_data_yaml(job.out, job.labels)
    return job.out


def read_dataset(yaml_file: Path) -> dict[str, tuple[Image.Image, dict[int, np.ndarray]]]:
    """Read images and masks by class as documented by Ultralytics."""
    description = yaml.safe_load(yaml_file.read_text("utf-8"))
    assert list(description["names"]) == list(range(len(description["names"])))
    found = {}
    for split in ("train", "val"):
        folder = yaml_file.parent / description[split]
        for path in sorted(folder.glob("**/*.*")):
            image = ImageOps.exif_transpose(Image.open(path))
            label_file = Path("/labels/".join(str(path).rsplit("/images/", 1))).with_suffix(".txt")
            masks: dict[int, np.ndarray] = {}
            for line in label_file.read_text().splitlines():
                number, *numbers = line.split()
                assert len(numbers) >= 6
                points = np.array(numbers, float).reshape(-1, 2)
                assert points.min() >= 0
                assert points.max() <= 1
                canvas = Image.new("1", image.size)
                ImageDraw.Draw(canvas).polygon([tuple(point) for point in points * image.size], fill=1)
                masks[int(number)] = masks.get(int(number), False) | np.asarray(canvas)
            found[f"{split}/{path.name}"] = image, masks
    return found


def test_images_and_polygons_are_those_of_the_segmenter(pictures: Path, make_job: MakeJob) -> None:
    job = make_job(pictures, formats=("yolo",))
    found = read_dataset(write_dataset(job) / "data.yaml")
    assert list(found) == ["train/000000001-b.jpg", "train/000000003-a.jpg", "val/000000000-a.png"]
    names = ["b.jpg", "more/a.jpg", "a.png"]
    segmenter = load(device="cpu", **job.model)
    for (image, masks), name in zip(found.values(), names, strict=True):
        result = segmenter(pictures / name, job.labels, job.options)
        assert image.size == (result.width, result.height)
        assert {job.labels[number] for number in masks} == set(result.found)
        for number, mask in masks.items():
            exact = result.mask(job.labels[number])
            assert (mask & exact).sum() > 0.99 * exact.sum()
    assert (job.out / "images/train/000000001-b.jpg").read_bytes() == (pictures / "b.jpg").read_bytes()


def test_nothing_found_is_an_empty_file_and_one_image_is_both_splits(tmp_path: Path, make_job: MakeJob) -> None:
    (tmp_path / "one").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "one" / "black.jpg")
    job = make_job(tmp_path / "one", formats=("yolo",), options=InferenceOptions(threshold=1.0))
    out = write_dataset(job)
    assert (out / "labels/val/000000000-black.txt").read_bytes() == b""
    description = yaml.safe_load((out / "data.yaml").read_text("utf-8"))
    assert description == {"train": "images/val", "val": "images/val", "names": {0: "cat", 1: "dog", 2: "person"}}


def test_an_unknown_format_is_one_sentence(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["batch", str(pictures), "--labels", "cat", "--out", str(tmp_path / "out"), "--format", "yolo,coco"]
    assert main(command) == 2
    assert "--format coco: a batch writes mask and yolo" in capsys.readouterr().err


def test_ultralytics_reads_it(pictures: Path, make_job: MakeJob) -> None:
    utils: Any = pytest.importorskip("ultralytics.data.utils", reason="no package ultralytics", exc_type=ImportError)
    yolo: Any = pytest.importorskip("ultralytics.data.dataset", exc_type=ImportError)
    out = write_dataset(make_job(pictures, formats=("yolo",)))
    description = utils.check_det_dataset(str(out / "data.yaml"))
    assert description["names"] == {0: "cat", 1: "dog", 2: "person"}
    for split, count in (("train", 2), ("val", 1)):
        dataset = yolo.YOLODataset(img_path=description[split], data=description, task="segment", augment=False)
        assert len(dataset) == count
        for label in dataset.labels:
            assert len(label["segments"]) == len(label["cls"])
