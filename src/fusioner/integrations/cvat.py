"""Auto-annotation function for CVAT: masks or polygons of the labels.

    cvat-cli task auto-annotate 7 --function-module fusioner.integrations.cvat -p "labels=str:cat, sofa"

Needs `pip install cvat-cli 'cvat-sdk[masks]'`.
"""

from functools import cached_property

import cvat_sdk.auto_annotation as cvataa  # pyright: ignore[reportMissingImports]
from cvat_sdk import models  # pyright: ignore[reportMissingImports]
from cvat_sdk.masks import encode_mask  # pyright: ignore[reportMissingImports]
from PIL import Image

from fusioner.formats import found_segments
from fusioner.labels import check_labels
from fusioner.loading import load
from fusioner.polygons import join_holes, simplify


class DetectionFunction:
    """A detection function of CVAT's SDK, see `cvat_sdk.auto_annotation.DetectionFunction`."""

    def __init__(
        self, labels: str, model: str | None = None, threshold: float | None = None, instances: bool = False
    ) -> None:
        """
        Args:
            labels: names of the task's labels, separated by commas.
            model: model file; default: the bundled model.
            threshold: probability a pixel needs, 0..1; default: the model's own.
            instances: annotate the connected regions of a label as separate objects.

        Raises:
            FusionerError: invalid labels or threshold, or the model cannot be loaded.
        """
        self.labels, self.segmenter = check_labels(labels), load(model)
        self.options = self.segmenter.resolve(threshold=threshold, instances=instances)

    @cached_property
    def spec(self) -> cvataa.DetectionFunctionSpec:
        """The labels, of type mask, numbered from 0."""
        return cvataa.DetectionFunctionSpec(
            labels=[cvataa.label_spec(label, number, type="mask") for number, label in enumerate(self.labels)]
        )

    def detect(self, context: cvataa.DetectionFunctionContext, image: Image.Image) -> list[models.LabeledShapeRequest]:
        """Return the shapes of the labels whose score reaches the context's confidence threshold."""
        shapes = []
        for segment in found_segments(self.segmenter(image, self.labels, self.options)):
            if segment.score < (context.conf_threshold or 0):
                continue
            if context.conv_mask_to_poly:
                rings = [join_holes(simplify(polygon)[0]) for polygon in segment.polygons]
                shapes += [cvataa.polygon(segment.id - 1, ring.astype(float).ravel().tolist()) for ring in rings]
            else:
                shapes.append(cvataa.mask(segment.id - 1, encode_mask(segment.mask)))
        return shapes


create = DetectionFunction
