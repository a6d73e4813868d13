"""Test that tiled rasters are segmented as a whole, and that results keep their coordinates."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage import data

from fusioner.cli.main import main
from fusioner.errors import FusionerError
from fusioner.segmenter import Segmenter

rasterio = pytest.importorskip("rasterio", reason="the extra geo is not installed")

from fusioner import geo  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
TRANSFORM = rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_500_000)
LABELS = ["cat", "cup"]


def write(path: Path, bands: np.ndarray, **options: Any) -> Path:
    """Write bands, (C, H, W), at half a metre per pixel in UTM zone 33."""
    profile = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    profile |= {"crs": "EPSG:32633", "transform": TRANSFORM, "photometric": "rgb" if len(bands) == 3 else "minisblack"}
    with rasterio.open(path, "w", driver="GTiff", **(profile | options)) as target:
        target.write(bands)
    return path


def segment(segmenter: Segmenter, path: Path, **options: Any) -> tuple[np.ndarray, Any, dict[str, Any], list[str]]:
    outputs = {"geotiff": path.with_suffix(".mask.tif"), "geojson": path.with_suffix(".geojson")}
    notes: list[str] = []
    geo.segment_raster(segmenter, path, LABELS, outputs, on_note=notes.append, **options)
    with rasterio.open(outputs["geotiff"]) as source:
        return source.read(1), source.profile, json.loads(outputs["geojson"].read_text()), notes


@pytest.fixture
def photo() -> np.ndarray:
    return data.astronaut()[:180, :200]


@pytest.mark.parametrize("shape", [(180, 200), (100, 200), (57, 56), (30, 20), (113, 169)])
def test_tiles_give_the_mask_of_the_whole_picture(
    tiny_segmenter: Segmenter,
    photo: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, int],
) -> None:
    monkeypatch.setattr(geo, "MAX_SIDE", 80)
    rgb = np.ascontiguousarray(photo[: shape[0], : shape[1]])
    path = write(tmp_path / "a.tif", rgb.transpose(2, 0, 1))
    done: list[tuple[int, int]] = []
    mask, profile, features, notes = segment(tiny_segmenter, path, on_progress=lambda *step: done.append(step))
    whole = tiny_segmenter(rgb, LABELS, mode="slide").label_map
    assert done[-1] == (len(done), len(done))
    assert len(done) > 1 or max(shape) < 112
    assert (mask != whole).mean() < 1e-3  # summation order differs
    assert (profile["crs"], profile["transform"], profile["nodata"]) == ("EPSG:32633", TRANSFORM, 255)
    assert notes == []
    assert features["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    areas = dict.fromkeys(LABELS, 0.0)
    for feature in features["features"]:
        rings = [np.array(ring) for ring in feature["geometry"]["coordinates"]]
        signed = [np.sum(ring[:-1, 0] * ring[1:, 1] - ring[1:, 0] * ring[:-1, 1]) / 2 for ring in rings]
        areas[feature["properties"]["label"]] += abs(signed[0]) - sum(map(abs, signed[1:]))
        assert rings[0][:, 0].min() >= 500_000
        assert rings[0][:, 1].max() <= 5_500_000
    expected = {label: (mask == i).sum() * 0.25 for i, label in enumerate(LABELS, start=1)}
    assert areas == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["nodata", "alpha"])
def test_pixels_without_data_have_no_label(
    tiny_segmenter: Segmenter, photo: np.ndarray, tmp_path: Path, kind: str
) -> None:
    bands = np.maximum(photo, 1).transpose(2, 0, 1).copy()
    bands[:, :70], bands[:, :, 130:] = 0, 0
    if kind == "alpha":
        alpha = (bands.max(axis=0) > 0)[None] * np.uint8(255)
        path = write(tmp_path / "a.tif", np.concatenate([bands, alpha]), photometric="rgb", alpha="yes")
    else:
        path = write(tmp_path / "a.tif", bands, nodata=0)
    mask, _, _, notes = segment(tiny_segmenter, path)
    np.testing.assert_array_equal(mask == 255, bands.max(axis=0) == 0)
    assert notes == []


def test_bands_depths_and_palettes(tiny_segmenter: Segmenter, photo: np.ndarray, tmp_path: Path) -> None:
    bands = photo.transpose(2, 0, 1)
    plain = segment(tiny_segmenter, write(tmp_path / "a.tif", bands))[0]
    deep, _, _, notes = segment(tiny_segmenter, write(tmp_path / "b.tif", bands.astype(np.uint16) * 16))
    assert (deep != plain).mean() < 0.02
    assert notes == [f"{tmp_path / 'b.tif'} holds uint16 values: 0 to 4095 are scaled to 8 bits"]
    floats = bands.astype(np.float32)
    floats[:, 5, 5] = np.nan
    mask, _, _, notes = segment(tiny_segmenter, write(tmp_path / "c.tif", floats))
    assert mask[5, 5] == 255
    assert (mask != plain).mean() < 0.02
    more = np.concatenate([bands, bands[:2]])
    mask, _, _, notes = segment(tiny_segmenter, write(tmp_path / "d.tif", more, photometric="rgb"))
    np.testing.assert_array_equal(mask, plain)
    assert notes == [f"{tmp_path / 'd.tif'} has 5 bands: only bands [1, 2, 3] are read, as colours"]
    path = write(tmp_path / "e.tif", bands[:1] // 64, photometric="palette")
    colours = {0: (0, 0, 0, 255), 1: (200, 20, 20, 255), 2: (20, 200, 20, 255), 3: (250, 250, 250, 255)}
    with rasterio.open(path, "r+") as target:
        target.write_colormap(1, colours)
    rgb = np.array([colour[:3] for colour in colours.values()], np.uint8)[photo[..., 0] // 64]
    expected = tiny_segmenter(rgb, LABELS, mode="slide").label_map
    assert (segment(tiny_segmenter, path)[0] != expected).mean() < 1e-3


def test_the_command(
    tiny_segmenter: Segmenter,
    photo: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fusioner.loading.load", lambda *_, **__: tiny_segmenter)
    write(tmp_path / "scene.tif", photo.transpose(2, 0, 1))
    command: Callable[..., list[str]] = lambda *words: ["predict", *words, "--labels", "cat, cup", "--out", "."]  # noqa: E731
    for _ in range(2):  # earlier results are replaced
        assert main(command("scene.tif", "--format", "geotiff, geojson")) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"scene.tif", "scene.mask.tif", "scene.geojson"}
    (tmp_path / "scene.geojson").write_text("mine")
    (tmp_path / "bad.tif").write_text("none")
    assert main(command("scene.tif", "bad.tif", "--format", "geotiff,geojson")) == 2
    assert (tmp_path / "scene.geojson").read_text() == "mine"
    err = capsys.readouterr().err
    assert "scene.geojson exists and was not written by fusioner" in err
    assert "bad.tif cannot be segmented as a raster" in err
    made = (tmp_path / "scene.mask.tif").stat().st_mtime_ns
    assert main(command("scene.tif", "--format", "geotiff", "--skip-existing")) == 0
    assert (tmp_path / "scene.mask.tif").stat().st_mtime_ns == made
    assert "scene.tif: skipped" in capsys.readouterr().out
    for words, reason in (
        (("--mode", "whole"), "in --mode slide"),
        (("--overlap",), "omit the options overlap and instances"),
        (("--tta-scales", "1,2"), "do not apply to mode slide"),
        (("--mode", "slide", "--window", "64"), "omit short-side, window and stride"),
        (("--csv", "a.csv"), "writes neither --csv nor --contact-sheet"),
        (("--contact-sheet", "a.png"), "writes neither --csv nor --contact-sheet"),
    ):
        assert main(command("scene.tif", "--format", "geotiff", *words)) == 2
        assert reason in capsys.readouterr().err
    assert main(command("scene.tif", "--format", "geotiff,json")) == 2
    assert "together with geojson only" in capsys.readouterr().err
    assert main(command("-", "--format", "geotiff")) == 2
    assert "not the standard input" in capsys.readouterr().err


def test_unknown_options_are_refused(tiny_segmenter: Segmenter, tmp_path: Path) -> None:
    with pytest.raises(FusionerError, match="cannot be segmented as a raster"):
        geo.segment_raster(tiny_segmenter, tmp_path / "gone.tif", LABELS, {"geotiff": tmp_path / "a.tif"})
