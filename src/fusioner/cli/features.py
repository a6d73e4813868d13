"""`fusioner features`: encode images once, and look after what was encoded."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclopts import App

from fusioner.data.registry import TrainableDataset

if TYPE_CHECKING:
    from fusioner.features.space import Space

app = App(name="features", help="Encode images once and keep the features: build, info, verify, prune.")


@app.command
def build(
    name: TrainableDataset,
    /,
    *,
    root: Path,
    out: Path | None = None,
    split: str | None = None,
    views: int | None = None,
    image_encoder: str | None = None,
    resolution: int | None = None,
    dtype: Literal["fp16", "int8"] = "fp16",
    batch_size: int | None = None,
    workers: int = 2,
    device: str = "auto",
) -> None:
    """Encode every image of a data set, and light views of it, once. What is there already is not encoded again.

    May be stopped at any moment and started again, and run several times at once: the work is shared. The disk space
    needed is printed before anything is encoded, and too little of it refused.

        fusioner features build pascal --root data/pascal --split train_aug
        fusioner features build folder --root my/data --out cache --image-encoder clip-vit-b16 --resolution 224

    Parameters
    ----------
    name
        What DIR holds for each is in docs/data.md.
    root
        Folder of the data set.
    out
        Folder of the cache; default: $FUSIONER_CACHE, or the platform's folder for caches.
    split
        train, val ... as the set names them; default: every image.
    views
        Views of each image: itself, then mirrored, recoloured and cropped ones; default: as the small training.
    image_encoder
        Encoder, or several joined by a plus sign; default: as the small training.
    resolution
        Side in pixels to which every image is squashed; default: as the small training.
    dtype
        fp16, or int8: half the size, the error is printed.
    batch_size
        Views encoded together; default: 4 on a CPU, 32 on a GPU.
    workers
        Threads that read and decode images.
    device
        auto, cpu, cuda, cuda:N or mps.
    """
    from torch import nn

    from fusioner.cli.progress import progress
    from fusioner.data.registry import open_dataset
    from fusioner.device import pick_device
    from fusioner.encoders.registry import build_image_encoder
    from fusioner.features.fill import fill
    from fusioner.features.space import default_folder
    from fusioner.training.presets import SMALL

    chosen = pick_device(device)
    data = open_dataset(name, root, split)
    encoder = build_image_encoder(image_encoder or SMALL.image_encoder)
    if isinstance(encoder, nn.Module):
        encoder.to(chosen)
    with progress("views") as track:
        fill(
            out or default_folder(),
            data,
            encoder,
            SMALL.resolution if resolution is None else resolution,
            views=SMALL.views if views is None else views,
            dtype=dtype,
            batch_size=batch_size,
            workers=workers,
            say=_say,
            track=track,
        )


@app.command
def info(cache: Path | None = None, /) -> None:
    """Print what a cache holds: encoders, resolutions, images, views, bytes.

        fusioner features info

    Parameters
    ----------
    cache
        Folder of the cache; default: $FUSIONER_CACHE, or the platform's folder for caches.
    """
    from fusioner.features.maintenance import info as look
    from fusioner.features.plan import readable
    from fusioner.features.space import default_folder

    folder = cache or default_folder()
    held = look(folder)
    _say(f"{folder}: {readable(sum(one.size for one in held))}")
    for one in held:
        space = one.space
        _say(f"{space.encoder} (weights {space.fingerprint[:8]}) at {space.resolution} px")
        _say(f"  {one.images} images, {one.views} views in {one.shards} files, {readable(one.size)}")
        rounding = f", off by {one.error[0]:.2%} of a token, {one.error[1]:.2%} at worst" if one.error else ""
        _say(f"  {space.grid[0]} x {space.grid[1]} tokens of width {space.dim}, {space.dtype}{rounding}")


@app.command
def verify(cache: Path | None = None, /, *, repair: bool = False) -> None:
    """Read every byte of a cache and compare it with its checksum; ends with exit code 1 where there is damage.

        fusioner features verify cache --repair

    Parameters
    ----------
    cache
        Folder of the cache; default: $FUSIONER_CACHE, or the platform's folder for caches.
    repair
        Encode the damaged views again, and only those; what cannot be encoded again is dropped.
    """
    from fusioner.cli.progress import progress
    from fusioner.encoders.registry import build_image_encoder
    from fusioner.features.maintenance import repair as mend
    from fusioner.features.maintenance import verify as inspect
    from fusioner.features.space import default_folder

    folder = cache or default_folder()
    with progress("files") as track:
        damages = inspect(folder, track)
    for damage in damages:
        _say(f"damaged: {damage.what}")
    if not damages:
        _say(f"{folder} is sound")
    elif not repair:
        _say(f"{len(damages)} files are damaged: run again with --repair")
        sys.exit(1)
    else:
        mended = mend(folder, damages, build_image_encoder)
        for reason in mended.dropped:
            _say(f"dropped: {reason}")
        _say(f"encoded {mended.encoded} views again, dropped {len(mended.dropped)}; {folder} is sound")


@app.command
def prune(
    cache: Path | None = None,
    /,
    *,
    image_encoder: tuple[str, ...] = (),
    resolution: tuple[int, ...] = (),
    missing_folders: bool = False,
    dry_run: bool = False,
) -> None:
    """Drop what is no longer wanted: views of images that are gone or have changed, and of other encoders than named.

        fusioner features prune --dry-run
        fusioner features prune cache --image-encoder clip-vit-b16 --resolution 224

    Parameters
    ----------
    cache
        Folder of the cache; default: $FUSIONER_CACHE, or the platform's folder for caches.
    image_encoder
        Keep only what this encoder made, with the weights it has now; may be given several times.
    resolution
        Keep only this resolution; may be given several times.
    missing_folders
        Also drop images whose whole folder is gone; without it that counts as a disk not mounted now.
    dry_run
        Only say what would be dropped.
    """
    from fusioner.cli.progress import progress
    from fusioner.encoders.registry import build_image_encoder
    from fusioner.features.maintenance import prune as drop
    from fusioner.features.plan import readable
    from fusioner.features.space import default_folder

    folder = cache or default_folder()
    fingerprints = {build_image_encoder(name).fingerprint() for name in image_encoder}

    def wanted(space: "Space") -> bool:
        right_encoder = not fingerprints or space.fingerprint in fingerprints
        return right_encoder and (not resolution or space.resolution in resolution)

    with progress("files") as track:
        pruned = drop(folder, wanted, missing_folders, dry_run, track)
    verb = "would drop" if dry_run else "dropped"
    _say(f"{verb} {pruned.views} views ({readable(pruned.size)}), kept {pruned.kept}")
    if pruned.unreachable:
        _say(f"kept {pruned.unreachable} views of images whose folder is not there (--missing-folders drops them)")


def _say(line: str) -> None:
    from rich.console import Console

    Console().print(line, soft_wrap=True, highlight=False, markup=False)
