"""A sweep's TOML file: which cells there are, and the two command lines of each.

Nothing is trained or loaded here; what can be checked before hours of work is checked.
"""

import hashlib
import inspect
import itertools
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from fusioner.data.folds import FOLD_DATASETS, FOLDS
from fusioner.data.registry import DatasetName, TrainableDataset
from fusioner.errors import FusionerError
from fusioner.model.config import Method
from fusioner.training.config import TrainConfig
from fusioner.training.presets import preset as ready

GRID = ("image_encoders", "text_encoders", "methods", "folds", "seeds")
_OWN = {"image_encoder", "text_encoder", "method", "fold", "root", "out", "model", "resume", "config"}
"""What the sweep itself sets; it cannot stand under [train] or [evaluate]."""


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation; fold None: a set without folds, or all classes."""

    image_encoder: str
    text_encoder: str
    method: Method
    fold: int | None
    seed: int

    @property
    def row(self) -> tuple[str, str, str]:
        """Its row in the table."""
        return self.image_encoder, self.text_encoder, self.method

    @property
    def title(self) -> str:
        """For people."""
        fold = "" if self.fold is None else f" fold {self.fold}"
        return f"{self.method} {self.image_encoder} {self.text_encoder}{fold} seed {self.seed}"

    @property
    def name(self) -> str:
        """Of its folder: readable, and different for different cells."""
        whole = "|".join(self.row)
        readable = re.sub(r"[^a-z0-9.]+", "-", "-".join((self.method, *(_base(one) for one in self.row[:2]))).lower())
        fold = "" if self.fold is None else f"-fold{self.fold}"
        return f"{readable[:80]}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}{fold}-seed{self.seed}"


@dataclass(frozen=True)
class Sweep:
    """A file read and checked.

    Attributes:
        train_set, train_root, test_set, test_root: data sets and their folders.
        preset, settings: of the training, settings on top of the preset's.
        train_flags, evaluate_flags: further options of the two commands, as words.
        cells: rows of the table one after the other, the folds of a row together.
    """

    train_set: str
    train_root: str
    test_set: str
    test_root: str
    preset: str
    settings: dict[str, Any]
    train_flags: tuple[str, ...]
    evaluate_flags: tuple[str, ...]
    cells: tuple[Cell, ...]

    def config(self, cell: Cell) -> TrainConfig:
        """What a cell is trained with; as `fusioner train` has it, a fold without a memory unless one is asked for."""
        base = ready(self.preset) if cell.fold is None else ready(self.preset).changed({"memory": False})
        own = {name: getattr(cell, name) for name in ("image_encoder", "text_encoder", "method", "seed")}
        return base.changed(self.settings | own, "[train]")

    def identity(self) -> dict[str, Any]:
        """What must not change in a folder that holds finished cells; the grid may grow."""
        return {
            "data": {one: getattr(self, one) for one in ("train_set", "train_root", "test_set", "test_root")},
            "train": {"preset": self.preset} | self.settings,
            "train_flags": list(self.train_flags),
            "evaluate": list(self.evaluate_flags),
        }

    def commands(self, cell: Cell, folder: Path, cache: Path) -> dict[str, list[str]]:
        """The words after `fusioner` that train the cell in `folder`, and that evaluate it."""
        run, fold = folder / "run", [] if cell.fold is None else ["--fold", str(cell.fold)]
        settings = ["--config", str(folder / "settings.toml"), "--preset", self.preset]
        train = ["train", self.train_set, "--root", self.train_root, *fold, *settings, "--out", str(run), "--resume"]
        if "--cache" not in self.train_flags and self.config(cell).features == "cached":
            train += ["--cache", str(cache)]
        test = ["evaluate", self.test_set, "--root", self.test_root, *fold, "--model", str(run / "best.safetensors")]
        test += ["--out", str(folder / "report")]
        if "--cache" not in self.evaluate_flags and "slide" not in self.evaluate_flags:
            test += ["--cache", str(cache)]
        return {"train": [*train, *self.train_flags], "evaluate": [*test, *self.evaluate_flags]}


def read_sweep(path: Path) -> Sweep:
    """Read and check a sweep's file; docs/sweep.md has an example.

    Raises:
        FusionerError: it cannot be read, or says something that does not exist or go together (named).
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise FusionerError(f"cannot read the sweep in {path}: {reason}") from error
    _known(content, ("data", "grid", "train", "evaluate"), f"{path}", "part")
    parts = {name: content.get(name, {}) for name in ("data", "grid", "train", "evaluate")}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise FusionerError(f"{path}: {name} must be a part of its own, written [{name}]")
    data, train, evaluate = parts["data"], dict(parts["train"]), parts["evaluate"]
    _known(data, ("name", "root", "test", "test_root"), f"{path} [data]")
    name, root = _word(data, "name", path), _word(data, "root", path)
    test, test_root = data.get("test", name), data.get("test_root", root)
    if name not in get_args(TrainableDataset) or test not in get_args(DatasetName):
        raise FusionerError(f"{path} [data]: there is no data set {name!r} to train on or no {test!r} to test on")
    from fusioner.cli.evaluate import evaluate as evaluate_command
    from fusioner.cli.train import train as train_command

    preset = train.pop("preset", "small")
    names = {field.name for field in fields(TrainConfig)}
    settings = {key: value for key, value in train.items() if key in names - _OWN}
    rest = {key: value for key, value in train.items() if key not in settings}
    if "seed" in train:
        raise FusionerError(f"{path} [train]: write seeds = [...] under [grid]")
    sweep = Sweep(
        name,
        root,
        test,
        test_root,
        preset,
        settings,
        _flags(rest, train_command, f"{path} [train]"),
        _flags(evaluate, evaluate_command, f"{path} [evaluate]"),
        _cells(parts["grid"], test if test in FOLD_DATASETS else None, preset, path),
    )
    for cell in sweep.cells:
        sweep.config(cell)
    return sweep


def settings_toml(settings: Mapping[str, Any]) -> str:
    """Settings of a training, a `name = value` a line."""
    return "".join(f"{name} = {_toml(value)}\n" for name, value in settings.items())


def _cells(grid: dict[str, Any], folded: str | None, preset: str, path: Path) -> tuple[Cell, ...]:
    _known(grid, GRID, f"{path} [grid]")
    default = ready(preset)
    base = {"image_encoders": [default.image_encoder], "text_encoders": [default.text_encoder]}
    base |= {"methods": ["fusioner"], "folds": list(FOLDS) if folded else [None], "seeds": [0]}
    lists = [grid.get(name, base[name]) for name in GRID]
    kinds = (str, str, str, int, int)
    for name, values, kind in zip(GRID, lists, kinds, strict=True):
        fine = isinstance(values, list) and values and all(type(one) is kind or one is None for one in values)
        if not fine or len(set(values)) < len(values):
            raise FusionerError(f"{path} [grid]: {name} is a list of different {kind.__name__} values, not {values!r}")
    if "folds" in grid and (not folded or not set(grid["folds"]) <= set(FOLDS)):
        raise FusionerError(f"{path} [grid]: folds are 0, 1, 2, 3, and only of pascal, coco and coco-to-pascal")
    if unknown := set(lists[2]) - set(get_args(Method)):
        raise FusionerError(f"{path} [grid]: there is no method {min(unknown)!r}; choose {', '.join(get_args(Method))}")
    image, text, methods, folds, seeds = lists
    rows = itertools.product(image, text, methods, seeds, folds)
    return tuple(Cell(i, t, m, fold, seed) for i, t, m, seed, fold in rows)


def _flags(values: Mapping[str, Any], command: Callable[..., None], where: str) -> tuple[str, ...]:
    """Options of a command as words; FusionerError for one it does not have."""
    known = [name for name in inspect.signature(command).parameters if name not in _OWN | {"dataset"}]
    words: list[str] = []
    for name, value in values.items():
        if name in _OWN:
            raise FusionerError(f"{where}: {name} is set by [data] and [grid], a cell at a time")
        _known({name: value}, known, where)
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, list):
            words += [word for one in value for word in (flag, str(one))]
        else:
            words += [flag, str(value)]
    return tuple(words)


def _known(values: Mapping[str, Any], names: Any, where: str, what: str = "setting") -> None:
    if unknown := sorted(set(values) - set(names)):
        raise FusionerError(f"{where}: there is no {what} {unknown[0]!r}; there are {', '.join(names)}")


def _word(data: Mapping[str, Any], name: str, path: Path) -> str:
    if not isinstance(data.get(name), str):
        raise FusionerError(f'{path} [data]: say {name} = "..."')
    return data[name]


def _base(encoder: str) -> str:
    return "-".join(part.split("@")[0].strip() for part in encoder.split("+"))


def _toml(value: Any) -> str:
    return "[" + ", ".join(_toml(one) for one in value) + "]" if isinstance(value, list | tuple) else json.dumps(value)
