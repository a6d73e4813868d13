"""`fusioner predict` on many pictures: formats, folders, --skip-existing, tables, contact sheets, pipes, Ctrl-C."""

import csv
import io
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from skimage import data

from fusioner import visualization
from fusioner.cli.main import main
from fusioner.formats import FORMATS
from fusioner.segmenter import Segmenter

Predict = Callable[..., tuple[int, str, str]]


def files(folder: str | Path = "out") -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def table(path: str | Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def tree(photos: Path, tmp_path: Path) -> Path:
    """Write three cat.* files, of which two would share the names of their results."""
    for name in ("tree/cat.jpg", "tree/cat.png", "tree/more/cat.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        source = photos / ("coffee.png" if name.endswith("png") else "chelsea.jpg")
        shutil.copy(source, tmp_path / name)
    return tmp_path / "tree"


def test_every_format_alone_and_together(tiny_predict: Predict, photos: Path) -> None:
    code, _, err = tiny_predict(photos / "chelsea.jpg", "--format", ", ".join(FORMATS))
    assert (code, err) == (0, "")
    assert set(os.listdir("out")) == {f"chelsea{kind.suffix}" for kind in FORMATS.values()}
    expected = files()
    assert tiny_predict(photos / "chelsea.jpg", "--format", "coco,mask", "--out", "two")[1].startswith(
        f"{photos}/chelsea.jpg: "
    )
    assert files("two") == {name: expected[name] for name in ("chelsea.coco.json", "chelsea.png")}


def test_help_and_the_error_name_every_format(tiny_predict: Predict, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny_predict("a.jpg", "--format", "mask,psd") == (
        2,
        "",
        f"error: there is no format 'psd': choose from {', '.join(FORMATS)}\n",
    )
    main(["predict", "--help"])
    help_text = " ".join(re.sub("[│\n]", " ", capsys.readouterr().out).split())
    assert ", ".join(FORMATS) in help_text


def test_folders_inside_folders(tiny_predict: Predict, tree: Path) -> None:
    assert tiny_predict(tree, "--format", "mask")[1].endswith("2 pictures segmented into out\n")
    assert set(files()) == {"cat.png", "cat-2.png"}
    code, out, _ = tiny_predict(tree, "--recursive", "--format", "json", "--out", tree / "results")
    assert code == 0
    assert out.endswith(f"3 pictures segmented into {tree}/results\n")
    again = tiny_predict(tree, "--recursive", "--format", "overlay", "--out", tree / "results")[1]
    assert again.endswith(f"3 pictures segmented into {tree}/results\n"), "results were taken for pictures"
    assert {name for name in files(tree / "results") if name.endswith("json")} == {
        "cat.json",
        "cat-2.json",
        "more/cat.json",
    }


def test_threads_change_nothing_but_the_time(tiny_predict: Predict, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(9):
        Image.fromarray(data.chelsea()[i * 9 : i * 9 + 60, : 300 - 20 * i]).save(folder / f"{i}.png")
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:999])
    runs = {workers: tiny_predict(folder, "--workers", workers, "--out", f"by{workers}") for workers in (0, 1, 4)}
    lines = {run[1].replace(f"by{workers}", "out") for workers, run in runs.items()}
    assert len(lines) == 1, "lines differ in content or order"
    assert all(code == 2 and re.fullmatch(r"error: \S+/4\.png is corrupt .*\n", err) for code, _, err in runs.values())
    assert files("by0") == files("by1") == files("by4")
    assert len(files("by0")) == 8 * 3


def test_existing_results_are_skipped(tiny_predict: Predict, tree: Path) -> None:
    tiny_predict(tree, "--recursive")
    made = files()

    def again(*words: object) -> tuple[set[str], str]:
        """Run the command again; return the files it wrote and its last line."""
        before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
        code, out, err = tiny_predict(tree, "--recursive", "--skip-existing", *words)
        assert (code, err) == (0, "")
        after = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*") if path.is_file()}
        return {str(path)[4:] for path in after if after[path] != before.get(path)}, out.splitlines()[-1]

    assert again() == (set(), "0 pictures segmented into out, 3 skipped (their results are there)")
    Path("out/cat-2.png").unlink()
    written, line = again()
    assert written == {"cat-2.png", "cat-2.json", "cat-2.overlay.png"}
    assert line == "1 picture segmented into out, 2 skipped (their results are there)"
    assert files() == made, "a picture with another name was repeated"
    later = Path("out/cat.json").stat().st_mtime + 5
    os.utime(tree / "cat.jpg", (later, later))
    assert "cat.json" in again()[0], "a changed picture was skipped"
    for file in Path("out").rglob("cat*"):
        os.utime(file, (later, later))
    assert again()[0] == set()
    assert len(again("--labels", "cat, spoon")[0]) == 9
    assert len(again("--labels", "cat, spoon", "--threshold", "0.9")[0]) == 9
    words = ("--labels", "cat, spoon", "--threshold", "0.9", "--no-background")
    assert len(again(*words)[0]) == 9
    Path("out/cat.json").write_text('{"guided_filter": null')  # truncated
    assert again(*words)[0] == {
        "cat.json",
        "cat.png",
        "cat.overlay.png",
    }
    os.utime(tree / "cat.jpg", (later - 100, later - 100))
    for options in (("--tta-scales", "1,1.5"), ("--tta-scales", "1,1.5", "--guided-filter"), ("--mode", "slide")):
        assert len(again(*words, *options)[0]) == 9
        assert again(*words, *options)[0] == set()
    assert again("--format", "geojson")[0] == {"cat.geojson", "cat-2.geojson", "more/cat.geojson"}


def test_the_table_equals_the_json(tiny_predict: Predict, tree: Path) -> None:
    (tree / "cut.jpg").write_bytes((tree / "cat.jpg").read_bytes()[:2000])
    code, out, _ = tiny_predict(tree, "none*.jpg", "--recursive", "--csv", "new/table.csv", "--no-background")
    assert code == 2
    assert out.endswith("3 pictures segmented into out, 2 failed; wrote new/table.csv\n")
    rows = table("new/table.csv")
    assert [(row["picture"], row["label"], row["error"][:10]) for row in rows] == [
        ("", "", "no file ma"),
        *((f"{tree}/{name}", label, "") for name in ("cat.jpg", "cat.png") for label in ("cat", "cup")),
        (f"{tree}/cut.jpg", "", f"{tree}"[:10]),
        *((f"{tree}/more/cat.jpg", label, "") for label in ("cat", "cup")),
    ]
    content = json.loads(Path("out/cat-2.json").read_text())
    for row, segment in zip(rows[3:5], content["segments"], strict=True):
        assert (int(row["pixels"]), float(row["coverage"])) == (segment["pixels"], segment["coverage"])
        assert float(row["score"]) == segment["score"]
        assert row["found"] == ("true" if segment["pixels"] else "false")
        assert row["box"] == (" ".join(map(str, segment["box"])) if segment["pixels"] else "")
    before = Path("new/table.csv").read_bytes()
    tiny_predict(tree, "none*.jpg", "--recursive", "--csv", "new/table.csv", "--no-background", "--skip-existing")
    assert Path("new/table.csv").read_bytes() == before, "skipped pictures are not read from their JSON"


def test_contact_sheets(tiny_predict: Predict, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = tiny_predict(tree, "--recursive", "--no-background", "--contact-sheet", "sheet.png")
    assert code == 0
    assert out.endswith("; wrote sheet.png\n")
    width = visualization.THUMBNAIL_WIDTH
    with Image.open("sheet.png") as sheet:
        page = np.asarray(sheet).astype(int)
        assert sheet.width == 3 * width + 4 * (width // 20)
        cell = Image.fromarray(np.asarray(sheet)).crop((14, sheet.height - 260, 14 + width, sheet.height))
    coloured = (page.max(axis=2) - page.min(axis=2)) > 40
    assert coloured[:50].any(), "the legend has no colours"
    assert coloured[-300:].mean() > 0.2, "the pictures are not coloured"
    assert np.asarray(cell).std() > 20
    monkeypatch.setattr(visualization, "THUMBNAILS_PER_PAGE", 2)
    tiny_predict(tree, "--recursive", "--contact-sheet", "two/page.jpg")
    assert sorted(os.listdir("two")) == ["page-2.jpg", "page.jpg"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--contact-sheet", "sheet.pdf"], "a contact sheet's name must end in .png or .jpg, not 'sheet.pdf'"),
        (["--contact-sheet", "out/cat.overlay.png"], "would replace a picture or a result"),
        (["--contact-sheet", "tree/../tree/cat.jpg"], "would replace a picture or a result"),
        (["--csv", "cat.json"], "the name of a table must end in .csv, not 'cat.json'"),
        (["--frame-step", "0"], 'Invalid value "0" for --frame-step. Must be >= 1.'),
        (["--format", "json,mask", "--overlap"], "the format mask holds one label per pixel: choose binary"),
        (["--overlap", "--no-background"], "do not combine overlap and no background"),
        (["--workers", "-1"], 'Invalid value "-1" for --workers. Must be >= 0.'),
        (["--out", "-"], "--out - writes one result: name one picture, one --format and no other file to write"),
    ],
)
def test_wrong_combinations_are_one_line(tiny_predict: Predict, tree: Path, words: list[str], reason: str) -> None:
    before = files(tree)
    code, out, err = tiny_predict("tree", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert reason in err
    assert files(tree) == before
    assert not Path("out").exists()


def give(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_from_standard_input(tiny_predict: Predict, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, (photos / "chelsea.jpg").read_bytes())
    code, out, err = tiny_predict("-", photos / "coffee.png", "--csv", "table.csv")
    assert (code, err) == (0, "")
    assert out.startswith("-: ")
    assert set(files()) == {f"{stem}{end}" for stem in ("stdin", "coffee") for end in (".overlay.png", ".png", ".json")}
    assert json.loads(files()["stdin.json"])["image"] == "stdin"
    tiny_predict(photos / "chelsea.jpg")
    assert files()["stdin.png"] == files()["chelsea.png"]
    give(monkeypatch, b"")
    assert tiny_predict("-")[::2] == (2, "error: standard input is empty (0 bytes)\n")


@pytest.mark.parametrize(("words", "file"), [([], "chelsea.png"), (["--format", "overlay"], "chelsea.overlay.png")])
def test_to_standard_output(
    tiny_predict: Predict,
    photos: Path,
    words: list[str],
    file: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_predict(photos / "chelsea.jpg")
    give(monkeypatch, (photos / "chelsea.jpg").read_bytes())
    stdout = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", stdout)
    assert main(["predict", "-", "--labels", "cat, cup", "--out", "-", *words]) == 0
    assert cast("io.BytesIO", stdout.buffer).getvalue() == files()[file]
    assert capsys.readouterr().err.startswith("-: ")


def test_ctrl_c_leaves_finished_results(
    tiny_predict: Predict,
    tiny_segmenter: Segmenter,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    class ThirdTime:
        """A segmenter that is interrupted at its third picture."""

        card, calls = tiny_segmenter.card, 0

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == 3:
                signal.raise_signal(signal.SIGINT)
            return tiny_segmenter(*arguments, **options)

    monkeypatch.setattr("fusioner.loading.load", lambda *_, **__: ThirdTime())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    code, out, err = tiny_predict(tree, "--recursive", "--csv", "table.csv", "--contact-sheet", "sheet.png")
    assert (code, err) == (130, "interrupted\n")
    assert out.splitlines()[-1] == "2 pictures segmented into out; wrote table.csv; wrote sheet.png"
    assert set(files()) == {f"{stem}{end}" for stem in ("cat", "cat-2") for end in (".overlay.png", ".png", ".json")}
    assert [row["picture"] for row in table("table.csv")][::2] == [f"{tree}/cat.jpg", f"{tree}/cat.png"]


def test_progress_is_seen_within_a_large_picture(
    tiny_predict: Predict, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusioner.progress.SECONDS", 0.0)
    code, _, err = tiny_predict(photos / "chelsea.jpg", photos / "coffee.png", "--mode", "slide")
    assert code == 0
    windows = re.findall(r"^segmenting (\d)/2  .*window (\d+)/(\d+)", err, re.MULTILINE)
    assert [int(done) for picture, done, _ in windows if picture == "0"] == list(range(1, int(windows[0][2])))
