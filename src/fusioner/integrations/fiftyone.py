"""FiftyOne model: `dataset.apply_model` fills a field with `fiftyone.Segmentation`.

    model = FiftyOneModel(["cat", "sofa"])
    dataset.apply_model(model, label_field="fusioner")
    dataset.mask_targets["fusioner"] = model.mask_targets

Needs `pip install fiftyone`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fiftyone.core.labels import Segmentation  # pyright: ignore[reportMissingImports]
from fiftyone.core.models import Model  # pyright: ignore[reportMissingImports]
from jaxtyping import UInt8

from fusioner.formats import mask_bits
from fusioner.labels import check_labels
from fusioner.loading import load


class FiftyOneModel(Model):
    """A segmenter with fixed labels as a model of FiftyOne."""

    media_type = "image"
    ragged_batches = False
    transforms = None
    preprocess = False
    config = None  # apply_model(..., classes=...) looks into it

    def __init__(self, labels: Sequence[str] | str, model: str | Path | None = None, **options: Any) -> None:
        """
        Args:
            labels: names, or one string of them separated by commas.
            model: see `fusioner.load`.
            options: see `InferenceOptions`, such as `threshold`.

        Raises:
            FusionerError: invalid labels or options, or the model cannot be loaded.
        """
        self.labels, self.segmenter = check_labels(labels), load(model)
        self.options = self.segmenter.resolve(**options)

    @property
    def mask_targets(self) -> dict[int, str]:
        """Value in masks -> label, for `dataset.mask_targets`; 0 is background."""
        return dict(enumerate(self.labels, start=1))

    def predict(self, arg: UInt8[np.ndarray, "h w 3"]) -> Segmentation:
        """Segment an RGB image."""
        label_map = self.segmenter(arg, self.labels, self.options).label_map
        return Segmentation(mask=label_map.astype(f"uint{mask_bits(len(self.labels))}"))
