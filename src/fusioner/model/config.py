"""Configuration of the trained network, flat so that it survives JSON and hub round trips unchanged."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from fusioner.errors import FusionerError

Method = Literal[
    "fusioner", "late", "lseg", "mask-transformer", "prompt-ablated", "cosine", "maskclip", "softmax", "empty"
]
"""The paper's method, its baselines (docs/baselines.md), and "softmax" over training-free cosines."""
TRAINING_FREE: tuple[Method, ...] = ("cosine", "maskclip", "softmax", "empty")
UNDECODED: tuple[Method, ...] = ("lseg", "mask-transformer", *TRAINING_FREE)
"""Methods without the convolutional decoder: their logits are upsampled from the token grid."""


@dataclass(frozen=True)
class FusionerConfig:
    """The defaults are the paper's network on CLIP ViT-L/14 (official recipe: 12 layers of width 512, 8 heads).

    Attributes:
        image_dim, text_dim: output widths of the frozen encoders (similarity channels not included; image_dim 0: the
            similarity channels are the visual tokens, too).
        width, layers, heads, mlp_ratio: of the fusion transformer.
        dropout, drop_path: regularisation of the fusion, both off in the official recipe.
        temperature: divisor of the head's cosines (paper section 3.3).
        method: "fusioner": visual and text tokens attend to each other; "late": they meet in the head only; the others
            are baselines (docs/baselines.md), which omit or replace parts and ignore those parts' settings.
        decoder_widths: channels after each 3x3 convolution; the i-th works at 2**i times the token grid.
        decoder_norm: "instance" (paper) or "layer" (per pixel; keeps the overall response of an image).
        similarity: beyond the paper. "cosine" or "posterior": `similarity_dim` channels at the end of the tokens give
            similarity maps of patches and labels (see `model.similarity`), and each label is fused separately.
        similarity_dim: number of those channels.
        residual_head: beyond the paper, with a similarity: add a small MLP of its maps to the logits.
        num_hypernyms: beyond the paper, with similarity "posterior": number of WordNet hypernyms by which class names
            are also matched; 0: none.
        affinity_refinement: beyond the paper, with a similarity: add each similarity map averaged over patches that the
            first encoders find alike (see `model.similarity`).
        prompt_dropout: probability of hiding a label's embedding from the fusion in training, which leaves its
            similarity maps and helps unseen words; 1 hides it always, also at inference.
        closed_set_classes: beyond the paper, with similarity "posterior": number of trained classes of the closed-set
            head (see `model.closed_set_head`); 0: no head.
        previous_closed_sets: class counts of the closed-set heads of the models it was initialised from, oldest first.
        logit_bias: beyond the paper. Learn a scale and a bias of the logits, which calibrates probabilities.
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
    similarity_dim: int = 0
    residual_head: bool = False
    num_hypernyms: int = 0
    affinity_refinement: bool = False
    prompt_dropout: float = 0.0
    closed_set_classes: int = 0
    previous_closed_sets: tuple[int, ...] = ()
    logit_bias: bool = False

    def __post_init__(self) -> None:
        for name, choices in (
            ("method", get_args(Method)),
            ("decoder_norm", ("instance", "layer")),
            ("similarity", ("none", "cosine", "posterior")),
        ):
            if getattr(self, name) not in choices:
                raise FusionerError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")
        if self.method in UNDECODED:  # the only width left: of the space of patches and labels
            shared = self.width if self.method == "mask-transformer" else self.text_dim
            object.__setattr__(self, "decoder_widths", (shared,))
        if self.method == "mask-transformer":
            object.__setattr__(self, "logit_bias", True)
        for name in ("decoder_widths", "previous_closed_sets"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.width % self.heads:
            raise FusionerError(f"fusion width {self.width} is not a multiple of its {self.heads} heads: change one")
        if not self.decoder_widths or self.layers < 1:
            raise FusionerError("a Fusioner needs at least one fusion layer and one decoder width")
        if (self.similarity == "none") != (self.similarity_dim == 0):
            raise FusionerError(
                f"similarity {self.similarity!r} with {self.similarity_dim} similarity channels: "
                "name a text-aligned image encoder last in the list"
            )
        for name in ("affinity_refinement", "residual_head"):
            if getattr(self, name) and self.similarity == "none":
                raise FusionerError(f"{name} reads similarity maps: it needs similarity 'cosine' or 'posterior'")
        for name in ("num_hypernyms", "closed_set_classes"):
            if getattr(self, name) and self.similarity != "posterior":
                raise FusionerError(
                    f"{name} needs a classifier's posterior: similarity 'posterior', not {self.similarity!r}"
                )
        if self.previous_closed_sets and not self.closed_set_classes:
            raise FusionerError("previous_closed_sets need a closed-set head: closed_set_classes is 0")
        if self.similarity == "cosine" and self.similarity_dim != self.text_dim:
            raise FusionerError(
                f"image tokens of width {self.similarity_dim} do not live in a text space of width {self.text_dim}: "
                "take image and text encoder from one model"
            )

    @property
    def visual_dim(self) -> int:
        """Width of the visual tokens."""
        return self.image_dim or self.similarity_dim

    @property
    def labels_independent(self) -> bool:
        """Whether a label's logits do not depend on the other labels, so that labels can be computed in chunks."""
        return self.similarity != "none" or self.method in ("lseg", "prompt-ablated", *TRAINING_FREE)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Invert `to_dict`; raises FusionerError on unknown settings."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise FusionerError(f"unknown model settings {', '.join(unknown)}: the file comes from a newer Fusioner")
        return cls(**values)
