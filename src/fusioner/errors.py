"""The exception for all errors that a user can cause and mend, and sentences that several parts share."""

from collections.abc import Mapping
from typing import Any

EXTRAS = {
    **dict.fromkeys(("fastapi", "uvicorn", "multipart", "python_multipart", "prometheus_client", "httpx"), "serve"),
    **dict.fromkeys(("torch", "transformers", "huggingface_hub", "lightning_fabric"), "train"),
    **dict.fromkeys(("onnx", "onnxscript"), "export"),
    "av": "video",
    "openvino": "openvino",
    "pyarrow": "batch",
    "rasterio": "geo",
    "ray": "ray",
    "tensorboard": "tensorboard",
    "timm": "timm",
}
"""Optional module -> the extra of fusioner that installs it."""
DEPENDENCIES = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    **{name: name for name in ("numpy", "onnxruntime", "tokenizers", "safetensors")},
    **{name: name for name in ("pycocotools", "rich", "jaxtyping")},
}
"""Required module -> its distribution, for installations made without dependencies."""


class FusionerError(Exception):
    """Bad input, explained in one sentence; the command line prints it without a traceback and exits with 2."""


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the first setting that differs, as `lr (0.1 then, 0.2 now)`, or ""; nested settings are compared by name.

    A setting that one side lacks has its default there.
    """
    for name in {**now, **before}:
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            if found := first_difference(old, new):
                return found
        elif old != new:
            then, today = ("the default" if value is None else value for value in (old, new))
            return name.replace("_", " ") + (f" ({then} then, {today} now)" if len(f"{then}{today}") < 60 else "")
    return ""


def missing_package(error: ModuleNotFoundError) -> FusionerError:
    """Return the error for a module that is not installed; raises `error` when it is none of ours (a bug)."""
    module = (error.name or "").partition(".")[0]
    if module in EXTRAS:
        return FusionerError(f"this needs {module}: pip install 'fusioner[{EXTRAS[module]}]'")
    if module in DEPENDENCIES:
        return FusionerError(f"this needs {module}: pip install {DEPENDENCIES[module]}")
    raise error
