"""The command line as a whole: start-up time, help, and exit codes."""

import errno
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from fusioner import __version__
from fusioner.cli import main as main_module
from fusioner.cli.main import VERBS, build, main
from fusioner.errors import DEPENDENCIES, EXTRAS, FusionerError

HEAVY = {"torch", "transformers", "lightning_fabric", "onnxruntime", "pyarrow", "fastapi", "av"}
ARRAYS = {"numpy", "PIL"}


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("code", ["import fusioner", "from fusioner.cli.main import main; main(['--help'])"])
def test_nothing_heavy_is_imported(code: str) -> None:
    done = run("-c", f"{code}\nimport sys; print('MODULES', *sys.modules)")
    assert done.returncode == 0
    modules = set(done.stdout.partition("MODULES")[2].split())
    assert "fusioner" in modules
    assert not (HEAVY | ARRAYS) & modules


@pytest.mark.parametrize("verb", VERBS)
def test_the_verbs_modules_are_light(verb: str) -> None:
    module = VERBS[verb][0].partition(":")[0]
    done = run("-c", f"import {module}, sys; print(*sys.modules)")
    assert done.returncode == 0
    assert not HEAVY & set(done.stdout.split())


@pytest.mark.parametrize(
    ("code", "limit"), [("import fusioner", 0.3), ("from fusioner.cli.main import main; main(['--help'])", 0.5)]
)
def test_start_up_time(code: str, limit: float) -> None:
    """Measure processor time, which depends little on the load of the machine; take the best of three."""
    timed = f"import time\n{code}\nprint('TOOK', time.process_time())"
    took = min(float(run("-c", timed).stdout.rpartition("TOOK")[2]) for _ in range(3))
    assert took < limit


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for verb, (_, line) in VERBS.items():
        assert verb in shown
        assert line.split()[0] in shown


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_own_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"Usage: fusioner {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["predict", "train", "evaluate", "models"])
def test_help_shows_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([verb, "--help"])
    assert f" fusioner {verb}" in capsys.readouterr().out.split("Usage:")[1].partition("\n")[2]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["prodict"], "prodict"),
        (["predict", "--lables", "cat"], "--labels"),
        (["predict", "a.jpg", "--labels", "cat", "--threshold", "high"], "--threshold"),
        (["predict", "a.jpg", "--labels", "cat", "--mode", "huge"], "--mode"),
        (["predict", "a.jpg", "--labels"], "fusioner predict needs --labels: see fusioner predict --help"),
        (["export"], "fusioner export needs --out: see fusioner export --help"),
        (["export", "--out", "exported", "--photos", "clip.mp4"], "there are no pictures in clip.mp4"),
        (["serve", "8000"], "fusioner serve takes no argument 8000: see fusioner serve --help"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert reason in output.err
    assert output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [(FusionerError("no such thing"), 2, "error: no such thing\n"), (KeyboardInterrupt(), 130, "interrupted\n")],
)
def test_errors_of_a_verb(
    raised: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise raised

    monkeypatch.setattr("fusioner.cli.models.models", fail)
    assert main(["models"]) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    "bug",
    [
        ZeroDivisionError(),
        OSError(errno.ENOLCK, "No locks available"),
        ModuleNotFoundError("No module named 'fusioner.nowhere'", name="fusioner.nowhere"),
    ],
)
def test_bugs_are_not_hidden(bug: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise bug

    monkeypatch.setattr("fusioner.cli.models.models", fail)
    with pytest.raises(type(bug)):
        main(["models"])


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("torch", "pip install 'fusioner[train]'"),
        ("pyarrow.parquet", "pip install 'fusioner[batch]'"),
        ("PIL", "pip install pillow"),
    ],
)
def test_a_missing_package_is_one_line(
    module: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ModuleNotFoundError(f"No module named '{module}'", name=module)

    monkeypatch.setattr("fusioner.cli.models.models", fail)
    assert main(["models"]) == 2
    assert capsys.readouterr().err == f"error: this needs {module.partition('.')[0]}: {command}\n"


def test_every_dependency_has_its_command() -> None:
    """Check that errors.py lists the modules of all dependencies in pyproject.toml."""
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    names = {re.split(r"[>\[]", text)[0].replace("-", "_") for text in project["dependencies"]}
    modules = {"pillow": "PIL", "pyyaml": "yaml"}
    assert {modules.get(name, name) for name in names} - {"cyclopts"} <= set(DEPENDENCIES)
    assert set(EXTRAS.values()) <= set(project["optional-dependencies"])


def test_models_lists_the_encoders(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [" ".join(line.split()[:2]) if line[:1] in "it" else line.split(" ")[0] for line in lines]
    assert names[:2] == ["image encoder", "dinov2-s-embedded"]
    assert "clip-vit-l14" in names
    assert "minilm-embedded" in names[names.index("text encoder") :]


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_closed_pipe_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "fusioner", "models"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == main_module.BROKEN_PIPE


def test_a_full_device_is_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fusioner", "models"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr == "error: cannot write to the standard output: No space left on device\n"


def test_building_takes_no_arguments_from_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fusioner", "nonsense"])
    start = time.process_time()
    assert build().name == ("fusioner",)
    assert time.process_time() - start < 1
