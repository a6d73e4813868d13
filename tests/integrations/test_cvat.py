"""Test the auto-annotation function with the driver of CVAT's SDK, on a task without a server."""

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from fusioner.errors import FusionerError
from fusioner.segmenter import Segmenter

cvataa: Any = pytest.importorskip("cvat_sdk.auto_annotation", reason="no package cvat-sdk")
LABELS = "cat, a sofa"


@pytest.fixture
def segmenter(make_tiny_segmenter: Callable[..., Segmenter], monkeypatch: pytest.MonkeyPatch) -> Segmenter:
    """Replace the model that `create` loads."""
    from fusioner.integrations import cvat

    tiny = make_tiny_segmenter()
    monkeypatch.setattr(cvat, "load", lambda model: tiny)
    return tiny


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(data.chelsea()[:90, :130])


def annotate(monkeypatch: pytest.MonkeyPatch, photo: Image.Image, names: str, **options: Any) -> list[Any]:
    """Run `annotate_task` on one image whose labels have the ids 70, 71, ...; return the shapes it uploads."""
    from cvat_sdk import models  # pyright: ignore[reportMissingImports]
    from cvat_sdk.auto_annotation import driver  # pyright: ignore[reportMissingImports]

    from fusioner.integrations.cvat import create

    kind = "polygon" if options.get("conv_mask_to_poly") else "mask"
    labels = [
        models.Label(id=70 + number, name=name, type=kind, attributes=[], sublabels=[])
        for number, name in enumerate(["a sofa", "cat"])
    ]
    sample = SimpleNamespace(frame_name="a.jpg", frame_index=5, media=SimpleNamespace(load_image=lambda: photo))
    monkeypatch.setattr(driver, "TaskDataset", lambda *_, **__: SimpleNamespace(labels=labels, samples=[sample]))
    uploaded: list[Any] = []

    def upload(action: str, task: int, patched_labeled_data_request: Any) -> None:
        uploaded.extend(patched_labeled_data_request.shapes)

    api = SimpleNamespace(partial_update_annotations=upload)
    client: Any = SimpleNamespace(logger=logging.getLogger("cvat"), tasks=SimpleNamespace(api=api))
    cvataa.annotate_task(client, 7, create(names, threshold=0.4), **options)
    return uploaded


def test_masks_are_those_of_the_segmenter(
    segmenter: Segmenter, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cvat_sdk.masks import decode_mask  # pyright: ignore[reportMissingImports]

    result = segmenter(photo, LABELS, threshold=0.4)
    shapes = annotate(monkeypatch, photo, LABELS)
    assert len(result.found) == len(shapes) > 0
    for label, shape in zip(result.found, shapes, strict=True):
        assert (shape.label_id, shape.frame, shape.source) == ({"a sofa": 70, "cat": 71}[label], 5, "auto")
        mask = decode_mask(shape.points, image_width=photo.width, image_height=photo.height)
        assert np.array_equal(mask, result.mask(label))


def test_polygons_and_confidence(segmenter: Segmenter, photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    result = segmenter(photo, LABELS, threshold=0.4)
    shapes = annotate(monkeypatch, photo, LABELS, conv_mask_to_poly=True)
    assert {shape.type.value for shape in shapes} == {"polygon"}
    assert len(shapes) == sum(len(result.polygons(label)) for label in result.found)
    best = max(result.found, key=lambda label: result.scores[label])
    (shape,) = annotate(monkeypatch, photo, LABELS, conf_threshold=round(result.scores[best], 6))
    assert shape.label_id == {"a sofa": 70, "cat": 71}[best]


def test_labels_are_checked_as_everywhere(segmenter: Segmenter) -> None:
    from fusioner.integrations.cvat import create

    with pytest.raises(FusionerError, match="label"):
        create(" , ")
