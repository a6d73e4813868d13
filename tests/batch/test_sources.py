"""Test that every kind of input yields each picture once and in order, also among unreadable ones."""

import io
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusioner.batch.plan import Plan, make_plan
from fusioner.batch.sources import Picture, open_source
from fusioner.errors import FusionerError
from fusioner.image import CAMERA_RAW


def read(text: Path | str, out: Path, size: int = 4, column: str | None = None) -> list[Picture]:
    source = open_source(str(text), column)
    plan = make_plan(source, out, size, {})
    shards = [plan[number] for number in range(plan.shards)]
    assert [shard.first for shard in shards] == [sum(s.count for s in shards[:n]) for n in range(len(shards))]
    assert all(1 <= shard.count <= size for shard in shards)
    pictures = [list(plan.pictures(shard, source)) for shard in shards]
    assert [len(shard_pictures) for shard_pictures in pictures] == [shard.count for shard in shards]
    assert sum(shard.count for shard in shards) == plan.images
    return [picture for shard_pictures in pictures for picture in shard_pictures]


def names(pictures: list[Picture]) -> list[str]:
    return [picture.name for picture in pictures]


def errors(pictures: list[Picture]) -> list[str]:
    return [str(picture.content) for picture in pictures if isinstance(picture.content, FusionerError)]


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    """Write ten WebDataset samples, one with a very long name, some with a mask and a JSON file."""
    path = tmp_path / "shard-000.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(10):
            key = f"{'long/' * 60 if number == 4 else ''}{number:04}"
            add(archive, f"{key}.jpg", b"picture %d" % number * 40)
            add(archive, f"{key}.seg.png", b"its mask")
            add(archive, f"{key}.json", b"{}")
    return path


def test_a_folder_in_order_without_hidden_files_and_results(photos: Path, tmp_path: Path) -> None:
    pictures = read(photos, tmp_path / "out")
    assert names(pictures) == [f"{folder}/{number:02}.jpg" for folder in "ab" for number in range(15)]
    assert all(picture.content == photos.absolute() / picture.name for picture in pictures)
    inside = tmp_path / "in"
    (inside / "out" / "masks").mkdir(parents=True)
    for name in ("1.jpg", ".2.jpg", "note.txt"):
        (inside / name).write_bytes(b"")
    make_plan(open_source(str(inside)), tmp_path / "other", None, {})
    (inside / "out" / "masks").rmdir()
    assert names(read(inside, inside / "out")) == ["1.jpg"]
    (inside / "out" / "masks").mkdir()
    (inside / "out" / "masks" / "1.png").write_bytes(b"")
    make_plan(open_source(str(inside)), inside / "out", None, {})  # results in the input folder do not change the input


def test_globs_lists_and_single_pictures(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    matches = read(f"{photos.name}/*/0[0-4].jpg", tmp_path / "glob")
    assert names(matches) == [f"{photos.name}/{folder}/0{number}.jpg" for folder in "ab" for number in range(5)]
    assert names(read(photos / "a" / "03.jpg", tmp_path / "one")) == ["03.jpg"]
    odd = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    (tmp_path / "list.txt").write_text(f"a.jpg\n\n  b.jpg\r\n{odd}\na.jpg\n", "utf-8", "surrogateescape")
    listed = read(tmp_path / "list.txt", tmp_path / "listed")
    assert names(listed) == ["a.jpg", "  b.jpg", odd, "a.jpg"]
    assert listed[2].content == tmp_path / odd


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 8))
def test_parquet_rows_whatever_their_row_groups(tmp_path_factory, groups: list[int], size: int) -> None:
    folder = tmp_path_factory.mktemp("parquet")
    with pq.ParquetWriter(folder / "x.parquet", pa.schema([("image", pa.binary()), ("key", pa.string())])) as file:
        for number, rows in enumerate(groups):
            content = [f"{number}/{row}" for row in range(rows)]
            file.write_table(pa.table({"image": [text.encode() for text in content], "key": content}))
    pictures = read(folder / "x.parquet", folder / "out", size)
    expected = [f"{number}/{row}" for number, rows in enumerate(groups) for row in range(rows)]
    assert [(picture.name, picture.content) for picture in pictures] == [(text, text.encode()) for text in expected]


def test_parquet_of_paths_records_and_holes(tmp_path: Path) -> None:
    records = [{"bytes": b"x", "path": "x.jpg"}, {"bytes": None, "path": "y.jpg"}, None]
    pq.write_table(pa.table({"image": records}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"file": ["z.jpg", None], "id": [5, 6]}), tmp_path / "2.parquet")
    pictures = read(tmp_path / "1.parquet", tmp_path / "out1")
    assert pictures[:2] == [Picture("x.jpg", b"x"), Picture("y.jpg", tmp_path / "y.jpg")]
    assert errors(pictures) == ["row 2 of 1.parquet holds no picture"]
    pictures = read(tmp_path / "2.parquet", tmp_path / "out2", column="file")
    assert pictures[0] == Picture("z.jpg", tmp_path / "z.jpg")
    assert pictures[1].name == "6"
    with pytest.raises(FusionerError, match="no column of pictures: name one with --column \\(file, id\\)"):
        read(tmp_path / "2.parquet", tmp_path / "out3")


def test_a_folder_of_parquet_files_one_of_them_broken(tmp_path: Path) -> None:
    for name in ("a", "c"):
        pq.write_table(pa.table({"jpg": [b"1", b"2"]}), tmp_path / f"{name}.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and then nothing")
    pictures = read(tmp_path, tmp_path / "out", size=1)
    assert names(pictures) == ["row 0", "row 1", "", "row 0", "row 1"]
    assert len(errors(pictures)) == 1
    assert errors(pictures)[0].startswith("b.parquet cannot be read any further: damaged or not Parquet")


@pytest.mark.parametrize("size", [1, 3, 10, 99])
def test_a_tar_gives_the_picture_of_each_sample(tar: Path, tmp_path: Path, size: int) -> None:
    pictures = read(tar, tmp_path / "out", size)
    assert [name.rpartition("/")[2] for name in names(pictures)] == [f"{number:04}.jpg" for number in range(10)]
    assert [picture.content for picture in pictures] == [b"picture %d" % number * 40 for number in range(10)]
    capitals = tar.rename(tar.parent / "SHARD.TAR")
    for source in (capitals, capitals.parent):
        assert len(read(source, tmp_path.with_name(f"{tmp_path.name} of {source.name}"), size)) == 10


def test_tars_that_end_early_or_are_damaged_give_what_they_hold(tar: Path, tmp_path: Path) -> None:
    whole = tar.read_bytes()
    with tarfile.open(tar) as archive:
        member = archive.getmember("0007.jpg")
    for name, content, good in (
        ("cut in a picture", whole[: member.offset_data + 10], 7),
        ("cut in a header", whole[: member.offset + 100], 7),
        ("damaged header", whole[: member.offset] + b"x" * 512 + whole[member.offset + 512 :], 7),
        ("nothing", b"", 0),
    ):
        path = tmp_path / f"{name}.tar"
        path.write_bytes(content)
        pictures = read(path, tmp_path / f"out {name}", 4)
        assert [picture.content for picture in pictures][:good] == [b"picture %d" % n * 40 for n in range(good)], name
        assert len(errors(pictures)) == len(pictures) - good >= 1, name
        assert all("cannot be read any further" in error for error in errors(pictures)), name


def test_pictures_of_other_kinds_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for name in ("1.jpg", "2.CR2", "deep/3.nef", "4.jxl", "notes.txt", ".5.nef"):
        (folder / name).write_bytes(b"x")
    kinds = Counter[str]()
    for _ in range(2):  # with a new and an existing plan
        kinds.clear()
        make_plan(open_source(str(folder)), tmp_path / "out", None, {}, lambda kind: kinds.update([kind]))
        assert kinds == {CAMERA_RAW: 2, "JPEG XL": 1}
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("1.jpg", "2.cr2", "2.json", "3.png", "3.psd"):
            add(archive, name, b"x")
    kinds.clear()
    plan = make_plan(open_source(str(tmp_path / "a.tar")), tmp_path / "o2", None, {}, lambda kind: kinds.update([kind]))
    assert (plan.images, kinds) == (2, {CAMERA_RAW: 1})  # 3.psd belongs to the sample of 3.png


def test_invalid_inputs_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    for name in ("mixed/a.jpg", "mixed/b.TAR", "clip.mp4", "raw.CR2"):
        (tmp_path / name).write_bytes(b"ftyp\0")
    for text, output in (
        ("mixed", "more than one of pictures"),
        ("clip.mp4", "neither a picture nor a UTF-8 text"),
        ("raw.CR2", "camera raw"),
        ("nowhere", "there is no "),
        ("*.jpg", "no file matches"),
        ("x.tar.gz", "unpack it"),
        ("empty", "holds no pictures"),
    ):
        with pytest.raises(FusionerError, match=output):
            read(tmp_path / text, tmp_path / "out")
    assert not (tmp_path / "out" / "plan").exists()


def test_the_plan_takes_no_memory(tmp_path: Path) -> None:
    """Plan 50,000 names of 100 letters, which are 5 MB."""
    (tmp_path / "list.txt").write_text("".join(f"{'x' * 90}{number:010}\n" for number in range(50_000)))
    tracemalloc.start()
    plan = make_plan(open_source(str(tmp_path / "list.txt")), tmp_path / "out", 100, {})
    source = open_source(str(tmp_path / "list.txt"))
    picture = next(plan.pictures(plan[499], source))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert picture.name.endswith("0000049900")
    assert most < 500_000


def test_another_input_or_other_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\n")
    source, out = open_source(str(tmp_path / "list.txt")), tmp_path / "out"
    make_plan(source, out, 1, {"labels": ["cat"]})
    assert make_plan(source, out, None, {"labels": ["cat"]}).shards == 2
    with pytest.raises(FusionerError, match=r"begun with other settings: labels \(\['cat'\] then, \['dog'\] now\)"):
        make_plan(source, out, 1, {"labels": ["dog"]})
    with pytest.raises(FusionerError, match=r"begun with other settings: guided filter \(the default then, True now\)"):
        make_plan(source, out, 1, {"labels": ["cat"], "guided_filter": True})
    with pytest.raises(FusionerError, match="settings: shard size"):
        make_plan(source, out, 2, {"labels": ["cat"]})
    (tmp_path / "list.txt").write_text("a.jpg\nc.jpg\n")
    with pytest.raises(FusionerError, match="begun with another input"):
        make_plan(source, out, 1, {"labels": ["cat"]})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(FusionerError, match="holds other files"):
        make_plan(source, tmp_path / "full", 1, {})


def test_a_partial_plan_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\n")
    (tmp_path / "out" / ".plan").mkdir(parents=True)
    (tmp_path / "out" / ".plan" / "shards.jsonl").write_text('"b')
    make_plan(open_source(str(tmp_path / "list.txt")), tmp_path / "out", 1, {})
    assert Plan(tmp_path / "out").images == 1
    (tmp_path / "out" / "plan" / "plan.json").write_text("{")
    with pytest.raises(FusionerError, match="has no readable plan"):
        Plan(tmp_path / "out")
