"""Test cache builders as processes that are killed at any moment or run two at once."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

KILL9 = Path(__file__).resolve().parents[2] / "benchmarks" / "cache_kill9.py"


@pytest.mark.slow
def test_builders_killed_at_random_leave_no_stale_broken_or_lost_entries():
    """Run the script briefly: it kills pairs of builders and checks every entry after every kill."""
    command = [sys.executable, str(KILL9), "--kills", "2", "--images", "5", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shares = re.search(r"2 builders left alone encode (\d+) \+ (\d+) views", done.stdout)
    assert shares, done.stdout
    assert 5 * 3 <= int(shares[1]) + int(shares[2]) <= 2 * 5 * 3
    killed = re.search(r"(\d+) builders killed", done.stdout)
    assert killed, done.stdout
    assert int(killed[1]) >= 2
    assert "nothing stale, broken or lost" in done.stdout
