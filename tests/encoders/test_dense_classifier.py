"""Test EfficientNet-Lite2 against timm and on photographs, and ConSE against its definition."""

import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data
from torch import Tensor

from fusioner.encoders.base import ImageEncoder
from fusioner.encoders.bundled import minilm_embedded, read_weights
from fusioner.encoders.dense_classifier import (
    ClassName,
    ConSE,
    Hypernym,
    Posteriors,
    parse_hypernyms,
    parse_names,
)
from fusioner.encoders.efficientnet import EfficientNetLite2, SameConv2d, load_effnet
from fusioner.errors import FusionerError
from fusioner.weights import weights_file

TOOL = runpy.run_path(str(Path(__file__).resolve().parents[2] / "tools" / "build_weights.py"))
NAME_VARIANTS, embed_names, embed_hypernyms = (TOOL[key] for key in ("NAME_VARIANTS", "embed_names", "embed_hypernyms"))


@pytest.fixture(scope="module")
def networks() -> dict[int, EfficientNetLite2]:
    state = read_weights("effnet_lite2.safetensors")
    return {16: load_effnet(state, 16).requires_grad_(False), 32: load_effnet(state, 32).requires_grad_(False)}


@pytest.fixture(scope="module")
def conse() -> ConSE:
    return ConSE()


@pytest.fixture(scope="module")
def names() -> list[ClassName]:
    return parse_names(weights_file("imagenet_names.tsv").read_text(encoding="utf-8"))


def photo(name: str, height: int, width: int) -> Tensor:
    """Return a sample photograph of scikit-image, (1, 3, height, width) in [0, 1]."""
    rgb = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None] / 255  # (1, 3, H, W)
    return F.interpolate(rgb, size=(height, width), mode="bilinear", antialias=True)


# timm 1.0.31's tf_efficientnet_lite2 with these weights, on the top left of chelsea:
# size, output stride -> grid, mean feature, deviation of the logits, logits of classes 0, 281, 285, 999 at (1, 1)
TIMM = {
    (257, 300, 32): ((9, 10), 0.112266175, 1.388208270, (-2.08194518, 0.41076750, 1.26545012, 2.10321450)),
    (257, 300, 16): ((17, 19), 0.121911004, 1.464377761, (-0.42869240, 0.19139388, 0.18016493, -0.42903826)),
    (64, 96, 32): ((2, 3), 1.111291170, 7.658690929, (-3.16135287, 16.72415161, 18.98294640, -0.38008305)),
    (64, 96, 16): ((4, 6), 1.124429107, 7.812298775, (-1.57065558, 15.64321518, 17.63028526, 1.23375344)),
}


@pytest.mark.parametrize("case", TIMM)
def test_the_network_gives_timms_numbers(networks: dict[int, EfficientNetLite2], case: tuple[int, int, int]):
    height, width, stride = case
    grid, mean, deviation, at_one = TIMM[case]
    pixels = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None, :, :height, :width] / 127.5 - 1
    features, logits = networks[stride].features(pixels), networks[stride](pixels)
    assert features.shape == (1, 1280, *grid)
    assert logits.shape == (1, 1000, *grid)
    assert features.mean().item() == pytest.approx(mean, rel=1e-4)
    assert logits.std().item() == pytest.approx(deviation, rel=1e-4)
    torch.testing.assert_close(logits[0, [0, 281, 285, 999], 1, 1], torch.tensor(at_one), rtol=1e-3, atol=1e-3)


def test_folding_the_batchnorms_changes_nothing(networks: dict[int, EfficientNetLite2]):
    plain = EfficientNetLite2(16).eval()
    missing, unexpected = plain.load_state_dict(read_weights("effnet_lite2.safetensors"))
    assert not missing
    assert not unexpected
    pixels = photo("coffee", 96, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(networks[16].features(pixels), plain.features(pixels), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(networks[16](pixels), plain(pixels), rtol=1e-3, atol=1e-3)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in networks[16].modules())


def test_every_second_position_of_stride_16_is_a_position_of_stride_32(networks: dict[int, EfficientNetLite2]):
    pixels = photo("chelsea", 128, 192) * 2 - 1
    fine, coarse = networks[16](pixels), networks[32](pixels)
    assert fine.shape[-2:] == (8, 12)
    torch.testing.assert_close(fine[..., 1::2, 1::2], coarse, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("chelsea", {"tabby", "tiger cat", "Egyptian cat"}),
        ("coffee", {"espresso", "cup"}),
        ("rocket", {"drilling platform", "missile", "projectile"}),  # the launch tower resembles a rig
    ],
)
def test_the_classifier_recognises_photographs(networks, names: list[ClassName], name: str, right: set[str]):
    features = networks[32].features(photo(name, 260, 260) * 2 - 1).mean(dim=(2, 3))
    best = networks[32].fc(features)[0].topk(3).indices
    assert names[best[0]].synonyms[0] in right
    assert len({names[index].synonyms[0] for index in best} & right) >= 2


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]), st.sampled_from([1, 2]))
def test_same_padding_is_tensorflows(size: int, kernel: int, stride: int, dilation: int):
    """Compare with an explicit sum over a column of pixels; an odd padding pixel is added at the end."""
    conv = SameConv2d(1, 1, kernel, stride=stride, dilation=dilation, bias=False).requires_grad_(False)
    conv.weight.fill_(0)
    conv.weight[0, 0, :, kernel // 2] = torch.arange(1.0, kernel + 1)
    column = torch.arange(1.0, size + 1)
    count = math.ceil(size / stride)
    before = max((count - 1) * stride + dilation * (kernel - 1) + 1 - size, 0) // 2
    expected = []
    for position in range(count):
        places = [position * stride - before + tap * dilation for tap in range(kernel)]
        expected.append(sum((tap + 1) * (place + 1) for tap, place in enumerate(places) if 0 <= place < size))
    assert conv(column.view(1, 1, -1, 1)).flatten().tolist() == expected


def test_names_are_the_classifiers_thousand(names: list[ClassName]):
    assert len(names) == 1000
    synsets = [entry.synset for entry in names]
    assert synsets == sorted(set(synsets))
    assert names[0].synonyms[0] == "tench"
    assert names[281].synonyms == ("tabby", "tabby cat")
    assert names[999].synonyms[:2] == ("toilet tissue", "toilet paper")
    assert names[967].definition.startswith("strong black coffee")


def test_garments_are_written_as_worn_by_a_person(names: list[ClassName]):
    garments = {entry.synonyms[0]: NAME_VARIANTS["worn"](entry) for entry in names if NAME_VARIANTS["worn"](entry)}
    assert garments["sweatshirt"] == ["a person wearing a sweatshirt"]
    assert garments["groom"] == ["a person, groom"]
    assert {"jean", "suit", "bikini", "ballplayer", "scuba diver"} <= garments.keys()
    assert not {entry.synonyms[0] for entry in names[:398]} & garments.keys(), "coats of animals are not worn"
    anchors = read_weights("imagenet_anchors.safetensors")["worn"]
    output = [bool(NAME_VARIANTS["worn"](entry)) for entry in names]
    torch.testing.assert_close(anchors.norm(dim=1), torch.tensor(output).float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("variant", NAME_VARIANTS)
def test_shipped_anchors_are_minilms_embeddings_of_the_names(names: list[ClassName], variant: str):
    shipped = read_weights("imagenet_anchors.safetensors")[variant]
    assert shipped.shape == (1000, 384)
    picked = names[::83]
    torch.testing.assert_close(shipped[::83], embed_names(minilm_embedded(), picked, variant), rtol=0, atol=2e-4)


@pytest.fixture(scope="module")
def kinds() -> list[Hypernym]:
    return parse_hypernyms(weights_file("imagenet_kinds.tsv").read_text(encoding="utf-8"))


def test_kinds_are_wordnets_hypernyms_of_the_classes(names: list[ClassName], kinds: list[Hypernym]):
    found = {kind.name.synset: kind for kind in kinds}
    assert len(found) == len(kinds)
    assert not found.keys() & {entry.synset for entry in names}, "a hypernym repeats a class"
    cars = {names[row].synonyms[0] for row in found["n02958343"].classes}
    assert found["n02958343"].name.synonyms[0] == "car"
    assert {"convertible", "cab", "limousine", "sports car"} <= cars
    assert "freight car" not in cars, "a railway car is another sense"
    (entity,) = (kind for kind in kinds if kind.name.synonyms == ("entity",))
    assert entity.classes == tuple(range(1000))


def test_the_kinds_of_a_class_are_those_it_is_below(kinds: list[Hypernym], conse: ConSE):
    above = conse.hypernyms().of_class
    assert above.shape == (1000, 19)
    for number in (0, 99, len(kinds) - 1):
        assert tuple((above == number).any(dim=1).nonzero()[:, 0].tolist()) == kinds[number].classes
    assert int((above < len(kinds)).sum()) == sum(len(kind.classes) for kind in kinds), "a hypernym is missing"


def test_shipped_kinds_are_minilms_embeddings_of_them(kinds: list[Hypernym], conse: ConSE):
    shipped = conse.hypernyms().embeddings
    assert shipped.shape == (len(kinds), 384)
    torch.testing.assert_close(shipped[::83], embed_hypernyms(minilm_embedded(), kinds[::83]), rtol=0, atol=2e-4)


def test_conse_is_an_image_encoder_of_unit_tokens(conse: ConSE, implements: Any):
    assert implements(conse, ImageEncoder)
    assert (conse.name, conse.dim, conse.class_embeddings.shape) == ("effnet-lite2-conse", 384, (1000, 384))
    for height, width in ((conse.stride * 5, conse.stride * 7), (100, 131)):
        tokens = conse(photo("coffee", height, width))
        assert tokens.shape == (1, 384, height // conse.stride, width // conse.stride)
        torch.testing.assert_close(tokens.norm(dim=1), torch.ones_like(tokens[:, 0]))
    torch.testing.assert_close(conse.class_embeddings.norm(dim=1), torch.ones(1000))
    assert not any(module.training for module in conse.train().modules())
    assert not any(parameter.requires_grad for parameter in conse.parameters())


def test_conse_tokens_are_posteriors_times_anchors(conse: ConSE):
    image = photo("chelsea", 96, 144)
    weights = conse.logits(image * 2 - 1)[0, :, 1, 2].softmax(dim=0)
    expected = F.normalize(weights @ conse.class_embeddings, dim=0)
    torch.testing.assert_close(conse(image)[0, :, 1, 2], expected, rtol=1e-4, atol=1e-5)


def test_posterior_tokens_divided_by_their_sum_are_the_softmax(implements: Any):
    encoder = Posteriors()
    assert implements(encoder, ImageEncoder)
    assert (encoder.name, encoder.dim, encoder.stride) == ("effnet-lite2", 1000, 14)
    image = photo("chelsea", 84, 112)
    tokens = encoder(image)
    assert tokens.shape == (1, 1000, 6, 8)
    torch.testing.assert_close(tokens.norm(dim=1), torch.ones(1, 6, 8))
    posterior = encoder.logits(image * 2 - 1).softmax(dim=1)
    torch.testing.assert_close(tokens / tokens.sum(dim=1, keepdim=True), posterior, rtol=1e-4, atol=1e-6)


def test_names_are_mixed_with_weights(conse: ConSE):
    written = {key: F.normalize(value, dim=1) for key, value in read_weights("imagenet_anchors.safetensors").items()}
    expected = F.normalize(written["synonyms"] + 2 * written["defined"] + 2 * written["worn"], dim=1)
    torch.testing.assert_close(Posteriors().class_embeddings, expected)
    torch.testing.assert_close(conse.class_embeddings, F.normalize(written["synonyms"], dim=1))


@pytest.mark.parametrize(("kind", "output_stride"), [(Posteriors, 16), (ConSE, 32)])
def test_positions_are_centred_in_their_cells(kind: type[Posteriors], output_stride: int):
    """With only the middle tap of every kernel, a position depends on one pixel, found by its gradient."""
    encoder = kind()
    encoder.stride = output_stride  # prevents enlarging the image
    for module in encoder.network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            taps = torch.zeros_like(module.weight).flatten(2) if module.weight.dim() == 4 else module.weight[..., None]
            taps[..., taps.shape[2] // 2] = 1 / module.weight.shape[1]
            module.weight.copy_(taps.view_as(module.weight))
            if module.bias is not None:
                module.bias.fill_(1e-6)  # far from 0 and 6, so that no ReLU6 clips
    pixels = torch.zeros(1, 3, 160, 128, requires_grad=True)
    row, column = 3, 2
    encoder.logits(pixels)[0, :, row, column].sum().backward()
    assert pixels.grad is not None
    place = output_stride // 2 - 1
    assert pixels.grad[0, 0].nonzero().tolist() == [[row * output_stride + place, column * output_stride + place]]


@pytest.mark.parametrize(("name", "label"), [("chelsea", "cat"), ("coffee", "cup of coffee")])
def test_conse_is_aligned_with_its_text_encoder(conse: ConSE, name: str, label: str):
    labels = [label, "car", "tree", "sofa"]
    text = minilm_embedded()(labels)
    tokens = conse(photo(name, 336, 336))[0]
    cosines = torch.einsum("dhw,kd->khw", tokens, text)
    spread = torch.einsum("dhw,kd->khw", tokens, conse.class_embeddings)
    z = (cosines - spread.mean(dim=0)) / spread.std(dim=0)
    centre = z[:, z.shape[1] // 3 : -z.shape[1] // 3, z.shape[2] // 3 : -z.shape[2] // 3].mean(dim=(1, 2))
    assert centre.argmax() == 0
    assert centre[0] > 2 > centre[1:].max()


def test_weights_that_do_not_fit_are_one_sentence():
    state = read_weights("effnet_lite2.safetensors")
    del state["fc.bias"]
    with pytest.raises(FusionerError, match=r"do not fit EfficientNet-Lite2: .*fc\.bias"):
        load_effnet(state)
