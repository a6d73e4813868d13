"""Configuration of the trained network, flat so that it survives JSON and hub round trips unchanged."""

# ruff: noqa: RUF009  # option() returns a field

from dataclasses import asdict, dataclass, field, fields
from types import UnionType
from typing import Any, Literal, Self, get_args, get_origin

from fusioner.errors import FusionerError

Method = Literal[
    "fusioner", "late", "lseg", "mask-transformer", "prompt-ablated", "cosine", "maskclip", "softmax", "empty"
]
"""The paper's method, its baselines (docs/baselines.md), and "softmax" over training-free cosines."""
TRAINING_FREE: tuple[Method, ...] = ("cosine", "maskclip", "softmax", "empty")
WITHOUT_SIMILARITY: tuple[Method, ...] = ("lseg", "mask-transformer", "empty")  # treat all tokens as features
UNDECODED: tuple[Method, ...] = ("lseg", "mask-transformer", *TRAINING_FREE)
"""Methods without the convolutional decoder: their logits are upsampled from the token grid."""


def option(default: Any, help: str, low: float | None = None, high: float = float("inf")) -> Any:
    """Return a dataclass field with its help text and, for numbers, its closed range."""
    return field(default=default, metadata={"help": help, "range": None if low is None else (low, high)})


class Options:
    """Base of dataclasses whose fields are checked against their types and ranges, and written to JSON."""

    def __post_init__(self) -> None:
        for entry in fields(self):  # pyright: ignore[reportArgumentType]
            value = check_value(entry.name, getattr(self, entry.name), entry.type)
            object.__setattr__(self, entry.name, value)
            limits = entry.metadata.get("range")
            if limits and not limits[0] <= value <= limits[1]:
                bounds = f"{limits[0]:g} ... {limits[1]:g}"
                raise FusionerError(f"{_flag(entry.name)} must be within {bounds}, not {value:g}")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values; nested options as nested dictionaries."""
        return asdict(self, dict_factory=_plain)  # pyright: ignore[reportArgumentType]


def check_value(name: str, value: Any, kind: Any) -> Any:
    """Convert a value to its declared type: ints to floats and lists to tuples, as JSON, TOML and flags give them."""
    if get_origin(kind) is UnionType:  # X | None
        return None if value is None else check_value(name, value, get_args(kind)[0])
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise FusionerError(f"{_flag(name)} is one of {', '.join(get_args(kind))}, not {value!r}")
        return value
    if get_origin(kind) is tuple:
        entry_type = get_args(kind)[0]
        if not isinstance(value, (tuple, list)) or not all(type(entry) is entry_type for entry in value):
            raise FusionerError(f"{_flag(name)} is a list of {entry_type.__name__} values, not {value!r}")
        return tuple(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not (get_origin(kind) or kind):
        raise FusionerError(f"{_flag(name)} is a value of type {kind.__name__}, not {value!r}")
    return value


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in pairs}


@dataclass(frozen=True)
class NetworkOptions(Options):
    """Options of the network that a training chooses; the defaults are the paper's (the official recipe)."""

    method: Method = option(
        "fusioner",
        "fusioner or a baseline: late, lseg, mask-transformer, prompt-ablated; cosine, maskclip, empty: only calibrate "
        "a threshold on training images. See docs/baselines.md.",
    )
    width: int = option(512, "Width of the fusion transformer.", 1, 65536)
    layers: int = option(12, "Layers of the fusion transformer.", 1, 1000)
    heads: int = option(8, "Attention heads of the fusion transformer.", 1, 1024)
    mlp_ratio: float = option(4.0, "Hidden width of its MLPs over its width.")
    dropout: float = option(0.0, "Dropout of the fusion transformer.", 0, 0.99)
    drop_path: float = option(0.0, "Stochastic depth of the fusion transformer.", 0, 0.99)
    temperature: float = option(0.07, "Divisor of the head's cosines.", 1e-6, 1e6)
    decoder_widths: tuple[int, ...] = option(
        (512, 512, 512, 512), "Channels after each decoder stage; the i-th works at 2**i times the token grid."
    )
    decoder_norm: Literal["instance", "layer"] = option(
        "instance", "Decoder normalisation: instance (the paper's), or layer, which keeps an image's overall response."
    )
    logit_bias: bool = option(False, "Learn a scale and a bias of the logits, which calibrates probabilities.")
    similarity: Literal["auto", "none", "cosine", "posterior"] = option(
        "none",
        "Similarity maps of the last image encoder and the labels: posterior of its classes, cosine, none (the paper's "
        "network), or auto, the first of these that the encoders support.",
    )
    affinity_refinement: bool = option(
        False, "Add each similarity map averaged over patches that the first image encoder finds alike."
    )
    residual_head: bool = option(False, "Add a small MLP of the similarity maps to the logits.")
    prompt_dropout: float = option(
        0.0, "Probability of hiding a label's embedding from the fusion in training; 1: hide it always.", 0, 1
    )


@dataclass(frozen=True)
class FusionerConfig(NetworkOptions):
    """Network options, and the sizes that follow from encoders and data; by default those of CLIP ViT-L/14.

    Attributes:
        image_dim, text_dim: output widths of the frozen encoders (similarity channels not included; image_dim 0: the
            similarity channels are the visual tokens, too).
        similarity: "cosine" or "posterior": `similarity_dim` channels at the end of the tokens give similarity maps of
            patches and labels (see `model.similarity`), and each label is fused separately.
        num_hypernyms: with similarity "posterior": number of WordNet hypernyms by which class names are also matched.
        closed_set_classes: with similarity "posterior": number of trained classes of the closed-set head (see
            `model.closed_set_head`); 0: no head.
        previous_closed_sets: class counts of the closed-set heads of the models it was initialised from, oldest first.
    """

    similarity: Literal["none", "cosine", "posterior"] = "none"
    image_dim: int = 768
    text_dim: int = 768
    similarity_dim: int = 0
    num_hypernyms: int = 0
    closed_set_classes: int = 0
    previous_closed_sets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method in UNDECODED:  # the only width left: of the space of patches and labels
            shared = self.width if self.method == "mask-transformer" else self.text_dim
            object.__setattr__(self, "decoder_widths", (shared,))
        if self.method == "mask-transformer":
            object.__setattr__(self, "logit_bias", True)
        if self.width % self.heads:
            raise FusionerError(f"fusion width {self.width} is not a multiple of its {self.heads} heads: change one")
        if not self.decoder_widths:
            raise FusionerError("a Fusioner needs at least one decoder width")
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
    def decoder_scale(self) -> int:
        """Cells of the network's own logits per token, along one side."""
        return 2 ** (len(self.decoder_widths) - 1)

    @property
    def labels_independent(self) -> bool:
        """Whether a label's logits do not depend on the other labels, so that labels can be computed in chunks."""
        return self.similarity != "none" or self.method in ("lseg", "prompt-ablated", *TRAINING_FREE)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Invert `to_dict`; raises FusionerError on unknown settings."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise FusionerError(f"unknown model settings {', '.join(unknown)}: the file comes from a newer Fusioner")
        return cls(**values)
