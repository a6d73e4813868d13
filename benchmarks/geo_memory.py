# pyright: reportMissingImports=false
"""Measure the peak memory of `fusioner predict --format geotiff,geojson` on tiled rasters of growing size.

    python benchmarks/geo_memory.py [--sides 5000 50000]

The rasters have a photograph in the first and in the last tile and no data elsewhere, so that all tiles are read and
written but only a few are segmented.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.windows import Window

PHOTO = Path(__file__).parent.parent / "samples" / "coffee.jpg"


def write_raster(path: Path, side: int) -> None:
    """Write a sparse raster of `side` x `side` pixels in UTM zone 33."""
    photo = np.asarray(Image.open(PHOTO).convert("RGB")).transpose(2, 0, 1)
    profile = {"count": 3, "height": side, "width": side, "dtype": "uint8", "nodata": 0, "photometric": "rgb"}
    storage = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "sparse_ok": True}
    georeference = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 5e5, 0, -0.5, 55e5)}
    with rasterio.open(path, "w", driver="GTiff", BIGTIFF="YES", **profile, **storage, **georeference) as target:
        for y, x in ((0, 0), (side - photo.shape[1], side - photo.shape[2])):
            window = Window.from_slices((y, y + photo.shape[1]), (x, x + photo.shape[2]))
            target.write(photo, window=window)


def main() -> None:
    """Print a row per size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[5_000, 50_000], help="sides of the rasters, px")
    sides = parser.parse_args().sides
    print("| raster | seconds | peak memory |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for side in sides:
            path = Path(folder) / f"{side}.tif"
            write_raster(path, side)
            arguments = [path, "--labels", "cup, spoon, table", "--format", "geotiff,geojson", "--out", folder]
            start = time.monotonic()
            subprocess.run(
                [sys.executable, "-m", "fusioner", "predict", *map(str, arguments)], check=True, stdout=sys.stderr
            )
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # the largest so far
            print(f"| {side:,} x {side:,} px | {time.monotonic() - start:.0f} | {peak / 1e9:.2f} GB |", flush=True)


if __name__ == "__main__":
    main()
