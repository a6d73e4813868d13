"""Test that the Python lines of README run, and that its commands and links exist."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from fusioner.cli.main import main

REPO = Path(__file__).resolve().parents[1]
README = (REPO / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_lines_find_the_cat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "samples").symlink_to(REPO / "samples")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["result"].coverage["cat"] > 0.4
    assert scope["result"].coverage["sofa"] < 0.05
    assert {"cat.png", "out"} <= set(os.listdir(tmp_path))


def test_the_commands_and_their_flags_exist(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split("#")[0] for block in blocks("bash") for line in block.splitlines()]
    calls = [line.removeprefix(".venv/bin/").split() for line in lines if re.match(r"(\.venv/bin/)?fusioner ", line)]
    assert len(calls) > 5
    verbs = sorted({tuple(call[1:3]) if call[1] in ("data", "features") else (call[1],) for call in calls})
    for verb in verbs:
        assert main([*verb, "--help"]) == 0
        output = capsys.readouterr().out
        used = {w for call in calls if tuple(call[1 : 1 + len(verb)]) == verb for w in call if w.startswith("--")}
        assert used <= set(re.findall(r"--[a-z-]+", output)), verb


def test_every_file_it_points_at_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if not link.startswith("http") and not (REPO / link).exists()] == []
