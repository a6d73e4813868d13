"""`fusioner features`: build and maintain the feature cache."""

import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from fusioner.cli.options import COMPUTE, MODEL, CacheFolder, Device, Root, print_notes
from fusioner.data.registry import TrainableDataset, open_dataset
from fusioner.encoders.registry import build_image_encoder
from fusioner.io import default_cache_folder, format_bytes
from fusioner.progress import progress
from fusioner.training.presets import SMALL

if TYPE_CHECKING:
    from fusioner.features.cache import CacheKey

app = App(name="features", help="Encode images once and cache their features: build, info, verify, prune.")


@app.command
def build(
    name: TrainableDataset,
    /,
    *,
    root: Root,
    out: CacheFolder = None,
    split: str | None = None,
    views: Annotated[int, Parameter(group=MODEL)] = SMALL.data.views,
    image_encoder: Annotated[str, Parameter(group=MODEL)] = SMALL.model.image_encoder,
    resolution: Annotated[int, Parameter(group=MODEL)] = SMALL.model.resolution,
    batch_size: Annotated[int | None, Parameter(group=COMPUTE)] = None,
    workers: Annotated[int, Parameter(group=COMPUTE)] = 2,
    device: Device = "auto",
) -> None:
    """Encode the images of a data set and augmented views of them; cached entries are not encoded again.

    The command may be interrupted and started again, and several may run at once to share the work. It prints the disk
    space needed before it encodes anything, and refuses to start if there is too little.

        fusioner features build pascal --root data/pascal --split train_aug
        fusioner features build folder --root my/data --out cache --image-encoder clip-vit-b16 --resolution 224

    Args:
        name: Data set; docs/data.md describes the folder of each.
        split: Split of the data set, as train or val; default: every image.
        views: Views per image: the image itself, then flipped, recoloured and cropped copies.
        image_encoder: Encoder, or several joined by a plus sign.
        resolution: Side in pixels to which each image is resized.
        batch_size: Views encoded together; default: 4 on a CPU, 32 on a GPU.
        workers: Threads that read and decode images.
    """
    from torch import nn

    from fusioner.device import pick_device
    from fusioner.features.build import cache_features

    torch_device = pick_device(device)
    data = open_dataset(name, root, split)
    print_notes(data.problems)
    encoder = build_image_encoder(image_encoder)
    if isinstance(encoder, nn.Module):
        encoder.to(torch_device)
    with progress("views") as track:
        cache_features(
            out or default_cache_folder(),
            data,
            encoder,
            resolution,
            views=views,
            batch_size=batch_size,
            workers=workers,
            say=print,
            track=track,
        )


@app.command
def info(cache: CacheFolder = None, /) -> None:
    """Print the contents of a cache: encoders, resolutions, images, views, bytes."""
    from fusioner.features.maintenance import info as read_info

    folder = cache or default_cache_folder()
    contents = read_info(folder)
    print(f"{folder}: {format_bytes(sum(found.size for found in contents))}")
    for found in contents:
        key = found.key
        print(f"{key.encoder} (weights {key.fingerprint[:8]}) at {key.resolution} px")
        print(f"  {found.images} images, {found.views} views, {format_bytes(found.size)}")
        print(f"  {key.grid[0]} x {key.grid[1]} tokens of width {key.dim}, fp16")


@app.command
def verify(cache: CacheFolder = None, /, *, repair: bool = False) -> None:
    """Compare every entry of a cache with its checksum; exit with code 1 if any is damaged.

        fusioner features verify cache --repair

    Args:
        repair: Delete the damaged entries; the next build or training encodes them again.
    """
    from fusioner.features.maintenance import verify as find_damages

    folder = cache or default_cache_folder()
    with progress("entries") as track:
        damages = find_damages(folder, track)
    for damage in damages:
        print(f"damaged: {damage.path} of image {damage.image or '(unknown)'}: {damage.reason}")
    if not damages:
        print(f"{folder} is intact")
    elif repair:
        for damage in damages:
            damage.path.unlink(missing_ok=True)
        print(f"deleted {len(damages)} entries: they are encoded again when needed")
    else:
        print(f"{len(damages)} entries are damaged: run again with --repair to delete them")
        sys.exit(1)


@app.command
def prune(
    cache: CacheFolder = None,
    /,
    *,
    image_encoder: tuple[str, ...] = (),
    resolution: tuple[int, ...] = (),
    missing_folders: bool = False,
    dry_run: bool = False,
) -> None:
    """Delete entries of images that no longer exist or have changed, and of encoders and resolutions not listed.

        fusioner features prune --dry-run
        fusioner features prune cache --image-encoder clip-vit-b16 --resolution 224

    Args:
        image_encoder: Keep only entries of this encoder with its current weights; may be repeated.
        resolution: Keep only entries of this resolution; may be repeated.
        missing_folders: Also delete entries of images whose whole folder is missing; by default that is taken for an
            unmounted disk.
        dry_run: Only print what would be deleted.
    """
    from fusioner.features.maintenance import prune as remove_unwanted

    fingerprints = {build_image_encoder(name).fingerprint() for name in image_encoder}

    def wanted(key: "CacheKey") -> bool:
        encoder_matches = not fingerprints or key.fingerprint in fingerprints
        return encoder_matches and (not resolution or key.resolution in resolution)

    with progress("entries") as track:
        report = remove_unwanted(cache or default_cache_folder(), wanted, missing_folders, dry_run, track)
    verb = "would drop" if dry_run else "dropped"
    print(f"{verb} {report.views} views ({format_bytes(report.size)}), kept {report.kept}")
    if report.unreachable:
        print(f"kept {report.unreachable} views of images in missing folders (--missing-folders drops them)")
