"""Test that writes are atomic and that system errors become one message."""

import errno
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fusioner.errors import FusionerError
from fusioner.io import FileLocks, atomic_write, writable_folder


def test_the_file_appears_whole_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "a.txt"
    with atomic_write(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".txt"
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert os.listdir(target.parent) == ["a.txt"]


def test_a_failure_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail() -> None:
        with atomic_write(target) as temporary:
            temporary.write_text("half")
            raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        fail()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_modes_follow_the_umask_for_any_writer(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "plain.bin") as temporary:
        temporary.write_bytes(b"x")
    with atomic_write(tmp_path / "weights.safetensors") as temporary:
        save_file({"a": torch.zeros(1)}, temporary)
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "plain.bin").stat().st_mode


def test_a_file_in_the_folders_place_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FusionerError, match=r"cannot write .*a\.txt: a part of its path is a file"):  # noqa: SIM117
        with atomic_write(tmp_path / "file" / "a.txt"):
            pass
    with pytest.raises(FusionerError, match="a part of its path is a file"):
        writable_folder(tmp_path / "file")


def test_a_folder_in_the_files_place_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(FusionerError, match="a folder of that name"):  # noqa: SIM117
        with atomic_write(tmp_path / "a.txt") as temporary:
            temporary.write_text("x")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_writable_folder_makes_it_and_leaves_it_empty(tmp_path: Path) -> None:
    assert writable_folder(tmp_path / "x" / "y") == tmp_path / "x" / "y"
    assert os.listdir(tmp_path / "x" / "y") == []


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")
def test_an_unwritable_folder() -> None:
    """Run as an ordinary user, because root may write anywhere."""
    code = (
        "import os, sys\nfrom fusioner.io import writable_folder\nfrom fusioner.errors import FusionerError\n"
        "if os.getuid() == 0:\n    os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try:\n    writable_folder(sys.argv[1])\nexcept FusionerError as error:\n    print(error)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
        assert done.stdout == f"cannot write {folder}: permission denied: choose a folder you may write to\n"
        os.chmod(folder, 0o755)


@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX")
def test_a_write_that_breaks_off_midway_leaves_nothing(tmp_path: Path) -> None:
    """Limit the file size to 64 KiB (RLIMIT_FSIZE), so that the kernel stops the write."""
    code = (
        "import sys\nfrom fusioner.io import atomic_write\nfrom fusioner.errors import FusionerError\n"
        "try:\n    with atomic_write(sys.argv[1]) as file:\n        file.write_bytes(bytes(10**6))\n"
        "except FusionerError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "big.bin")],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16)),
        check=True,
    )
    assert done.stdout.startswith(f"cannot write {tmp_path / 'big.bin'}: the file would be larger")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("writer", ["bytes", "safetensors", "torch"])
def test_no_space_left_is_one_sentence_for_any_writer(full_disk: Path, writer: str) -> None:
    from safetensors.torch import save_file

    weights = {"a": torch.zeros(2**20)}  # 4 MiB on a device of 1 MiB
    write = {
        "bytes": lambda path: path.write_bytes(bytes(2**22)),
        "safetensors": lambda path: save_file(weights, path),
        "torch": lambda path: torch.save(weights, path),
    }[writer]
    (full_disk / "model.bin").write_text("old")
    with pytest.raises(FusionerError, match=r"cannot write .*model\.bin: there is no space left"):  # noqa: SIM117
        with atomic_write(full_disk / "model.bin") as temporary:
            write(temporary)
    assert os.listdir(full_disk) == ["model.bin"]
    assert (full_disk / "model.bin").read_text() == "old"


def test_a_failed_read_inside_is_not_blamed_on_the_target(tmp_path: Path) -> None:
    with pytest.raises(FusionerError, match=r"^cannot read .*missing\.txt: No such file"):  # noqa: SIM117
        with atomic_write(tmp_path / "a.txt") as temporary:
            temporary.write_text((tmp_path / "missing.txt").read_text())
    with pytest.raises(OSError, match=r"^broken picture$"):  # noqa: SIM117
        with atomic_write(tmp_path / "a.txt"):
            raise OSError("broken picture")
    assert os.listdir(tmp_path) == []


def test_locks_hold_between_processes_and_not_where_the_system_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom fusioner.io import FileLocks\n"
        "print([FileLocks(Path(sys.argv[1])).acquire(number) for number in (1, 2)])"
    )
    with FileLocks(tmp_path / "locks") as locks:
        assert locks.acquire(1)
        done = subprocess.run([sys.executable, "-c", code, tmp_path / "locks"], capture_output=True, text=True)
        assert done.stdout == "[False, True]\n", done.stderr
        locks.release(1)

        def unsupported(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("fcntl.lockf", unsupported)
        assert locks.acquire(3)
        locks.release(3)
