"""Benchmark protocols of the methods that segment without training, as in their public configurations.

SCLIP: github.com/wangf3014/SCLIP, NACLIP: sinahmr/NACLIP, ClearCLIP: mc-lan/ClearCLIP, ProxyCLIP: mc-lan/ProxyCLIP.
"""

from dataclasses import dataclass, replace

from fusioner.data.base import SegmentationData
from fusioner.device import pick_device
from fusioner.encoders.registry import method_of
from fusioner.encoders.training_free import BACKGROUND_NAMES, published_protocol
from fusioner.loading import load
from fusioner.model.fusioner import Fusioner
from fusioner.segmenter import Segmenter


@dataclass(frozen=True)
class BenchmarkProtocol:
    """The protocol of a benchmark without training."""

    method: str  # whose configuration it is
    short_side: int  # px, of the image
    window: int  # px, side; 0: whole image
    stride: int  # px, between windows
    scale: float = 40.0  # of the cosines in the softmax over all names
    threshold: float = 0.0  # least probability of a label; 0: the likeliest label takes the pixel
    background: tuple[str, ...] = ()  # names whose pixels are background
    synonyms: bool = False  # persons and monitors have several names, of which the likeliest counts
    min_area: float = 0.0  # labels with at most this share of all labelled pixels are dropped
    pamr: int = 0  # iterations of PAMR, which refines scores by the colours of pixels

    def __str__(self) -> str:
        windows = f"windows of {self.window} px every {self.stride} px" if self.window else "whole image"
        names = f"{len(self.background)} names" if len(self.background) > 1 else "".join(map(repr, self.background))
        below = f"probability below {self.threshold:g}" if self.threshold else ""
        background = " or ".join(part for part in (names, below) if part) or "none"
        known = "one" if not self.synonyms else "several for persons and monitors"
        return (
            f"{self.method}'s: short side {self.short_side} px, {windows}, softmax over cosines x {self.scale:g}, "
            f"background {background}, names per class {known}"
            + (f", areas up to {self.min_area:.0%} removed" if self.min_area else "")
            + (f", {self.pamr} iterations of PAMR" if self.pamr else "")
        )


_SCENES = BACKGROUND_NAMES
_INDOORS = {"lamp", "door", "window", "wardrobe", "ceiling", "shelf", "curtain", "stair", "fence"}
_OPEN = tuple(name for name in _SCENES if name not in _INDOORS)
_WORD = ("background",)
_SCLIP = BenchmarkProtocol("SCLIP", 336, 224, 112, synonyms=True)
_NACLIP = replace(_SCLIP, method="NACLIP", pamr=10)
_CLEAR = BenchmarkProtocol("ClearCLIP", 448, 448, 224, 50.0)
_PROXY = BenchmarkProtocol("ProxyCLIP", 336, 336, 112)
PROTOCOLS: dict[str, dict[str, BenchmarkProtocol]] = {
    "sclip": {
        "": _SCLIP,
        "voc21": replace(_SCLIP, scale=65.0, threshold=0.1, background=_SCENES, min_area=0.1),
        "context60": replace(_SCLIP, scale=50.0, threshold=0.1, background=_WORD),
        "coco-object": replace(_SCLIP, scale=50.0, threshold=0.1, background=_SCENES),
        "cityscapes": replace(_SCLIP, short_side=560),
        "coco-stuff": replace(_SCLIP, short_side=448),
    },
    "naclip": {
        "": _NACLIP,
        "pas20": replace(_NACLIP, window=0),
        "voc21": replace(_NACLIP, window=0, threshold=0.1, background=_SCENES),
        "context60": replace(_NACLIP, threshold=0.1, background=_WORD),
        "coco-object": replace(_NACLIP, threshold=0.1, background=_SCENES),
        "cityscapes": replace(_NACLIP, short_side=560),
    },
    "clearclip": {
        "": _CLEAR,
        "voc21": replace(_CLEAR, threshold=0.5, background=_WORD),
        "context60": replace(_CLEAR, threshold=0.15, background=_WORD),
        "coco-object": replace(_CLEAR, threshold=0.4, background=_WORD),
        "cityscapes": replace(_CLEAR, window=224),
    },
    "proxyclip": {
        "": _PROXY,
        "voc21": replace(_PROXY, threshold=0.2, background=_SCENES),
        "context60": replace(_PROXY, threshold=0.15, background=_WORD),
        "coco-object": replace(_PROXY, threshold=0.25, background=_OPEN),
        "ade150": replace(_PROXY, short_side=448),
        "cityscapes": replace(_PROXY, short_side=448, window=224),
    },
}
"""Protocol by method and data set; "": every other one."""
BENCHMARKS = ("voc21", "context60", "coco-object", "pas20", "cityscapes", "context59", "ade150", "coco-stuff")
"""The data sets of the papers, in the order of their tables."""

_VOC_NAMES = {"boat": "ship", "diningtable": "table"}
_WORN = ("shirt", "jeans", "dress", "sweater", "skirt", "jacket")
_PERSONS = ", ".join(["person", *(f"person in {garment}" for garment in _WORN)])
_SYNONYMS = {"person": _PERSONS, "tvmonitor": "television monitor, tv monitor, monitor, television, screen"}


def benchmark_protocol(image_encoder: str, image_size: int, data: SegmentationData) -> BenchmarkProtocol:
    """Return the protocol of a pair's method; of other encoders SCLIP's, with windows of their training size.

    Data sets with a background that no paper lists are evaluated as PASCAL VOC is.
    """
    method = method_of(image_encoder)
    if method in PROTOCOLS:
        return PROTOCOLS[method].get(data.name, PROTOCOLS[method]["" if data.ignore_unlabeled else "voc21"])
    sclip = benchmark_protocol("sclip-", image_size, data)
    own = published_protocol(image_encoder, image_size)
    return replace(sclip, short_side=sclip.short_side * own.short_side // 336, window=own.window, stride=own.stride)


def with_published_names(data: SegmentationData, synonyms: bool) -> SegmentationData:
    """Return a benchmark with the prompts of the methods' lists; synonyms of a class are joined by ", ".

    Other data sets are returned as they are.
    """
    if data.name not in BENCHMARKS:
        return data
    names = [name if data.name == "coco-object" else name.replace(" ", "") for name in data.classes]
    if data.name in ("pas20", "voc21"):
        names = [_VOC_NAMES.get(name, name) for name in names]
    if synonyms and data.name in ("pas20", "voc21", "coco-object"):
        body = ", body" if data.name == "coco-object" else ""
        names = [_SYNONYMS.get(name, name) + (body if name == "person" else "") for name in names]
    return replace(data, prompts=tuple(names))


def load_pair(
    image_encoder: str, text_encoder: str | None, device: str, data: SegmentationData
) -> tuple[Segmenter, BenchmarkProtocol]:
    """Load a pair of encoders with the benchmark protocol of its method; raises FusionerError as `fusioner.load`."""
    pair = load(device=device, image_encoder=image_encoder, text_encoder=text_encoder)
    image, text = pair.image_encoder, pair.text_encoder
    protocol = benchmark_protocol(image.name, image.image_size, data)
    card = replace(
        pair.card,
        config=replace(pair.card.config, temperature=1 / protocol.scale),
        resolution=protocol.window or pair.card.resolution,
        threshold=protocol.threshold,
        short_side=protocol.short_side,
        stride=protocol.stride,
        background=protocol.background,
        min_area=protocol.min_area,
        pamr=protocol.pamr,
    )
    return Segmenter.from_parts(Fusioner(card.config), image, text, card, pick_device(device)), protocol
