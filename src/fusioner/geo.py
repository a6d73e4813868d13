# pyright: reportMissingImports=false
"""Segment georeferenced rasters (GeoTIFF) of any size, tile by tile from the file, with rasterio.

A tile is cut so that its windows are those of mode slide over the whole raster (`sliding_window`), and only the part
that no other window covers is kept: the mask equals that of the whole raster, in the memory of one tile.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import rasterio
from jaxtyping import Bool, Num, UInt8
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.features import shapes
from rasterio.io import DatasetReader
from rasterio.windows import Window

from fusioner.errors import FusionerError
from fusioner.io import atomic_write, check_replaceable
from fusioner.labels import check_labels
from fusioner.options import InferenceOptions
from fusioner.segmenter import MAX_CANVAS_SIZE, OnProgress, Segmenter
from fusioner.sliding_window import window_stride
from fusioner.visualization import colours

Area: TypeAlias = tuple[slice, slice]
"""Rows and columns of a part of a raster, px."""
SUFFIXES = {"geotiff": ".mask.tif", "geojson": ".geojson"}
"""Suffixes of the results of a raster by format."""
MAX_SIDE = 2048  # of a tile, px, without its margins
CACHE_BYTES = 2**27  # of GDAL's blocks
_SAMPLES, _SAMPLE_SIDE = 8, 256  # windows per axis and their side, px, read to find the range of the values


def segment_raster(
    segmenter: Segmenter,
    path: Path,
    labels: Sequence[str] | str,
    outputs: dict[str, Path],
    options: InferenceOptions | None = None,
    *,
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] = lambda note: None,
) -> dict[str, float]:
    """Segment a raster in mode slide and write its results, all or none; return label -> share of the valid pixels.

    The first three bands, or those marked as red, green and blue, are read as colours, a single one as grey; values of
    more than 8 bits are scaled by their range in a sample of the raster. Pixels without data (nodata value, mask or
    alpha band) have no label.

    Args:
        path: anything that GDAL reads, usually a GeoTIFF; best tiled.
        outputs: format -> path. geotiff: the label map (0 background, i the i-th label, the largest value of its type
            without data) with the raster's CRS and transform; optional geojson: a feature per connected region, in
            the raster's CRS.
        on_progress: called with (tiles done, tiles in total).
        on_note: called with a sentence for each part of the raster that is not used or was stretched.

    Raises:
        FusionerError: the raster cannot be read, a result cannot be written, or an option does not apply.
    """
    names = check_labels(labels)
    options = raster_options(options or segmenter.options)
    if segmenter.is_softmax:
        raise FusionerError("encoders without training read resized images, not the windows of a raster: give a model")
    for output in outputs.values():
        check_replaceable(output)
    dtype = np.uint8 if len(names) < 255 else np.uint16
    nodata, pixels = int(np.iinfo(dtype).max), Counter[int]()
    try:
        with ExitStack() as stack:
            stack.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES))
            source = stack.enter_context(rasterio.open(path))
            reader = _RasterReader(source, str(path), on_note)
            files = {name: stack.enter_context(atomic_write(output)) for name, output in outputs.items()}
            planes = len(segmenter.hierarchy.expand(names))
            tiles = list(_tiles(source.height, source.width, segmenter.card.resolution, planes))
            profile = {"driver": "GTiff", "dtype": dtype, "count": 1, "crs": source.crs, "transform": source.transform}
            layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "BIGTIFF": "IF_SAFER"}
            size = {"height": source.height, "width": source.width, "nodata": nodata}
            with rasterio.open(files["geotiff"], "w", **profile, **layout, **size) as target:
                target.update_tags(TIFFTAG_SOFTWARE="Fusioner", labels=json.dumps(names))
                if dtype == np.uint8:
                    target.write_colormap(1, dict(enumerate(colours(len(names) + 1))))
                for number, (outer, inner) in enumerate(tiles, start=1):
                    rgb, valid = reader.read(Window.from_slices(*outer))
                    label_map = np.full(valid.shape, nodata, dtype)
                    if valid.any():
                        label_map[valid] = segmenter(rgb, names, options).label_map[valid]
                    kept = tuple(slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))
                    target.write(label_map[kept], 1, window=Window.from_slices(*inner))
                    counts = np.bincount(label_map[kept].ravel()).tolist()
                    pixels.update({value: count for value, count in enumerate(counts) if count})
                    if on_progress:
                        on_progress(number, len(tiles))
            if "geojson" in files:
                _write_geojson(files["geotiff"], files["geojson"], names, nodata)
    except RasterioError as error:
        raise FusionerError(f"{path} cannot be segmented as a raster: {error}") from error
    del pixels[nodata]
    total = max(1, pixels.total())
    return {name: pixels[i] / total for i, name in enumerate(names, start=1)}


def raster_options(options: InferenceOptions) -> InferenceOptions:
    """Return the options in mode slide; FusionerError if one does not apply to rasters."""
    if options.overlap or options.instances:
        raise FusionerError("a GeoTIFF mask has one label per pixel: omit the options overlap and instances")
    if options.short_side or options.window or options.stride:
        raise FusionerError("a raster is read in windows of the training size: omit short-side, window and stride")
    return replace(options, mode="slide")


def _tiles(height: int, width: int, crop: int, labels: int) -> Iterator[tuple[Area, Area]]:
    """Yield the area of each tile with its margins, and the part of it to keep."""
    stride = window_stride(crop)
    side = min(MAX_SIDE, math.isqrt(MAX_CANVAS_SIZE // labels) - crop)  # so that the logits keep the full resolution
    step = max(1, side // stride) * stride

    def cuts(length: int) -> list[tuple[slice, slice]]:
        starts = range(0, max(1, length - crop + stride), step)
        ends = [*starts[1:], length]
        outer = [
            # the last window of the raster is moved back into it, maybe into the part before the last
            slice(max(0, start - stride), length if length - crop < end else end - stride + crop)
            for start, end in zip(starts, ends, strict=True)
        ]
        return list(zip(outer, map(slice, starts, ends), strict=True))

    for outer_rows, inner_rows in cuts(height):
        for outer_columns, inner_columns in cuts(width):
            yield (outer_rows, outer_columns), (inner_rows, inner_columns)


class _RasterReader:
    """Reads windows of a raster as RGB, scaled by the same range everywhere."""

    def __init__(self, source: DatasetReader, name: str, on_note: Callable[[str], None]) -> None:
        self.source, self._high = source, 255.0
        kinds = list(source.colorinterp)
        self._palette = kinds[0] == ColorInterp.palette
        rgb = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        named = [kinds.index(kind) + 1 for kind in rgb if kind in kinds]
        self.bands = named if len(named) == 3 else [1, 2, 3] if source.count >= 3 else [1]
        used = len(self.bands) + (ColorInterp.alpha in kinds)
        if source.count > used:
            on_note(f"{name} has {source.count} bands: only bands {self.bands} are read, as colours")
        if source.crs is None:
            on_note(f"{name} has no coordinate reference system: results are in its own coordinates")
        if not self._palette and source.dtypes[0] != "uint8":
            self._low, self._high = self._range()
            on_note(f"{name} holds {source.dtypes[0]} values: {self._low:g} to {self._high:g} are scaled to 8 bits")

    def read(self, window: Window) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
        """Return the colours of a window, white where there is no data, and where there is."""
        valid = self.source.dataset_mask(window=window) > 0
        if not valid.any():
            return np.full((*valid.shape, 3), 255, np.uint8), valid
        values = self.source.read(self.bands, window=window)
        if self._palette:
            table = np.zeros((256, 3), np.uint8)
            for value, colour in self.source.colormap(1).items():
                table[value] = colour[:3]
            rgb = table[values[0]]
        else:
            if values.dtype != np.uint8:
                finite = np.nan_to_num(values.astype(np.float32), posinf=self._low, neginf=self._low)
                scaled = (finite - self._low) * (255 / (self._high - self._low or 1))
                valid &= np.isfinite(values).all(axis=0)
                values = (scaled.clip(0, 255) + 0.5).astype(np.uint8)
            rgb = np.repeat(values.transpose(1, 2, 0), 3 // len(values), axis=2)
        return np.where(valid[..., None], rgb, np.uint8(255)), valid

    def _range(self) -> tuple[float, float]:
        """Return the range of the values in evenly spaced windows, for unsigned integers from 0 to 2**bits - 1."""

        def starts(length: int) -> list[int]:
            return np.unique(np.linspace(0, max(0, length - _SAMPLE_SIDE), _SAMPLES).astype(int)).tolist()

        sampled = [
            self._valid_values(Window.from_slices((y, y + _SAMPLE_SIDE), (x, x + _SAMPLE_SIDE)))
            for y in starts(self.source.height)
            for x in starts(self.source.width)
        ]
        values = np.concatenate(sampled)
        if not values.size:
            return 0.0, 1.0
        if values.dtype.kind == "u":
            return 0.0, float(next(2**bits - 1 for bits in (8, 10, 12, 14, 16, 32, 64) if values.max() < 2**bits))
        return float(values.min()), float(values.max())

    def _valid_values(self, window: Window) -> Num[np.ndarray, " n"]:
        values = self.source.read(self.bands, window=window)
        valid = (self.source.dataset_mask(window=window) > 0) & np.isfinite(values).all(axis=0)
        return values[:, valid].ravel()


def _write_geojson(mask_file: Path, path: Path, names: Sequence[str], nodata: int) -> None:
    """Write a feature per connected region of the mask, one a line, in the CRS of the mask."""
    with rasterio.open(mask_file) as source, path.open("w", encoding="utf-8") as file:
        head: dict[str, Any] = {"type": "FeatureCollection", "generator": "Fusioner"}
        if source.crs is not None:
            authority = source.crs.to_authority()
            name = f"urn:ogc:def:crs:{authority[0]}::{authority[1]}" if authority else source.crs.to_wkt()
            head["crs"] = {"type": "name", "properties": {"name": name}}
        file.write(json.dumps(head)[:-1] + ', "features": [')
        separator = "\n"
        for geometry, value in shapes(rasterio.band(source, 1), transform=source.transform):
            if value not in (0, nodata):
                properties = {"label": names[int(value) - 1], "value": int(value)}
                feature = {"type": "Feature", "properties": properties, "geometry": geometry}
                file.write(separator + json.dumps(feature, ensure_ascii=False))
                separator = ",\n"
        file.write("\n]}\n")
