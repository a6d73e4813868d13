"""Test the model for FiftyOne without its database; test_docs.py runs `apply_model` if that is installed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from skimage import data

from fusioner.segmenter import Segmenter

fo: Any = pytest.importorskip("fiftyone", reason="no package fiftyone", exc_type=ImportError)


def test_apply_model_fills_a_field(
    make_tiny_segmenter: Callable[..., Segmenter], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusioner.integrations import fiftyone

    tiny = make_tiny_segmenter()
    monkeypatch.setattr(fiftyone, "load", lambda model: tiny)
    photo = data.chelsea()[:90, :130]
    model = fiftyone.FiftyOneModel(["cat", "sofa"], threshold=0.4)
    assert isinstance(model, fo.core.models.Model)
    assert (model.media_type, model.ragged_batches, model.transforms, model.preprocess) == ("image", False, None, False)
    assert model.config is None  # where apply_model looks for classes and confidence_thresh
    sample = fo.Sample(filepath="a.png")
    with model:
        sample.add_labels(model.predict(photo), label_field="fusioner")
    found = sample["fusioner"]
    assert isinstance(found, fo.Segmentation)
    assert np.array_equal(found.mask, tiny(photo, ["cat", "sofa"], threshold=0.4).label_map)
    assert found.mask.dtype == np.uint8
    assert model.mask_targets == {1: "cat", 2: "sofa"}
