"""The input files of a run and the names of its results."""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusioner.cli.inputs import find_inputs, name_results
from fusioner.errors import FusionerError
from fusioner.image import CAMERA_RAW

ENDINGS = (".overlay.png", ".png", ".json")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.jpg", "B.PNG", "c.tiff", "notes.txt", ".hidden.jpg", "deep/d.jpg", "deep/e.gif", "odd[1].jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


def names(paths: Iterable[Path]) -> list[str]:
    return [path.name for path in paths]


def test_a_folder_gives_its_pictures_sorted(tree: Path) -> None:
    paths, errors = find_inputs([str(tree)])
    assert names(paths) == ["B.PNG", "a.jpg", "c.tiff", "odd[1].jpg"]
    assert not errors


def test_globs(tree: Path) -> None:
    assert names(find_inputs([f"{tree}/*.jpg"])[0]) == ["a.jpg", "odd[1].jpg"]
    assert names(find_inputs([f"{tree}/**/*.jpg"])[0]) == ["a.jpg", "d.jpg", "odd[1].jpg"]
    assert names(find_inputs([f"{tree}/odd[1].jpg"])[0]) == ["odd[1].jpg"]  # an exact file name has priority
    assert "deep" not in names(find_inputs([f"{tree}/*"])[0])


def test_each_file_once_in_the_order_named(tree: Path) -> None:
    os.symlink(tree / "a.jpg", tree / "link.jpg")
    paths, _ = find_inputs([f"{tree}/c.tiff", f"{tree}/*.jpg", f"{tree}/deep/../a.jpg"])
    assert names(paths) == ["c.tiff", "a.jpg", "odd[1].jpg"]


def test_folders_inside_folders_keep_their_results_apart(tree: Path) -> None:
    for name in ("deep/deeper/a.jpg", ".git/x.jpg", "out/a.overlay.png"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    os.symlink(tree, tree / "deep" / "loop")
    found, errors = find_inputs([str(tree)], recursive=True, out=tree / "deep" / ".." / "out")
    assert [str(path.relative_to(tree)) for path in found][4:] == ["deep/d.jpg", "deep/e.gif", "deep/deeper/a.jpg"]
    assert not errors
    sources = name_results(found, Path("to"), ENDINGS)
    assert [str(source.folder / source.stem) for source in sources if source.stem == "a"] == [
        "to/a",
        "to/deep/deeper/a",
    ]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads every folder")
def test_an_unreadable_folder_is_reported(tree: Path) -> None:
    (tree / "deep").chmod(0)
    found, (error,) = find_inputs([str(tree)], recursive=True)
    (tree / "deep").chmod(0o755)
    assert len(found) == 4
    assert str(error) == f"cannot read folder {tree}/deep: Permission denied"


def test_inputs_without_matches_are_reported(tree: Path) -> None:
    paths, errors = find_inputs([f"{tree}/*.webp", f"{tree}/empty", f"{tree}/a.jpg", f"{tree}/missing.jpg"])
    assert names(paths) == ["a.jpg", "missing.jpg"]
    assert [str(error) for error in errors] == [
        f"no file matches {tree}/*.webp",
        f"folder {tree}/empty holds no pictures",
    ]


def test_a_folder_counts_the_pictures_it_leaves_out(tree: Path) -> None:
    (tree / "IMG_1.CR3").touch()
    paths, errors = find_inputs([str(tree)])
    assert paths
    assert [str(error) for error in errors] == [
        f"folder {tree} holds pictures that are not supported and left out: 1 {CAMERA_RAW}"
    ]


def stems(paths: list[str], out: Path) -> list[str]:
    return [source.stem for source in name_results({Path(path): Path() for path in paths}, out, ENDINGS)]


def test_equal_stems_are_numbered_in_order(tmp_path: Path) -> None:
    assert stems(["a/cat.jpg", "b/dog.jpg"], tmp_path) == ["cat", "dog"]
    assert stems(["a/cat.jpg", "a/cat.png", "b/cat.jpg"], tmp_path) == ["cat", "cat-2", "cat-3"]
    assert stems(["a/cat.jpg", "b/cat.jpg", "c/cat-2.jpg"], tmp_path) == ["cat", "cat-3", "cat-2"]
    assert stems(["a/Cat.jpg", "b/cat.jpg"], tmp_path) == ["Cat", "cat-2"]
    assert stems(["a/cat.jpg", "a/cat.overlay.jpg"], tmp_path) == ["cat", "cat.overlay-2"]


def test_videos_and_pictures_do_not_share_names(tmp_path: Path) -> None:
    assert stems(["clip.mp4", "clip.jpg"], tmp_path) == ["clip", "clip"]  # clip.overlay.mp4 is not clip.overlay.png
    assert stems(["clip.mp4", "b/clip.MOV"], tmp_path) == ["clip", "clip-2"]
    assert stems(["clip.mp4", "clip-000120.jpg"], tmp_path) == ["clip-2", "clip-000120"]  # this name is that of a frame
    assert stems(["clip.mp4", "clip-12.jpg", "-"], tmp_path) == ["clip", "clip-12", "stdin"]
    (tmp_path / "clip.overlay.mp4").touch()
    with pytest.raises(FusionerError, match=r"clip\.overlay\.mp4 would replace an input"):
        stems([f"{tmp_path}/clip.mp4", f"{tmp_path}/clip.overlay.mp4"], tmp_path)


@given(st.lists(st.sampled_from(["cat", "Cat", "cat-2", "cat-3", "cat.overlay", "dog", "cat-2-2"]), max_size=9))
def test_no_two_results_share_a_file(input_stems: list[str]) -> None:
    result_stems = stems([f"{index}/{stem}.jpg" for index, stem in enumerate(input_stems)], Path("nowhere"))
    files = [f"{stem}{ending}".casefold() for stem in result_stems for ending in ENDINGS]
    assert len(files) == len(set(files))


def test_a_result_never_replaces_a_picture(tmp_path: Path) -> None:
    (tmp_path / "cat.png").touch()
    with pytest.raises(FusionerError, match=r"cat\.png would replace an input picture"):
        name_results({tmp_path / "cat.png": Path()}, tmp_path, ENDINGS)
    os.symlink(tmp_path, tmp_path / "alias")
    with pytest.raises(FusionerError, match="would replace an input picture"):
        name_results({tmp_path / "cat.png": Path()}, tmp_path / "alias", ENDINGS)
    (tmp_path / "cat.jpg").touch()
    assert name_results({tmp_path / "cat.jpg": Path()}, tmp_path, ENDINGS)  # cat.png is no input of this run
