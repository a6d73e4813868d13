"""An image as the frozen encoder saw it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

from fusioner.backend import Array, ways
from fusioner.errors import FusionerError
from fusioner.options import InferenceOptions
from fusioner.sliding_window import WindowGrid

if TYPE_CHECKING:
    from fusioner.guided_filter import EdgeFilter

TOKENS = 2**30  # bytes of tokens kept of one image
ANSWERS = 2**23  # bytes of logits kept of an image, so that a label asked again costs nothing


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """What the frozen encoder said of an image; labels can be asked of it any number of times.

    Attributes:
        image: upright RGB.
        tokens: one grid of unit-length tokens a window, float32 or float16.
        more: of the whole image, squashed to other sizes.
        grid: where the windows lie; None when the tokens are of the whole image.
        name: the image's file name, where it came from a file.
        options: how it was encoded.
        edges: the photograph's, where logits are moved to them.
        answers: label -> its logits; the labels asked last, at most `ANSWERS` bytes.
    """

    image: UInt8[np.ndarray, "h w 3"]
    tokens: Float[Array, "n d gh gw"]
    grid: WindowGrid | None
    name: str
    options: InferenceOptions
    edges: "EdgeFilter | None" = None
    more: tuple[Float[Array, "1 d gh2 gw2"], ...] = ()
    answers: dict[str, Float[Array, "h w"]] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image, px."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def nbytes(self) -> int:
        """What keeping it costs at most: image, tokens and room for answers."""
        return self.image.nbytes + sum(tokens.nbytes for tokens in (self.tokens, *self.more)) + ANSWERS

    def answer(
        self, labels: Sequence[str], ask: Callable[[list[str]], Float[Array, "some h w"]]
    ) -> Float[Array, "k h w"]:
        """Logits of all labels, of which `ask` is called for those that have no answer yet."""
        new = [label for label in labels if label not in self.answers]
        known = self.answers | (dict(zip(new, ask(new), strict=True)) if new else {})
        do, rows = ways(self.tokens), [known[label] for label in labels]
        logits = do.stack(rows)
        most = ANSWERS // logits[0].nbytes
        for label in labels[:most]:  # the ones asked now go to the end
            self.answers.pop(label, None)
            self.answers[label] = do.copy(known[label])
        for label in list(self.answers)[: max(0, len(self.answers) - most)]:
            del self.answers[label]
        return logits


def room_for(tokens: Float[Array, "n d gh gw"], windows: int, name: str) -> Float[Array, "windows d gh gw"]:
    """Empty tokens of that many windows like these: float32, or float16 where they would exceed `TOKENS`.

    Raises:
        FusionerError: they exceed it even so.
    """
    needed = windows * tokens[0].nbytes
    if needed > 2 * TOKENS:
        raise FusionerError(f"{name} is too large to be kept encoded at its full resolution: use mode 'whole'")
    return ways(tokens).room((windows, *tokens.shape[1:]), tokens, half=needed > TOKENS)
