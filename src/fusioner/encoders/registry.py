"""Registry of encoders by name, and the grammar of names.

    dinov2-s                    published weights, downloaded once from the Hugging Face hub
    dinov2-s@/local/folder      the same architecture from a folder (mocov3: a checkpoint file)
    hf:owner/repo, hf:/folder   any model of a supported type
    openclip:owner/repo         a CLIP of open_clip, or openclip:/folder
    dinov2-s+clip-vit-b16       several image encoders, concatenated on the first one's grid
    proxyclip:clip-vit-b16+dinov2-s     the first one's tokens, averaged by the affinity of the second one's

Add a line to IMAGE_ENCODERS or TEXT_ENCODERS to add an encoder. Importing this module loads no torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fusioner.errors import FusionerError

if TYPE_CHECKING:
    from fusioner.encoders.base import ImageEncoder, TextEncoder


@dataclass(frozen=True)
class EncoderSpec:
    """How a named encoder is loaded, and what `fusioner models` prints about it.

    Attributes:
        source: Hugging Face repository or web page of the weights; empty if they ship with the package.
        licence: of the weights; empty if unknown.
        parameters: of this encoder, in millions; 0 if unknown.
        download: in MB, shared by image and text encoders of one repository; 0 if unknown.
        loader: "module.function" of `fusioner.encoders`, called with (source, name, **options), bundled ones without.
        options: further arguments of the loader.
        gated: whether the repository requires accepting its licence.
        text: of an image encoder, the text encoder in whose space its tokens are; empty if there is none.
    """

    source: str
    licence: str
    parameters: float
    download: int = 0
    loader: str = "image.load_image_encoder"
    options: Mapping[str, Any] = field(default_factory=dict)
    gated: bool = False
    text: str = ""


def _image(source: str, licence: str, parameters: float, download: int, *types: str) -> EncoderSpec:
    return EncoderSpec(source, licence, parameters, download, options={"model_types": types})


def _text(source: str, licence: str, parameters: float, download: int, *types: str) -> EncoderSpec:
    return EncoderSpec(source, licence, parameters, download, "text.load_text_encoder", {"model_types": types})


def _clip(size: str, timm: str, parameters: float, download: int, kind: str = "image") -> EncoderSpec:
    types = ("clip", "clip_vision_model" if kind == "image" else "clip_text_model")
    options = {"model_types": types, "fallback": f"timm/vit_{timm}.openai"}
    return EncoderSpec(f"openai/clip-vit-{size}", "MIT", parameters, download, f"{kind}.load_{kind}_encoder", options)


def _metaclip2(size: str, parameters: float, download: int) -> EncoderSpec:
    spec = _image(f"facebook/metaclip-2-worldwide-{size}", "CC-BY-NC-4.0", parameters, download, "metaclip_2")
    return replace(spec, text=f"metaclip2-text-{size}")


def _dinov3(size: str, parameters: float, download: int) -> EncoderSpec:
    source = f"facebook/dinov3-vit{size}-pretrain-lvd1689m"
    return replace(_image(source, "DINOv3", parameters, download, "dinov3_vit"), gated=True)


def _tips(size: str, repository: str, image: float, text: float, download: int = 0) -> tuple[EncoderSpec, EncoderSpec]:
    types = {"model_types": ("tipsv2",)}
    spec = EncoderSpec(f"google/tipsv2-{repository}", "Apache-2.0", text, download, "tips.load_tips_text", types)
    return replace(spec, parameters=image, loader="tips.load_tips_image", text=f"tipsv2-text-{size}"), spec


def _radio(name: str, parameters: float, heads: int) -> EncoderSpec:
    return EncoderSpec(f"nvidia/C-RADIO{name}", "NVIDIA Open", parameters, 0, "radio.load_radio", {"heads": heads})


def _pe(name: str, parameters: float) -> EncoderSpec:
    options = {"architecture": f"vit_pe_{name}"}
    return EncoderSpec(f"timm/vit_pe_{name}.fb", "Apache-2.0", parameters, 0, "timm.load_vit", options)


def _mocov3(parameters: float, width: int) -> EncoderSpec:
    source = "https://github.com/facebookresearch/moco-v3"
    return EncoderSpec(source, "CC-BY-NC-4.0", parameters, 0, "mocov3.load_mocov3", {"width": width})


PROXY = "proxyclip:"
SCHEMES = ("hf:", "openclip:")
"""Beginnings of names that are not in the tables."""
_DINOV2 = ("dinov2", "dinov2_with_registers")
_SIGLIP, _SIGLIP_TEXT = ("siglip", "siglip_vision_model"), ("siglip", "siglip_text_model")
_CLIPS = {
    f"clip-vit-{size}": replace(spec, text=f"clip-text-{size}")
    for size, spec in {
        "b32": _clip("base-patch32", "base_patch32_clip_224", 87.8, 605),
        "b16": _clip("base-patch16", "base_patch16_clip_224", 86.2, 599),
        "l14": _clip("large-patch14", "large_patch14_clip_224", 304.0, 1711),
        "l14-336": _clip("large-patch14-336", "large_patch14_clip_336", 304.3, 1712),
    }.items()
}
_TIPS = {
    "b": _tips("b", "b14", 85.7, 109.6, 785),
    "l": _tips("l", "l14", 303.2, 183.9),
    "so400m": _tips("so400m", "so400m14", 412.4, 448.3),
}
IMAGE_ENCODERS: dict[str, EncoderSpec] = {
    "dinov2-s-embedded": EncoderSpec("", "Apache-2.0", 18.5, loader="bundled.Dinov2"),
    "effnet-lite2": EncoderSpec("", "Apache-2.0", 6.1, loader="dense_classifier.Posteriors", text="minilm-embedded"),
    "effnet-lite2-conse": EncoderSpec("", "Apache-2.0", 6.1, loader="dense_classifier.ConSE", text="minilm-embedded"),
    **_CLIPS,
    **{
        name.replace("clip", method, 1): replace(spec, options={**spec.options, "attention": method})
        for method in ("maskclip", "sclip", "naclip", "clearclip")
        for name, spec in _CLIPS.items()
    },
    "clip-rn50": EncoderSpec("timm/resnet50_clip.openai", "MIT", 38.3, 408, "timm.load_clip_resnet"),
    "clip-rn101": EncoderSpec("timm/resnet101_clip.openai", "MIT", 56.3, 479, "timm.load_clip_resnet"),
    "dino-vit-s16": _image("facebook/dino-vits16", "Apache-2.0", 21.7, 87, "vit"),
    "dino-vit-b16": _image("facebook/dino-vitb16", "Apache-2.0", 85.8, 343, "vit"),
    "dinov2-s": _image("facebook/dinov2-small", "Apache-2.0", 22.1, 88, *_DINOV2),
    "dinov2-b": _image("facebook/dinov2-base", "Apache-2.0", 86.6, 346, *_DINOV2),
    "dinov2-l": _image("facebook/dinov2-large", "Apache-2.0", 304.4, 1217, *_DINOV2),
    "dinov3-s": _dinov3("s16", 21.6, 86),
    "dinov3-splus": _dinov3("s16plus", 28.7, 115),
    "dinov3-b": _dinov3("b16", 85.7, 343),
    "dinov3-l": _dinov3("l16", 303.1, 1213),
    "dinov3-hplus": _dinov3("h16plus", 840.6, 3362),
    "mocov3-vit-s": _mocov3(21.7, 384),
    "mocov3-vit-b": _mocov3(85.8, 768),
    "mae-vit-b": _image("facebook/vit-mae-base", "Apache-2.0", 85.8, 448, "vit_mae", "vit"),
    "siglip2-b16": _image("google/siglip2-base-patch16-224", "Apache-2.0", 85.8, 1539, *_SIGLIP),
    "siglip2-so400m": _image("google/siglip2-so400m-patch14-384", "Apache-2.0", 413.0, 4580, *_SIGLIP),
    "metaclip2-b16": _metaclip2("b16", 86.2, 2344),
    "metaclip2-l14": _metaclip2("l14", 304.0, 4328),
    **{f"tipsv2-{size}": image for size, (image, _) in _TIPS.items()},
    "c-radiov3-b": _radio("v3-B", 98.3, 12),
    "c-radiov3-l": _radio("v3-L", 319.9, 16),
    "c-radiov3-h": _radio("v3-H", 651.6, 16),
    "c-radiov4-so400m": _radio("v4-SO400M", 431.2, 16),
    "c-radiov4-h": _radio("v4-H", 651.6, 16),
    "pe-core-b16": _pe("core_base_patch16_224", 93.7),
    "pe-core-l14": _pe("core_large_patch14_336", 317.2),
    "pe-spatial-b16": _pe("spatial_base_patch16_512", 86.4),
    "pe-spatial-l14": _pe("spatial_large_patch14_448", 304.0),
}
TEXT_ENCODERS: dict[str, EncoderSpec] = {
    "minilm-embedded": EncoderSpec("", "Apache-2.0", 22.6, loader="bundled.minilm_embedded"),
    "clip-text-b32": _clip("base-patch32", "base_patch32_clip_224", 63.4, 605, "text"),
    "clip-text-b16": _clip("base-patch16", "base_patch16_clip_224", 63.4, 599, "text"),
    "clip-text-l14": _clip("large-patch14", "large_patch14_clip_224", 123.7, 1711, "text"),
    "clip-text-l14-336": _clip("large-patch14-336", "large_patch14_clip_336", 123.7, 1712, "text"),
    "bert-base": _text("google-bert/bert-base-uncased", "Apache-2.0", 108.9, 440, "bert"),
    "bert-large": _text("google-bert/bert-large-uncased", "Apache-2.0", 334.1, 1345, "bert"),
    "roberta-base": _text("FacebookAI/roberta-base", "MIT", 124.1, 499, "roberta"),
    "mpnet": _text("sentence-transformers/all-mpnet-base-v2", "Apache-2.0", 108.9, 438, "mpnet"),
    "minilm": _text("sentence-transformers/all-MiniLM-L6-v2", "Apache-2.0", 22.6, 91, "bert"),
    "siglip2-text-b16": _text("google/siglip2-base-patch16-224", "Apache-2.0", 282.3, 1539, *_SIGLIP_TEXT),
    "siglip2-text-so400m": _text("google/siglip2-so400m-patch14-384", "Apache-2.0", 707.8, 4580, *_SIGLIP_TEXT),
    "metaclip2-text-b16": _text("facebook/metaclip-2-worldwide-b16", "CC-BY-NC-4.0", 499.8, 2344, "metaclip_2"),
    "metaclip2-text-l14": _text("facebook/metaclip-2-worldwide-l14", "CC-BY-NC-4.0", 778.2, 4328, "metaclip_2"),
    **{f"tipsv2-text-{size}": text for size, (_, text) in _TIPS.items()},
}


def available_encoders() -> dict[str, list[str]]:
    """Return the registered names, {"image": [...], "text": [...]}, the bundled encoders first."""
    return {"image": list(IMAGE_ENCODERS), "text": list(TEXT_ENCODERS)}


def build_image_encoder(name: str) -> "ImageEncoder":
    """Build the frozen image encoder of a name in the grammar above."""
    builders = [_resolve(part, IMAGE_ENCODERS, "image") for part in split_list(name)]  # all names before any weights
    if len(builders) == 1:
        return builders[0]()
    from fusioner.encoders.base import ConcatEncoder

    return cast("ImageEncoder", ConcatEncoder([build() for build in builders]))


def build_text_encoder(name: str) -> "TextEncoder":
    """Build the frozen text encoder of a name, `NAME@/folder`, `hf:...` or `openclip:...`."""
    return _resolve(name.strip(), TEXT_ENCODERS, "text")()


def check_names(image_encoder: str, text_encoder: str) -> None:
    """Raise a FusionerError if a name is unknown or its folder is missing; loads nothing."""
    for part in split_list(image_encoder):
        _resolve(part, IMAGE_ENCODERS, "image")
    _resolve(text_encoder.strip(), TEXT_ENCODERS, "text")


def pending_download(image_encoder: str, text_encoder: str) -> str:
    """Return what building the encoders downloads, such as "owner/a, owner/b (945 MB)"; empty if nothing."""
    from fusioner.encoders.hub import is_cached

    table = IMAGE_ENCODERS | TEXT_ENCODERS
    specs = [
        table[name] for name in (*split_list(image_encoder.removeprefix(PROXY)), text_encoder.strip()) if name in table
    ]
    missing = {
        spec.source: spec.download
        for spec in specs
        if spec.source.count("/") == 1 and not is_cached(spec.source, spec.options.get("fallback", ""))
    }
    known = sum(missing.values())
    size = f"{known} MB{'' if all(missing.values()) else ' and more'}" if known else "size unknown"
    return f"{', '.join(missing)} ({size})" if missing else ""


def space_mismatch(image_encoder: str, text_encoder: str) -> str:
    """Return why (the last part of) an image encoder and a text encoder do not share a space, as far as names tell.

    Empty if they do, and for `hf:` and other unregistered encoders.
    """
    last, name = split_list(image_encoder)[-1], text_encoder.strip()
    base, _, folder = last.partition("@")
    if last.startswith("openclip:") and name.startswith("openclip:") and last != name:
        return f"the text encoder of {last} is {last}, not {name}"
    if base not in IMAGE_ENCODERS or name.partition("@")[0] not in TEXT_ENCODERS:
        return ""
    expected = IMAGE_ENCODERS[base].text
    if not expected:
        return f"{last} has no text encoder in its space, as clip-vit-b16 has clip-text-b16"
    if name.partition("@")[0] in (expected, expected.removesuffix("-embedded")):
        return ""
    return f"the text encoder of {last} is {expected}{'@' if folder else ''}{folder}, not {name}"


def _resolve_proxy(name: str) -> "Callable[[], ImageEncoder]":
    parts = split_list(name.removeprefix(PROXY))
    if len(parts) != 2:
        raise FusionerError(f"{name}: ProxyCLIP takes two encoders, as in {PROXY}clip-vit-b16+dinov2-s")
    method = parts[0].partition("-")[0]
    if method in ("sclip", "naclip", "clearclip"):
        raise FusionerError(
            f"{parts[0]}+{parts[1]}: the second encoder gives the attention, so name a CLIP without one of its own: "
            f"{parts[0].replace(method, 'clip', 1)}"
        )
    builders = [_resolve(part, IMAGE_ENCODERS, "image", values=part is parts[0]) for part in parts]

    def build() -> "ImageEncoder":
        from fusioner.encoders.proxyclip import ProxyEncoder

        aligned, guide = (build() for build in builders)
        return cast("ImageEncoder", ProxyEncoder(aligned, guide, f"{PROXY}{aligned.name}+{guide.name}"))

    return build


def matching_text_encoder(name: str) -> str | None:
    """Return the text encoder of the same model as an image encoder; None if there is none or it is unknown.

    clip-vit-b16@/folder -> clip-text-b16@/folder, hf:REPOSITORY -> hf:REPOSITORY, also openclip:.
    """
    if name.startswith(SCHEMES):
        return name
    base, at, path = name.partition("@")
    text = IMAGE_ENCODERS[base].text if base in IMAGE_ENCODERS else ""
    return f"{text}{at}{path}" if text else None


def value_tokens(name: str) -> str:
    """Return the MaskCLIP encoder of (the last part of) a CLIP image encoder: `clip-vit-b16` -> `maskclip-vit-b16`.

    CLIP's ResNets have them anyway.
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
    """Split `A+B` into names; a "+" inside a path stays, unless a known name or `hf:` follows it."""
    if name.startswith(PROXY):
        return [name]
    parts: list[str] = []
    for piece in name.split("+"):
        in_path = parts and ("@" in parts[-1] or parts[-1].strip().startswith(SCHEMES))
        starts = piece.strip().startswith(SCHEMES) or piece.strip().split("@")[0] in IMAGE_ENCODERS
        if in_path and not starts:
            parts[-1] += f"+{piece}"
        else:
            parts.append(piece)
    return [part.strip() for part in parts]


def _resolve(name: str, table: Mapping[str, EncoderSpec], kind: str, values: bool = False) -> Callable[[], Any]:
    """Check a name and return a function that builds its encoder; with `values`, a CLIP of attention "values"."""
    if name.startswith(PROXY) and kind == "image":
        return _resolve_proxy(name)
    if name.startswith(SCHEMES):
        scheme, _, source = name.partition(":")
        source = _absolute(source)
        if not source:
            raise FusionerError(f"{scheme}: names no model; write {scheme}:OWNER/REPOSITORY or {scheme}:/FOLDER")
        options = {"open_clip": True} if scheme == "openclip" else {}
        spec = _with_values(EncoderSpec(source, "", 0, loader=f"{kind}.load_{kind}_encoder", options=options), values)
        return lambda: _build(spec, f"{scheme}:{source}", source)
    base, at, path = name.partition("@")
    if base not in table:
        raise FusionerError(_unknown(base, table, kind))
    spec = _with_values(table[base], values)
    if not at:
        return lambda: _build(spec, base, spec.source)
    if not path or not Path(path).expanduser().exists():
        raise FusionerError(f"{base}: there is no {path or 'path after the @'}; write {base}@/path/to/its/weights")
    if not spec.source:
        raise FusionerError(
            f"{base}: this encoder ships with fusioner and takes no folder; drop the @ and what follows"
        )
    path = _absolute(path)
    return lambda: _build(spec, f"{base}@{path}", path)


def _with_values(spec: EncoderSpec, values: bool) -> EncoderSpec:
    if not values or spec.loader != "image.load_image_encoder":
        return spec
    return replace(spec, options={**spec.options, "attention": "values"})


def _build(spec: EncoderSpec, name: str, source: str) -> Any:
    module, function = spec.loader.split(".")
    load = getattr(import_module(f"fusioner.encoders.{module}"), function)
    return load(source, name, **spec.options) if source else load()


def _absolute(path: str) -> str:
    """Make an existing path absolute, so that the encoder's name is valid in any directory."""
    local = Path(path).expanduser()
    return str(local.absolute()) if path and local.exists() else path


def _unknown(name: str, table: Mapping[str, EncoderSpec], kind: str) -> str:
    other, other_kind = (TEXT_ENCODERS, "a text") if kind == "image" else (IMAGE_ENCODERS, "an image")
    if name in other:
        return f"{name!r} is {other_kind} encoder, not one for {kind}s; choose from: {', '.join(table)}"
    near = get_close_matches(name, table, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from: {', '.join(table)}"
    return f"unknown {kind} encoder {name!r}; {hint} (others: hf:REPOSITORY, openclip:REPOSITORY, hf:/FOLDER)"
