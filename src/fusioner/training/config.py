"""Training settings: groups of options that are flags of `fusioner train`, tables of a TOML file, and a card's entry.

Where and how fast a run computes (device, checkpoints, cache folder) is `trainer.RunConfig`. Imports no torch.
"""

# ruff: noqa: RUF009  # option() returns a field

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

from fusioner.errors import FusionerError
from fusioner.model.config import NetworkOptions, Options, option

RESUME, LAST, BEST, LOG = "resume.pt", "last.safetensors", "best.safetensors", "metrics.jsonl"
"""Files of a run."""

Sampling = Literal["pairs", "images"]
Precision = Literal["32", "bf16", "16"]
UnseenPixels = Literal["background", "ignore"]

_BIG = 10**9


@dataclass(frozen=True)
class ModelOptions(NetworkOptions):
    """Encoders, network and closed-set head."""

    image_encoder: str = option(
        "clip-vit-l14",
        "Frozen image encoder: a name from `fusioner models`, NAME@/folder, hf:REPO, or several joined by a plus sign.",
    )
    text_encoder: str = option("clip-text-l14", "Frozen text encoder, named likewise.")
    templates: tuple[str, ...] = option((), "Prompt templates averaged for every label; default: six of CLIP's.")
    resolution: int = option(224, "Side in pixels to which images are resized.", 8, 8192)
    normalisation: Literal["dataset", "encoder"] = option(
        "dataset", "Image mean and std: those published for PASCAL or COCO (as the official recipe), or the encoder's."
    )
    hypernyms: bool = option(False, "With a posterior: also match labels to classes by their WordNet hypernyms.")
    closed_set_head: bool = option(
        False,
        "With a posterior: first fit a closed-set head to the training classes and read it by label. The presets turn "
        "it off with a fold, where it lowers recall on unseen classes.",
    )
    closed_set_epochs: int = option(8, "Passes over the images to fit the closed-set head.", 1, 10_000)
    closed_set_patch_ratio: float = option(1.0, "Share of an image's patches per step of that fit.", 0.01, 1)
    guided_filter: bool = option(False, "Align mask edges with image edges by default at inference.")


@dataclass(frozen=True)
class DataOptions(Options):
    """Sampling of images, views, prompts and words."""

    sampling: Sampling = option("pairs", "pairs: one (image, class) pair per place; images: several prompts per image.")
    prompts: int = option(1, "Prompts per image, about half of them absent classes; needs sampling images.", 1, 4096)
    unseen_pixels: UnseenPixels = option(
        "background", "Pixels of a fold's unseen classes: background (official recipe), or ignore."
    )
    features: Literal["live", "cached"] = option("live", "live: encode every step; cached: encode each view once.")
    augment_prob: float = option(0.5, "live: probability of each augmentation; 0: the cache's views.", 0, 1)
    min_crop_scale: float = option(0.5, "live: smallest area share of a random crop.", 0.01, 1)
    views: int = option(8, "cached: views per image; the first is the image itself.", 1, 10_000)
    horizontal_flip: bool = option(False, "Flip half of the token grids and masks.")
    val_images: int = option(
        0,
        "Training images held out to choose checkpoint and threshold, at most 5%, or 20% up to 20 images if that "
        "is more; 0: choose by the running training mIoU.",
        0,
        _BIG,
    )
    negative_frequency_power: float = option(
        0.0, "Draw absent classes with probability proportional to (1 + images) ** power.", 0, 1
    )
    synonym_file: str = option("", 'JSON file {label: [synonyms]} to draw words from, or "packaged".')
    hypernym_file: str = option(
        "", 'JSON file {hypernym: [labels]}, or "packaged": sometimes prompt a class by its hypernym ("animal").'
    )


@dataclass(frozen=True)
class OptimOptions(Options):
    """Length, optimiser, loss and model selection."""

    steps: int = option(0, "Updates; 0: derived from epochs.", 0, _BIG)
    epochs: int = option(510, "Passes over the data, warm-up included, if steps is 0.", 0, _BIG)
    batch_size: int = option(32, "Images per update, over all devices.", 1, 1_000_000)
    grad_accum: int = option(1, "Micro-batches per update and device.", 1, 1_000_000)
    lr: float = option(1e-3, "Peak learning rate of the fusion (AdamW).", 0)
    min_lr: float = option(2e-6, "Final learning rate of the fusion.", 0)
    warmup: float = option(10 / 510, "Share of the steps with a rising learning rate.", 0, 1)
    beta1: float = option(0.9, "First AdamW coefficient of the fusion.", 0, 0.9999)
    weight_decay: float = option(0.01, "Initial weight decay of the fusion's matrices.", 0)
    weight_decay_end: float = option(0.4, "Final weight decay (cosine schedule).", 0)
    decoder_lr: float = option(1e-3, "Learning rate of the decoder (Adam).", 0)
    decoder_schedule: Literal["constant", "cosine"] = option("constant", "Schedule of the decoder's learning rate.")
    grad_clip: float = option(0.0, "Largest gradient norm; 0: no clipping.", 0)
    ema: float = option(0.0, "Decay of the weight average that is saved; 0: save the weights themselves.", 0, 0.999999)
    ce_weight: float = option(0.0, "Weight of the cross-entropy over an image's prompts and background.", 0)
    loss_stride: int = option(1, "Compute the loss at resolution / loss_stride.", 1, 64)
    evaluations: int = option(50, "Number of times the best checkpoint is looked for.", 1, _BIG)
    precision: Precision = option("32", "Precision of the computation; weights stay fp32.")


@dataclass(frozen=True)
class TrainConfig(Options):
    """All settings that determine a trained model. The defaults are the paper's: preset `paper` is `TrainConfig()`.

    Field names are unique across the groups, so `override(lr=1e-3, width=64)` and the flags need no prefix. `to_dict`
    has the form of a card's `training["settings"]` and of a TOML file (tables [model], [data], [optim]).
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    seed: int = option(0, "Seed of weights, order, views, prompts and words.", 0, 2**63 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optim.steps == 0 and self.optim.epochs == 0:
            raise FusionerError("a training needs --steps or --epochs above 0")
        if self.data.sampling == "pairs" and self.data.prompts != 1:
            raise FusionerError('--prompts above 1 needs sampling = "images" (preset small); pairs prompt one class')

    def changes(self) -> dict[str, Any]:
        """Return the values of `to_dict` that differ from the defaults, by field name."""
        default = flatten(TrainConfig().to_dict())
        return {name: value for name, value in flatten(self.to_dict()).items() if value != default[name]}

    def override(self, source: str = "the settings", **values: Any) -> Self:
        """Return a copy with fields replaced by name, in any group."""
        groups: dict[str, dict[str, Any]] = {"": {}}
        for name, value in values.items():
            if name not in SECTIONS:
                raise FusionerError(f"{source}: there is no setting {name!r}; see `fusioner train --help`")
            groups.setdefault(SECTIONS[name], {})[name] = value
        top = groups.pop("")
        changed = {group: replace(getattr(self, group), **given) for group, given in groups.items()}
        return replace(self, **changed, **top)

    def merge(self, nested: Mapping[str, Any], source: str = "the settings") -> Self:
        """Return a copy with the values of a nested mapping (the form of `to_dict`, any part of it) replaced."""
        flat: dict[str, Any] = {}
        for group, values in nested.items():
            if group == "seed":
                flat[group] = values
                continue
            if group not in ("model", "data", "optim") or not isinstance(values, Mapping):
                tables = "write seed = N, [model], [data] and [optim]"
                raise FusionerError(f"{source}: there is no group of settings {group!r}; {tables}")
            unknown = sorted(name for name in values if SECTIONS.get(name) != group)
            if unknown:
                raise FusionerError(f"{source}: there is no setting {unknown[0]!r} in [{group}]")
            flat |= values
        return self.override(source, **flat)


SECTIONS: dict[str, str] = {"seed": ""} | {
    entry.name: group
    for group, options in (("model", ModelOptions), ("data", DataOptions), ("optim", OptimOptions))
    for entry in fields(options)
}
"""The group of each setting; empty for those at the top."""


def flatten(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of a `TrainConfig.to_dict` by field name."""
    return {name: (nested[group] if group else nested)[name] for name, group in SECTIONS.items()}
