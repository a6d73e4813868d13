"""The samples of the page: what they promise is found, and where it is."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fusioner

SAMPLES = Path(fusioner.__file__).parent / "serve" / "page" / "samples"


@pytest.mark.parametrize(
    "sample", json.loads((SAMPLES / "samples.json").read_text("utf-8")), ids=lambda one: one["name"]
)
def test_the_labels_of_a_sample_are_found_where_they_are(sample: dict) -> None:
    result = fusioner.load()(SAMPLES / sample["file"], sample["labels"], mode="whole")
    with Image.open(Path(__file__).parent / "masks" / f"{Path(sample['file']).stem}.png") as stored:
        masks = np.asarray(stored)  # checked by eye
    for number, label in enumerate(sample["labels"], start=1):
        found, right = result.mask(label), masks == number
        assert (found & right).sum() / (found | right).sum() > 0.9, label
