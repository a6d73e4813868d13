"""The shape of the trained network, flat so that it survives JSON and hub round trips unchanged."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from fusioner.errors import FusionerError

Method = Literal["fusioner", "late", "lseg", "mask-transformer", "prompt-ablated", "cosine", "maskclip", "empty"]
"""The paper's method, and what it is compared with in the same harness; docs/baselines.md says what each does."""
TRAINING_FREE: tuple[Method, ...] = ("cosine", "maskclip", "empty")
UNDECODED: tuple[Method, ...] = ("lseg", "mask-transformer", *TRAINING_FREE)
"""Methods without the convolutional decoder: they answer on the token grid, and their logits are upsampled."""


@dataclass(frozen=True)
class FusionerConfig:
    """Defaults are the paper's network on CLIP ViT-L/14 (official recipe: 12 layers of width 512, 8 heads).

    Attributes:
        image_dim, text_dim: widths of the frozen encoders' outputs, similarity channels not counted; image_dim 0: the
            similarity channels of a single encoder are also its visual tokens.
        width, layers, heads, mlp_ratio: the fusion transformer.
        dropout, drop_path: regularisation of the fusion, both off in the official recipe.
        temperature: the cosine head divides by it (paper section 3.3).
        method: "fusioner" lets visual and text tokens attend to each other; "late" lets them meet in the head only; the
            others are baselines (docs/baselines.md), which leave out or replace parts and ignore those parts' settings.
        decoder_widths: channels after each 3x3 convolution; the i-th works at 2**i times the token grid.
        decoder_norm: "instance" (paper) or "layer" (per pixel; keeps how strong an image answers at all).
        similarity: beyond the paper. "cosine" or "posterior": further `aligned_dim` channels at the end of the tokens
            say what a patch looks like in words (see `model.similarity`), and each label is fused apart from the rest.
        aligned_dim: number of those channels.
        direct: beyond the paper, with a similarity: what its maps say of a patch is also added to the logits as it is,
            so that the fusion has only the rest to learn.
        kinds: beyond the paper, with similarity "posterior": number of wider kinds (WordNet's hypernyms) by which class
            names are found too; 0 for none.
        affinity: beyond the paper, with a similarity: every similarity map is read a second time, averaged over patches
            that the first encoders find alike (see `model.similarity`).
        prompt_dropout: chance that training hides a label's embedding from the fusion and leaves it the similarity
            alone, so that unseen words are no stranger; 1 hides it always, at inference too.
        memory: beyond the paper, with similarity "posterior": number of trained names that a closed-set segmenter
            beside the network knows (see `model.memory`); 0 for none.
        earlier: numbers of names of the memories that it keeps of the models it was trained further from, oldest first.
        logit_bias: beyond the paper. Learn one scale and one bias for the logits, so that 0.5 can mean 0.5.
    """

    image_dim: int = 768
    text_dim: int = 768
    width: int = 512
    layers: int = 12
    heads: int = 8
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    drop_path: float = 0.0
    temperature: float = 0.07
    method: Method = "fusioner"
    decoder_widths: tuple[int, ...] = (512, 512, 512, 512)
    decoder_norm: Literal["instance", "layer"] = "instance"
    similarity: Literal["none", "cosine", "posterior"] = "none"
    aligned_dim: int = 0
    direct: bool = False
    kinds: int = 0
    affinity: bool = False
    prompt_dropout: float = 0.0
    memory: int = 0
    earlier: tuple[int, ...] = ()
    logit_bias: bool = False

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise FusionerError(f"method is one of {', '.join(get_args(Method))}, not {self.method!r}")
        if self.method in UNDECODED:  # the one width left: of the space in which patches and labels meet
            meeting = self.width if self.method == "mask-transformer" else self.text_dim
            object.__setattr__(self, "decoder_widths", (meeting,))
        if self.method == "mask-transformer":
            object.__setattr__(self, "logit_bias", True)
        for name in ("decoder_widths", "earlier"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.width % self.heads:
            raise FusionerError(f"fusion width {self.width} is not a multiple of its {self.heads} heads: change one")
        if self.decoder_norm not in ("instance", "layer"):
            raise FusionerError(f"decoder_norm is 'instance' or 'layer', not {self.decoder_norm!r}")
        if not self.decoder_widths or self.layers < 1:
            raise FusionerError("a Fusioner needs at least one fusion layer and one decoder width")
        if self.similarity not in ("none", "cosine", "posterior"):
            raise FusionerError(f"similarity is 'none', 'cosine' or 'posterior', not {self.similarity!r}")
        if (self.similarity == "none") != (self.aligned_dim == 0):
            raise FusionerError(
                f"similarity {self.similarity!r} with {self.aligned_dim} aligned image channels: "
                "name an aligned image encoder last in the list"
            )
        if self.affinity and self.similarity == "none":
            raise FusionerError("affinity averages similarity maps: it needs similarity 'cosine' or 'posterior'")
        if self.direct and self.similarity == "none":
            raise FusionerError("direct reads similarity maps: it needs similarity 'cosine' or 'posterior'")
        if self.kinds and self.similarity != "posterior":
            raise FusionerError(
                f"kinds are found among a classifier's names: they need similarity 'posterior', not {self.similarity!r}"
            )
        if self.memory and self.similarity != "posterior":
            raise FusionerError(
                f"a memory reads a classifier's posterior: it needs similarity 'posterior', not {self.similarity!r}"
            )
        if self.earlier and not self.memory:
            raise FusionerError("memories of earlier trainings are kept beside a memory of its own: memory is 0")
        if self.similarity == "cosine" and self.aligned_dim != self.text_dim:
            raise FusionerError(
                f"aligned tokens of width {self.aligned_dim} do not live in a text space of width {self.text_dim}: "
                "take image and text encoder from one model"
            )

    @property
    def visual_dim(self) -> int:
        """Width of the visual tokens."""
        return self.image_dim or self.aligned_dim

    @property
    def labels_independent(self) -> bool:
        """Whether a label's logits ignore the other labels, so that labels may be computed in any portions."""
        return self.similarity != "none" or self.method in ("lseg", "prompt-ablated", *TRAINING_FREE)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self) | {"decoder_widths": list(self.decoder_widths), "earlier": list(self.earlier)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; raises FusionerError on a name this version does not know."""
        if "fusion" in values:  # as the first files have it
            values = {key: value for key, value in values.items() if key != "fusion"} | {
                "method": "late" if values["fusion"] == "late" else "fusioner"
            }
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise FusionerError(f"unknown model settings {', '.join(unknown)}: the file comes from a newer Fusioner")
        return cls(**values)
