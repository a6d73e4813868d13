"""The encoders by name: two plain dicts of lazy builders, and the grammar of a name.

    dinov2-s                    its published weights, downloaded once from the Hugging Face hub
    dinov2-s@/local/folder      the same architecture offline, from a folder (mocov3: a checkpoint file)
    hf:owner/repo, hf:/folder   any model of a supported type, told by its config
    dinov2-s+clip-vit-b16       (image) several encoders side by side, on the first one's grid

Importing this module loads no torch; building does.
"""

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fusioner.errors import FusionerError

if TYPE_CHECKING:
    from fusioner.encoders.base import ImageEncoder, TextEncoder

Builder = Callable[[str, str | None], Any]
"""(full name, local folder or None) -> encoder."""

MOCOV3_FILES = "https://github.com/facebookresearch/moco-v3"


def _image(repository: str, *kinds: str, values: bool = False) -> Builder:
    def build(name: str, folder: str | None) -> "ImageEncoder":
        from fusioner.encoders.image import load_image_encoder

        return load_image_encoder(folder or repository, name, kinds, values=values)

    return build


def _text(repository: str, *kinds: str) -> Builder:
    def build(name: str, folder: str | None) -> "TextEncoder":
        from fusioner.encoders.text import load_text_encoder

        return load_text_encoder(folder or repository, name, kinds)

    return build


def _clip_resnet(architecture: str) -> Builder:
    def build(name: str, folder: str | None) -> "ImageEncoder":
        from fusioner.encoders.timm import load_clip_resnet

        return load_clip_resnet(folder or f"timm/{architecture}", name, architecture)

    return build


def _mocov3(width: int) -> Builder:
    def build(name: str, file: str | None) -> "ImageEncoder":
        from fusioner.encoders.mocov3 import load_mocov3

        if file is None:
            raise FusionerError(
                f"{name}: MoCo v3 is published as a file ({MOCOV3_FILES}); use {name}@/path/FILE.pth.tar"
            )
        return load_mocov3(file, name, width)

    return build


def _embedded(module: str, function: str) -> Builder:
    def build(name: str, folder: str | None) -> Any:
        from importlib import import_module

        if folder is not None:
            raise FusionerError(
                f"{name}: this encoder ships with fusioner and takes no folder; drop the @ and what follows"
            )
        return getattr(import_module(f"fusioner.encoders.{module}"), function)()

    return build


_CLIP, _CLIP_TEXT = ("clip", "clip_vision_model"), ("clip", "clip_text_model")
_DINOV2 = ("dinov2", "dinov2_with_registers")

IMAGE_ENCODERS: dict[str, Builder] = {
    "dinov2-s-embedded": _embedded("bundled", "dinov2_s_embedded"),
    "effnet-lite2": _embedded("dense_classifier", "effnet_lite2"),
    "effnet-lite2-conse": _embedded("dense_classifier", "effnet_lite2_conse"),
    "clip-vit-b32": _image("openai/clip-vit-base-patch32", *_CLIP),
    "clip-vit-b16": _image("openai/clip-vit-base-patch16", *_CLIP),
    "clip-vit-l14": _image("openai/clip-vit-large-patch14", *_CLIP),
    "clip-vit-l14-336": _image("openai/clip-vit-large-patch14-336", *_CLIP),
    "maskclip-vit-b32": _image("openai/clip-vit-base-patch32", *_CLIP, values=True),
    "maskclip-vit-b16": _image("openai/clip-vit-base-patch16", *_CLIP, values=True),
    "maskclip-vit-l14": _image("openai/clip-vit-large-patch14", *_CLIP, values=True),
    "maskclip-vit-l14-336": _image("openai/clip-vit-large-patch14-336", *_CLIP, values=True),
    "clip-rn50": _clip_resnet("resnet50_clip.openai"),
    "clip-rn101": _clip_resnet("resnet101_clip.openai"),
    "dino-vit-s16": _image("facebook/dino-vits16", "vit"),
    "dino-vit-b16": _image("facebook/dino-vitb16", "vit"),
    "dinov2-s": _image("facebook/dinov2-small", *_DINOV2),
    "dinov2-b": _image("facebook/dinov2-base", *_DINOV2),
    "dinov2-l": _image("facebook/dinov2-large", *_DINOV2),
    "dinov3-s": _image("facebook/dinov3-vits16-pretrain-lvd1689m", "dinov3_vit"),
    "dinov3-b": _image("facebook/dinov3-vitb16-pretrain-lvd1689m", "dinov3_vit"),
    "dinov3-l": _image("facebook/dinov3-vitl16-pretrain-lvd1689m", "dinov3_vit"),
    "mocov3-vit-s": _mocov3(384),
    "mocov3-vit-b": _mocov3(768),
    "mae-vit-b": _image("facebook/vit-mae-base", "vit_mae", "vit"),
    "siglip2-b16": _image("google/siglip2-base-patch16-224", "siglip", "siglip_vision_model"),
}
"""Image encoders by name."""

TEXT_ENCODERS: dict[str, Builder] = {
    "minilm-embedded": _embedded("bundled", "minilm_embedded"),
    "clip-text-b32": _text("openai/clip-vit-base-patch32", *_CLIP_TEXT),
    "clip-text-b16": _text("openai/clip-vit-base-patch16", *_CLIP_TEXT),
    "clip-text-l14": _text("openai/clip-vit-large-patch14", *_CLIP_TEXT),
    "clip-text-l14-336": _text("openai/clip-vit-large-patch14-336", *_CLIP_TEXT),
    "bert-base": _text("google-bert/bert-base-uncased", "bert"),
    "bert-large": _text("google-bert/bert-large-uncased", "bert"),
    "roberta-base": _text("FacebookAI/roberta-base", "roberta"),
    "mpnet": _text("sentence-transformers/all-mpnet-base-v2", "mpnet"),
    "minilm": _text("sentence-transformers/all-MiniLM-L6-v2", "bert"),
    "siglip2-text-b16": _text("google/siglip2-base-patch16-224", "siglip", "siglip_text_model"),
}
"""Text encoders by name."""


def available_encoders() -> dict[str, list[str]]:
    """The names that need no path: {"image": [...], "text": [...]}; the embedded ones first."""
    return {"image": list(IMAGE_ENCODERS), "text": list(TEXT_ENCODERS)}


def build_image_encoder(name: str) -> "ImageEncoder":
    """The frozen image encoder of a name, `NAME@/folder`, `hf:...`, or several joined by `+`.

    Raises FusionerError for an unknown name (with the nearest ones), and when the weights cannot be had or do not fit.
    """
    builders = [_resolve(part, IMAGE_ENCODERS, "image") for part in split_list(name)]  # all names before any weights
    if len(builders) == 1:
        return builders[0]()
    from fusioner.encoders.concat import ConcatEncoder

    return cast("ImageEncoder", ConcatEncoder([build() for build in builders]))


def build_text_encoder(name: str) -> "TextEncoder":
    """The frozen text encoder of a name, `NAME@/folder` or `hf:...`; raises as `build_image_encoder`."""
    return _resolve(name.strip(), TEXT_ENCODERS, "text")()


def value_tokens(name: str) -> str:
    """The encoder of MaskCLIP's value tokens in place of (the last of) a CLIP image encoder: `clip-vit-b16@/folder` ->
    `maskclip-vit-b16@/folder`. CLIP's ResNets give them as they are.

    Raises FusionerError for anything else than a CLIP by its own name.
    """
    last = split_list(name)[-1]
    base = last.partition("@")[0]
    if base.startswith(("clip-rn", "maskclip-")):
        return last
    if f"mask{base}" not in IMAGE_ENCODERS:
        raise FusionerError(
            f"MaskCLIP takes the value tokens of CLIP, which {last!r} is not: name clip-vit-b16, "
            "clip-vit-b16@/folder or another CLIP of `fusioner models`"
        )
    return f"mask{last}"


def split_list(name: str) -> list[str]:
    """`A+B` -> ["A", "B"]; a "+" inside a path stays there, unless a known name or `hf:` follows it."""
    parts: list[str] = []
    for piece in name.split("+"):
        in_path = parts and ("@" in parts[-1] or parts[-1].strip().startswith("hf:"))
        starts = piece.strip().startswith("hf:") or piece.strip().split("@")[0] in IMAGE_ENCODERS
        if in_path and not starts:
            parts[-1] += f"+{piece}"
        else:
            parts.append(piece)
    return [part.strip() for part in parts]


def _resolve(name: str, table: Mapping[str, Builder], kind: str) -> Callable[[], Any]:
    """What builds one encoder; FusionerError when the name alone is wrong."""
    if name.startswith("hf:"):
        source = _absolute(name.removeprefix("hf:"))
        if not source:
            raise FusionerError("hf: names no model; write hf:OWNER/REPOSITORY or hf:/FOLDER")
        load = _image if kind == "image" else _text
        return partial(load(source), f"hf:{source}", None)
    base, at, path = name.partition("@")
    if base not in table:
        raise FusionerError(_unknown(base, table, kind))
    if not at:
        return partial(table[base], base, None)
    if not path or not Path(path).expanduser().exists():
        raise FusionerError(f"{base}: there is no {path or 'path after the @'}; write {base}@/path/to/its/weights")
    path = _absolute(path)
    return partial(table[base], f"{base}@{path}", path)


def _absolute(path: str) -> str:
    """A path that exists, made absolute, so that the encoder's name builds it from any directory; else as it is."""
    local = Path(path).expanduser()
    return str(local.absolute()) if path and local.exists() else path


def _unknown(name: str, table: Iterable[str], kind: str) -> str:
    other, other_kind = (TEXT_ENCODERS, "a text") if kind == "image" else (IMAGE_ENCODERS, "an image")
    if name in other:
        return f"{name!r} is {other_kind} encoder, not one for {kind}s; choose from: {', '.join(table)}"
    near = get_close_matches(name, table, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from: {', '.join(table)}"
    return f"unknown {kind} encoder {name!r}; {hint} (any other model: hf:REPOSITORY or hf:/FOLDER)"
