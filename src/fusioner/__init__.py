"""Fusioner: name things in words, get their masks, on top of frozen image and text encoders.

    import fusioner
    seg = fusioner.load()
    result = seg("photo.jpg", ["cat", "sofa"])
    result.save("out")

Importing this package loads neither torch nor any weights; the first use of a name below does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fusioner.errors import FusionerError, missing_package

if TYPE_CHECKING:
    from fusioner.client import AsyncClient, Client
    from fusioner.encoders.registry import available_encoders
    from fusioner.loading import load
    from fusioner.segmentation import Segmentation
    from fusioner.segmenter import Segmenter

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "FusionerError", "Segmentation", "Segmenter", "available_encoders", "load"]

_HOMES = {
    "load": "fusioner.loading",
    "Segmenter": "fusioner.segmenter",
    "Segmentation": "fusioner.segmentation",
    "available_encoders": "fusioner.encoders.registry",
    "AsyncClient": "fusioner.client",
    "Client": "fusioner.client",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use (PEP 562); FusionerError if that needs an extra."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fusioner' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        raise missing_package(error) from error


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
