"""Build the parts of a training from its settings: processes, encoders, network, token sources."""

import atexit
import os
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import distributed, nn

from fusioner.data.augment import COCO_AUGMENT, PASCAL_AUGMENT
from fusioner.device import pick_device
from fusioner.encoders.base import PUBLISHED_NORMALISATION, ImageEncoder, TextEncoder
from fusioner.encoders.registry import build_image_encoder, build_text_encoder, space_mismatch
from fusioner.errors import FusionerError
from fusioner.features.build import cache_features
from fusioner.features.dataset import LiveSource, TokenSource
from fusioner.io import default_cache_folder
from fusioner.model.config import TRAINING_FREE, WITHOUT_SIMILARITY, FusionerConfig, NetworkOptions
from fusioner.model.fusioner import Fusioner
from fusioner.progress import Track, no_progress
from fusioner.training.config import TrainConfig
from fusioner.training.dataset import Corpus

_PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
_TIMEOUT = timedelta(hours=6)
"""Time limit for processes that wait for each other: one of them fits the closed-set head for all."""


def build_fabric(device: str, devices: int, precision: str) -> Fabric:
    """Launch the processes that train together; under torchrun, as many as it started."""
    chosen = pick_device(device)
    if precision == "16" and chosen.type != "cuda":
        raise FusionerError("--precision 16 needs a CUDA device; use bf16 or 32")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", devices))
    if chosen.type == "cuda" and local > torch.cuda.device_count():
        raise FusionerError(f"there are {torch.cuda.device_count()} CUDA devices, not {local}: lower --devices")
    _join_process_group(chosen.type)
    single = chosen.type == "cuda" and local == 1 and "LOCAL_WORLD_SIZE" not in os.environ
    fabric = Fabric(
        accelerator=chosen.type,
        devices=[chosen.index or 0] if single else local,
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", 1)),
        strategy=DDPStrategy(timeout=_TIMEOUT) if local > 1 or "TORCHELASTIC_RUN_ID" in os.environ else "auto",
        precision=_PRECISIONS[precision],
    )
    fabric.launch()
    return fabric


def _join_process_group(device_type: str) -> None:
    """Join torchrun's other processes under a key of this attempt.

    torchrun keeps one store for all attempts: a restarted process finds the addresses of dead ones there and waits for
    them for half an hour (pytorch/pytorch#135712).
    """
    env = os.environ
    if env.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    if int(env["GROUP_WORLD_SIZE"]) > 1:
        if int(env["TORCHELASTIC_MAX_RESTARTS"]) > 0:
            raise FusionerError(
                "torchrun on several machines keeps addresses of processes that died, and restarts wait for them: "
                "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 where torchrun is called, or --max-restarts 0"
            )
        return
    world = int(env["WORLD_SIZE"])
    stores: Any = distributed  # whose stubs do not name its stores
    store = stores.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), world, is_master=False)
    store = stores.PrefixStore(f"attempt_{env['TORCHELASTIC_RESTART_COUNT']}", store)
    backend = "nccl" if device_type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=int(env["RANK"]), world_size=world, timeout=_TIMEOUT)
    if backend == "nccl":
        atexit.register(distributed.destroy_process_group)


def build_encoders(config: TrainConfig, dataset: str, device: torch.device) -> tuple[ImageEncoder, TextEncoder]:
    """Build both frozen encoders on the device, with the configured image normalisation."""
    image, text = build_image_encoder(config.model.image_encoder), build_text_encoder(config.model.text_encoder)
    if config.model.normalisation == "dataset" and dataset in PUBLISHED_NORMALISATION:
        image.mean, image.std = PUBLISHED_NORMALISATION[dataset]
    for encoder in (image, text):
        if isinstance(encoder, nn.Module):
            encoder.to(device)
    return image, text


def supported_similarities(image: ImageEncoder, text: TextEncoder) -> tuple[str, ...]:
    """Return the similarities that the last image encoder and the text encoder support, best first."""
    last = image.parts[-1]
    classes = last.class_embeddings
    posterior = classes is not None and tuple(classes.shape) == (last.dim, text.dim)
    cosine = last.text_aligned and last.dim == text.dim and not space_mismatch(last.name, text.name)
    return (*(["posterior"] if posterior else []), *(["cosine"] if cosine else []), "none")


def resolve_similarity(config: TrainConfig, image: ImageEncoder, text: TextEncoder) -> TrainConfig:
    """Return the settings with the similarity that method and encoders use, without options that it rules out."""
    method, similarity = config.model.method, config.model.similarity
    supported, last = supported_similarities(image, text), image.parts[-1]
    if method in WITHOUT_SIMILARITY:
        similarity = "none"
    elif method in TRAINING_FREE:
        similarity = supported[0]
        if similarity == "none":
            raise FusionerError(
                f"--method {method} compares patches with words, but {last.name} and {text.name} do not share a space: "
                + (space_mismatch(last.name, text.name) or "name both encoders of one CLIP")
            )
    elif similarity == "auto":
        similarity = supported[0]
    elif similarity not in supported:
        pair = "effnet-lite2 and minilm-embedded" if similarity == "posterior" else "both encoders of one CLIP"
        raise FusionerError(
            f"--similarity {similarity} is not supported by {last.name} and {text.name}: name an aligned pair such as "
            f"{pair} (the image encoder last in a list A+B), or use --similarity {supported[0]}"
        )
    options: dict[str, Any] = {"similarity": similarity}
    if similarity != "posterior" or method in TRAINING_FREE:
        options |= {"hypernyms": False, "closed_set_head": False}
    if similarity == "none" or method in TRAINING_FREE:
        options |= {"affinity_refinement": False, "residual_head": False}
    return config.override(**options)


def build_network(
    config: TrainConfig,
    image: ImageEncoder,
    text: TextEncoder,
    num_names: int = 0,
    previous_closed_sets: tuple[int, ...] = (),
) -> Fusioner:
    """Build the network for these encoders, with weights drawn by the seed; torch's global random state is unchanged.

    A closed-set head has `num_names` classes, the heads beside it those of `previous_closed_sets`.
    """
    config = resolve_similarity(config, image, text)
    options, last = config.model, image.parts[-1]
    similarity_dim = 0 if options.similarity == "none" else last.dim
    hypernyms = last.hypernyms() if options.hypernyms else None
    shape = FusionerConfig(
        **{entry.name: getattr(options, entry.name) for entry in fields(NetworkOptions)},
        image_dim=image.dim - similarity_dim,
        text_dim=text.dim,
        similarity_dim=similarity_dim,
        num_hypernyms=len(hypernyms.embeddings) if hypernyms is not None else 0,
        closed_set_classes=num_names if options.closed_set_head else 0,
        previous_closed_sets=previous_closed_sets,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Fusioner(shape)
    if hypernyms is not None:
        module: Any = model.similarity
        module.set_hypernyms(hypernyms.embeddings, hypernyms.of_class)
    if options.similarity == "posterior" and last.class_embeddings is not None:
        buffer = "similarity.anchors" if model.baseline is None else "baseline.anchors"
        model.get_buffer(buffer).copy_(last.class_embeddings)
    return model


def build_sources(
    corpus: Corpus,
    image: ImageEncoder,
    config: TrainConfig,
    cache: Path | None,
    say: Callable[[str], None],
    track: Track = no_progress,
) -> list[TokenSource]:
    """Build each split's token source; fills the cache (None: the user's own folder) with missing features."""
    resolution, data = config.model.resolution, config.data
    sources: list[TokenSource] = []
    for number, split in enumerate(corpus.splits):
        if data.features == "cached":
            samples = (*corpus.samples, *corpus.held_out)
            items = {sample.item.id: sample.item for sample in samples if sample.split == number}
            used = replace(split.data, items=list(items.values()))
            folder = cache or default_cache_folder()
            sources.append(cache_features(folder, used, image, resolution, views=data.views, say=say, track=track))
        elif data.augment_prob == 0:  # the views that the cache would hold
            sources.append(LiveSource(split.data, image, resolution, views=data.views))
        else:
            published = COCO_AUGMENT if split.data.name == "coco" else PASCAL_AUGMENT
            strengths = {"probability": data.augment_prob, "crop": data.min_crop_scale}
            augment = replace(published, **strengths, ignore=split.data.ignore)
            sources.append(LiveSource(split.data, image, resolution, augment))
    return sources
