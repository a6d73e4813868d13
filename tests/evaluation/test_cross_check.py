"""Test that per-class IoU and run lengths agree with those of other packages, where installed."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "cross_check.py"
spec = importlib.util.spec_from_file_location("cross_check", SCRIPT)
assert spec is not None
assert spec.loader is not None
cross_check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cross_check)


@pytest.fixture(scope="module")
def pairs() -> Any:
    return cross_check.make_pairs(images=3, seed=1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::SyntaxWarning")
@pytest.mark.parametrize("package", cross_check.SCORERS)
def test_iou_agrees_with_other_packages(package: str, pairs: Any) -> None:
    ours = cross_check.fusioner_iou(pairs)
    try:
        theirs = cross_check.SCORERS[package](pairs)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    np.testing.assert_allclose(theirs[:-1], ours[:-1], atol=1e-7)
    assert np.isnan(ours[-1])  # classes that are only predicted: NaN here, 0 there
    assert theirs[-1] == 0


def test_run_lengths_agree_with_faster_coco_eval(pairs: Any) -> None:
    pytest.importorskip("faster_coco_eval")
    assert cross_check.run_length_differences(pairs) == 0
