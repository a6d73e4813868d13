"""From an image's tokens and labels to logits, a portion at a time where all would fill the memory.

Arrays are NumPy's or torch's, see `arrays`; letters as in `base`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property

from jaxtyping import Float

from fusioner.backend import Array, ways
from fusioner.encoded_image import EncodedImage
from fusioner.encoders.prompt_templates import LabelEmbedder
from fusioner.errors import FusionerError
from fusioner.label_hierarchy import gather, members_of, with_members
from fusioner.model.metadata import ModelCard
from fusioner.postprocess import mean_logits
from fusioner.sliding_window import Canvas, Origin, WindowGrid

CANVAS = 2**27  # float32 logits kept of all labels of one image: 512 MiB
FEATURES = 2**26  # float32 numbers the network may hold at once in its widest layer: 256 MiB


class Asking(ABC):
    """The half of a segmenter that no photograph passes through any more.

    Attributes:
        card: what the model is.
        embed: labels to text vectors.
    """

    card: ModelCard
    embed: LabelEmbedder

    @cached_property
    def members(self) -> dict[str, tuple[str, ...]]:
        """See `groups.members_of`."""
        return members_of(self.card)

    @abstractmethod
    def _answer(
        self, tokens: Float[Array, "n d gh gw"], text: Float[Array, "k dt"], size: tuple[int, int] | None
    ) -> Float[Array, "n k h w"]:
        """The trained network's logits of `size`; None: of its own resolution."""

    @property
    def labels_independent(self) -> bool:
        """See `FusionerConfig`."""
        return self.card.config.labels_independent

    def _lay(
        self,
        windows: Iterable[tuple[Float[Array, "n d gh gw"], list[Origin]]],
        labels: Sequence[str],
        grid: WindowGrid,
    ) -> Float[Array, "k h w"]:
        """The network's answers to all windows, averaged."""
        text = self.embed(with_members(labels, self.members))
        share = math.sqrt(CANVAS / (len(text) * grid.height * grid.width))
        side = grid.crop if share >= 1 else max(1, int(grid.crop * share))
        canvas = Canvas(grid, side)
        some = max(1, min(8, FEATURES // (max(self.card.config.decoder_widths) * side**2)))
        for tokens, origins in windows:
            for start in range(0, len(origins), some):
                here = origins[start : start + some]
                few = ways(tokens).single(tokens[start : start + some])
                answers = self._network(few, text, (side, side))
                for answer, origin in zip(answers, here, strict=True):
                    canvas.add(answer, origin)
        return gather(_finite(canvas.mean()), labels, self.members)

    def _ask(self, encoded: EncodedImage, labels: Sequence[str]) -> Float[Array, "k h w"]:
        text = self.embed(with_members(labels, self.members))
        looks = [self._network(tokens, text, None)[0] for tokens in (encoded.tokens, *encoded.more)]
        logits = gather(_finite(mean_logits(looks)), labels, self.members)
        return logits if encoded.edges is None else encoded.edges(logits)

    def _network(
        self, tokens: Float[Array, "n d gh gw"], text: Float[Array, "k dt"], size: tuple[int, int] | None
    ) -> Float[Array, "n k h w"]:
        """The trained network, labels in portions where they do not depend on each other."""
        portion, config = len(text), self.card.config
        if self.labels_independent:  # each brings its own tokens and features
            n = math.prod(tokens.shape[2:])
            cells = math.prod(size) if size else n * 4 ** (len(config.decoder_widths) - 1)
            numbers = max(config.decoder_widths) * cells + int(n * config.width * (config.mlp_ratio + 4))
            portion = max(1, FEATURES // (numbers * len(tokens)))
        parts = [self._answer(tokens, text[first : first + portion], size) for first in range(0, len(text), portion)]
        return ways(tokens).join(parts, 1)


def _finite(logits: Float[Array, "k h w"]) -> Float[Array, "k h w"]:
    if not math.isfinite(logits.sum()):  # one number, where isfinite of all would need as much memory again
        raise FusionerError("the model answers with numbers that are not finite: its checkpoint is broken")
    return logits
