"""The official command lines, `python train.py ...` and `python test.py ...`, with their original flags.

The flags override the paper preset; the same functions run as for `fusioner train` and `fusioner evaluate`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fusioner.errors import FusionerError

if TYPE_CHECKING:
    from fusioner.training.config import TrainConfig

OFFICIAL: dict[str, dict[str, object]] = {
    "--dataset_name": {"default": "coco", "help": "pascal, coco, fss1000 or folder"},
    "--dataset_root": {"default": "./data", "help": "folder of the data set"},
    "--fold": {"type": int, "default": 0, "help": "0 ... 3; its classes are held out"},
    "--batch_size": {"type": int, "default": 32, "help": "images per update"},
    "--aug_prob": {"type": float, "default": 0.5, "help": "probability of each augmentation"},
    "--test_with_org_resolution": {"action": "store_true", "help": "test at native resolution with sliding windows"},
    "--target_size": {"type": int, "nargs": 2, "default": [224, 224], "help": "height and width of training images"},
    "--scale_range": {"type": float, "nargs": 2, "default": [0.5, 1.0], "help": "area share of random crops"},
    "--warmup_epochs": {"type": int, "default": 10, "help": "warm-up epochs"},
    "--training_epochs": {"type": int, "default": 500, "help": "epochs after the warm-up"},
    "--beta1": {"type": float, "default": 0.9, "help": "AdamW's first coefficient for the fusion"},
    "--fusion_lr": {"type": float, "default": 0.001, "help": "peak learning rate of the fusion"},
    "--fusion_min_lr": {"type": float, "default": 2e-6, "help": "final learning rate of the fusion"},
    "--decoder_lr": {"type": float, "default": 0.001, "help": "learning rate of the decoder"},
    "--wd": {"type": float, "default": 0.01, "help": "initial weight decay of the fusion"},
    "--wd_end": {"type": float, "default": 0.4, "help": "final weight decay of the fusion"},
    "--drop_path_rate": {"type": float, "default": 0.0, "help": "stochastic depth of the fusion"},
    "--transformer_dropout": {"type": float, "default": 0.0, "help": "dropout of the fusion"},
    "--transformer_heads": {"type": int, "default": 8, "help": "heads of the fusion"},
    "--transformer_layers": {"type": int, "default": 12, "help": "layers of the fusion"},
    "--transformer_width": {"type": int, "default": 512, "help": "width of fusion and decoder"},
    "--temperature": {"type": float, "default": 0.07, "help": "divisor of the head's cosines"},
    "--load_ckpt_path": {"default": None, "help": "train: weights to start from; test: the model (.safetensors, .pth)"},
    "--device": {"default": "cuda", "help": "cuda, cuda:N, cpu, mps or auto"},
}
"""The official flags with the official defaults."""

OURS: dict[str, dict[str, object]] = {
    "--image_encoder": {"default": "clip-vit-l14", "help": "encoder name, or NAME@/folder to work offline"},
    "--text_encoder": {"default": "clip-text-l14", "help": "text encoder, named likewise"},
    "--out": {"type": Path, "default": Path("run"), "help": "folder of the run, or of the reports"},
    "--steps": {"type": int, "default": 0, "help": "updates, in place of the epochs"},
    "--seed": {"type": int, "default": 0, "help": "random seed"},
    "--resume": {"action": "store_true", "help": "continue the run in --out"},
}


def parser(program: str) -> argparse.ArgumentParser:
    """Return the argument parser of either script."""
    arguments = argparse.ArgumentParser(prog=program, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for flag, options in (OFFICIAL | OURS).items():
        arguments.add_argument(flag, **options)  # pyright: ignore[reportArgumentType]
    return arguments


def settings(given: argparse.Namespace) -> "TrainConfig":
    """Return the settings given by the flags."""
    from fusioner.training.presets import PAPER

    height, width = given.target_size
    if height != width:
        raise FusionerError(f"--target_size {height} {width}: images are resized to squares, give one number twice")
    if given.scale_range[1] != 1:
        raise FusionerError(f"--scale_range must end at 1, not {given.scale_range[1]:g}")
    epochs = given.warmup_epochs + given.training_epochs
    return PAPER.override(
        "the flags",
        image_encoder=given.image_encoder,
        text_encoder=given.text_encoder,
        batch_size=given.batch_size,
        augment_prob=given.aug_prob,
        min_crop_scale=given.scale_range[0],
        resolution=height,
        epochs=epochs,
        steps=given.steps,
        warmup=given.warmup_epochs / max(1, epochs),
        beta1=given.beta1,
        lr=given.fusion_lr,
        min_lr=given.fusion_min_lr,
        decoder_lr=given.decoder_lr,
        weight_decay=given.wd,
        weight_decay_end=given.wd_end,
        drop_path=given.drop_path_rate,
        dropout=given.transformer_dropout,
        heads=given.transformer_heads,
        layers=given.transformer_layers,
        width=given.transformer_width,
        decoder_widths=(given.transformer_width,) * len(PAPER.model.decoder_widths),
        temperature=given.temperature,
        seed=given.seed,
    )


def run_train(words: Sequence[str]) -> None:
    """Run `train.py`; raises as `fusioner.training.train.train`."""
    from fusioner.cli.train import command_line, report, track
    from fusioner.training.dataset import open_split
    from fusioner.training.train import RunConfig, train

    given = parser("train.py").parse_args(words)
    config = settings(given)
    fold = given.fold if given.dataset_name in ("pascal", "coco") else None
    split = open_split(given.dataset_name, Path(given.dataset_root), fold)
    run = RunConfig(
        given.out,
        given.resume,
        given.device,
        init_from=Path(given.load_ckpt_path) if given.load_ckpt_path else None,
        preset="paper",
        command=command_line(["python", "train.py", *words]),
    )
    report(train([split], config, run, track=track), given.out)


def run_test(words: Sequence[str]) -> None:
    """Run `test.py`; raises as `fusioner.cli.evaluate.evaluate`."""
    from fusioner.cli.evaluate import evaluate
    from fusioner.evaluation.options import EvaluationOptions

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
        options=EvaluationOptions(eval_size=None if native else given.target_size[0]),
        device=given.device,
    )


def main(run: str) -> int:
    """Run "train" or "test" with the process's arguments; print errors in one line and return the exit code."""
    try:
        (run_train if run == "train" else run_test)(sys.argv[1:])
    except FusionerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
