"""Test the layout of the official checkpoint, with synthetic ones of odd sizes and one made of the golden tensors."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import fusioner
from fusioner.encoders.base import PUBLISHED_NORMALISATION
from fusioner.errors import FusionerError
from fusioner.model.checkpoint import load_model
from fusioner.model.config import FusionerConfig
from fusioner.model.fusioner import Fusioner
from fusioner.model.official_checkpoint import load_official

State = dict[str, Tensor]
WORDS = ["<pad>", "<unk>", "a", "photo", "of", "cat", "sofa", "<s>", "</s>"]  # as in OpenAI's vocabulary


def tower(width: int, layers: int) -> State:
    g = torch.Generator().manual_seed(width)
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(layers):
        block = f"transformer.resblocks.{i}."
        shapes |= {block + f"{ln}.{kind}": (width,) for ln in ("ln_1", "ln_2") for kind in ("weight", "bias")}
        shapes |= {block + "attn.in_proj_weight": (3 * width, width), block + "attn.in_proj_bias": (3 * width,)}
        shapes |= {block + "attn.out_proj.weight": (width, width), block + "attn.out_proj.bias": (width,)}
        shapes |= {block + "mlp.c_fc.weight": (4 * width, width), block + "mlp.c_fc.bias": (4 * width,)}
        shapes |= {block + "mlp.c_proj.weight": (width, 4 * width), block + "mlp.c_proj.bias": (width,)}
    return {key: torch.randn(shape, generator=g) * 0.2 for key, shape in shapes.items()}


def image_tower(dim: int, width: int = 64, patch: int = 8, grid: int = 4) -> State:
    state = tower(width, 2)
    state |= {f"{ln}.{kind}": torch.randn(width) for ln in ("ln_pre", "ln_post") for kind in ("weight", "bias")}
    state |= {"class_embedding": torch.randn(width), "positional_embedding": torch.randn(grid * grid + 1, width)}
    return state | {"conv1.weight": torch.randn(width, 3, patch, patch) * 0.1, "proj": torch.randn(width, dim)}


def text_tower(dim: int, width: int = 64) -> State:
    state = tower(width, 1)
    state |= {"ln_final.weight": torch.ones(width), "ln_final.bias": torch.zeros(width)}
    state |= {"positional_embedding": torch.randn(16, width), "text_projection": torch.randn(width, dim)}
    return state | {"token_embedding.weight": torch.randn(len(WORDS), width)}


def checkpoint(image: State, text: State, network: State) -> State:
    prefixed = {f"img_model.{key}": value for key, value in image.items()}
    return prefixed | {f"text_model.{key}": value for key, value in text.items()} | network


@pytest.fixture(scope="module")
def parts() -> tuple[State, State, Fusioner]:
    config = FusionerConfig(image_dim=24, text_dim=20, width=64, layers=2, heads=1, decoder_widths=(64, 64, 64))
    return image_tower(24), text_tower(20), Fusioner(config)


@pytest.fixture
def write(tmp_path: Path, parts: tuple[State, State, Fusioner]) -> Callable[..., Path]:
    """Return `save(content=None, changes)`, which writes a .pth beside a tokenizer; a change of None drops a weight."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(word, WORDS.index(word)) for word in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(tmp_path)
    image, text, model = parts
    whole = checkpoint(image, text, model.state_dict())

    def save(content: Any = None, changes: dict[str, Tensor | None] | None = None) -> Path:
        state = {key: value for key, value in (whole | (changes or {})).items() if value is not None}
        path = tmp_path / "official.pth"
        torch.save({"model": state} if content is None else content, path)
        return path

    return save


def test_the_configuration_is_inferred_from_the_tensors(
    write: Callable[..., Path], parts: tuple[State, State, Fusioner]
) -> None:
    model, image, text, card = load_official(write())
    assert model.config == parts[2].config == card.config
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in parts[2].state_dict().items())
    assert (image.dim, image.stride, text.dim, card.resolution) == (24, 8, 20, 32)
    assert text(["a photo of cat", "sofa"]).shape == (2, 20)
    assert not any(parameter.requires_grad for parameter in (*image.parameters(), *text.parameters()))
    assert (card.mean, card.std) == PUBLISHED_NORMALISATION["pascal"] == (image.mean, image.std)
    assert load_official(write(), dataset="coco")[3].mean == PUBLISHED_NORMALISATION["coco"][0]


def test_clip_weights_arguments_and_ddp_prefixes_are_accepted(
    write: Callable[..., Path], parts: tuple[State, State, Fusioner]
) -> None:
    image, text, model = parts
    whole = {f"visual.{key}": value for key, value in image.items()} | text | {"logit_scale": torch.tensor(4.6)}
    state = checkpoint(whole, whole, model.state_dict())
    content = {"model": {f"module.{key}": value.half() for key, value in state.items()}, "epoch": 3}
    loaded = load_official(write({**content, "args": argparse.Namespace(fold=0, name="x")}))
    assert loaded[0].config == model.config
    assert {value.dtype for value in loaded[0].state_dict().values()} == {torch.float32}


def test_load_opens_it(write: Callable[..., Path]) -> None:
    path = write()
    image = (torch.rand(40, 56, 3) * 255).byte().numpy()
    result = fusioner.load(path, device="cpu")(image, ["cat", "sofa"])
    assert result.label_map.shape == (40, 56)
    coco = fusioner.load(path, device="cpu", dataset="coco")
    assert isinstance(coco, fusioner.Segmenter)
    assert coco.image_encoder.mean == PUBLISHED_NORMALISATION["coco"][0]


def test_it_is_neither_saved_for_others_nor_trained_further(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write()
    with pytest.raises(FusionerError, match=r"share the \.pth file instead"):
        fusioner.load(path).save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    with pytest.raises(FusionerError, match=r"official\.pth is not a \.safetensors file of `fusioner train`"):
        load_model(path)  # as --init-from reads it


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fusion.norm.weight": None}, "lacks the weight 'fusion.norm.weight'"),
        ({"fusion.proj_patch": None}, "lacks the weight 'fusion.proj_patch'"),
        ({"fusion.blocks.1.norm1.bias": torch.zeros(3)}, r"'fusion.blocks.1.norm1.bias' has shape \(3,\)"),
        ({"decoder.conv_1.weight": torch.zeros(64, 8, 3, 3)}, r"'decoder.conv_1.weight' has shape \(64, 8, 3, 3\)"),
        ({"decoder.conv_3.bias": None}, "lacks the weight 'decoder.conv_3.bias'"),
        ({"img_model.proj": None}, "lack 'proj'"),
        ({"text_model.text_projection": None}, "lack 'text_projection'"),
        ({"text_model.ln_final.bias": torch.zeros(3)}, "1 tensors are of another shape, first .*final_layer_norm.bias"),
        ({"other.weight": torch.zeros(1)}, "'other.weight', which no official checkpoint has"),
    ],
)
def test_a_wrong_key_gets_one_sentence(
    write: Callable[..., Path], changes: dict[str, Tensor | None], sentence: str
) -> None:
    with pytest.raises(FusionerError, match=sentence) as caught:
        load_official(write(changes=changes))
    assert "\n" not in str(caught.value)
    assert "official.pth" in str(caught.value)


class Evil:
    def __reduce__(self) -> Any:
        return print, ("this ran",)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"weights": {}}, "under the key 'model'"),
        ([1, 2], "under the key 'model'"),
        ({"model": {"fusion.norm.weight": torch.zeros(1)}}, r"lacks all weights 'img_model\.\*'"),
        ({"model": {}, "bad": Evil()}, "corrupt or not an official checkpoint"),
    ],
)
def test_a_foreign_file_gets_one_sentence(
    write: Callable[..., Path], content: Any, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FusionerError, match=sentence) as caught:
        load_official(write(content))
    assert "\n" not in str(caught.value)
    assert "this ran" not in capsys.readouterr().out


def test_missing_or_truncated_files_are_one_sentence(write: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(FusionerError, match=r"no checkpoint .*nowhere\.pth"):
        load_official(tmp_path / "nowhere.pth")
    path = write()
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(FusionerError, match="is corrupt"):
        load_official(path)


def test_the_golden_tensors_through_the_checkpoint(
    sliding_windows: Any, reference: Path, write: Callable[..., Path]
) -> None:
    """Compare the logits of an image with those of the official implementation."""

    def read(name: str) -> tuple[State, dict[str, str]]:
        with safe_open(reference / f"{name}.safetensors", "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118

    def state(tensors: State) -> State:
        return {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}

    (clip, clip_sizes), (network, sizes), (windows, window_sizes) = map(
        read, ("clip_vit_dense", "fusion_decoder_head", "sliding_window")
    )
    whole = checkpoint(state(clip), text_tower(network["input.text"].shape[-1]), state(network))
    path = write({"model": whole})
    model, image, text, _ = load_official(path, heads=int(sizes["heads"]), clip_heads=int(clip_sizes["heads"]))
    image.mean, image.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # the golden image is normalised already
    assert text.dim == network["input.text"].shape[-1]
    crop, requested = int(window_sizes["crop"]), windows["input.text"]
    for name in [key for key in windows if key.endswith(".image")]:
        with torch.no_grad():
            logits = sliding_windows(
                windows[name],
                crop,
                lambda cut: model(image(cut), requested.expand(len(cut), -1, -1), (crop, crop)),
                pad=-1.0,
            )
        expected = windows[name.replace(".image", ".logits")]
        assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
