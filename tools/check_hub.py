"""Load every registered encoder from the Hugging Face hub and compare it with the library's own forward.

    python tools/check_hub.py                       # all names; downloads about 30 GB
    python tools/check_hub.py clip-vit-b32 minilm   # only these
    HF_ENDPOINT=http://127.0.0.1:8000 python tools/check_hub.py dinov2-s

Prints a table of name, result, largest difference and the file that was read; exits with 1 if a name fails. Gated
repositories need `hf auth login`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from fusioner.encoders.hub import locate
from fusioner.encoders.image import ClipVision, PatchTransformer
from fusioner.encoders.registry import (
    IMAGE_ENCODERS,
    TEXT_ENCODERS,
    EncoderSpec,
    build_image_encoder,
    build_text_encoder,
)
from fusioner.encoders.text import ClipText, PretrainedText, SiglipText
from fusioner.errors import FusionerError

TEXTS = ["cat", "a photo of a red sofa.", "Skyscraper"]
TOLERANCE = 1e-4


def main(arguments: list[str] | None = None) -> int:
    """Check the named encoders (default: all) and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="names of `fusioner models` (default: all)")
    names = parser.parse_args(arguments).names or [*IMAGE_ENCODERS, *TEXT_ENCODERS]
    failed = 0
    transformers.logging.set_verbosity_error()  # warnings about unused weights would interrupt the table
    print(f"{'encoder':<22}{'result':<9}{'difference':>11}  file")
    for name in names:
        try:
            result, difference, file = check(name)
        except FusionerError as error:
            result, difference, file = "failed", None, str(error)
        failed += result == "failed"
        shown = "-" if difference is None else f"{difference:.1e}"
        print(f"{name:<22}{result:<9}{shown:>11}  {file}", flush=True)
    return int(failed > 0)


def check(name: str) -> tuple[str, float | None, str]:
    """Return (result, largest difference from the library's forward if there is one, file read)."""
    spec = (IMAGE_ENCODERS | TEXT_ENCODERS).get(name)
    if spec is None:
        raise FusionerError("unknown name")
    if spec.source.startswith("https:"):
        return "skipped", None, f"a file of {spec.source}"
    image = name in IMAGE_ENCODERS
    encoder: Any = build_image_encoder(name) if image else build_text_encoder(name)
    found = _tokens(encoder) if image else encoder(TEXTS)
    if not found.isfinite().all():
        return "failed", None, "vectors are not finite"
    if not spec.source:
        return "loaded", None, "in the package"
    file = str(locate(spec.source, name, spec.options.get("fallback", "")).weights)
    expected = None
    plain = spec.loader.startswith(("image.", "text."))
    if plain and isinstance(encoder, PatchTransformer) and not spec.options.get("attention"):
        expected = _library_tokens(encoder, spec)
    elif plain and isinstance(encoder, PretrainedText):
        expected = _library_vectors(encoder, spec)
    if expected is None:
        return "loaded", None, file
    difference = float((found - expected).abs().max())
    return "ok" if difference < TOLERANCE else "failed", difference, file


def _images(encoder: Any) -> Tensor:
    side = 2 * encoder.stride
    return torch.rand(1, 3, side, 2 * side, generator=torch.Generator().manual_seed(0))


def _tokens(encoder: Any) -> Tensor:
    return encoder(_images(encoder)).flatten(2).transpose(1, 2)  # (1, gh * gw, d)


@torch.no_grad()
def _library_tokens(encoder: PatchTransformer, spec: EncoderSpec) -> Tensor:
    model: Any = _library(type(encoder.model), spec, encoder.model.config)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (encoder.mean, encoder.std))
    pixels = (_images(encoder) - mean) / std
    states = model(pixels, **encoder._options).last_hidden_state[:, -8:]
    if isinstance(encoder, ClipVision):
        states = model.visual_projection(model.vision_model.post_layernorm(states))
    return F.normalize(states, dim=-1)


@torch.no_grad()
def _library_vectors(encoder: PretrainedText, spec: EncoderSpec) -> Tensor:
    model: Any = _library(type(encoder.model), spec, encoder.model.config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(spec.source)
    vectors = []
    for text in TEXTS:  # one at a time: no padding but SigLIP's
        if isinstance(encoder, SiglipText):
            options = {"padding": "max_length", "max_length": encoder.context, "padding_side": "right"}
            ids = tokenizer([text.lower()], return_tensors="pt", **options)["input_ids"]
            vectors.append(model(ids).pooler_output[0])
            continue
        read = tokenizer([text], return_tensors="pt")
        inputs = {key: read[key] for key in ("input_ids", "attention_mask")}
        output = model(**inputs)
        vectors.append(output.text_embeds[0] if isinstance(encoder, ClipText) else output.last_hidden_state[0].mean(0))
    return F.normalize(torch.stack(vectors), dim=-1)


def _library(kind: Any, spec: EncoderSpec, config: Any) -> Any:
    """Load the model with transformers alone."""
    return kind.from_pretrained(spec.source, config=config, dtype=torch.float32, use_safetensors=None).eval()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
    sys.exit(main())
