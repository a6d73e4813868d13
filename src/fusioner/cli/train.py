"""`fusioner train`: train a model on one data set, or on several together."""

import shlex
import signal
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypedDict

from cyclopts import Parameter

from fusioner.cli.options import COMPUTE, Device, MaskValues, Root
from fusioner.data.registry import TrainableDataset
from fusioner.encoders.prompt_templates import read_templates
from fusioner.errors import FusionerError
from fusioner.io import parse_file
from fusioner.progress import format_duration
from fusioner.training.config import BEST, LAST, DataOptions, ModelOptions, OptimOptions, flatten
from fusioner.training.dataset import open_split
from fusioner.training.presets import PRESETS
from fusioner.training.presets import preset as get_preset
from fusioner.weights import DEFAULT_MODEL, weights_file

if TYPE_CHECKING:
    from fusioner.training.trainer import TrainResult

    Settings: TypeAlias = dict[str, Any]
else:

    def _flag(group: str, entry: Field) -> Any:
        """Return the type of a flag: that of an option, with its help and the presets' values (small's and others)."""
        values = {name: _format(flatten(preset.to_dict())[entry.name]) for name, preset in PRESETS.items()}
        small = values.pop("small")
        others = "; ".join(f"{name}: {value}" for name, value in values.items() if value != small)
        text = f"{entry.metadata['help']} Default: {small}" + (f" ({others})." if others else ".")
        return Annotated[entry.type, Parameter(group=group, help=text, consume_multiple=True)]

    def _format(value: Any) -> str:
        if isinstance(value, bool):
            return "on" if value else "off"
        return (" ".join(map(str, value)) if isinstance(value, list) else str(value)) or "none"

    # Flags not given are not in the dictionary, so that they leave the preset's values. Inherited fields come last.
    Settings = TypedDict(
        "Settings",
        {
            entry.name: _flag(group, entry)
            for group, options in (("Model", ModelOptions), ("Data", DataOptions), ("Optimization", OptimOptions))
            for entry in sorted(fields(options), key=lambda entry: entry.name not in options.__annotations__)
            if entry.name not in ("templates", "features")
        },
        total=False,
    )


def train(
    dataset: TrainableDataset,
    /,
    *,
    root: Root,
    mask_values: MaskValues = "",
    out: Path = Path("run"),
    fold: Literal["0", "1", "2", "3", "all"] = "all",
    preset: Literal["small", "paper", "proxy", "aligned"] = "small",
    config: Path | None = None,
    extra_dataset: list[str] | None = None,
    templates: Path | None = None,
    cache: Annotated[str | None, Parameter(group=COMPUTE)] = None,
    init_from: Path | None = None,
    resume: bool = False,
    checkpoint_minutes: Annotated[float, Parameter(group=COMPUTE)] = 5.0,
    device: Device = "auto",
    devices: Annotated[int, Parameter(group=COMPUTE)] = 1,
    compile: Annotated[bool, Parameter(group=COMPUTE)] = False,
    seed: int | None = None,
    settings: Annotated[Settings | None, Parameter(name="*")] = None,
) -> None:
    """Train the fusion network on frozen encoders; writes best.safetensors, last.safetensors and metrics.jsonl.

    Image features are computed once and cached. Flags not given keep the values of the preset.

        fusioner train pascal --root data/pascal --fold 2 --out run
        fusioner train folder --root my/data --steps 300
        fusioner train pascal --root data/pascal --extra-dataset coco=data/coco --extra-dataset folder=my/data
        fusioner train folder --root my/data --init-from default --steps 100 --lr 2e-4
        fusioner train pascal --root data/pascal --fold 0 --preset paper --device cuda
        fusioner train pascal --root data/pascal --fold 0 --method lseg --out lseg
        fusioner train pascal --root data/pascal --fold 2 --out run --resume

    Args:
        dataset: Data set, laid out as docs/data.md describes; folder is your own: images/ masks/ classes.txt.
        out: Folder of the run.
        fold: Hold back the classes of this fold of pascal or coco; all trains on every class.
        preset: small: minutes on two cores, no downloads; paper: the official defaults, CLIP ViT-L/14; proxy: small on
            DINOv2 and CLIP ViT-B/16; aligned: small on TIPSv2 alone.
        config: TOML file with settings in the tables [model], [data] and [optim]; flags take precedence. Default: none.
        extra_dataset: A further data set, NAME=FOLDER, with its own vocabulary; repeatable. Default: none.
        templates: File of prompt templates, one per line, each with {} for the label. Default: those of the preset.
        cache: Folder of the feature cache, or off to encode every step under full augmentation. Default:
            $FUSIONER_CACHE, or the platform's folder for caches; in preset paper off.
        init_from: Model file with the initial weights, or default for the bundled model. Its network shape takes
            precedence over the settings, and its closed-set head is kept beside the new one. Default: random weights.
        resume: Continue the interrupted run in --out.
        checkpoint_minutes: Time between checkpoints.
        devices: Number of devices.
        compile: Compile the network first: worth its minute on a GPU.
        seed: Seed of weights, order, views, prompts and words. Default: 0.
    """

    from fusioner.training.train import train as run_training
    from fusioner.training.trainer import RunConfig

    given: dict[str, Any] = {**(settings or {})}
    given |= {"seed": seed, "templates": None if templates is None else read_templates(templates)}
    given["features"] = None if cache is None else "live" if cache == "off" else "cached"
    given = {name: value for name, value in given.items() if value is not None}
    if "epochs" in given:
        given.setdefault("steps", 0)
    fold_number = None if fold == "all" else int(fold)
    base = get_preset(preset, fold_number)
    if config is not None:
        base = base.merge(parse_file(config, tomllib.loads, "the settings in "), str(config))
    chosen = base.override(**given)
    splits = [open_split(dataset, root, fold_number, chosen.data.unseen_pixels, mask_values)]
    for text in extra_dataset or ():
        name, _, folder = text.partition("=")
        if not folder:
            raise FusionerError(f"--extra-dataset {text}: write NAME=FOLDER, as in --extra-dataset coco=data/coco")
        splits.append(open_split(name, Path(folder).expanduser()))
    if init_from == Path("default"):
        init_from = weights_file(DEFAULT_MODEL)
    cache_folder = None if cache in (None, "off") else Path(str(cache)).expanduser()
    command = command_line(["fusioner", *sys.argv[1:]])
    run = RunConfig(out, resume, device, devices, cache_folder, init_from, preset, command, checkpoint_minutes, compile)
    report(run_training(splits, chosen, run), out)


def report(result: "TrainResult", out: Path) -> None:
    """Print a training's outcome and its files; if a signal stopped it, exit as that signal does."""
    shares = f"{1 - result.waiting:.0%} computing, {result.waiting:.0%} waiting for data"
    print(f"{result.step} of {result.steps} steps in {format_duration(result.seconds)}, {shares}")
    if result.best is not None:
        print(f"wrote {out / BEST} (mIoU {result.best:.1f} on {result.measured_on})")
    print(f"wrote {out / LAST}" + (f"; continue with --resume --out {out}" if result.signal else ""))
    if result.signal == signal.SIGINT:
        raise KeyboardInterrupt
    if result.signal:
        sys.exit(128 + result.signal)


def command_line(words: Sequence[str]) -> str:
    """Return a command for a model's card, with files and folders reduced to their own names."""
    shown = []
    for word in words:
        head, equals, path = word.rpartition("=")
        name = Path(path).name
        is_path = name and "/" in path and "@" not in path and (Path(path).is_absolute() or Path(path).exists())
        shown.append(head + equals + name if is_path else word)
    return shlex.join(shown)
