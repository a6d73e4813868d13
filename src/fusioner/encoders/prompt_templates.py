"""Labels as text vectors: prompt templates averaged, each label encoded once."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float

from fusioner.backend import Array, ways
from fusioner.errors import FusionerError

if TYPE_CHECKING:
    from fusioner.encoders.base import TextEncoder
    from fusioner.export.segmenter import ExportedText

DEFAULT_TEMPLATES: tuple[str, ...] = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a close-up photo of a {}.",
    "a photo of a small {}.",
    "a photo of a large {}.",
    "there is a {} in the scene.",
)
"""A short choice of the templates that CLIP (arXiv 2103.00020) and ViLD (arXiv 2104.13921) average."""

NEUTRAL = "object"
"""The one text that names nothing: what a model earns with it in place of every name is saliency."""


def check_templates(templates: Sequence[str], source: str = "the list of templates") -> tuple[str, ...]:
    """The templates as a tuple; FusionerError when there is none or one lacks its `{}`."""
    if not templates:
        raise FusionerError(f"{source} is empty; give one template a line, such as: a photo of a {{}}.")
    for template in templates:
        if "{}" not in template:
            raise FusionerError(f"{source}: the template {template!r} has no {{}} to put the label in")
    return tuple(templates)


def read_templates(path: str | Path) -> tuple[str, ...]:
    """Templates of a UTF-8 text file, one a line, blank lines skipped; FusionerError names the file."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise FusionerError(f"cannot read the templates in {path}: {reason}") from error
    return check_templates([line.strip() for line in lines if line.strip()], str(path))


KEPT = 4096  # labels whose vectors are kept, 2 kB each


class LabelEmbedder:
    """Labels to unit vectors: the mean over the templates of unit vectors, scaled to unit length; the last are kept."""

    def __init__(self, encoder: "TextEncoder | ExportedText", templates: Sequence[str] = DEFAULT_TEMPLATES) -> None:
        """Raises FusionerError when `templates` is empty or one of them lacks `{}`."""
        self.encoder = encoder
        self.templates = check_templates(templates)
        self._cache: dict[str, Float[Array, " d"]] = {}

    def __call__(self, labels: Sequence[str]) -> Float[Array, "k d"]:
        """One row a label, in the order given, on the encoder's device."""
        new = [label for label in dict.fromkeys(labels) if label not in self._cache]
        if new:
            self._cache.update(zip(new, self._embed(new), strict=True))
        if not labels:
            return self.encoder([])
        rows = [self._cache[label] for label in labels]
        for label in list(self._cache)[:-KEPT]:  # the oldest
            del self._cache[label]
        return ways(rows[0]).stack(rows)

    def _embed(self, labels: list[str]) -> Float[Array, "k d"]:
        # replace, not format: a label or a template may hold other braces.
        prompts = [template.replace("{}", label) for label in labels for template in self.templates]
        vectors = self.encoder(prompts)
        return ways(vectors).unit(vectors.reshape(len(labels), len(self.templates), -1).mean(1))
