"""`fusioner train`: teach a fusion network one data set, or several at once."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fusioner.data.registry import TrainableDataset
from fusioner.model.config import Method

if TYPE_CHECKING:
    from fusioner.training.trainer import Result


def train(
    dataset: TrainableDataset,
    /,
    *,
    root: Path,
    out: Path = Path("run"),
    fold: Literal["0", "1", "2", "3", "all"] = "all",
    preset: Literal["small", "paper"] = "small",
    also: list[str] | None = None,
    image_encoder: str | None = None,
    text_encoder: str | None = None,
    templates: Path | None = None,
    similarity: Literal["none", "cosine", "posterior"] | None = None,
    affinity: bool | None = None,
    memory: bool | None = None,
    method: Method | None = None,
    resolution: int | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    accumulate: int | None = None,
    prompts: int | None = None,
    unseen: Literal["background", "ignored"] | None = None,
    views: int | None = None,
    lr: float | None = None,
    choice_weight: float | None = None,
    holdout: int | None = None,
    order: Literal["shuffled", "shards"] | None = None,
    hard: float | None = None,
    balance: float | None = None,
    synonyms: str | None = None,
    hypernyms: str | None = None,
    seed: int | None = None,
    precision: Literal["32", "bf16", "16"] | None = None,
    config: Path | None = None,
    cache: str | None = None,
    initial: Path | None = None,
    resume: bool = False,
    checkpoint_minutes: float = 5.0,
    device: str = "auto",
    devices: int = 1,
    compile: bool = False,
) -> None:
    """Train the fusion on top of frozen encoders; writes best.safetensors, last.safetensors and metrics.jsonl.

    The encoders never change, so what they say of each image is computed once and kept in a cache.

        fusioner train pascal --root data/pascal --fold 2 --out run
        fusioner train folder --root my/data --steps 300
        fusioner train pascal --root data/pascal --also coco=data/coco --also folder=my/data
        fusioner train folder --root my/data --initial default --steps 100 --lr 2e-4
        fusioner train pascal --root data/pascal --fold 0 --preset paper --device cuda
        fusioner train pascal --root data/pascal --fold 0 --method lseg --out lseg
        fusioner train pascal --root data/pascal --fold 2 --out run --resume

    Parameters
    ----------
    dataset
        What DIR holds for each is in docs/data.md; folder is your own: images/ masks/ classes.txt.
    root
        Folder of the data set.
    out
        Folder of the run.
    fold
        Hold back the classes of this fold of pascal or coco; all trains on every class.
    preset
        small: minutes on two cores, nothing to download; paper: every official default.
    also
        A further data set, NAME=FOLDER; may be given several times. Each keeps its own vocabulary.
    image_encoder
        Frozen image encoder by name (see `fusioner models`), NAME@/folder, hf:REPO, or several joined by a plus sign.
    text_encoder
        Frozen text encoder, likewise.
    templates
        File of prompt templates, one a line, each with {} for the label.
    similarity
        How the last image encoder's tokens are compared with the labels; none for the paper's network.
    affinity
        Read similarity once more, averaged over patches that the first image encoder finds alike. Default: the
        preset's.
    memory
        Remember what the classes look like before training starts, and let the network read it by name. Default: the
        preset's; off with a fold, for it makes the network doubt classes it was not shown.
    method
        fusioner, or a trained baseline: late, lseg, mask-transformer, prompt-ablated; or an untrained one of which only
        the threshold is chosen on training images: cosine, maskclip, empty. docs/baselines.md describes each.
    resolution
        Side in pixels to which images are squashed.
    steps
        Updates.
    epochs
        Passes over the data, where steps is 0.
    batch_size
        Images an update.
    accumulate
        Pieces a batch is cut into, to save memory.
    prompts
        Names asked of an image at a time, about half of them absent from it.
    unseen
        What the pixels of a fold's unseen classes count as in training images that show some: background, as in the
        official recipe, or ignored.
    views
        Cached views of each image.
    lr
        Peak learning rate.
    choice_weight
        Weight of the competition among an image's names beside each name's own yes or no.
    holdout
        Training images set aside to choose the best checkpoint by; 0 chooses it by the training's own mIoU.
    order
        shuffled; shards reads a feature cache that is larger than memory file by file.
    hard
        Ask more often for absent names that sound like one that is there; 0 treats all alike.
    balance
        Of several sets: 0 takes every image alike, 1 every set alike, whatever its size.
    synonyms
        JSON file {label: [other names]} to draw names from, or "packaged" for ours.
    hypernyms
        JSON file {word: [labels]}: now and then a class is asked for by the word for its group, as "animal"; or
        "packaged" for ours.
    seed
        Of everything random.
    precision
        Of the computation.
    config
        TOML file with any settings of fusioner.training.config, one `name = value` a line; flags have the last word.
    cache
        Folder of the feature cache, or off to encode at every step under full augmentation.
    initial
        Model file to start from, or default for the model inside the package. The network keeps its shape (similarity,
        memory, widths ...), whatever is asked for here, and what it remembers of its own classes stays.
    resume
        Go on with the run in --out where it was interrupted.
    checkpoint_minutes
        Time between checkpoints.
    device
        auto, cpu, cuda, cuda:N or mps.
    devices
        How many of them.
    compile
        Compile the network first: worth its minute on a GPU.
    """
    import sys

    from fusioner.encoders.prompt_templates import read_templates
    from fusioner.training.dataset import open_part
    from fusioner.training.presets import preset as ready
    from fusioner.training.train import Run
    from fusioner.training.train import train as run
    from fusioner.training.trainer import Pace

    given = {
        "image_encoder": image_encoder, "text_encoder": text_encoder, "similarity": similarity, "affinity": affinity,
        "memory": memory, "method": method,
        "resolution": resolution, "steps": 0 if epochs is not None and steps is None else steps, "epochs": epochs,
        "batch_size": batch_size, "accumulate": accumulate, "prompts": prompts, "unseen": unseen, "views": views,
        "lr": lr, "choice_weight": choice_weight, "holdout": holdout, "order": order,
        "hard": hard, "balance": balance, "synonyms": synonyms, "hypernyms": hypernyms,
        "seed": seed, "precision": precision,
        "templates": None if templates is None else read_templates(templates),
        "features": None if cache is None else "live" if cache == "off" else "cached",
    }  # fmt: skip
    chosen = ready(preset) if fold == "all" else ready(preset).changed({"memory": False})
    chosen = chosen if config is None else chosen.with_file(config)
    chosen = chosen.changed({name: value for name, value in given.items() if value is not None})
    parts = [open_part(dataset, root, None if fold == "all" else int(fold), chosen.unseen)]
    parts += [open_part(*_named(one)) for one in also or ()]
    folder = None if cache in (None, "off") else Path(str(cache)).expanduser()
    if initial == Path("default"):
        from fusioner.encoders.bundled import weights_file
        from fusioner.loading import DEFAULT_MODEL

        initial = weights_file(DEFAULT_MODEL)
    where = Run(out, resume, device, devices, folder, initial, preset, command_line(["fusioner", *sys.argv[1:]]))
    finish(run(parts, chosen, where, Pace(checkpoint_minutes, compile=compile), track=track), out)


def track(items: Sequence[Any], what: str) -> Iterable[Any]:
    """A bar of its own for each stretch of work before the training, whose display wants the terminal to itself."""
    from fusioner.cli.progress import progress

    with progress("items") as bar:
        yield from bar(items, what)


def finish(result: "Result", out: Path) -> None:
    """Say how a training ended and what it left; where a signal ended it, end as that signal does."""
    import signal
    import sys

    from fusioner.training.progress import clock
    from fusioner.training.resume import BEST, LAST

    spent = f"{1 - result.waiting:.0%} of it computing and {result.waiting:.0%} waiting for data"
    print(f"{result.step} of {result.steps} steps in {clock(result.seconds)}, {spent}")
    if result.best is not None:
        print(f"wrote {out / BEST} (mIoU {result.best:.1f} on {result.judged})")
    print(f"wrote {out / LAST}" + (f"; go on with --resume --out {out}" if result.signal else ""))
    if result.signal == signal.SIGINT:
        raise KeyboardInterrupt
    if result.signal:
        sys.exit(128 + result.signal)


def command_line(words: Sequence[str]) -> str:
    """A command as a model's card keeps it: files and folders by their own name, without the way to them."""
    import shlex

    return shlex.join(_without_folders(word) for word in words)


def _without_folders(word: str) -> str:
    head, equals, path = word.rpartition("=")
    name = Path(path).name
    return head + equals + name if name and "/" in path and "@" not in path and Path(path).exists() else word


def _named(text: str) -> tuple[str, Path]:
    """`NAME=FOLDER` apart."""
    from fusioner.errors import FusionerError

    name, equals, folder = text.partition("=")
    if not equals or not folder:
        raise FusionerError(f"--also {text}: write NAME=FOLDER, as in --also coco=data/coco")
    return name, Path(folder).expanduser()
