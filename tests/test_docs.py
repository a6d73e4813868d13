"""Test that every command, flag, link and page of README and docs/ exists."""

import re
import shlex
from pathlib import Path

import pytest

from fusioner.cli.main import VERBS, build

REPO = Path(__file__).resolve().parents[1]
PAGES = [
    *(REPO / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
    REPO / "src" / "fusioner" / "weights" / "README.md",
    *sorted((REPO / "docs").rglob("*.md")),
]
GUIDES = [path for path in PAGES if "lab-notes" not in path.parts and path.name != "CHANGELOG.md"]


def name_of(path: Path) -> str:
    return str(path.relative_to(REPO))


def commands(text: str) -> list[list[str]]:
    """Return the words of every `fusioner` command line, up to a pipe, redirection or comment."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        match = re.match(r"(?:    |cat \S+ \| )?(?:\.venv/bin/)?fusioner (?P<rest>\S.*)", line)
        if match:
            found.append(shlex.split(re.split(r" [|>#] ?| {2,}#", match["rest"])[0], comments=True))
    return found


def anchors(path: Path) -> set[str]:
    """Return the fragments of a page's headings, as GitHub and MkDocs make them."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", GUIDES, ids=name_of)
def test_its_commands_parse(path: Path) -> None:
    for words in commands(path.read_text("utf-8")):
        assert words[0] in VERBS
        arguments = ["./-" if word == "-" else word for word in words]
        build(words[0]).parse_args(arguments, print_error=False, exit_on_error=False)


def test_every_flag_in_the_prose_exists(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = [[verb] for verb in VERBS if verb not in ("data", "features")]
    verbs += [["data", sub] for sub in ("check", "show")] + [["data", "prepare", sub] for sub in ("coco", "folder")]
    verbs += [["features", sub] for sub in ("build", "info", "verify", "prune")]
    for words in verbs:
        build(words[0])([*words, "--help"], exit_on_error=False, print_error=False, result_action="return_value")
    known = set(re.findall(r"--[a-z][a-z0-9-]*", capsys.readouterr().out))
    assert len(known) > 80
    foreign = {"--help", "--test-only", "--nnodes"}  # of sbatch and torchrun
    foreign |= {"--conv-mask-to-poly", "--conf-threshold"}  # of cvat-cli
    for path in GUIDES:
        for line in path.read_text("utf-8").splitlines():
            if not re.search(r"benchmarks/|\.py\b|torchrun|\bpip |curl|docker", line):
                spans = re.findall(r"`([^`]*)`", line)
                flags = {flag for span in spans for flag in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*(?![\w-])", span)}
                assert flags <= known | foreign, name_of(path)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_resolve(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if not link.startswith("http"):
            file, _, fragment = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target.exists(), link
            assert not fragment or fragment in anchors(target), link


def test_the_site_lists_every_page() -> None:
    listed = set(re.findall(r"[\w/-]+\.md", (REPO / "mkdocs.yml").read_text("utf-8")))
    assert listed == {str(path.relative_to(REPO / "docs")) for path in (REPO / "docs").rglob("*.md")}
