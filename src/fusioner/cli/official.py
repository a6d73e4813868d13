"""The official command lines, `python train.py ...` and `python test.py ...`, with their original flags.

The flags override the paper preset; the same functions run as for `fusioner train` and `fusioner evaluate`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from fusioner.cli.evaluate import evaluate
from fusioner.cli.main import run
from fusioner.cli.train import command_line, report
from fusioner.errors import FusionerError
from fusioner.evaluation.protocols import EvaluationOptions
from fusioner.training.config import DataOptions, ModelOptions, OptimOptions, TrainConfig
from fusioner.training.dataset import open_split

OFFICIAL: dict[str, str | dict[str, Any]] = {
    "--dataset_name": {"default": "coco", "help": "pascal, coco, fss1000 or folder"},
    "--dataset_root": {"default": "./data", "help": "folder of the data set"},
    "--fold": {"type": int, "default": 0, "help": "0 ... 3; its classes are held out"},
    "--batch_size": "batch_size",
    "--aug_prob": "augment_prob",
    "--test_with_org_resolution": {"action": "store_true", "help": "test at native resolution with sliding windows"},
    "--target_size": {"type": int, "nargs": 2, "default": [224, 224], "help": "height and width of training images"},
    "--scale_range": {"type": float, "nargs": 2, "default": [0.5, 1.0], "help": "area share of random crops"},
    "--warmup_epochs": {"type": int, "default": 10, "help": "warm-up epochs"},
    "--training_epochs": {"type": int, "default": 500, "help": "epochs after the warm-up"},
    "--beta1": "beta1",
    "--fusion_lr": "lr",
    "--fusion_min_lr": "min_lr",
    "--decoder_lr": "decoder_lr",
    "--wd": "weight_decay",
    "--wd_end": "weight_decay_end",
    "--drop_path_rate": "drop_path",
    "--transformer_dropout": "dropout",
    "--transformer_heads": "heads",
    "--transformer_layers": "layers",
    "--transformer_width": "width",
    "--temperature": "temperature",
    "--load_ckpt_path": {"default": None, "help": "train: weights to start from; test: the model (.safetensors, .pth)"},
    "--device": {"default": "cuda", "help": "cuda, cuda:N, cpu, mps or auto"},
}
"""The official flags with the official defaults; a word names the setting of the paper preset that a flag sets."""

OURS: dict[str, str | dict[str, Any]] = {
    "--image_encoder": "image_encoder",
    "--text_encoder": "text_encoder",
    "--out": {"type": Path, "default": Path("run"), "help": "folder of the run, or of the reports"},
    "--steps": "steps",
    "--seed": {"type": int, "default": 0, "help": "random seed"},
    "--resume": {"action": "store_true", "help": "train: continue the run in --out"},
    "--limit": {"type": int, "default": None, "help": "test: number of images, spread evenly over the fold"},
}


def parser(program: str) -> argparse.ArgumentParser:
    """Return the argument parser of either script."""
    paper = {entry.name: entry for group in (ModelOptions, DataOptions, OptimOptions) for entry in fields(group)}
    arguments = argparse.ArgumentParser(prog=program, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for flag, options in (OFFICIAL | OURS).items():
        if isinstance(options, str):
            default = paper[options].default
            options = {"type": type(default), "default": default, "help": paper[options].metadata["help"]}
        arguments.add_argument(flag, **options)
    return arguments


def settings(given: argparse.Namespace) -> TrainConfig:
    """Return the settings given by the flags; images must be square, and the scale range must end at 1."""
    height, width = given.target_size
    if height != width:
        raise FusionerError(f"--target_size {height} {width}: images are resized to squares, give one number twice")
    if given.scale_range[1] != 1:
        raise FusionerError(f"--scale_range must end at 1, not {given.scale_range[1]:g}")
    epochs = given.warmup_epochs + given.training_epochs
    named = {flag: name for flag, name in (OFFICIAL | OURS).items() if isinstance(name, str)}
    return TrainConfig().override(
        "the flags",
        **{name: getattr(given, flag.removeprefix("--")) for flag, name in named.items()},
        min_crop_scale=given.scale_range[0],
        resolution=height,
        epochs=epochs,
        warmup=given.warmup_epochs / max(1, epochs),
        decoder_widths=(given.transformer_width,) * 4,
        seed=given.seed,
    )


def run_train(words: Sequence[str]) -> None:
    """Run `train.py`; raises as `fusioner.training.train.train`."""
    from fusioner.training.train import train
    from fusioner.training.trainer import RunConfig

    given = parser("train.py").parse_args(words)
    config = settings(given)
    fold = given.fold if given.dataset_name in ("pascal", "coco") else None
    split = open_split(given.dataset_name, Path(given.dataset_root), fold)
    place = RunConfig(
        given.out,
        given.resume,
        given.device,
        init_from=Path(given.load_ckpt_path) if given.load_ckpt_path else None,
        preset="paper",
        command=command_line(["python", "train.py", *words]),
    )
    report(train([split], config, place), given.out)


def run_test(words: Sequence[str]) -> None:
    """Run `test.py`; raises as `fusioner.cli.evaluate.evaluate`."""
    given = parser("test.py").parse_args(words)
    if given.load_ckpt_path is None:
        raise FusionerError("test.py needs a model: --load_ckpt_path run/best.safetensors, or an official .pth")
    native = given.test_with_org_resolution
    evaluate(
        given.dataset_name,
        root=Path(given.dataset_root),
        model=Path(given.load_ckpt_path),
        out=given.out,
        fold=str(given.fold),  # pyright: ignore[reportArgumentType]
        mode="slide" if native else "whole",
        options=EvaluationOptions(eval_size=None if native else given.target_size[0], limit=given.limit),
        device=given.device,
    )


def main(name: str) -> int:
    """Run "train" or "test" with the process's arguments; print errors in one line and return the exit code."""
    return run(lambda: (run_train if name == "train" else run_test)(sys.argv[1:]))
