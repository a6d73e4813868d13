"""`fusioner predict` on real files, with a network of random weights over the embedded encoders."""

import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from fusioner.cli.main import main
from fusioner.model.checkpoint import ModelCard, save_model
from fusioner.model.config import FusionerConfig
from fusioner.model.fusioner import Fusioner

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    config = FusionerConfig(image_dim=384, text_dim=384, width=16, layers=1, heads=2, decoder_widths=(16, 16))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        save_model(path, Fusioner(config), ModelCard(config, "dinov2-s-embedded", "minilm-embedded", resolution=56))
    return path


@pytest.fixture
def run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return `call(words...) -> exit code, stdout, stderr`, which runs in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object, labels: str | None = "cat, cup", out: object = "out") -> tuple[int, str, str]:
        options = {"--model": model, "--device": "cpu", "--out": out, "--labels": labels}
        chosen = [
            part for name, value in options.items() if value is not None and name not in words for part in (name, value)
        ]
        code = main(["predict", *map(str, (*words, *chosen))])
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


def test_one_picture(run: Run, photos: Path) -> None:
    code, out, err = run(photos / "chelsea.jpg")
    assert (code, err) == (0, "")
    assert sorted(os.listdir("out")) == ["chelsea.json", "chelsea.overlay.png", "chelsea.png"]
    line, summary = out.splitlines()
    content = json.loads(Path("out/chelsea.json").read_text())
    assert content["image"] == "chelsea.jpg"
    assert content["labels"] == ["cat", "cup"]
    with Image.open("out/chelsea.png") as mask:
        assert mask.size == (160, 120)
        counts = np.bincount(np.asarray(mask).ravel(), minlength=3)
    assert [segment["pixels"] for segment in content["segments"]] == counts[1:].tolist()
    for segment in content["segments"]:
        if segment["pixels"]:
            assert f"{segment['label']} {100 * segment['coverage']:.1f} %" in line
    assert line.startswith(f"{photos}/chelsea.jpg: ")
    assert line.endswith(" -> out/chelsea.overlay.png")
    assert summary == "1 picture segmented into out"


def test_a_folder_with_bad_pictures_does_the_others(run: Run, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(photos, folder)
    raw = (photos / "chelsea.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(raw[: len(raw) // 2])
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("not a picture")
    code, out, err = run(folder, "missing.jpg", "*.webp")
    assert code == 2
    assert re.findall(r"error: (?:\S*/)?(\S+)", err) == ["no", "cut.jpg", "empty.png", "text.jpg", "there"]
    assert len(err.splitlines()) == 5
    assert "Traceback" not in err
    assert out.splitlines()[-1] == "2 pictures segmented into out, 5 failed"
    assert {name.partition(".")[0] for name in os.listdir("out")} == {"chelsea", "coffee"}


def test_no_background_native_and_threshold(run: Run, photos: Path) -> None:
    code, _, _ = run(photos / "coffee.png", "--no-background", "--mode", "slide")
    assert code == 0
    with Image.open("out/coffee.png") as mask:
        assert np.asarray(mask).min() >= 1
    assert json.loads(Path("out/coffee.json").read_text())["background"] is False
    code, out, _ = run(photos / "coffee.png", "--threshold", "1")
    assert code == 0
    assert re.search(r"coffee.png: nothing found: cat \(at most 0\.\d\d\), cup \(at most 0\.\d\d\) -> ", out)
    with Image.open("out/coffee.png") as mask:
        assert np.asarray(mask).max() == 0


def test_overlap_and_instances(run: Run, photos: Path) -> None:
    words = ("--labels", "cat, cup, wheel", "--threshold", "0.3", "--overlap", "--instances", "--csv", "out.csv")
    code, out, err = run(photos / "coffee.png", *words)
    assert code == 0
    assert err.startswith("note: parts of things")
    assert sorted(os.listdir("out")) == ["coffee.json", "coffee.masks.zip", "coffee.overlay.png"]
    content = json.loads(Path("out/coffee.json").read_text())
    assert (content["overlap"], content["instances"]) == (True, True)
    assert len(content["notes"]) == 1
    rows = list(csv.DictReader(Path("out.csv").read_text().splitlines()))
    assert [(row["label"], row["pixels"]) for row in rows] == [
        (entry["label"], str(entry["pixels"])) for entry in content["segments"]
    ]
    for label in {entry["label"] for entry in content["segments"] if entry["pixels"]}:
        count = sum(entry["label"] == label for entry in content["segments"])
        assert re.search(rf"{label} \d+\.\d % in {count} region", out)
    assert run(photos / "coffee.png", *words, "--skip-existing")[1].startswith("0 pictures segmented into out, 1 skip")
    assert list(csv.DictReader(Path("out.csv").read_text().splitlines())) == rows


def test_labels_of_a_file_and_of_any_language(run: Run, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.TXT").write_text("кошка\nsalt, pepper\n猫\n", encoding="utf-8")
    code, _, _ = run(photos / "chelsea.jpg", "--labels", "cat", "--labels", "labels.TXT")
    assert code == 0
    assert json.loads(Path("out/chelsea.json").read_text("utf-8"))["labels"] == ["cat", "кошка", "salt, pepper", "猫"]


def test_templates_change_the_answer(run: Run, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "templates.txt").write_text("it rains on the {}\n")
    run(photos / "chelsea.jpg", out="plain")
    code, _, _ = run(photos / "chelsea.jpg", "--templates", "templates.txt", out="rain")
    assert code == 0
    assert Path("plain/chelsea.json").read_bytes() != Path("rain/chelsea.json").read_bytes()


def test_two_pictures_of_one_name(run: Run, photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(data.coffee()[:50, :60]).save(other / "chelsea.png")
    code, out, _ = run(photos / "chelsea.jpg", other / "chelsea.png")
    assert code == 0
    with Image.open("out/chelsea.png") as first, Image.open("out/chelsea-2.png") as second:
        assert (first.size, second.size) == ((160, 120), (60, 50))
    assert json.loads(Path("out/chelsea-2.json").read_text())["image"] == "chelsea.png"
    assert "-> out/chelsea-2.overlay.png" in out


def test_results_never_replace_pictures(run: Run, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "mine")
    before = (tmp_path / "mine" / "coffee.png").read_bytes()
    code, out, err = run("mine", out="mine")
    assert (code, out) == (2, "")
    assert err == "error: mine/coffee.png would replace an input picture: choose another folder with --out\n"
    assert (tmp_path / "mine" / "coffee.png").read_bytes() == before
    assert len(os.listdir("mine")) == 2


@pytest.mark.parametrize(
    ("words", "labels", "reason"),
    [
        ([], "cat", "name at least one picture"),
        (["a.jpg"], None, "--labels"),
        (["a.jpg"], "", "there are no labels"),
        (["a.jpg"], "cat,,dog", "label 2 of 3 is empty"),
        (["a.jpg"], "cat, Cat", "'Cat' is named twice"),
        (["a.jpg", "--threshold", "1.2"], "cat", "the threshold must be a probability between 0 and 1, not 1.2"),
        (["a.jpg", "--threshold", "nan"], "cat", "the threshold must be a probability"),
        (["a.jpg", "--labels", "none.txt"], "cat", "cannot read labels from none.txt"),
        (["a.jpg", "--labels", __file__], "cat", "labels are read from .txt files"),
        (["a.jpg", "--format", "csv"], "cat", "csv is no --format"),
        (["a.jpg", "--templates", "none.txt"], "cat", "cannot read the templates in none.txt"),
        (["a.jpg", "--device", "cuda:7"], "cat", "device 'cuda:7' is not available"),
        (["a.jpg", "--device", "abacus"], "cat", "there is no device 'abacus'"),
        (["a.jpg", "--model", "none.safetensors"], "cat", "no model file none.safetensors"),
    ],
)
def test_bad_options_are_one_line(run: Run, words: list[str], labels: str | None, reason: str) -> None:
    code, out, err = run(*words, labels=labels)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert reason in err
    assert err.count("\n") == 1


def test_a_truncated_checkpoint(run: Run, model: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(model.read_bytes()[:5000])
    code, _, err = run(photos / "chelsea.jpg", "--model", "cut.safetensors")
    assert code == 2
    assert "cut.safetensors is corrupt" in err
    assert not any(Path("out").iterdir())


def test_a_folder_that_cannot_be_made(run: Run, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    code, out, err = run(photos / "chelsea.jpg", out="taken")
    assert (code, out) == (2, "")
    assert "a part of its path is a file" in err


def test_no_space_left(run: Run, photos: Path, full_disk: Path) -> None:
    (full_disk / "ballast").write_bytes(bytes(2**20 - 20 * 2**10))
    code, out, err = run(photos, out=full_disk)
    assert code == 2
    assert err.count("there is no space left on the device") == len(err.splitlines()) == 2
    assert out == f"0 pictures segmented into {full_disk}, 2 failed\n"
    assert os.listdir(full_disk) == ["ballast"]


def test_running_again_gives_the_same_bytes(run: Run, photos: Path) -> None:
    run(photos)
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    run(photos)
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before


def test_the_default_folder(run: Run, photos: Path) -> None:
    code, out, _ = run(photos / "coffee.png", out=None)
    assert code == 0
    assert out.endswith("1 picture segmented into fusioner-out\n")
    assert len(os.listdir("fusioner-out")) == 3


def test_several_sizes_of_a_picture_are_averaged(run: Run) -> None:
    Image.fromarray(data.coffee()[::4, ::4]).save("cup.png")
    masks = []
    for out, options in (("one", ()), ("two", ("--tta-scales", "1,2")), ("again", ("--tta-scales", "1"))):
        code, _, err = run("cup.png", *options, "--format", "npz", out=out)
        assert code == 0, err
        masks.append(np.load(Path(out) / "cup.npz")["probabilities"])
    assert np.array_equal(masks[0], masks[2])
    assert np.abs(masks[0].astype(float) - masks[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tta-scales", "1,big"), "write comma-separated numbers"),
        (("--tta-scales", "0"), "above 0 and at most 16"),
        (("--tta-scales", "1,2", "--mode", "slide"), "do not apply to mode slide"),
        (("--guided-filter", "--mode", "slide"), "do not apply to mode slide"),
        (("--stride", "100", "--mode", "whole"), "window and stride apply to mode slide"),
    ],
)
def test_scales_that_cannot_be_are_one_sentence(run: Run, options: tuple[str, ...], message: str) -> None:
    Image.new("RGB", (20, 20)).save("a.png")
    code, _, err = run("a.png", *options)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not Path("out").exists()
