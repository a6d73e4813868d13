"""Progress where stderr is not a terminal."""

import re

import pytest

from fusioner import progress as progress_module
from fusioner.progress import progress


def test_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "SECONDS", 0.0)
    with progress("views") as work:
        assert list(work(["a", "b", "c", "d"], "reading")) == ["a", "b", "c", "d"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[:2] for line in lines] == [["reading", f"{done}/4"] for done in (1, 2, 3)]
    assert re.search(r"views/s  left \d+:\d\d$", lines[-1])


def test_no_line_within_the_first_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as work:
        list(work(range(100), "reading"))
    assert capsys.readouterr() == ("", "")


def test_within_an_item_and_without_a_known_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "SECONDS", 0.0)
    with progress() as work:
        task = work.task("segmenting", None)
        task(0.5, note="window 1/2")
        task(1, 3)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "segmenting 0  window 1/2"
    assert second.startswith("segmenting 1/3")


def test_in_notebooks_progress_is_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "SECONDS", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")  # set by Jupyter kernels and taken for a terminal
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    with progress("views") as work:
        list(work(["a", "b"], "reading"))
    assert capsys.readouterr().err == "reading 1/2\n"
