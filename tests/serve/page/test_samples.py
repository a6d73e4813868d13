"""Test that the labels of the page's samples are found in the right places."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

import fusioner

SAMPLES = Path(fusioner.__file__).parent / "serve" / "page" / "samples"


def test_the_labels_of_the_samples_are_found_where_they_are() -> None:
    model = fusioner.load()
    for sample in json.loads((SAMPLES / "samples.json").read_text("utf-8")):
        result = model(SAMPLES / sample["file"], sample["labels"], mode="whole")
        with Image.open((SAMPLES / sample["file"]).with_suffix(".png")) as stored:  # visually checked mask
            masks = np.asarray(stored)
        for number, label in enumerate(sample["labels"], start=1):
            found, right = result.mask(label), masks == number
            assert (found & right).sum() / (found | right).sum() > 0.9, label
