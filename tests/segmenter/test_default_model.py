"""Test `fusioner.load()` without network, on real photographs of obvious objects."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

import fusioner


@pytest.fixture(scope="module")
def seg() -> "fusioner.Segmenter":
    loaded = fusioner.load(device="cpu")
    assert isinstance(loaded, fusioner.Segmenter)
    return loaded


def test_a_cat_is_found_and_a_sofa_is_not(seg: "fusioner.Segmenter", tmp_path: Path) -> None:
    path = tmp_path / "chelsea.jpg"
    Image.fromarray(data.chelsea()).save(path)
    result = seg(path, ["cat", "sofa"])
    assert isinstance(result, fusioner.Segmentation)
    assert result.mask("cat")[100:250, 150:300].mean() > 0.95  # the face
    assert not result.mask("cat")[:60, 400:].any()  # the blurred corner
    assert result.coverage["sofa"] < 0.05
    assert result.scores["cat"] > 0.7
    assert sorted(result.save(tmp_path / "out", path.stem)) == ["json", "mask", "overlay"]


def test_one_encoding_many_queries(seg: "fusioner.Segmenter") -> None:
    seg.set_image(data.astronaut())
    person = seg.segment("person").mask("person")
    assert person[80:160, 190:260].mean() > 0.9  # the face
    assert not person[100:250, 380:].any()  # the shuttle
    assert seg.segment(["cat", "sofa"]).coverage["cat"] < 0.02
    everything = seg.segment(["person", "wall"], background=False)
    assert everything.label_map.min() == 1


def test_logits_do_not_depend_on_the_other_labels(seg: "fusioner.Segmenter") -> None:
    encoded = seg.encode(data.coffee(), mode="whole")
    alone = seg.low_res_logits(encoded, ["cup"])
    joint = seg.low_res_logits(encoded, ["table", "cup", "spoon"])
    if seg.model.config.labels_independent:
        assert np.allclose(alone[0], joint[1], atol=1e-3)


@pytest.mark.parametrize("mode", ["multicrop", "slide"])
def test_a_wall_stays_behind_the_person_before_it(seg: "fusioner.Segmenter", mode: str) -> None:
    encoded = seg.encode(data.astronaut(), mode=mode)
    alone = seg.low_res_logits(encoded, ["wall"])[0]
    person, wall = seg.low_res_logits(encoded, ["person", "wall"])
    likely = person > 0
    assert likely.mean() > 0.2
    assert (wall < person)[likely].all()
    unlikely = person < -1.5  # where the limit is above the wall's own logit
    assert unlikely.any()
    np.testing.assert_allclose(wall[unlikely], alone[unlikely], atol=1e-4)


def test_a_mirrored_image_has_a_mirrored_mask(seg: "fusioner.Segmenter") -> None:
    photo = data.chelsea()
    mask, mirrored = (seg(image, ["cat"], mode="whole").mask("cat") for image in (photo, photo[:, ::-1]))
    assert (mask == mirrored[:, ::-1]).mean() > 0.95
