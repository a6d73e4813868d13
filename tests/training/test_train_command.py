"""`fusioner train` and the official `train.py` and `test.py` commands."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from shlex import split
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fusioner.cli import official
from fusioner.cli.main import main
from fusioner.cli.official import OFFICIAL, OURS, parser, settings
from fusioner.cli.train import command_line
from fusioner.data.folds import val_pairs
from fusioner.loading import load
from fusioner.model.checkpoint import load_model
from fusioner.training.config import TrainConfig
from fusioner.training.presets import PAPER, SMALL
from fusioner.weights import DEFAULT_MODEL, weights_file

REPO = Path(__file__).resolve().parents[2]
Toml = Callable[..., Path]


@pytest.fixture
def toml(tmp_path: Path, tiny: Callable[..., TrainConfig], to_toml: Callable[[TrainConfig], str]) -> Toml:
    """Return `write(**changes)`, which writes a settings file of the tiny training."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "tiny.toml"
        path.write_text(to_toml(tiny(**changes)))
        return path

    return write


def test_train_as_a_user_types_it(
    voc_tree: Path, toml: Toml, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusioner.progress.SECONDS", 0.0)
    words = ["train", "pascal", "--root", str(voc_tree), "--fold", "1", "--config", str(toml()), "--device", "cpu"]
    words += ["--out", str(tmp_path / "run"), "--cache", str(tmp_path / "cache"), "--views", "2", "--seed", "3"]
    assert main([*words, "--steps", "5"]) == 0
    output = capsys.readouterr()
    assert "5 of 5 steps" in output.out
    assert f"wrote {tmp_path / 'run' / 'best.safetensors'}" in output.out
    assert re.search(r"training 4/5 .* loss \d.* mIoU training .* images/s", output.err)  # without a terminal
    _, card = load_model(tmp_path / "run" / "last.safetensors")
    assert card.training["settings"]["data"]["features"] == "cached"
    assert (card.training["steps"], card.training["seed"], card.training["fold"]) == (5, 3, 1)
    assert "bicycle" in card.training["classes"]
    assert "cat" not in card.training["classes"]
    assert main(words) == 2  # an earlier run is not overwritten
    assert "--resume" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 2  # the settings lack --steps 5
    assert "settings: steps" in capsys.readouterr().err
    assert main([*words, "--steps", "5", "--resume"]) == 0


def test_several_data_sets_with_their_own_classes(voc_tree: Path, toml: Toml, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "own"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (20, 20), (200, 0, 0)).save(folder / "images" / f"{i}.png")
        Image.fromarray(np.full((20, 20), i, np.uint8)).save(folder / "masks" / f"{i}.png")
    Image.new("RGB", (20, 20)).save(folder / "images" / "unmasked.png")
    (folder / "classes.txt").write_text("null\ntable\nplant\n")
    words = ["train", "pascal", "--root", str(voc_tree), "--extra-dataset", f"folder={folder}", "--config", str(toml())]
    assert main([*words, "--out", str(tmp_path / "run"), "--device", "cpu", "--cache", "off"]) == 0
    assert f"note: 1 images of {folder} have no mask: unmasked" in capsys.readouterr().err
    _, card = load_model(tmp_path / "run" / "best.safetensors")
    assert card.training["extra_datasets"] == [["folder", "own"]]
    assert {"plant", "cat"} <= set(card.training["classes"])
    assert len(card.training["images"]) == 24 + 1  # the three red pictures are identical


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--extra-dataset", "coco"], "NAME=FOLDER"),
        (["--preset", "paper", "--prompts", "4"], "--prompts"),
        (["--steps", "0", "--epochs", "0"], "--steps or --epochs"),
        (["--lr", "nan"], "--lr must be within"),
        (["--config", "nowhere.toml"], "nowhere.toml"),
        (["--image-encoder", "dinov9"], "dinov9"),
        (["--extra-dataset", "marsh=."], "'marsh'"),
        (["--init-from", "nowhere.safetensors", "--similarity", "none"], "nowhere.safetensors"),
        (["--similarity", "posterior"], "--similarity posterior"),
    ],
)
def test_wrong_arguments_are_one_line(
    voc_tree: Path, toml: Toml, tmp_path: Path, capsys: Any, words: list[str], sentence: str
) -> None:
    settings = [] if {"--preset", "--config"} & set(words) else ["--config", str(toml())]
    start = ["train", "pascal", "--root", str(voc_tree), "--device", "cpu", "--out", str(tmp_path / "run")]
    assert main([*start, *settings, "--cache", "off", *words]) == 2
    output = capsys.readouterr().err
    assert sentence in output
    assert output.splitlines()[-1].startswith("error: ")


def test_a_card_contains_no_paths(tmp_path: Path) -> None:
    root = tmp_path / "secret" / "pascal"
    root.mkdir(parents=True)
    words = [
        "fusioner",
        "train",
        "pascal",
        "--root",
        str(root),
        "--extra-dataset",
        f"folder={root}",
        "--out",
        "new/run",
        "--cache",
        str(tmp_path / "secret" / "cache"),  # not there yet
    ]
    shown = "fusioner train pascal --root pascal --extra-dataset folder=pascal --out new/run --cache cache"
    assert command_line(words) == shown


def test_the_official_flags_stay_as_they_are() -> None:
    frozen = {
        "dataset_name": "coco",
        "dataset_root": "./data",
        "fold": 0,
        "batch_size": 32,
        "aug_prob": 0.5,
        "test_with_org_resolution": False,
        "target_size": [224, 224],
        "scale_range": [0.5, 1.0],
        "warmup_epochs": 10,
        "training_epochs": 500,
        "beta1": 0.9,
        "fusion_lr": 0.001,
        "fusion_min_lr": 2e-6,
        "decoder_lr": 0.001,
        "wd": 0.01,
        "wd_end": 0.4,
        "drop_path_rate": 0.0,
        "transformer_dropout": 0.0,
        "transformer_heads": 8,
        "transformer_layers": 12,
        "transformer_width": 512,
        "temperature": 0.07,
        "load_ckpt_path": None,
        "device": "cuda",
    }
    defaults = vars(parser("train.py").parse_args([]))
    assert {name: defaults[name] for name in frozen} == frozen
    assert {flag.removeprefix("--") for flag in OFFICIAL} == set(frozen)
    assert set(defaults) == {flag.removeprefix("--") for flag in (*OFFICIAL, *OURS)}


def test_the_official_defaults_are_the_paper_preset() -> None:
    assert settings(parser("train.py").parse_args([])) == PAPER
    words = ["--warmup_epochs", "1", "--training_epochs", "3", "--transformer_width", "64", "--scale_range", "0.7", "1"]
    changed = settings(parser("train.py").parse_args([*words, "--wd", "0.1", "--fusion_lr", "0.5"]))
    assert (changed.optim.epochs, changed.optim.warmup, changed.model.decoder_widths) == (4, 0.25, (64,) * 4)
    assert (changed.data.min_crop_scale, changed.optim.weight_decay, changed.optim.lr) == (0.7, 0.1, 0.5)


def script(name: str, *words: object) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(REPO / name), *map(str, words)]
    return subprocess.run(command, env=environment, text=True, capture_output=True, check=False)


def test_the_example_is_how_the_model_inside_the_package_was_trained() -> None:
    example = SMALL.merge(tomllib.loads((REPO / "examples" / "default.toml").read_text("utf-8")))
    card = load().card
    assert card.training["settings"] == example.to_dict()
    assert card.guided_filter is example.model.guided_filter


@pytest.mark.slow
def test_the_official_commands_run_as_they_are(
    voc_tree: Path, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Train on fold 0, then test its unseen classes at 224-style and at native resolution."""

    def in_this_process(verb: str, *words: object) -> int:
        monkeypatch.setattr(sys, "argv", [f"{verb}.py", *map(str, words)])
        return official.main(verb)

    tree = tmp_path / "pascal"  # with a readable val image of the published list
    base = tree / "VOCdevkit" / "VOC2012"
    for folder in (base / "JPEGImages", base / "ImageSets" / "Segmentation", tree / "SegmentationClassAug"):
        folder.mkdir(parents=True)
    for place in ("VOCdevkit/VOC2012/JPEGImages", "SegmentationClassAug"):
        for path in (voc_tree / place).glob("2007_0000[01]*"):
            (tree / place / path.name).write_bytes(path.read_bytes())
    Image.new("RGB", (60, 40), (0, 90, 200)).save(base / "JPEGImages" / "2007_000033.jpg")
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 10:50] = 1  # 2007_000033 is listed in fold 0 as an aeroplane
    Image.fromarray(mask).save(tree / "SegmentationClassAug" / "2007_000033.png")
    lists = base / "ImageSets" / "Segmentation"
    lists.joinpath("train_aug.txt").write_text("\n".join(f"2007_{i:06d}" for i in range(20)))
    lists.joinpath("val.txt").write_text("2007_000033\n")
    common = [*split("--dataset_name pascal --fold 0 --device cpu --target_size 32 32 --dataset_root"), tree]
    small = split("--transformer_width 16 --transformer_layers 1 --transformer_heads 2 --batch_size 4")
    small += split("--warmup_epochs 1 --training_epochs 1")
    encoders = ["--image_encoder", f"clip-vit-l14@{clip_folder}", "--text_encoder", f"clip-text-l14@{clip_folder}"]
    trained = script("train.py", *common, *small, *encoders, "--out", tmp_path / "run")
    assert trained.returncode == 0, trained.stderr
    model, card = load_model(tmp_path / "run" / "best.safetensors")
    assert card.training["preset"] == "paper"
    assert card.mean == (0.4554, 0.4298, 0.3955)
    assert model.config.decoder_widths == (16,) * 4
    test = [*common, "--load_ckpt_path", tmp_path / "run" / "best.safetensors", "--out"]
    tested = script("test.py", *test, tmp_path / "square")
    assert tested.returncode == 0, tested.stderr
    assert in_this_process("test", *test, tmp_path / "native", "--test_with_org_resolution") == 0
    for out in ("square", "native"):
        metrics = json.loads((tmp_path / out / "metrics.json").read_text())
        assert metrics["pairs"] == 1
        assert 0 <= metrics["miou"] <= 100
    assert in_this_process("test", *common) == 2
    capsys.readouterr()
    assert in_this_process("train", *common, "--target_size", 32, 48) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_test_py_shows_progress_and_takes_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    tree = tmp_path / "pascal"
    folders = tree / "VOCdevkit" / "VOC2012" / "JPEGImages", tree / "SegmentationClassAug"
    for folder in folders:
        folder.mkdir(parents=True)
    for image, class_id in val_pairs("pascal", 0)[:4]:
        Image.new("RGB", (48, 32), (0, 90, 200)).save(folders[0] / f"{image}.jpg")
        Image.fromarray(np.full((32, 48), class_id, np.uint8)).save(folders[1] / f"{image}.png")
    monkeypatch.setattr("fusioner.progress.SECONDS", 0.0)
    words = ["--dataset_name", "pascal", "--dataset_root", tree, "--device", "cpu", "--out", tmp_path / "report"]
    words += ["--load_ckpt_path", weights_file(DEFAULT_MODEL), "--limit", 2]
    monkeypatch.setattr(sys, "argv", ["test.py", *map(str, words)])
    assert official.main("test") == 0
    assert "fold 0 1/2" in capsys.readouterr().err
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["images"] == 2
