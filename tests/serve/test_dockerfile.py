"""Check without Docker that the Dockerfile's parts exist and agree with the package."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from fusioner.cli.main import build

REPO = Path(__file__).resolve().parents[2]
TEXT = re.sub(r"\\\n\s*", "", (REPO / "Dockerfile").read_text("utf-8"))
STEPS = [tuple(line.split(maxsplit=1)) for line in TEXT.splitlines() if line and line[0] != "#"]


def arguments(instruction: str) -> list[str]:
    return [rest for name, rest in STEPS if name == instruction]


def test_copied_files_exist_and_are_not_ignored() -> None:
    stored = {line[1:] for line in (REPO / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    copied = {source for line in arguments("COPY") for source in line.split()[:-1]}
    assert copied
    assert copied == stored
    assert all((REPO / source).exists() for source in copied)


def test_all_that_the_build_reads_is_copied_before() -> None:
    import tomllib

    project = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))["project"]
    needed = [project["readme"], *project["license-files"]]
    copied = [source for line in arguments("COPY") for source in line.split()[:-1]]
    assert all(any(file == source or file.startswith(f"{source}/") for source in copied) for file in needed)
    assert "serve" in project["optional-dependencies"]


@pytest.mark.parametrize("command", arguments("RUN"))
def test_its_commands_are_shell(command: str) -> None:
    subprocess.run(["sh", "-n", "-c", command], check=True)


def test_it_starts_the_server_for_everybody_but_not_as_root() -> None:
    (command,) = (json.loads(line) for line in arguments("CMD"))
    _, bound, _ = build().parse_args(shlex.join(command[1:]), print_error=False, exit_on_error=False)
    assert bound.arguments["host"] == "0.0.0.0"
    assert bound.arguments["allowed_host"] == ("localhost",)
    assert arguments("USER") == ["fusioner"]
    assert arguments("EXPOSE") == ["8000"]
    (check,) = (json.loads(line.partition("CMD ")[2]) for line in arguments("HEALTHCHECK"))
    compile(check[2], "HEALTHCHECK", "exec")
    assert ":8000/readyz" in check[2]
