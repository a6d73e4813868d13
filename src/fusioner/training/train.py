"""Train a model: from settings to saved weights."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from fusioner import __version__
from fusioner.data.paths import summarize
from fusioner.encoders.base import ImageEncoder, TextEncoder
from fusioner.encoders.prompt_templates import DEFAULT_TEMPLATES, LabelEmbedder
from fusioner.encoders.registry import pending_download, value_tokens
from fusioner.errors import FusionerError
from fusioner.features.cache import image_digest, read_bytes
from fusioner.io import writable_folder
from fusioner.labels import read_word_lists
from fusioner.model.checkpoint import ModelCard, load_model, load_state, save_model
from fusioner.model.config import FusionerConfig
from fusioner.model.fusioner import Fusioner
from fusioner.progress import ProgressBar, Track, progress
from fusioner.training.build import build_encoders, build_fabric, build_network, build_sources, resolve_similarity
from fusioner.training.calibration import calibrate_threshold, set_reference_words
from fusioner.training.closed_set import FitCache, fit_closed_set_head, shared_classes
from fusioner.training.config import BEST, LAST, RESUME, SECTIONS, TrainConfig
from fusioner.training.data_loader import DataLoader
from fusioner.training.dataset import Corpus, DatasetSplit, build_corpus
from fusioner.training.prompt_sampling import Vocabulary
from fusioner.training.trainer import RunConfig, Trainer, TrainResult

FEW_IMAGES = 200
"""Training images below which a note says that their held-out part is small."""
DIGITS = 12
"""Hex digits kept of an image's sha256: 100,000 images against 100,000 collide with a probability of 1 in 28,000."""


def train(splits: Sequence[DatasetSplit], config: TrainConfig, run: RunConfig) -> TrainResult:
    """Train on the splits, with progress on stderr; of a training-free method only calibrate the decision threshold.

    Raises FusionerError for bad settings, data, encoders, device, disk, or state to resume from.
    """
    with progress("items") as bar:
        return _train(splits, config, run, bar)


def _train(splits: Sequence[DatasetSplit], config: TrainConfig, run: RunConfig, bar: ProgressBar) -> TrainResult:
    if (run.out / RESUME).is_file() and not run.resume:
        raise FusionerError(f"{run.out} holds a run already: continue it with --resume, or choose another --out")
    writable_folder(run.out)
    corpus = build_corpus(splits, config.data.sampling, config.data.val_images, config.seed)
    for split in splits:
        for problem in split.data.problems:
            bar.say(f"note: {problem}")
    images, held_out = len(corpus.images), corpus.num_held_out
    if held_out and images < FEW_IMAGES:
        bar.say(
            f"note: {held_out} of only {images} images are held out to choose checkpoint and threshold, which is an "
            "uncertain choice: add images, or train on all with --val-images 0"
        )
    whole_epochs = -(-config.optim.epochs * len(corpus.samples) // config.optim.batch_size)
    config = config.override(steps=config.optim.steps or whole_epochs)
    fabric = build_fabric(run.device, run.devices, config.optim.precision)
    if config.optim.batch_size < fabric.world_size:
        size = config.optim.batch_size
        raise FusionerError(f"a batch of {size} images cannot be shared by {fabric.world_size} devices")
    if config.model.method == "maskclip":
        config = config.override(image_encoder=value_tokens(config.model.image_encoder))
    if download := pending_download(config.model.image_encoder, config.model.text_encoder):
        bar.say(f"downloading {download}, once")
    image, text = build_encoders(config, splits[0].data.name, fabric.device)
    initial, initial_card = load_model(run.init_from) if run.init_from else (None, None)
    if initial is not None:
        config = _with_network_of(config, initial.config)
    elif config.model.similarity == "auto":
        config = resolve_similarity(config, image, text)
        if config.model.similarity != "posterior":
            bar.say(f"note: {image.name} and {text.name} are used with --similarity {config.model.similarity}")
    if config.model.method == "softmax":
        raise FusionerError("method softmax is not trained: name its encoders in `fusioner predict --image-encoder`")
    synonyms = read_word_lists(config.data.synonym_file)
    hypernyms = read_word_lists(config.data.hypernym_file, "hypernyms.json")
    vocabulary = Vocabulary(corpus.names(), synonyms, hypernyms)
    embed = LabelEmbedder(text, config.model.templates or DEFAULT_TEMPLATES)
    table = embed(vocabulary.words)
    class_embeddings = table[: len(corpus.names())].cpu()  # without synonyms and hypernyms
    previous: tuple[int, ...] = ()
    if initial is not None and initial.config.closed_set_classes:
        previous = (*initial.config.previous_closed_sets, initial.config.closed_set_classes)
    model = build_network(config, image, text, len(corpus.names()), previous)
    set_reference_words(model, embed)
    if initial is not None:
        _load_initial(initial, model, str(run.init_from))
    entry = _training_entry(corpus, config, (image, text), run, initial_card.training if initial_card else {})
    card = ModelCard(
        model.config,
        image.name,
        text.name,
        config.model.resolution,
        embed.templates,
        *((image.mean, image.std) if config.model.normalisation == "dataset" else (None, None)),
        guided_filter=config.model.guided_filter,
        training=entry,
    )
    sources = build_sources(corpus, image, config, run.cache, bar.say, bar)
    if model.config.closed_set_classes:
        fit = [config.model.closed_set_epochs, config.model.closed_set_patch_ratio]
        shared = shared_classes(corpus.names(), synonyms)
        inputs = [config.model.resolution, config.seed, fit, config.data.features, config.data.views, shared]
        key = json.dumps([corpus.digest(), entry["encoders"], *inputs])
        cache = FitCache(run.out / "closed_set", key, fabric.is_global_zero)
        if not fabric.is_global_zero:
            fabric.barrier()  # then the fit of the first process is in the cache
        fit_closed_set_head(model, corpus, sources, class_embeddings, config, fabric.device, bar, cache, shared)
        known = model.get_buffer("similarity.closed_set.known")[-len(shared) :].tolist()
        if absent := [name for name, number in zip(corpus.names(), shared, strict=True) if not known[number]]:
            listed = f"{len(absent)} of {len(shared)} names: {summarize(absent, 8)}"
            bar.say(f"note: no training image shows, in more than a few pixels, {listed}")
        if fabric.is_global_zero:
            fabric.barrier()
    loader = DataLoader(corpus, sources, vocabulary, table, config)
    if model.baseline is not None:
        return _calibrate(model.to(fabric.device), loader, card, run, fabric.is_global_zero, bar)
    identity = {"data": corpus.digest(), "encoders": entry["encoders"], "init_from": entry["init_from"]}
    trainer = Trainer(fabric, model, loader, config, card, run, identity, bar)
    if run.resume:
        found = trainer.resume()
        bar.say(f"resuming {run.out} at step {trainer.start}" if found else f"{run.out} has nothing to resume yet")
    return trainer.fit()


def _with_network_of(config: TrainConfig, network: FusionerConfig) -> TrainConfig:
    """Return the settings with the network of an initial model, except for its regularisation."""
    regularisation = ("dropout", "drop_path", "prompt_dropout")
    values = {
        name: value
        for name, value in network.to_dict().items()
        if SECTIONS.get(name) == "model" and name not in regularisation
    }
    return config.override(
        **values, closed_set_head=network.closed_set_classes > 0, hypernyms=network.num_hypernyms > 0
    )


def _training_entry(
    corpus: Corpus,
    config: TrainConfig,
    encoders: tuple[ImageEncoder, TextEncoder],
    run: RunConfig,
    previous: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the card's `training` entry: how to train the model again, and on which images it must not be tested.

    `previous` is the entry of the initial model, on whose classes and images the new model has been trained as well.
    `images` are the first digits of each image file's sha256, which identify it whatever its name.
    """
    first, *extra = corpus.splits
    ids = "\n".join(sorted(f"{corpus.splits[s.split].data.name}/{s.item.id}" for s in corpus.images))
    with ThreadPoolExecutor(4) as pool:
        marks = set(pool.map(lambda sample: image_digest(read_bytes(sample.item.image))[:DIGITS], corpus.images))
    return {
        "dataset": first.data.name,
        "root": first.root.absolute().name,
        "fold": first.fold,
        "extra_datasets": [[split.data.name, split.root.absolute().name] for split in extra],
        "classes": list(dict.fromkeys([*corpus.names(), *previous.get("classes", ())])),
        "prompts": config.data.prompts,
        "steps": config.optim.steps,
        "seed": config.seed,
        "preset": run.preset,
        "settings": config.to_dict(),
        "command": run.command,
        "init_from": run.init_from.name if run.init_from else None,
        "versions": {"fusioner": __version__} | {name: version(name) for name in ("torch", "transformers")},
        "encoders": {"image": encoders[0].fingerprint(), "text": encoders[1].fingerprint()},
        "samples": len(corpus.samples),
        "held_out": corpus.num_held_out,
        "ids_sha256": hashlib.sha256(ids.encode()).hexdigest(),
        "images": sorted({*marks, *previous.get("images", ())}),
    }


def _load_initial(initial: Fusioner, model: Fusioner, source: str) -> None:
    """Copy an initial model's weights, and its closed-set heads beside the new one."""
    weights = {name: tensor for name, tensor in initial.state_dict().items() if ".closed_set." not in name}
    new = {name: tensor for name, tensor in model.state_dict().items() if ".closed_set." in name}
    load_state(model, weights | new, source)
    old_head, new_head = (getattr(network.similarity, "closed_set", None) for network in (initial, model))
    if old_head is not None and new_head is not None:
        new_head.load_previous(old_head)


def _calibrate(
    model: Fusioner, loader: DataLoader, card: ModelCard, run: RunConfig, saves: bool, track: Track
) -> TrainResult:
    start = time.monotonic()
    score = None if model.config.method == "empty" else calibrate_threshold(model, loader, track)
    entry = {"steps": 0, "step": 0, "train_miou": score and round(score, 2)}
    for name in (LAST, BEST) if saves else ():
        save_model(run.out / name, model, replace(card, training=card.training | entry))
    measured_on = "the training images its threshold was chosen on"
    return TrainResult(0, 0, 0.0, score or 0.0, score or 0.0, measured_on, time.monotonic() - start, 0.0, 0)
