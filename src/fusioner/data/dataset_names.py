"""The names of all data sets, for command lines and annotations; loads nothing. `catalog` opens them."""

from typing import Literal

Trainable = Literal[
    "pascal", "coco", "folder", "fss1000", "ade150", "ade847", "context59", "context459", "coco-stuff", "coco-object",
    "cityscapes", "camvid", "pas20", "pas20b", "pas21",
]  # fmt: skip
"""Those with training images."""

Name = Literal[Trainable, "coco-to-pascal", "mosaic4"]
"""All of them."""

TRAINING_SPLITS: dict[str, str] = dict.fromkeys(("pascal", "pas20", "pas20b", "pas21"), "train_aug")
"""What is trained on where the training split is not called train."""
