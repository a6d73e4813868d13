"""The parts of a training, each built from its settings: processes, encoders, network, where tokens come from."""

import atexit
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, distributed, nn

from fusioner.data.augment import COCO_AUGMENT, PASCAL_AUGMENT, Augmentation
from fusioner.device import pick_device
from fusioner.encoders.base import ImageEncoder, TextEncoder
from fusioner.encoders.registry import build_image_encoder, build_text_encoder
from fusioner.errors import FusionerError
from fusioner.features.build import Track, cache_features
from fusioner.features.cache import default_folder
from fusioner.features.dataset import LiveSource, TokenSource
from fusioner.model.config import TRAINING_FREE, FusionerConfig
from fusioner.model.fusioner import Fusioner
from fusioner.model.official_checkpoint import PUBLISHED_NORMALISATION
from fusioner.training.config import TrainConfig
from fusioner.training.dataset import Corpus, Part

_PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def build_fabric(device: str, devices: int, precision: str) -> Fabric:
    """The processes that train together, launched; under torchrun as many as that started.

    Raises:
        FusionerError: no such device, fewer of them than asked for, or fp16 on a CPU.
    """
    chosen = pick_device(device)
    if precision == "16" and chosen.type != "cuda":
        raise FusionerError("--precision 16 needs a CUDA device; use bf16 or 32")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", devices))
    if chosen.type == "cuda" and local > torch.cuda.device_count():
        raise FusionerError(f"there are {torch.cuda.device_count()} CUDA devices, not {local}: lower --devices")
    _join(chosen.type)
    single = chosen.type == "cuda" and local == 1 and "LOCAL_WORLD_SIZE" not in os.environ
    fabric = Fabric(
        accelerator=chosen.type,
        devices=[chosen.index or 0] if single else local,
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", 1)),
        strategy="ddp" if local > 1 or "TORCHELASTIC_RUN_ID" in os.environ else "auto",
        precision=_PRECISIONS[precision],
    )
    fabric.launch()
    return fabric


def _join(kind: str) -> None:
    """Meet the other processes of torchrun, but none of an earlier attempt.

    torchrun keeps one store for all attempts: who is started anew finds the addresses of the dead in it, and waits for
    them for half an hour (pytorch/pytorch#135712).
    """
    told = os.environ
    if told.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    if int(told["GROUP_WORLD_SIZE"]) > 1:
        if int(told["TORCHELASTIC_MAX_RESTARTS"]) > 0:
            raise FusionerError(
                "torchrun on several machines keeps addresses of processes that died, and restarts wait for them: "
                "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 where torchrun is called, or --max-restarts 0"
            )
        return
    world = int(told["WORLD_SIZE"])
    kinds: Any = distributed  # whose types do not name its stores
    store = kinds.TCPStore(told["MASTER_ADDR"], int(told["MASTER_PORT"]), world, is_master=False)
    apart = kinds.PrefixStore(f"attempt_{told['TORCHELASTIC_RESTART_COUNT']}", store)
    backend = "nccl" if kind == "cuda" else "gloo"
    distributed.init_process_group(backend, store=apart, rank=int(told["RANK"]), world_size=world)
    if backend == "nccl":
        atexit.register(distributed.destroy_process_group)


def build_encoders(config: TrainConfig, dataset: str, device: torch.device) -> tuple[ImageEncoder, TextEncoder]:
    """Both frozen encoders on the device, the image encoder with the normalisation asked for.

    Raises:
        FusionerError: an unknown name, or weights that cannot be had.
    """
    image, text = build_image_encoder(config.image_encoder), build_text_encoder(config.text_encoder)
    if config.normalisation == "dataset" and dataset in PUBLISHED_NORMALISATION:
        image.mean, image.std = PUBLISHED_NORMALISATION[dataset]
    for encoder in (image, text):
        if isinstance(encoder, nn.Module):
            encoder.to(device)
    return image, text


def build_network(
    config: TrainConfig, image: ImageEncoder, text: TextEncoder, names: int = 0, earlier: tuple[int, ...] = ()
) -> Fusioner:
    """The network for these encoders, its weights drawn by the seed; torch's own random numbers stay untouched.

    `names` is how many a memory has to hold, where the settings want one, `earlier` how many each of those beside it.

    Raises:
        FusionerError: sizes that do not go together.
    """
    config, anchors, aligned = _aligned(config, image, text)
    hypernyms = image.parts[-1].hypernyms() if config.kinds and config.similarity == "posterior" else None
    shape = FusionerConfig(
        image_dim=image.dim - aligned,
        text_dim=text.dim,
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        dropout=config.dropout,
        drop_path=config.drop_path,
        temperature=config.temperature,
        method=config.method,
        decoder_widths=config.decoder_widths,
        decoder_norm=config.decoder_norm,
        similarity=config.similarity,
        aligned_dim=aligned,
        labels_apart=config.labels_apart,
        none_token=config.none_token,
        reference=config.reference if config.similarity != "none" else 0,
        direct=config.direct and config.similarity != "none",
        kinds=len(hypernyms.embeddings) if hypernyms is not None else 0,
        affinity=config.affinity and config.similarity != "none",
        prompt_dropout=config.prompt_dropout,
        memory=names if config.memory and config.similarity == "posterior" else 0,
        earlier=earlier,
        logit_bias=config.logit_bias,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Fusioner(shape)
    if hypernyms is not None:
        reader: Any = model.similarity
        reader.learn_kinds(hypernyms.embeddings, hypernyms.of_class)
    if anchors is not None:
        model.get_buffer("similarity.anchors" if model.free is None else "free.anchors").copy_(anchors)
    return model


def build_sources(
    corpus: Corpus,
    image: ImageEncoder,
    config: TrainConfig,
    cache: Path | None,
    say: Callable[[str], None],
    track: Track | None = None,
) -> list[TokenSource]:
    """Where each part's tokens come from; fills the cache (None: the user's own folder) with what it lacks.

    Raises:
        FusionerError: no room for the cache, or an unreadable image.
    """
    return [_source(number, part, corpus, image, config, cache, say, track) for number, part in enumerate(corpus.parts)]


def _source(
    number: int,
    part: Part,
    corpus: Corpus,
    image: ImageEncoder,
    config: TrainConfig,
    cache: Path | None,
    say: Callable[[str], None],
    track: Track | None,
) -> TokenSource:
    if config.features == "cached":
        items = {e.item.id: e.item for e in (*corpus.examples, *corpus.held_out) if e.part == number}
        used = replace(part.data, items=list(items.values()))
        folder = cache or default_folder()
        return cache_features(folder, used, image, config.resolution, views=config.views, say=say, track=track)
    if config.augment == 0:
        live = LiveSource(part.data, image, config.resolution)
        live.views = config.views  # those the cache would hold
        return live
    published = COCO_AUGMENT if part.data.name == "coco" else PASCAL_AUGMENT
    recipe = replace(published, probability=config.augment, crop=config.crop)
    return LiveSource(part.data, image, config.resolution, Augmentation(recipe, part.data.ignore))


def _aligned(
    config: TrainConfig, image: ImageEncoder, text: TextEncoder
) -> tuple[TrainConfig, Float[Tensor, "m d"] | None, int]:
    """The settings with the similarity that the method reads, and of the last encoder in the list its class names'
    embeddings, where they are read, and its width.
    """
    last = image.parts[-1]
    anchors = last.class_embeddings
    if config.method in ("lseg", "mask-transformer", "empty"):  # all tokens are features to them
        config = replace(config, similarity="none", memory=False)
    elif config.method in TRAINING_FREE:
        fits = anchors is not None and tuple(anchors.shape) == (last.dim, text.dim)
        kind = "posterior" if fits else "cosine"
        config = replace(config, similarity=kind, kinds=False, affinity=False, memory=False, reference=0, direct=False)
        if not fits and (last.dim != text.dim or not last.text_aligned):
            raise FusionerError(
                f"--method {config.method} compares patches with words, for which {last.name} and {text.name} are not "
                "made: name an aligned pair, as effnet-lite2 and minilm-embedded, or both of one CLIP"
            )
        return config, anchors if fits else None, last.dim
    if config.similarity == "none":
        return config, None, 0
    anchors = anchors if config.similarity == "posterior" else None
    wanted = (last.dim, text.dim) if config.similarity == "posterior" else None
    if last is image or (wanted and (anchors is None or tuple(anchors.shape) != wanted)):
        example = "effnet-lite2 (with minilm-embedded)" if wanted else "a CLIP image encoder (with its text encoder)"
        raise FusionerError(
            f"--similarity {config.similarity} cannot be read from --image-encoder {image.name}: name {example} last "
            "in a list, as in A+B, or use --similarity none"
        )
    return config, anchors, last.dim
