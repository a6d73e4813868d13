"""The bundled weights and graphs, with their card and NOTICE."""

from pathlib import Path

from fusioner.errors import FusionerError

DEFAULT_MODEL = "default.safetensors"


def weights_file(name: str) -> Path:
    """Return the path of a file in this folder; FusionerError if the installation lacks it."""
    path = Path(__file__).with_name(name)
    if not path.is_file():
        raise FusionerError(f"the packaged file {path} is missing: reinstall fusioner or run tools/build_weights.py")
    return path
