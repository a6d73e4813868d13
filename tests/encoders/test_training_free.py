"""Segmentation by a pair of tiny random encoders without a checkpoint: names, commands, background, export."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from skimage import data
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

import fusioner
from fusioner.cli.main import main
from fusioner.encoders.prompt_templates import read_templates
from fusioner.encoders.registry import METHODS, build_image_encoder
from fusioner.encoders.training_free import BACKGROUND_NAMES, published_protocol
from fusioner.errors import FusionerError
from fusioner.export.graphs import image_graph
from fusioner.export.network import open_graph
from fusioner.export.parity import LABELS
from fusioner.labels import SoftmaxNames
from fusioner.model.checkpoint import ModelCard

Make = Callable[[str], tuple[Path, Any]]


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(data.chelsea()[:60, :90]).save(path)
    return path


@pytest.mark.parametrize("name", ["clip", *METHODS, "pair", "reversed", "conse", "siglip", "siglip pair"])
def test_a_pair_segments_without_a_checkpoint(text_model: Make, image_model: Make, photo: Path, name: str) -> None:
    clip, dino = text_model("clip")[0], image_model("dinov2")[0]
    siglip = f"siglip2-b16@{text_model('siglip')[0]}"
    names = {
        "siglip": siglip,
        "siglip pair": f"dinov2-b@{dino}+{siglip}",
        "pair": f"maskclip-vit-b16@{clip}+dinov2-b@{dino}",
        "reversed": f"dinov2-b@{dino}+clip-vit-b16@{clip}",
        "conse": f"effnet-lite2-conse+dinov2-b@{dino}",
    }
    segmenter = fusioner.load(
        image_encoder=names.get(name, f"{name}-vit-b16@{clip}"), templates=["{}"], background=["tree"], device="cpu"
    )
    card = segmenter.card
    texts = {"conse": "minilm-embedded"} | dict.fromkeys(
        ("siglip", "siglip pair"), siglip.replace("2-b16", "2-text-b16")
    )
    assert card.text_encoder == texts.get(name, f"clip-text-b16@{clip}")
    assert ModelCard.from_json(card.to_json()) == card
    again = build_image_encoder(card.image_encoder)
    assert again.fingerprint() == segmenter.image_encoder.fingerprint()
    slide = segmenter(photo, ["cat", "sofa"], short_side=40, window=32, stride=16)
    assert (slide.options.mode, slide.options.window) == ("slide", 32)
    assert slide.label_map.shape == (60, 90)
    whole = segmenter.encode(photo, mode="whole", short_side=40)
    stride = segmenter.image_encoder.stride
    assert whole.tokens.shape[2:] == (round(40 / stride), round(60 / stride))
    assert np.isfinite(segmenter.low_res_logits(whole, ["cat", "sofa"])).all()


def test_both_orders_of_a_pair_are_the_same_encoder(text_model: Make, image_model: Make) -> None:
    clip, dino = text_model("clip")[0], image_model("dinov2")[0]
    images = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    pairs = (f"clip-vit-b16@{clip}+dinov2-b@{dino}", f"dinov2-b@{dino}+maskclip-vit-b16@{clip}")
    first, second = (fusioner.load(image_encoder=pair, device="cpu").image_encoder(images) for pair in pairs)
    assert torch.equal(first, second)


def test_windows_and_scales_as_published() -> None:
    assert published_protocol("sclip-vit-b16", 224) == (336, 224, 112, 40)
    assert published_protocol("naclip-vit-l14-336", 336) == (504, 336, 168, 40)
    assert published_protocol("clearclip-vit-b16", 224) == (448, 448, 224, 50)
    assert published_protocol("proxyclip:clip-vit-b16+dinov2-b", 224) == (336, 336, 112, 40)
    assert len(set(read_templates("imagenet"))) == 80


def test_softmax_over_labels_and_background() -> None:
    scores = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(1)) * 3
    names = SoftmaxNames(["Sky", "wall", "tree"])
    assert names.expand(["cat", "sky"]) == ["cat", "sky", "wall", "tree"]
    logits = names.reduce(scores.numpy().copy(), ["a", "b"])
    expected = torch.logit(scores.softmax(0)[:2]).numpy()
    labelled = (scores[:2].amax(0) >= scores[2:].amax(0)).numpy()
    np.testing.assert_allclose(logits[:, labelled], expected[:, labelled], atol=1e-4)
    assert (logits[:, ~labelled] < -10).all()
    alone = SoftmaxNames([]).reduce(scores[:1].numpy().copy(), ["a"])
    assert (alone > 10).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_encoder": "dinov2-s-embedded"}, "dinov2-s-embedded does not share a space with a text encoder"),
        ({"image_encoder": "sclip-vit-b16", "text_encoder": "clip-text-b32"}, "is clip-text-b16, not clip-text-b32"),
        ({"image_encoder": "sclip:dinov2-s"}, "sclip takes a CLIP with a transformer"),
        ({"image_encoder": "mocov3-vit-s+clip-vit-b16"}, "published as a file"),
        ({"image_encoder": "naclip-vit-b16+dinov2-s"}, "without one of its own: clip-vit-b16"),
        ({"image_encoder": "clip-vit-b16+dinov2-s+dinov2-b"}, "ProxyCLIP takes two encoders"),
        ({"image_encoder": "clearclip-vit-b61"}, "did you mean clearclip-vit-b16"),
        ({"image_encoder": "clip-vit-b16", "model": "best.safetensors"}, "either a model or an image encoder"),
        ({"text_encoder": "clip-text-b16"}, "name its image encoder"),
    ],
)
def test_invalid_pairs_are_refused_before_any_download(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FusionerError, match=message):
        fusioner.load(**options)


def test_predict_and_batch(
    text_model: Make, image_model: Make, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, dino = text_model("clip")[0], image_model("dinov2")[0]
    pair = ["--image-encoder", f"maskclip-vit-b16@{clip}+dinov2-b@{dino}", "--text-encoder", f"clip-text-b16@{clip}"]
    templates = tmp_path / "templates.txt"
    templates.write_text("a photo of a {}.\n")
    common = ["--labels", "cat, sofa", *pair, "--templates", str(templates), "--device", "cpu"]
    windows = ["--short-side", "48", "--window", "32", "--stride", "16"]
    assert main(["predict", str(photo), *common, *windows, "--background-names", "", "--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "photo.json").read_text())
    assert (written["short_side"], written["window"], written["stride"]) == (48, 32, 16)
    mask = np.asarray(Image.open(tmp_path / "photo.png"))
    assert set(np.unique(mask)) <= {1, 2}, "without background names every pixel gets a label"
    batch = ["batch", str(photo), *common, "--workers", "1", "--out", str(tmp_path / "batch")]
    assert main(batch) == 0
    assert main([*batch, "--background-names", "tree"]) == 2
    assert "begun with other settings: background names" in capsys.readouterr().err
    assert main([f"sclip-vit-b16@{clip}" if word == pair[1] else word for word in batch]) == 2
    assert "begun with other settings: image encoder" in capsys.readouterr().err
    typo = ["batch", str(photo), "--labels", "cat", "--image-encoder", "sclip-vit-b61", "--out", str(tmp_path / "new")]
    assert main(typo) == 2, "the typing error is not reported"
    assert "did you mean sclip-vit-b16" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_skip_existing_compares_pairs(
    text_model: Make, image_model: Make, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, dino = text_model("clip")[0], image_model("dinov2")[0]
    templates = tmp_path / "templates.txt"
    templates.write_text("{}\n")
    command = ["predict", str(photo), "--labels", "cat, sofa", "--out", str(tmp_path), "--templates", str(templates)]
    command += ["--window", "32", "--stride", "32", "--short-side", "32", "--skip-existing"]
    sclip = ["--image-encoder", f"sclip-vit-b16@{clip}", "--background-names"]
    others = [[*sclip, "tree"], ["--image-encoder", f"naclip-vit-b16@{clip}", "--background-names", "tree"]]
    others += [["--image-encoder", f"clip-vit-b16@{clip}+dinov2-b@{dino}", "--background-names", "tree"]]
    for pair in ([*sclip, "dog"], *others):
        for skipped in (False, True):
            assert main([*command, *pair]) == 0
            assert ("1 skipped" in capsys.readouterr().out) == skipped
    assert json.loads((tmp_path / "photo.json").read_text())["model"]["text_encoder"] == f"clip-text-b16@{clip}"
    assert main([*command, *sclip, "dog", "--format", "mask"]) == 2
    assert "needs json among the formats" in capsys.readouterr().err


def test_the_line_of_the_readme(
    hub: Any, text_model: Make, image_model: Make, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("openai/clip-vit-base-patch16", text_model("clip")[0])
    hub.add("facebook/dinov2-base", image_model("dinov2")[0])
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    line = next(line for line in readme.splitlines() if "--image-encoder" in line and "predict" in line)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(photo.read_bytes())
    (tmp_path / "t.txt").write_text("{}\n")
    words = shlex.split(line, comments=True)[1:]
    assert main([*words, "--templates", "t.txt", "--short-side", "48", "--window", "32", "--stride", "32"]) == 0
    written = json.loads((tmp_path / "fusioner-out" / "photo.json").read_text())
    assert written["model"]["image_encoder"] == "proxyclip:clip-vit-b16+dinov2-b"


@pytest.mark.slow
def test_exported_encoders_give_the_same_masks(tmp_path: Path, photo: Path, image_model: Make) -> None:
    words = {word: number for number, word in enumerate(["<pad>", "<unk>", "</s>", *LABELS, *BACKGROUND_NAMES])}
    words = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    text = {**shape, "vocab_size": len(words), "max_position_embeddings": 20, "eos_token_id": 2, "bos_token_id": 1}
    vision = {**shape, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    config = AutoConfig.for_model("clip", vision_config=vision, text_config=text, projection_dim=24)
    model = AutoModel.from_config(config)
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    folder = tmp_path / "clip"
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    naclip = fusioner.load(image_encoder=f"naclip-vit-b16@{folder}", device="cpu")
    graph, step = image_graph(naclip)
    onnx.save(graph, tmp_path / "naclip.onnx")
    run = open_graph(tmp_path / "naclip.onnx", "onnx")
    for sides in ((4 * step, 3 * step), (step, 2 * step)):
        images = torch.rand(1, 3, *sides)
        tokens = naclip.image_encoder(images).numpy()
        np.testing.assert_allclose(run(pixels=images.numpy())["tokens"], tokens, atol=1e-5)

    pair, out = f"clip-vit-b16@{folder}+dinov2-b@{image_model('dinov2')[0]}", tmp_path / "exported"
    assert main(["export", "--image-encoder", pair, "--photos", str(photo.parent), "--out", str(out)]) == 0
    parity = json.loads((out / "fusioner.json").read_text())["parity"]
    assert max(row["logits"] for row in parity) < 1e-4
    assert all(0 < row["undecided"] < 0.25 for row in parity)
    torch_segmenter, exported = fusioner.load(image_encoder=pair, device="cpu"), fusioner.load(out)
    for mode in ("slide", "whole"):
        first, second = (
            segmenter(photo, ["cat", "dog", "table"], mode=mode) for segmenter in (torch_segmenter, exported)
        )
        assert (first.label_map != second.label_map).mean() < 1e-3
