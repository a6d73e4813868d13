"""Registry of encoders by name, and the grammar of names.

    dinov2-s                    published weights, downloaded once from the Hugging Face hub
    dinov2-s@/local/folder      the same architecture from a folder (mocov3: a checkpoint file)
    hf:owner/repo, hf:/folder   any model of a supported type
    openclip:owner/repo         a CLIP of open_clip, or openclip:/folder
    dinov2-s+clip-vit-b16       several image encoders, concatenated on the first one's grid
    sclip:openclip:owner/repo   a CLIP with another attention in its last layer: METHOD:NAME, see `METHODS`
    proxyclip:clip-vit-b16+dinov2-s     the first one's tokens, averaged by the affinity of the second one's

Add a line to IMAGE_ENCODERS or TEXT_ENCODERS to add an encoder. Importing this module loads no torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from fusioner.errors import FusionerError

if TYPE_CHECKING:
    from fusioner.encoders.base import ImageEncoder, TextEncoder


@dataclass(frozen=True)
class EncoderSpec:
    """Loader and properties of a named encoder, as `fusioner models` lists them.

    Attributes:
        source: Hugging Face repository or web page of the weights; empty if they ship with the package.
        licence: of the weights; empty if unknown.
        parameters: of this encoder, in millions; 0 if unknown.
        download: in MB, shared by image and text encoders of one repository; 0 if unknown.
        estimated: whether `download` is 4 bytes per parameter instead of the size of the published files.
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
    estimated: bool = False


def _image(source: str, licence: str, parameters: float, download: int, *types: str) -> EncoderSpec:
    return EncoderSpec(source, licence, parameters, download, options={"model_types": types})


def _text(source: str, licence: str, parameters: float, download: int, *types: str) -> EncoderSpec:
    return EncoderSpec(source, licence, parameters, download, "text.load_text_encoder", {"model_types": types})


def _estimate(spec: EncoderSpec, parameters: float) -> EncoderSpec:
    return replace(spec, download=round(4 * parameters), estimated=True)


def _pair(
    text: str,
    source: str,
    licence: str,
    millions: tuple[float, float],
    download: int,
    kind: str,
    loaders: tuple[str, str] = ("image.load_image_encoder", "text.load_text_encoder"),
    **options: Any,
) -> tuple[EncoderSpec, EncoderSpec]:
    """Return the specs of a model's image encoder and of its text encoder, which is named `text`."""
    types = {"model_types": (kind, f"{kind}_vision_model")}
    image = EncoderSpec(source, licence, millions[0], download, loaders[0], options | types, text=text)
    image = image if download else _estimate(image, sum(millions))
    types = {"model_types": (kind, f"{kind}_text_model")}
    return image, replace(image, parameters=millions[1], loader=loaders[1], options=options | types, text="")


def _clip(size: str, name: str, timm: str, millions: tuple[float, float], download: int) -> Any:
    source, fallback = f"openai/clip-vit-{name}", f"timm/vit_{timm}.openai"
    return _pair(f"clip-text-{size}", source, "MIT", millions, download, "clip", fallback=fallback)


def _siglip2(size: str, name: str, millions: tuple[float, float], download: int) -> Any:
    return _pair(f"siglip2-text-{size}", f"google/siglip2-{name}", "Apache-2.0", millions, download, "siglip")


def _metaclip2(size: str, millions: tuple[float, float], download: int) -> Any:
    source = f"facebook/metaclip-2-worldwide-{size}"
    return _pair(f"metaclip2-text-{size}", source, "CC-BY-NC-4.0", millions, download, "metaclip_2")


def _tips(size: str, name: str, millions: tuple[float, float], download: int = 0) -> Any:
    loaders = ("tips.load_tips_image", "tips.load_tips_text")
    return _pair(f"tipsv2-text-{size}", f"google/tipsv2-{name}", "Apache-2.0", millions, download, "tipsv2", loaders)


def _dinov3(size: str, parameters: float, download: int) -> EncoderSpec:
    source = f"facebook/dinov3-vit{size}-pretrain-lvd1689m"
    return replace(_image(source, "DINOv3", parameters, download, "dinov3_vit"), gated=True)


def _radio(name: str, parameters: float, heads: int) -> EncoderSpec:
    options = {"heads": heads}
    spec = EncoderSpec(f"nvidia/C-RADIO{name}", "NVIDIA Open", parameters, 0, "radio.load_radio", options)
    return _estimate(spec, parameters)


def _pe(name: str, parameters: float) -> EncoderSpec:
    options = {"architecture": f"vit_pe_{name}"}
    spec = EncoderSpec(f"timm/vit_pe_{name}.fb", "Apache-2.0", parameters, 0, "timm.load_vit", options)
    return _estimate(spec, parameters)


def _mocov3(parameters: float, width: int) -> EncoderSpec:
    source = "https://github.com/facebookresearch/moco-v3"
    return EncoderSpec(source, "CC-BY-NC-4.0", parameters, 0, "mocov3.load_mocov3", {"width": width})


PROXY = "proxyclip:"
METHODS = ("maskclip", "sclip", "naclip", "clearclip")
"""Methods that replace the last attention of an encoder, see `encoders.attention`."""
SCHEMES = ("hf:", "openclip:")
"""Beginnings of names that are not in the tables."""
_DINOV2 = ("dinov2", "dinov2_with_registers")
_PAIRS: dict[str, tuple[EncoderSpec, EncoderSpec]] = {
    "clip-vit-b32": _clip("b32", "base-patch32", "base_patch32_clip_224", (87.8, 63.4), 605),
    "clip-vit-b16": _clip("b16", "base-patch16", "base_patch16_clip_224", (86.2, 63.4), 599),
    "clip-vit-l14": _clip("l14", "large-patch14", "large_patch14_clip_224", (304.0, 123.7), 1711),
    "clip-vit-l14-336": _clip("l14-336", "large-patch14-336", "large_patch14_clip_336", (304.3, 123.7), 1712),
    "siglip2-b16": _siglip2("b16", "base-patch16-224", (85.8, 282.3), 1539),
    "siglip2-so400m": _siglip2("so400m", "so400m-patch14-384", (413.0, 707.8), 4580),
    "metaclip2-b16": _metaclip2("b16", (86.2, 499.8), 2344),
    "metaclip2-l14": _metaclip2("l14", (304.0, 778.2), 4328),
    "tipsv2-b": _tips("b", "b14", (85.7, 109.6), 785),
    "tipsv2-l": _tips("l", "l14", (303.2, 183.9)),
    "tipsv2-so400m": _tips("so400m", "so400m14", (412.4, 448.3)),
}
"""Image encoder's name -> both encoders of a model with a shared space."""
IMAGE_ENCODERS: dict[str, EncoderSpec] = {
    "dinov2-s-embedded": EncoderSpec("", "Apache-2.0", 18.5, loader="bundled.Dinov2"),
    "effnet-lite2": EncoderSpec("", "Apache-2.0", 6.1, loader="dense_classifier.Posteriors", text="minilm-embedded"),
    "effnet-lite2-conse": EncoderSpec("", "Apache-2.0", 6.1, loader="dense_classifier.ConSE", text="minilm-embedded"),
    **{name: image for name, (image, _) in _PAIRS.items()},
    **{
        name.replace("clip", method, 1): replace(image, options={**image.options, "attention": method})
        for method in METHODS
        for name, (image, _) in _PAIRS.items()
        if name.startswith("clip-")
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
    **{image.text: text for image, text in _PAIRS.values()},
    "bert-base": _text("google-bert/bert-base-uncased", "Apache-2.0", 108.9, 440, "bert"),
    "bert-large": _text("google-bert/bert-large-uncased", "Apache-2.0", 334.1, 1345, "bert"),
    "roberta-base": _text("FacebookAI/roberta-base", "MIT", 124.1, 499, "roberta"),
    "mpnet": _text("sentence-transformers/all-mpnet-base-v2", "Apache-2.0", 108.9, 438, "mpnet"),
    "minilm": _text("sentence-transformers/all-MiniLM-L6-v2", "Apache-2.0", 22.6, 91, "bert"),
}


def available_encoders() -> dict[str, list[str]]:
    """Return the registered names, {"image": [...], "text": [...]}, the bundled encoders first."""
    return {"image": list(IMAGE_ENCODERS), "text": list(TEXT_ENCODERS)}


def build_image_encoder(name: str) -> "ImageEncoder":
    """Build the frozen image encoder of a name in the grammar above."""
    parts = [_resolve(part, IMAGE_ENCODERS, "image") for part in split_list(name)]  # all names before any weights
    if len(parts) == 1:
        return parts[0].build()
    from fusioner.encoders.base import ConcatEncoder

    return cast("ImageEncoder", ConcatEncoder([part.build() for part in parts]))


def build_text_encoder(name: str) -> "TextEncoder":
    """Build the frozen text encoder of a name, `NAME@/folder`, `hf:...` or `openclip:...`."""
    return _resolve(name.strip(), TEXT_ENCODERS, "text").build()


def full_names(image_encoder: str, text_encoder: str) -> tuple[str, str]:
    """Return the encoders' names with absolute paths; loads nothing.

    Raises:
        FusionerError: a name is unknown, or its folder is missing.
    """
    image = "+".join(_resolve(part, IMAGE_ENCODERS, "image").name for part in split_list(image_encoder))
    return image, _resolve(text_encoder.strip(), TEXT_ENCODERS, "text").name


def pending_download(image_encoder: str, text_encoder: str) -> str:
    """Return what building the encoders downloads, such as "owner/a, owner/b (945 MB)"; empty if nothing.

    Sizes that the tables do not state are read from the hub; "about": it cannot be reached.
    """
    named = [_resolve(part, IMAGE_ENCODERS, "image") for part in split_list(image_encoder)]
    named += [_resolve(text_encoder.strip(), TEXT_ENCODERS, "text")]
    remote = [spec for part in named for spec in part.specs if is_repository(spec.source)]
    if not remote:  # then without the import of transformers, seconds
        return ""
    from fusioner.encoders.hub import download_megabytes, is_cached

    missing: dict[str, int] = {}
    about = ""
    for spec in remote:
        place = spec.source, spec.options.get("fallback", ""), "open_clip" in spec.options
        if spec.source in missing or is_cached(*place):
            continue
        missing[spec.source] = spec.download
        if spec.estimated or not spec.download:
            size = download_megabytes(*place)
            missing[spec.source], about = size or spec.download, about if size else "about "
    known = sum(missing.values())
    text = f"{about}{known} MB{'' if all(missing.values()) else ' and more'}" if known else "size unknown"
    return f"{', '.join(missing)} ({text})" if missing else ""


def space_mismatch(image_encoder: str, text_encoder: str) -> str:
    """Return why (the last part of) an image encoder and a text encoder do not share a space, by their names.

    Empty if they do, and for `hf:` and other unregistered encoders.
    """
    last, name = split_list(image_encoder)[-1], text_encoder.strip()
    method, plain = split_method(last)
    base, _, folder = plain.partition("@")
    if plain.startswith("openclip:") and name.startswith("openclip:") and plain != name:
        return f"the text encoder of {last} is {plain}, not {name}"
    if base not in IMAGE_ENCODERS or name.partition("@")[0] not in TEXT_ENCODERS:
        return ""
    expected = IMAGE_ENCODERS[base].text
    if not expected:
        return f"{last} has no text encoder in its space, as clip-vit-b16 has clip-text-b16"
    if name.partition("@")[0] not in (expected, expected.removesuffix("-embedded")):
        return f"the text encoder of {last} is {expected}{'@' if folder else ''}{folder}, not {name}"
    if base.startswith("siglip") and not method:
        return f"its tokens are those before the pooling head, whose output shares the space: name maskclip:{last}"
    return ""


def named_similarity(image_encoder: str, text_encoder: str) -> str | None:
    """Return "posterior", "cosine" or "none", the similarity of a pair; None if the names do not decide it."""
    base = split_method(split_list(image_encoder)[-1])[1].partition("@")[0]
    if base not in IMAGE_ENCODERS or text_encoder.partition("@")[0] not in TEXT_ENCODERS:
        return None
    if space_mismatch(image_encoder, text_encoder):
        return "none"
    return "posterior" if IMAGE_ENCODERS[base].loader == "dense_classifier.Posteriors" else "cosine"


def matching_text_encoder(name: str) -> str | None:
    """Return the text encoder of the same model as an image encoder; None if there is none or it is unknown.

    clip-vit-b16@/folder -> clip-text-b16@/folder, hf:REPOSITORY -> hf:REPOSITORY, also openclip:.
    """
    name = split_method(name)[1]
    if name.startswith(SCHEMES):
        return name
    base, at, path = name.partition("@")
    text = IMAGE_ENCODERS[base].text if base in IMAGE_ENCODERS else ""
    return f"{text}{at}{path}" if text else None


def value_tokens(name: str) -> str:
    """Return the MaskCLIP encoder of (the last part of) an image encoder: `clip-vit-b16` -> `maskclip-vit-b16`.

    CLIP's ResNets have them anyway.
    """
    last = split_list(name)[-1]
    base = last.partition("@")[0]
    if base.startswith(("clip-rn", "maskclip")):
        return last
    if base.startswith((*SCHEMES, "siglip", "metaclip")):
        return f"maskclip:{last}"
    if f"mask{base}" not in IMAGE_ENCODERS:
        raise FusionerError(
            f"MaskCLIP takes the value tokens of CLIP, which {last!r} is not: name clip-vit-b16, "
            "clip-vit-b16@/folder or another CLIP of `fusioner models`"
        )
    return f"mask{last}"


def method_of(name: str) -> str:
    """Return the method of an image encoder's name, one of `METHODS` or "proxyclip"; "" for others."""
    method = split_method(name)[0] or name.partition("-")[0]
    return method if method in (*METHODS, "proxyclip") else ""


def split_method(name: str) -> tuple[str, str]:
    """Split METHOD:NAME; the method is one of `METHODS` or "proxyclip", "" if there is none."""
    method, _, rest = name.partition(":")
    return (method, rest) if method in (*METHODS, "proxyclip") and rest else ("", name)


def split_list(name: str) -> list[str]:
    """Split `A+B` into names; a "+" inside a path stays, unless a known name or `hf:` follows it."""
    if name.startswith(PROXY):
        return [name]
    parts: list[str] = []
    for piece in name.split("+"):
        plain = split_method(piece.strip())[1]
        in_path = parts and ("@" in parts[-1] or split_method(parts[-1].strip())[1].startswith(SCHEMES))
        if in_path and not plain.startswith(SCHEMES) and plain.split("@")[0] not in IMAGE_ENCODERS:
            parts[-1] += f"+{piece}"
        else:
            parts.append(piece)
    return [part.strip() for part in parts]


def is_repository(source: str) -> bool:
    """Return whether a source of weights is a repository OWNER/NAME of the hub."""
    return source.count("/") == 1 and not Path(source).expanduser().exists()


class _Named(NamedTuple):
    """A checked name with absolute paths, the specs of its encoders with their sources, and how it is built."""

    name: str
    specs: tuple[EncoderSpec, ...]
    build: Callable[[], Any]


def _resolve(name: str, table: Mapping[str, EncoderSpec], kind: str) -> _Named:
    method, plain = split_method(name) if kind == "image" else ("", name)
    if method == "proxyclip":
        return _resolve_proxy(name)
    name, spec = _find(plain, table, kind)
    if method:
        name, spec = f"{method}:{name}", _with_attention(spec, method, name)
    return _Named(name, (spec,), partial(_build, name, spec))


def _resolve_proxy(name: str) -> _Named:
    parts = split_list(name.removeprefix(PROXY))
    if len(parts) != 2:
        raise FusionerError(f"{name}: ProxyCLIP takes two encoders, as in {PROXY}clip-vit-b16+dinov2-s")
    method, plain = method_of(parts[0]), split_method(parts[0])[1]
    if method not in ("", "maskclip"):
        plain = plain.replace(f"{method}-", "clip-", 1) if plain == parts[0] else plain
        raise FusionerError(
            f"{parts[0]}+{parts[1]}: the second encoder gives the attention, so name a CLIP without one of its own: "
            f"{plain}"
        )
    aligned, spec = _find(plain, IMAGE_ENCODERS, "image")
    spec = _with_attention(spec, "values", aligned)
    guide = _resolve(parts[1], IMAGE_ENCODERS, "image")
    full = f"{PROXY}{aligned}+{guide.name}"

    def build() -> "ImageEncoder":
        from fusioner.encoders.proxyclip import ProxyEncoder

        return cast("ImageEncoder", ProxyEncoder(_build(aligned, spec), guide.build(), full))

    return _Named(full, (spec, *guide.specs), build)


def _find(name: str, table: Mapping[str, EncoderSpec], kind: str) -> tuple[str, EncoderSpec]:
    """Return the full name of a single encoder, and its spec with the source of the weights."""
    if name.startswith(SCHEMES):
        scheme, _, source = name.partition(":")
        source = _absolute(source)
        if not source:
            raise FusionerError(f"{scheme}: names no model; write {scheme}:OWNER/REPOSITORY or {scheme}:/FOLDER")
        options = {"open_clip": True} if scheme == "openclip" else {}
        return f"{scheme}:{source}", EncoderSpec(source, "", 0, loader=f"{kind}.load_{kind}_encoder", options=options)
    base, at, path = name.partition("@")
    if base not in table:
        raise FusionerError(_unknown(base, table, kind))
    spec = table[base]
    if not at:
        if spec.source.startswith("https:"):
            raise FusionerError(f"{base}: it is published as a file ({spec.source}); use {base}@/path/FILE.pth.tar")
        return base, spec
    if not path or not Path(path).expanduser().exists():
        raise FusionerError(f"{base}: there is no {path or 'path after the @'}; write {base}@/path/to/its/weights")
    if not spec.source:
        raise FusionerError(
            f"{base}: this encoder ships with fusioner and takes no folder; drop the @ and what follows"
        )
    path = _absolute(path)
    return f"{base}@{path}", replace(spec, source=path)


_IMAGE_LOADER = EncoderSpec.loader


def _with_attention(spec: EncoderSpec, attention: str, name: str) -> EncoderSpec:
    known = ("maskclip", "values") if name.startswith("siglip") else (*METHODS, "values")
    if attention not in known or spec.loader != _IMAGE_LOADER or not (spec.text or name.startswith(SCHEMES)):
        if attention == "values":
            return spec
        raise FusionerError(f"{attention}:{name}: {attention} takes a CLIP with a transformer, such as clip-vit-b16")
    return replace(spec, options={**spec.options, "attention": attention})


def _build(name: str, spec: EncoderSpec) -> Any:
    module, function = spec.loader.split(".")
    load = getattr(import_module(f"fusioner.encoders.{module}"), function)
    return load(spec.source, name, **spec.options) if spec.source else load()


def _absolute(path: str) -> str:
    """Make an existing path absolute, so that the encoder's name is valid in any directory."""
    local = Path(path).expanduser()
    return str(local.absolute()) if path and local.exists() else path


def _unknown(name: str, table: Mapping[str, EncoderSpec], kind: str) -> str:
    other, other_kind = (TEXT_ENCODERS, "a text") if kind == "image" else (IMAGE_ENCODERS, "an image")
    near = get_close_matches(name, table, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "see `fusioner models`"
    if name in other:
        return f"{name!r} is {other_kind} encoder, not one for {kind}s; {hint}"
    return f"unknown {kind} encoder {name!r}; {hint} (others: hf:REPOSITORY, openclip:REPOSITORY, hf:/FOLDER)"
