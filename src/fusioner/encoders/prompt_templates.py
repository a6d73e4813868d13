"""Label embeddings: averaged over prompt templates, each label encoded once."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Float

from fusioner.errors import FusionerError
from fusioner.io import parse_file

if TYPE_CHECKING:
    from fusioner.encoders.base import TextEncoder
    from fusioner.export.network import ExportedTextEncoder

Array: TypeAlias = Any  # torch tensors, or NumPy arrays of exported text encoders

DEFAULT_TEMPLATES: tuple[str, ...] = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a close-up photo of a {}.",
    "a photo of a small {}.",
    "a photo of a large {}.",
    "there is a {} in the scene.",
)
"""Some of the templates of CLIP (arXiv 2103.00020) and ViLD (arXiv 2104.13921)."""

NEUTRAL = "object"
"""Prompt without class information, for prompt-ablated evaluation."""

IMAGENET = "imagenet"
"""Name of the 80 templates that CLIP's authors publish for ImageNet (github.com/openai/CLIP, MIT)."""


def check_templates(templates: Sequence[str] | str, source: str = "the list of templates") -> tuple[str, ...]:
    """Return one or several templates as a tuple; FusionerError if there is none or one lacks its `{}`."""
    templates = (templates,) if isinstance(templates, str) else tuple(templates)
    if not templates:
        raise FusionerError(f"{source} is empty; give one template per line, such as: a photo of a {{}}.")
    for template in templates:
        if "{}" not in template:
            raise FusionerError(f"{source}: the template {template!r} has no {{}} for the label")
    return templates


def read_templates(path: str | Path) -> tuple[str, ...]:
    """Read the templates of a UTF-8 text file, one per line; FusionerError if it cannot be read or holds none.

    "imagenet" stands for CLIP's 80 templates.
    """
    if str(path) == IMAGENET:
        path = Path(__file__).with_name("imagenet_templates.txt")
    lines = parse_file(Path(path).expanduser(), str.splitlines, "the templates in ")
    return check_templates([line.strip() for line in lines if line.strip()], str(path))


CACHE_SIZE = 4096  # labels, 2 kB each


class LabelEmbedder:
    """Embeds labels as the mean of their templates' unit vectors, scaled to unit length; caches the latest labels.

    Threads may share it.
    """

    def __init__(
        self, encoder: "TextEncoder | ExportedTextEncoder", templates: Sequence[str] = DEFAULT_TEMPLATES
    ) -> None:
        self.encoder = encoder
        self.templates = check_templates(templates)
        self._cache: dict[str, Float[Array, " d"]] = {}

    def __call__(self, labels: Sequence[str]) -> Float[Array, "k d"]:
        """Return one row per label, in order, on the encoder's device."""
        known = {label: self._cache.get(label) for label in labels}
        new = [label for label, row in known.items() if row is None]
        if new:
            known |= zip(new, self._embed(new), strict=True)
            self._cache |= {label: known[label] for label in new}
        if not labels:
            return self.encoder([])
        rows: list[Any] = [known[label] for label in labels]
        for label in list(self._cache)[:-CACHE_SIZE]:
            self._cache.pop(label, None)
        if isinstance(rows[0], np.ndarray):
            return np.stack(rows)
        import torch

        return torch.stack(rows)

    def _embed(self, labels: list[str]) -> Float[Array, "k d"]:
        # Not str.format: labels and templates may contain other braces.
        prompts = [template.replace("{}", label) for label in labels for template in self.templates]
        vectors = self.encoder(prompts)
        means = vectors.reshape(len(labels), len(self.templates), -1).mean(1)
        if isinstance(means, np.ndarray):
            return means / np.linalg.norm(means, axis=-1, keepdims=True).clip(1e-12)
        from torch.nn.functional import normalize

        return normalize(means, dim=-1)
