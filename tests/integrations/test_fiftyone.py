"""The model for FiftyOne; the test needs the package, which starts a database of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from fusioner.segmenter import Segmenter

fo: Any = pytest.importorskip("fiftyone", reason="no package fiftyone", exc_type=ImportError)


def test_apply_model_fills_a_field_of_segmentations(
    make_tiny_segmenter: Callable[..., Segmenter], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from fusioner.integrations import fiftyone

    tiny = make_tiny_segmenter()
    monkeypatch.setattr(fiftyone, "load", lambda model: tiny)
    photo = data.chelsea()[:90, :130]
    Image.fromarray(photo).save(tmp_path / "a.png")
    model = fiftyone.FiftyOneModel(["cat", "sofa"], threshold=0.4)
    dataset = fo.Dataset()
    dataset.add_sample(fo.Sample(filepath=str(tmp_path / "a.png")))
    dataset.apply_model(model, label_field="fusioner")
    dataset.mask_targets["fusioner"] = model.mask_targets
    dataset.save()
    found = dataset.first()["fusioner"]
    assert isinstance(found, fo.Segmentation)
    assert np.array_equal(found.mask, tiny(photo, ["cat", "sofa"], threshold=0.4).label_map)
    assert dataset.mask_targets["fusioner"] == {1: "cat", 2: "sofa"}
    dataset.delete()
