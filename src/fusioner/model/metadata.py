"""What a trained model is, beside its weights."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from fusioner.model.config import FusionerConfig


@dataclass
class ModelCard:
    """All that is needed to rebuild a model and to trust it.

    Attributes:
        config: the trained network's shape.
        image_encoder, text_encoder: zoo names (`A+B` for a list of image encoders).
        resolution: side in pixels of the square images it was trained on.
        templates: prompt templates averaged for every label.
        mean, std: normalisation given to the image encoder instead of its own; None keeps the encoder's.
        threshold: probability above which a pixel takes a label.
        refine: whether edges of masks are moved to edges of the photograph unless it is said otherwise.
        training: how it was made: data set, fold, classes, steps, command, versions, hash of the image list.
    """

    config: FusionerConfig
    image_encoder: str
    text_encoder: str
    resolution: int = 224
    templates: tuple[str, ...] = ("a photo of a {}.",)
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    threshold: float = 0.5
    refine: bool = False
    training: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of JSON, keys sorted, so that equal cards are equal bytes."""
        return json.dumps(asdict(self) | {"config": self.config.to_dict()}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        """The inverse of `to_json`."""
        values = json.loads(text)
        values["config"] = FusionerConfig.from_dict(values["config"])
        for name in ("templates", "mean", "std"):
            values[name] = None if values[name] is None else tuple(values[name])
        return cls(**values)
