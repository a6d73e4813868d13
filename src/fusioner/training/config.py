"""Everything that decides the trained model, in one flat record that survives TOML, JSON and a checkpoint.

Where and how fast a run computes (device, checkpoints, cache folder) is not here: see `run.Run`. Loads no torch.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin

from fusioner.errors import FusionerError
from fusioner.model.config import Method

Sampling = Literal["pairs", "images"]
Precision = Literal["32", "bf16", "16"]
Unseen = Literal["background", "ignored"]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training; the defaults are the paper's (its preset is `TrainConfig()`), each explained here.

    Attributes:
        image_encoder, text_encoder: zoo names of the frozen encoders.
        templates: prompt templates averaged for every label; empty: `encoders.prompts.DEFAULT_TEMPLATES`.
        resolution: images are squashed to this side, px.
        normalisation: "dataset" gives the image encoder the published mean and std of PASCAL or COCO (other sets: its
            own), as the official recipe; "encoder" leaves the encoder its own.
        width, layers, heads, mlp_ratio, dropout, drop_path, temperature, method, decoder_widths, decoder_norm,
            logit_bias, similarity, kinds, affinity, labels_apart, none_token, reference, direct, prompt_dropout: the
            network, see `model.config.FusionerConfig`. Similarity that is not "none" reads the tokens of the encoder
            that `image_encoder` names last.
        memory: remember what the classes look like before training starts, and let the network read it by name (see
            `model.memory`); without effect where similarity is not "posterior".
        memory_passes, memory_share: over the images, and of an image's patches, drawn anew every step, to fit it by.
        sampling: "pairs": a step sees (image, class) pairs and prompts each image with its one class, as the paper;
            "images": a step sees images and prompts each with several of its set's classes.
        prompts: with "images": prompts an image; up to half are present in it, the others are not.
        unseen: what the pixels of a fold's unseen classes are where a training image shows one: "background", as in
            the official recipe, which teaches that what looks like them is nothing; or "ignored".
        features: "live" encodes at every step, under the paper's augmentation; "cached" encodes `views` views of each
            image once and never again.
        augment: live: probability of each step of the augmentation; 0 takes the views that the cache would hold.
        crop: live: smallest share of the area that a random crop keeps.
        views: cached: views of each image; the first is the image itself.
        mirror: flip half of the token grids and their masks left to right: nearly what the encoders would say of the
            mirrored images, at no cost.
        steps: updates in all; 0: as many as `epochs` take.
        epochs: passes over the pairs or images, warm-up included (the paper's 10 + 500); counts where steps is 0.
        batch_size: images an update, over all devices together.
        accumulate: pieces that a device cuts its share of a batch into to save memory; the sum is the same.
        lr, min_lr: peak and end of the fusion's learning rate (AdamW), reached by warm-up and cosine.
        warmup: share of all steps in which the rate rises from 0 (10 of 510 epochs).
        beta1: AdamW's first coefficient for the fusion; the second is 0.999.
        weight_decay, weight_decay_end: cosine from one to the other; on the fusion's matrices only.
        decoder_lr: the decoder's learning rate (Adam, no decay).
        decoder_schedule: "constant" (paper), or "cosine": in step with the fusion's.
        clip: largest norm of all gradients together; 0 leaves them alone.
        ema: decay of a moving average of the weights, which is then what is saved; 0 saves the weights themselves.
        choice_weight: weight of the cross-entropy among an image's prompts and background; 0 is the paper's loss.
        loss_stride: the loss is taken at resolution / loss_stride; 1 is every pixel.
        holdout: training images set aside to choose the best checkpoint by; 0: none, it is chosen by the running
            mIoU of the training itself. At most a twentieth of the images; never one of a val split.
        evaluations: how often, evenly over the run, the best checkpoint is looked for.
        order: "shuffled", or "shards": cached features are read file by file, a few files mixed (`features.sampler`),
            for a cache larger than memory; which images are neighbours then depends on how the cache was built.
        hard: absent names that sound like one that is there are asked for more often, exp(hard x cosine of the two).
        fair: absent names that many images show are asked for more often, (1 + images) ** fair.
        strangers: names of the other sets asked of each image beside its own prompts; they are false where it shows
            something labelled that they have nothing to do with, and open elsewhere (`training.strangers`).
        balance: of several sets, a smaller one's images come (largest / its own number) ** balance times as often; 0
            takes every image alike, 1 every set.
        refine: whether the finished model moves edges of its masks to edges of the photograph (`inference.refine`)
            unless it is told otherwise; the training itself knows nothing of it.
        synonyms: JSON file {label: [other names]}; a name is drawn every time. "packaged": ours; empty: none.
        hypernyms: JSON file {word: [labels]}; now and then a class is asked for by a word for its group ("animal"),
            which then stands for all of the group. "packaged": ours; empty: none.
        precision: of the computation; weights are fp32 always.
        seed: of weights, order, views, prompts and names.
    """

    image_encoder: str = "clip-vit-l14"
    text_encoder: str = "clip-text-l14"
    templates: tuple[str, ...] = ()
    resolution: int = 224
    normalisation: Literal["dataset", "encoder"] = "dataset"
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
    logit_bias: bool = False
    similarity: Literal["none", "cosine", "posterior"] = "none"
    kinds: bool = False
    affinity: bool = False
    labels_apart: bool = False
    none_token: bool = False
    reference: int = 0
    direct: bool = False
    prompt_dropout: float = 0.0
    memory: bool = False
    memory_passes: int = 8
    memory_share: float = 1.0
    sampling: Sampling = "pairs"
    prompts: int = 1
    unseen: Unseen = "background"
    features: Literal["live", "cached"] = "live"
    augment: float = 0.5
    crop: float = 0.5
    views: int = 8
    mirror: bool = False
    steps: int = 0
    epochs: int = 510
    batch_size: int = 32
    accumulate: int = 1
    lr: float = 1e-3
    min_lr: float = 2e-6
    warmup: float = 10 / 510
    beta1: float = 0.9
    weight_decay: float = 0.01
    weight_decay_end: float = 0.4
    decoder_lr: float = 1e-3
    decoder_schedule: Literal["constant", "cosine"] = "constant"
    clip: float = 0.0
    ema: float = 0.0
    choice_weight: float = 0.0
    loss_stride: int = 1
    holdout: int = 0
    evaluations: int = 50
    order: Literal["shuffled", "shards"] = "shuffled"
    hard: float = 0.0
    fair: float = 0.0
    strangers: int = 0
    balance: float = 0.0
    refine: bool = False
    synonyms: str = ""
    hypernyms: str = ""
    precision: Precision = "32"
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _checked(field.name, getattr(self, field.name), field.type))
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise FusionerError(f"{_flag(name)} must be within {low:g} ... {high:g}, not {value:g}")
        if self.steps == 0 and self.epochs == 0:
            raise FusionerError("a training needs --steps or --epochs above 0")
        if self.order == "shards" and self.features != "cached":
            raise FusionerError("--order shards reads the feature cache: leave --cache off out")
        if self.sampling == "pairs" and self.prompts != 1:
            raise FusionerError('--prompts above 1 needs sampling = "images" (preset small); pairs prompt one class')

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def changed(self, values: Mapping[str, Any], source: str = "the settings") -> Self:
        """A copy with some fields replaced; FusionerError for a name or value that does not fit."""
        unknown = sorted(set(values) - {field.name for field in fields(self)})
        if unknown:
            raise FusionerError(f"{source}: there is no setting {unknown[0]!r}; see TrainConfig for their names")
        return replace(self, **values)

    def with_file(self, path: Path) -> Self:
        """A copy with the settings of a TOML file (`lr = 1e-3`, a line each) in place of its own.

        Raises:
            FusionerError: the file cannot be read, or holds a setting that does not exist or fit.
        """
        try:
            values = tomllib.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise FusionerError(f"cannot read the settings in {path}: {reason}") from error
        return self.changed(values, str(path))


_BIG = 10**9
_RANGES: dict[str, tuple[float, float]] = {
    "resolution": (8, 8192),
    "width": (1, 65536),
    "layers": (1, 1000),
    "heads": (1, 1024),
    "temperature": (1e-6, 1e6),
    "dropout": (0, 0.99),
    "drop_path": (0, 0.99),
    "prompt_dropout": (0, 1),
    "reference": (0, 65536),
    "memory_passes": (1, 10_000),
    "memory_share": (0.01, 1),
    "prompts": (1, 4096),
    "augment": (0, 1),
    "crop": (0.01, 1),
    "views": (1, 10_000),
    "steps": (0, _BIG),
    "epochs": (0, _BIG),
    "batch_size": (1, 1_000_000),
    "accumulate": (1, 1_000_000),
    "lr": (0, float("inf")),
    "min_lr": (0, float("inf")),
    "decoder_lr": (0, float("inf")),
    "warmup": (0, 1),
    "beta1": (0, 0.9999),
    "weight_decay": (0, float("inf")),
    "weight_decay_end": (0, float("inf")),
    "clip": (0, float("inf")),
    "ema": (0, 0.999999),
    "choice_weight": (0, float("inf")),
    "hard": (0, 100),
    "fair": (0, 1),
    "strangers": (0, 4096),
    "balance": (0, 1),
    "loss_stride": (1, 64),
    "holdout": (0, _BIG),
    "evaluations": (1, _BIG),
    "seed": (0, 2**63 - 1),
}


def _checked(name: str, value: Any, kind: Any) -> Any:
    """The value in its declared type; TOML and command lines give ints for floats and lists for tuples."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise FusionerError(f"{_flag(name)} is one of {', '.join(get_args(kind))}, not {value!r}")
        return value
    if get_origin(kind) is tuple:
        of = get_args(kind)[0]
        if not isinstance(value, (tuple, list)) or not all(type(one) is of for one in value):
            raise FusionerError(f"{_flag(name)} is a list of {of.__name__} values, not {value!r}")
        return tuple(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise FusionerError(f"{_flag(name)} is a value of type {kind.__name__}, not {value!r}")
    return value


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
