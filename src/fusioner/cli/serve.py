"""`fusioner serve`: the page and the API."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from fusioner.cli.options import FAST_FLAGS, Device, InferenceFlags, ModelFile, RuntimeName
from fusioner.errors import FusionerError
from fusioner.serve.limits import Limits

if TYPE_CHECKING:
    from fusioner.segmenter import Segmenter

KEY_VARIABLE = "FUSIONER_API_KEY"


def serve(
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=validators.Number(gte=0, lte=65535))] = 8000,
    model: ModelFile = None,
    device: Device = "auto",
    runtime: RuntimeName = "auto",
    options: InferenceFlags = FAST_FLAGS,
    open: bool = False,
    api_key_file: Path | None = None,
    cors_origin: tuple[str, ...] = (),
    limits: Limits | None = None,
) -> int:
    """Serve a page and an HTTP API; images stay in this machine's memory.

    Requests may override the mode, the threshold and the background. Ctrl-C (or SIGTERM) finishes requests in progress
    and exits; a second Ctrl-C exits immediately.

        fusioner serve --open
        fusioner serve --host 0.0.0.0 --port 80 --model run/best.safetensors --api-key-file key.txt

    Args:
        host: Address to listen on; 0.0.0.0 lets other machines in.
        port: Port to listen on; 0 takes a free one.
        open: Open the page in the browser.
        api_key_file: File with the key that requests must send as `Authorization: Bearer`; or set FUSIONER_API_KEY.
        cors_origin: Another web page that may call the API, such as https://example.org; may be repeated.
    """
    for origin in cors_origin:
        if not origin.startswith(("http://", "https://")) or origin.endswith("/"):
            raise FusionerError(f"--cors-origin must be like https://example.org, without a path, not {origin}")
    options.check_slide()
    key = read_key(api_key_file)
    try:
        from fusioner.serve.server import serve as run
    except ModuleNotFoundError as error:
        raise FusionerError(f"serving needs {error.name}: pip install 'fusioner[serve]'") from error

    def load() -> "Segmenter":
        from fusioner.segmenter import load

        segmenter = load(model, device, runtime=runtime)
        segmenter.options = options
        return segmenter

    run(load, host=host, port=port, limits=limits, key=key, origins=cors_origin, open_browser=open)
    print("stopped")
    return 0


def read_key(file: Path | None) -> str | None:
    """Return the key in `file`, else in the environment, else None; FusionerError if the file holds none."""
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        key = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise FusionerError(f"cannot read the API key from {file}: {reason}") from error
    if not key or not key.isascii():
        raise FusionerError(f"the API key file {file} is empty" if not key else f"the API key in {file} is not ASCII")
    return key
