"""The number of CPU cores that this process may use."""

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Return the number of CPU cores by affinity and by the CPU quota of the process's cgroups (containers)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(_CGROUPS, Path("/proc/self/cgroup")))]))


def default_threads() -> int:
    """Return the number of threads for one model: $OMP_NUM_THREADS, else `available_cores`.

    The load does not count: as waiting threads sleep, fewer are not clearly faster (benchmarks/loaded.py --threads).
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() and int(wanted) else available_cores()


def _quotas(cgroups: Path, membership: Path) -> list[float]:
    """Return the quotas, in cores, of the process's cgroup and its parents (versions 1 and 2)."""
    found = []
    try:
        entries = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return []
    for _, controllers, path in entries:
        root = cgroups / "cpu" if "cpu" in controllers.split(",") else cgroups
        group = root / path.strip().lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            try:
                if controllers:
                    quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                else:
                    quota, period = (folder / "cpu.max").read_text().split()
                if float(quota) > 0:
                    found.append(float(quota) / float(period))
            except (OSError, ValueError):  # no such controller; "max" is no limit
                continue
    return found
