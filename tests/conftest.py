"""Fixtures every test file may use."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photographs and published fold lists beside the checkout; tests that need it skip without."""
    folder = Path(os.environ.get("FUSIONER_SHARED_DIR", REPO.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no folder {folder}/data with the development photographs (set FUSIONER_SHARED_DIR)")
    return folder


@pytest.fixture(scope="session")
def reference() -> Path:
    """The golden tensors of the official implementation; FUSIONER_REFERENCE_DIR points at other files of the format."""
    return Path(os.environ.get("FUSIONER_REFERENCE_DIR", REPO / "tests" / "reference" / "tensors"))


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system with one megabyte of room; tests that need it skip where mounting is not allowed."""
    folder = tmp_path / "one-megabyte"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a tiny file system can only be mounted by root on Linux")
    yield folder
    subprocess.run(["umount", folder], check=True)
