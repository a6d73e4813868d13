"""A sweep's TOML file: its cells, and the two commands of each cell.

Everything that can be checked before hours of work is checked here; nothing is loaded or trained.
"""

import hashlib
import itertools
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from cyclopts import App, CycloptsError

from fusioner.cli.evaluate import evaluate as evaluate_command
from fusioner.cli.train import train as train_command
from fusioner.data.folds import FOLD_DATASETS, FOLDS
from fusioner.data.registry import DatasetName, TrainableDataset
from fusioner.encoders.registry import full_names, named_similarity, space_mismatch, value_tokens
from fusioner.errors import FusionerError
from fusioner.io import parse_file
from fusioner.model.config import TRAINING_FREE, WITHOUT_SIMILARITY, Method
from fusioner.training.config import SECTIONS, TrainConfig
from fusioner.training.presets import preset as get_preset

GRID = ("image_encoders", "text_encoders", "methods", "folds", "seeds")
_RESERVED = {"image_encoder", "text_encoder", "method", "fold", "root", "out", "model", "resume", "config"}
"""Options set by the sweep itself, not allowed in [train] and [evaluate]."""


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation; fold None: a data set without folds, or all classes."""

    image_encoder: str
    text_encoder: str
    method: Method
    fold: int | None
    seed: int

    @property
    def row(self) -> tuple[str, str, str]:
        """Key of its row in the table."""
        return self.image_encoder, self.text_encoder, self.method

    @property
    def title(self) -> str:
        """Description for messages."""
        fold = "" if self.fold is None else f" fold {self.fold}"
        return f"{self.method} {self.image_encoder} {self.text_encoder}{fold} seed {self.seed}"

    @property
    def name(self) -> str:
        """Folder name: readable and unique."""
        encoders = ("-".join(part.split("@")[0].strip() for part in name.split("+")) for name in self.row[:2])
        readable = re.sub(r"[^a-z0-9.]+", "-", "-".join((self.method, *encoders)).lower())[:80]
        digest = hashlib.sha256("|".join(self.row).encode()).hexdigest()[:6]
        fold = "" if self.fold is None else f"-fold{self.fold}"
        return f"{readable}-{digest}{fold}-seed{self.seed}"

    def settings(self) -> dict[str, Any]:
        """Return the training settings of this cell."""
        return {name: getattr(self, name) for name in ("image_encoder", "text_encoder", "method", "seed")}


@dataclass(frozen=True)
class Sweep:
    """A sweep's file, read and checked.

    `train` and `evaluate` are flags of the two commands, with underscores; the cells are in the order of the table.
    """

    train_set: str
    train_root: str
    test_set: str
    test_root: str
    train: dict[str, Any]
    evaluate: dict[str, Any]
    cells: tuple[Cell, ...]

    def config(self, cell: Cell) -> TrainConfig:
        """Return the training settings of a cell, as `fusioner train` resolves them."""
        settings = {name: value for name, value in self.train.items() if name in SECTIONS and name != "templates"}
        preset = get_preset(self.train.get("preset", "small"), cell.fold)
        return preset.override("[train]", **settings | cell.settings())

    def identity(self) -> dict[str, Any]:
        """Return what must not change in a folder with finished cells; the grid may grow."""
        return {
            "data": {name: getattr(self, name) for name in ("train_set", "train_root", "test_set", "test_root")},
            "train": self.train,
            "evaluate": self.evaluate,
        }

    def commands(self, cell: Cell, folder: Path, cache: Path) -> dict[str, list[str]]:
        """Return the arguments of `fusioner` that train a cell in `folder`, and those that evaluate it."""
        run, fold = folder / "run", {} if cell.fold is None else {"fold": cell.fold}
        train = {"root": self.train_root, **fold, "out": run, "resume": True, **cell.settings()}
        if self.config(cell).data.features == "cached":
            train["cache"] = cache
        test = {"root": self.test_root, **fold, "model": run / "best.safetensors", "out": folder / "report"}
        if self.evaluate.get("mode") != "slide":
            test["cache"] = cache
        return {
            "train": ["train", self.train_set, *flag_words(train | self.train)],
            "evaluate": ["evaluate", self.test_set, *flag_words(test | self.evaluate)],
        }


def read_sweep(path: Path) -> Sweep:
    """Read and check a sweep's file; docs/sweep.md has an example."""
    content = parse_file(path, tomllib.loads, "the sweep in ")
    _check_names(content, ("data", "grid", "train", "evaluate"), f"{path}")
    for name, table in content.items():
        if not isinstance(table, dict):
            raise FusionerError(f"{path}: {name} must be a table, written [{name}]")
    data, grid, train, evaluate = (content.get(name, {}) for name in ("data", "grid", "train", "evaluate"))
    _check_names(data, ("name", "root", "test", "test_root"), f"{path} [data]")
    for name in ("name", "root"):
        if not isinstance(data.get(name), str):
            raise FusionerError(f'{path} [data]: say {name} = "..."')
    test, test_root = data.get("test", data["name"]), data.get("test_root", data["root"])
    if data["name"] not in get_args(TrainableDataset) or test not in get_args(DatasetName):
        name = data["name"]
        raise FusionerError(f"{path} [data]: there is no data set {name!r} to train on or no {test!r} to test on")
    if "seed" in train:
        raise FusionerError(f"{path} [train]: write seeds = [...] under [grid]")
    for part, flags in (("train", train), ("evaluate", evaluate)):
        if reserved := _RESERVED & flags.keys():
            raise FusionerError(f"{path} [{part}]: {min(reserved)} is set by [data] and [grid] for each cell")
    cells = _cells(grid, test in FOLD_DATASETS, train.get("preset", "small"), path)
    sweep = Sweep(data["name"], data["root"], test, test_root, train, evaluate, cells)
    for part, command in (("train", train_command), ("evaluate", evaluate_command)):
        _, *words = sweep.commands(cells[0], Path(), Path())[part]
        try:
            App(default_command=command).parse_args(words, exit_on_error=False, print_error=False)
        except CycloptsError as error:
            raise FusionerError(f"{path} [{part}]: {error}") from error
    for cell in sweep.cells:
        _check_cell(cell, sweep.config(cell), path)
    return sweep


def _check_cell(cell: Cell, config: TrainConfig, path: Path) -> None:
    """Raise a FusionerError for encoders that the cell's training refuses, where the names decide it."""
    problem = ""
    try:
        full_names(cell.image_encoder, cell.text_encoder)
        name = value_tokens(cell.image_encoder) if cell.method == "maskclip" else cell.image_encoder
        similarity, supported = config.model.similarity, named_similarity(name, cell.text_encoder)
        if cell.method in TRAINING_FREE and supported == "none":
            problem = space_mismatch(name, cell.text_encoder)
        elif cell.method not in WITHOUT_SIMILARITY and similarity not in ("auto", "none", supported or similarity):
            problem = space_mismatch(name, cell.text_encoder) or f"{name} supports --similarity {supported}"
    except FusionerError as error:
        problem = str(error)
    if problem:
        raise FusionerError(f"{path} [grid]: {cell.title}: {problem}")


def _cells(grid: dict[str, Any], has_folds: bool, preset: str, path: Path) -> tuple[Cell, ...]:
    _check_names(grid, GRID, f"{path} [grid]")
    model = get_preset(preset).model
    default = {"image_encoders": [model.image_encoder], "text_encoders": [model.text_encoder]}
    default |= {"methods": ["fusioner"], "folds": list(FOLDS) if has_folds else [None], "seeds": [0]}
    axes = [grid.get(name, default[name]) for name in GRID]
    for name, values, kind in zip(GRID, axes, (str, str, str, int, int), strict=True):
        valid = isinstance(values, list) and values and all(type(value) is kind or value is None for value in values)
        if not valid or len(set(values)) < len(values):
            raise FusionerError(f"{path} [grid]: {name} is a list of different {kind.__name__} values, not {values!r}")
    if "folds" in grid and (not has_folds or not set(grid["folds"]) <= set(FOLDS)):
        raise FusionerError(f"{path} [grid]: folds are 0, 1, 2, 3, and only of pascal, coco and coco-to-pascal")
    images, texts, methods, folds, seeds = axes
    if unknown := set(methods) - set(get_args(Method)):
        raise FusionerError(f"{path} [grid]: there is no method {min(unknown)!r}; choose {', '.join(get_args(Method))}")
    product = itertools.product(images, texts, methods, seeds, folds)
    return tuple(Cell(image, text, method, fold, seed) for image, text, method, seed, fold in product)


def flag_words(flags: Mapping[str, Any]) -> list[str]:
    """Return flags, given by name with underscores, as words of a command line."""
    words: list[str] = []
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            for entry in value if isinstance(value, list) else [value]:
                words += [f"--{flag}", str(entry)]
    return words


def _check_names(values: Iterable[str], names: Iterable[str], where: str) -> None:
    if unknown := sorted(set(values) - set(names)):
        raise FusionerError(f"{where}: there is no {unknown[0]!r}; there are {', '.join(names)}")
