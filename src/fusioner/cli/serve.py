"""`fusioner serve`: the page and the API."""

import os
from pathlib import Path

from fusioner.errors import FusionerError

KEY_VARIABLE = "FUSIONER_API_KEY"


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    model: Path | None = None,
    device: str = "auto",
    api_key_file: Path | None = None,
    cors_origin: tuple[str, ...] = (),
    open: bool = False,
) -> int:
    """Serve a page and an HTTP API; images stay in this machine's memory.

        fusioner serve --open
        fusioner serve --host 0.0.0.0 --port 80 --model run/best.safetensors --api-key-file key.txt

    Parameters
    ----------
    host
        Address to listen on; 0.0.0.0 lets other machines in.
    port
        Port to listen on; 0 takes a free one.
    model
        Model file of `fusioner train`; without it the one inside the package.
    device
        auto, cpu, cuda, cuda:N or mps.
    api_key_file
        File whose first line requests must bring as `Authorization: Bearer`; or set FUSIONER_API_KEY.
    cors_origin
        Other web pages that may call the API, such as https://example.org; may be given several times.
    open
        Open the page in the browser.
    """
    key = _read_key(api_key_file)
    try:
        from fusioner.serve.run import serve as run
    except ModuleNotFoundError as error:
        raise FusionerError(f"serving needs {error.name}: pip install 'fusioner[serve]'") from error

    def load():
        from fusioner.inference.load import load

        return load(model, device)

    run(load, host=host, port=port, key=key, origins=cors_origin, open_browser=open)
    return 0


def _read_key(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        key = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise FusionerError(f"cannot read the API key from {file}: {reason}") from error
    if not key:
        raise FusionerError(f"the API key file {file} is empty")
    return key
