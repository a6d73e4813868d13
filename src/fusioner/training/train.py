"""One training from settings to saved weights."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fusioner.encoders.prompt_templates import DEFAULT_TEMPLATES, LabelEmbedder
from fusioner.encoders.registry import value_tokens
from fusioner.errors import FusionerError
from fusioner.features.build import Track
from fusioner.io import writable_folder
from fusioner.labels import read_word_lists
from fusioner.model.checkpoint import ModelCard, load_model, load_state, save_model
from fusioner.model.config import FusionerConfig
from fusioner.model.fusioner import Fusioner
from fusioner.training.build import build_encoders, build_fabric, build_network, build_sources
from fusioner.training.calibration import fill_words, fit_level
from fusioner.training.closed_set import Effort, Kept, fit_memory
from fusioner.training.config import TrainConfig
from fusioner.training.data_loader import Batches
from fusioner.training.dataset import Order, Part, build_corpus
from fusioner.training.progress import Display
from fusioner.training.prompt_sampling import Names
from fusioner.training.provenance import describe
from fusioner.training.reference import draw_reference
from fusioner.training.resume import BEST, LAST, RESUME
from fusioner.training.strangers import Strangers
from fusioner.training.trainer import Pace, Result, Trainer


@dataclass(frozen=True)
class Run:
    """Where a training computes and writes; nothing here changes what it aims for.

    Attributes:
        out: folder for last.safetensors, best.safetensors, resume.pt, metrics.jsonl, and memory/ where there is one.
        resume: go on from the state in `out`, where there is one.
        device: auto, cpu, cuda, cuda:N or mps; devices: how many, a process each (torchrun knows better).
        cache: folder of the feature cache; None: the user's own.
        initial: model file whose weights the training starts from.
        preset, command: for the card.
    """

    out: Path
    resume: bool = False
    device: str = "auto"
    devices: int = 1
    cache: Path | None = None
    initial: Path | None = None
    preset: str = ""
    command: str = ""


def train(
    parts: Sequence[Part],
    config: TrainConfig,
    run: Run,
    pace: Pace | None = None,
    display: Display | None = None,
    track: Track | None = None,
) -> Result:
    """Train on the parts; `track` draws the bars of the feature cache.

    Of a method without training only the level of its decision is chosen.

    Raises:
        FusionerError: anything wrong with settings, data, encoders, device, disk, or the state to resume from.
    """
    display = display or Display()
    _check_out(run)
    corpus = build_corpus(parts, config.sampling, config.holdout, config.seed, config.balance)
    steps = config.steps or Order(corpus.examples, config.batch_size, config.seed).steps(config.epochs)
    config = replace(config, steps=steps)
    fabric = build_fabric(run.device, run.devices, config.precision)
    if config.batch_size < fabric.world_size:
        raise FusionerError(f"a batch of {config.batch_size} images cannot be shared by {fabric.world_size} devices")
    if config.method == "maskclip":
        config = replace(config, image_encoder=value_tokens(config.image_encoder))
    image, text = build_encoders(config, parts[0].data.name, fabric.device)
    groups = read_word_lists(config.hypernyms, "hypernyms.json")
    names = Names(corpus.names(), read_word_lists(config.synonyms), groups)
    embed = LabelEmbedder(text, config.templates or DEFAULT_TEMPLATES)
    table = embed(names.words)
    own_names = table[: len(corpus.names())].cpu()  # less their synonyms and groups
    start, before = load_model(run.initial) if run.initial else (None, None)
    earlier: tuple[int, ...] = ()
    if start is not None:
        config = _shaped_like(config, start.config)
        earlier = (*start.config.earlier, start.config.memory) if start.config.memory else ()
    model = build_network(config, image, text, len(corpus.names()), earlier)
    fill_words(model, embed)
    if start is not None:
        _go_on_from(start, model, str(run.initial))
    about = describe(
        corpus,
        config,
        (image, text),
        preset=run.preset,
        command=run.command,
        initial=run.initial.name if run.initial else None,
        before=before.training if before else None,
    )
    mean, std = (image.mean, image.std) if config.normalisation == "dataset" else (None, None)
    shown = config.resolution, embed.templates, mean, std
    card = ModelCard(model.config, image.name, text.name, *shown, refine=config.refine, training=about)
    sources = build_sources(corpus, image, config, run.cache, display.say, track)
    if model.config.reference and start is None:  # whose logits rest on its own
        draw_reference(model, corpus, sources, track, config.seed)
    if model.config.memory:
        effort = Effort(config.memory_passes, config.memory_share)
        which = [config.resolution, config.seed, effort, config.features, config.views]
        fitted_to = json.dumps([corpus.digest(), about["encoders"], *which])
        kept = Kept(run.out / "memory", fitted_to, fabric.is_global_zero)
        fit_memory(model, corpus, sources, own_names, track, config.seed, fabric.device, effort, kept)
    side = max(1, config.resolution // config.loss_stride)
    size = (side, side)
    lent = Strangers(corpus, own_names, config.strangers) if config.strangers and len(parts) > 1 else None
    batches = Batches(
        corpus, sources, names, table, config.prompts, size, config.seed, config.mirror, config.hard, config.fair, lent
    )
    if model.free is not None:
        return _choose_level(model.to(fabric.device), batches, config, card, run, fabric.is_global_zero, track)
    identity = {"data": corpus.digest(), "encoders": about["encoders"], "initial": about["initial"]}
    pace = pace or Pace()
    if pace.prefetch is None:  # beside a CPU that encodes there is nothing to gain
        pace = replace(pace, prefetch=0 if config.features == "live" and fabric.device.type == "cpu" else 2)
    trainer = Trainer(fabric, model, batches, config, card, run.out, identity, pace, display)
    if run.resume:
        found = trainer.resume()
        display.say(f"resuming {run.out} at step {trainer.start}" if found else f"{run.out} has nothing to resume yet")
    return trainer.fit()


def _shaped_like(config: TrainConfig, start: FusionerConfig) -> TrainConfig:
    """The settings with the network that a further training starts from; how it is regularised stays as set."""
    shape = {name: value for name, value in start.to_dict().items() if name in config.to_dict()}
    for name in ("dropout", "drop_path", "prompt_dropout"):
        del shape[name]
    return config.changed(shape | {"memory": start.memory > 0, "kinds": start.kinds > 0})


def _go_on_from(start: Fusioner, model: Fusioner, source: str) -> None:
    """Another's weights, and what it remembers beside what this corpus will teach."""
    weights = {name: tensor for name, tensor in start.state_dict().items() if ".memory." not in name}
    own = {name: tensor for name, tensor in model.state_dict().items() if ".memory." in name}
    load_state(model, weights | own, source)
    theirs, ours = (getattr(one.similarity, "memory", None) for one in (start, model))
    if theirs is not None and ours is not None:
        ours.inherit(theirs)


def _choose_level(
    model: Fusioner,
    batches: Batches,
    config: TrainConfig,
    card: ModelCard,
    run: Run,
    saves: bool,
    track: Track | None,
) -> Result:
    """The whole training of a method without training."""
    begun = time.monotonic()
    silent = model.config.method == "empty"
    score = None if silent else fit_level(model, batches, config.batch_size, config.seed, track)
    about = {"steps": 0, "step": 0, "best_miou": score and round(score, 2)}
    for name in (LAST, BEST) if saves else ():
        save_model(run.out / name, model, replace(card, training=card.training | about))
    judged = "the training images its level was chosen on"
    return Result(0, 0, 0.0, score or 0.0, score or 0.0, judged, time.monotonic() - begun, 0.0, 0)


def _check_out(run: Run) -> None:
    if (run.out / RESUME).is_file() and not run.resume:
        raise FusionerError(f"{run.out} holds a run already: go on with --resume, or choose another --out")
    writable_folder(run.out)
