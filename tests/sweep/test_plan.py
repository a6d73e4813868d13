"""Sweep files: cells, and settings rejected before the first run."""

from pathlib import Path
from typing import Any

import pytest

from fusioner.errors import FusionerError
from fusioner.sweep.plan import Cell, read_sweep

REPO = Path(__file__).resolve().parents[2]
DATA = '[data]\nname = "pascal"\nroot = "data/pascal"\n'
CLIP = DATA + '[grid]\nimage_encoders = ["clip-vit-b16"]\ntext_encoders = ["clip-text-b32"]\n'


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    return path


def test_cells_are_ordered_by_row_with_folds_together(tmp_path: Path) -> None:
    text = (
        DATA
        + '[grid]\nimage_encoders = ["dinov2-s+effnet-lite2", "dinov2-s@/"]\n'
        + 'methods = ["fusioner", "late"]\nfolds = [0, 2]\nseeds = [0, 1]'
    )
    sweep = read_sweep(written(tmp_path, text + "\n[train]\nsteps = 5\nclosed_set_head = true"))
    assert len(sweep.cells) == len({cell.name for cell in sweep.cells}) == 16
    assert [cell.fold for cell in sweep.cells[:3]] == [0, 2, 0]
    assert sweep.cells[0] == Cell("dinov2-s+effnet-lite2", "minilm-embedded", "fusioner", 0, 0)
    assert sweep.cells[-1] == Cell("dinov2-s@/", "minilm-embedded", "late", 2, 1)
    assert all("/" not in cell.name for cell in sweep.cells)
    config = sweep.config(sweep.cells[-1])
    assert (config.optim.steps, config.model.method, config.seed, config.model.closed_set_head) == (5, "late", 1, True)
    assert not read_sweep(written(tmp_path, DATA)).config(sweep.cells[0]).model.closed_set_head  # not used with folds


def test_cells_take_every_option_of_train_and_evaluate(tmp_path: Path) -> None:
    text = (
        DATA + '[train]\npreset = "small"\nlr = 1\ndecoder_widths = [8, 4]\ncheckpoint_minutes = 0\ncompile = false\n'
    )
    text += 'extra_dataset = ["coco=x", "folder=y"]\n'
    text += '[evaluate]\nlimit = 8\nprotocol = "hsnet"\nallow_leak = true\nseed = 3\n'
    sweep = read_sweep(written(tmp_path, text))
    cell = sweep.cells[0]
    commands = sweep.commands(cell, tmp_path / "cell", tmp_path / "cache")
    train, evaluate = (" ".join(commands[name]) for name in ("train", "evaluate"))
    assert train.startswith("train pascal --root data/pascal --fold 0 --out")
    assert "--extra-dataset coco=x --extra-dataset folder=y" in train
    assert "--checkpoint-minutes 0 --no-compile" in train
    assert f"--cache {tmp_path / 'cache'}" in train
    assert evaluate.endswith("--limit 8 --protocol hsnet --allow-leak --seed 3")
    assert f"--model {tmp_path / 'cell' / 'run' / 'best.safetensors'}" in evaluate
    assert "--decoder-widths 8 --decoder-widths 4" in train
    assert sweep.config(cell).model.decoder_widths == (8, 4)
    live = read_sweep(written(tmp_path, DATA + '[train]\npreset = "paper"'))
    assert "--cache" not in live.commands(cell, tmp_path, tmp_path)["train"]  # a cache disables augmentation


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data", "cannot read the sweep"),
        ("x = 1", "there is no 'x'"),
        ("data = 1", r"written \[data\]"),
        ("[grid]", 'say name = "..."'),
        ('[data]\nname = "mosaic4"\nroot = "x"', "no data set 'mosaic4' to train on"),
        (DATA + "[grid]\nmethods = []", "methods is a list of different str values"),
        (DATA + "[grid]\nfolds = [0, 0]", "folds is a list of different int"),
        (DATA + "[grid]\nfolds = [4]", "folds are 0, 1, 2, 3"),
        (DATA.replace("pascal", "folder") + "[grid]\nfolds = [0]", "only of pascal"),
        (DATA + '[grid]\nmethods = ["early"]', "no method 'early'; choose fusioner, late"),
        (DATA + "[grid]\nmethod = []", "there is no 'method'"),
        (DATA + "[train]\nspeed = 1", "Unknown option: --speed"),
        (DATA + '[train]\nlr = "x"', "--lr is a value of type float"),
        (DATA + "[train]\nseed = 1", r"seeds = \[...\]"),
        (DATA + "[train]\nfold = 1", r"fold is set by \[data\] and \[grid\]"),
        (DATA + '[train]\npreset = "big"', "no preset 'big'"),
        (DATA + "[evaluate]\nmodel = 1", r"model is set by \[data\] and \[grid\]"),
        (DATA + '[grid]\nimage_encoders = ["dinov2-z"]', "unknown image encoder 'dinov2-z'; did you mean dinov2-s"),
        (DATA + '[grid]\ntext_encoders = ["minilm@/none"]', "minilm: there is no /none"),
        (DATA + '[grid]\nimage_encoders = ["dinov2-s"]\nmethods = ["cosine"]', "dinov2-s has no text encoder in its"),
        (DATA + '[grid]\nimage_encoders = ["dinov2-s"]\nmethods = ["maskclip"]', "MaskCLIP takes the value tokens"),
        (
            CLIP + 'methods = ["maskclip"]',
            "text encoder of maskclip-vit-b16 is clip-text-b16, not clip-text-b32",
        ),
        (CLIP + '[train]\nsimilarity = "cosine"', "text encoder of clip-vit-b16 is clip-text-b16"),
    ],
)
def test_impossible_sweeps_are_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(FusionerError, match=message):
        read_sweep(written(tmp_path, text))
    with pytest.raises(FusionerError, match="No such file"):
        read_sweep(tmp_path / "none.toml")


def test_examples_and_docs_parse(tmp_path: Path) -> None:
    sizes = {path.name: len(read_sweep(path).cells) for path in (REPO / "examples").glob("table1-*.toml")}
    assert sizes == {"table1-embedded.toml": 28, "table1-paper.toml": 48}
    page = (REPO / "docs" / "sweep.md").read_text("utf-8")
    block = page.split("```toml\n")[1].split("```")[0]
    embedded: Any = read_sweep(REPO / "examples" / "table1-embedded.toml")
    assert read_sweep(written(tmp_path, block)).cells == embedded.cells
