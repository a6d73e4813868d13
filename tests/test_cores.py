"""Test that the number of threads respects affinity and quota."""

from pathlib import Path

import pytest

from fusioner import cores


def group(root: Path, name: str, **files: str) -> None:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file.replace("__", ".")).write_text(text + "\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0::/a/b", [1.5, 2.0]), ("0::/", []), ("3:cpu,cpuacct:/c\n2:memory:/c", [0.5]), ("0::/gone", [])],
)
def test_quotas_of_a_group_and_its_parents(tmp_path: Path, text: str, expected: list[float]) -> None:
    group(tmp_path, "a/b", cpu__max="150000 100000")
    group(tmp_path, "a", cpu__max="200000 100000")
    group(tmp_path, ".", cpu__max="max 100000")
    group(tmp_path, "cpu/c", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    group(tmp_path, "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    (tmp_path / "self").write_text(text)
    assert cores._quotas(tmp_path, tmp_path / "self") == expected
    assert cores._quotas(tmp_path, tmp_path / "none") == []


def test_threads_follow_quota_and_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    for quotas, expected in (([], 64), ([1.5, 8.0], 2), ([0.1], 1)):
        monkeypatch.setattr(cores, "_quotas", lambda *_, quotas=quotas: quotas)
        assert cores.available_cores() == cores.default_threads() == expected
    for value, expected in (("3", 3), ("0", 1), ("", 1), ("4,2", 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert cores.default_threads() == expected
