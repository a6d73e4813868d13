"""Conversion of results to the objects of other packages."""

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from fusioner.options import InferenceOptions
from fusioner.segmentation import Segmentation


@pytest.fixture
def result() -> Segmentation:
    """Return a result with cat in the left half, sofa in the lower right quarter, and no dog."""
    logits = np.full((3, 20, 30), -4.0, np.float32)
    logits[0, :, :15] = 3.0
    logits[1, 10:, 15:] = 1.0
    image = np.asarray(Image.fromarray(data.chelsea()).resize((90, 60)))
    return Segmentation.from_logits(image, ["dog", "cat", "sofa"], logits[[2, 0, 1]], name="chelsea.png")


def test_transformers_output_is_that_of_its_pipeline(result: Segmentation) -> None:
    """Compare with the last step of the pipeline for the same label map and scores."""
    import torch
    from transformers.pipelines.image_segmentation import ImageSegmentationPipeline

    segments = [
        {"id": result.number(label), "label_id": result.number(label), "score": result.scores[label]}
        for label in result.found
    ]
    outputs = [{"segmentation": torch.from_numpy(result.label_map.astype(int)), "segments_info": segments}]
    processor = SimpleNamespace(post_process_instance_segmentation=lambda *_, **__: outputs)
    config = SimpleNamespace(id2label=dict(enumerate(result.labels, start=1)))
    pipeline: Any = SimpleNamespace(image_processor=processor, model=SimpleNamespace(config=config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Pillow deprecates `mode="L"`
        expected = ImageSegmentationPipeline.postprocess(pipeline, {"target_size": None}, subtask="instance")
    ours = result.to_transformers()
    assert [item["label"] for item in ours] == ["cat", "sofa"]
    for actual, reference in zip(ours, expected, strict=True):
        assert actual.keys() == reference.keys()
        assert actual["label"] == reference["label"]
        assert actual["score"] == pytest.approx(reference["score"], abs=1e-6)
        assert (actual["mask"].mode, actual["mask"].size) == (reference["mask"].mode, reference["mask"].size)
        assert np.array_equal(np.asarray(actual["mask"]), np.asarray(reference["mask"]))


def test_supervision_detections_hold_masks_boxes_and_names(result: Segmentation) -> None:
    sv: Any = pytest.importorskip("supervision", reason="no package supervision")
    detections = result.to_supervision()
    assert isinstance(detections, sv.Detections)
    assert detections.data["class_name"].tolist() == ["cat", "sofa"]
    assert detections.class_id.tolist() == [1, 2]
    assert np.array_equal(detections.mask[0], result.mask("cat"))
    rows, columns = np.nonzero(result.mask("sofa"))
    assert detections.xyxy[1].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.allclose(detections.confidence, [result.scores["cat"], result.scores["sofa"]])
    assert detections[detections.area > 2000].data["class_name"].tolist() == ["cat"]
    painted = sv.MaskAnnotator().annotate(result.image.copy(), detections)
    assert (painted != result.image).any()
    empty = Segmentation.from_logits(result.image, ["dog"], np.full((1, 4, 4), -9, np.float32)).to_supervision()
    assert len(empty) == 0
    assert empty.mask.shape == (0, 60, 90)


def test_instances_are_separate_objects() -> None:
    logits = np.full((1, 20, 30), -4.0, np.float32)
    logits[0, 2:9, 2:9] = logits[0, 12:18, 15:28] = 3.0
    options = InferenceOptions(instances=True)
    result = Segmentation.from_logits(np.zeros((60, 90, 3), np.uint8), ["cat"], logits, options)
    objects = result.to_transformers()
    assert [item["label"] for item in objects] == ["cat", "cat"]
    assert np.array_equal(sum(np.asarray(item["mask"]) // 255 for item in objects), result.mask("cat"))
