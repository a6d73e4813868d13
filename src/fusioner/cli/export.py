"""`fusioner export`: write a model for ONNX Runtime and OpenVINO."""

from pathlib import Path
from typing import Literal

from fusioner.cli.inputs import find_inputs, is_video
from fusioner.cli.options import ModelFlags
from fusioner.errors import FusionerError
from fusioner.export.write import export as write
from fusioner.image import read_image
from fusioner.loading import load

MAX_PHOTOS = 16


def export(
    *,
    out: Path,
    model: ModelFlags = ModelFlags(),
    format: Literal["onnx", "openvino"] = "onnx",
    int8: bool = False,
    fp16: bool = False,
    photos: Path | None = None,
) -> int:
    """Write a model as ONNX or OpenVINO, which runs without torch, and check that it agrees with torch.

    The folder holds the graphs of image encoder, image features, text encoder and fusion network, the tokenizer and
    fusioner.json; pass it to `fusioner predict --model`. The check compares logits and masks with torch's on photos,
    at three sizes, with 1, 7 and 40 labels; if it fails, nothing is written and the exit code is 2.

        fusioner export --out exported
        fusioner export --model run/best.safetensors --format openvino --fp16 --out exported
        fusioner export --int8 --photos my_photos --out exported

    Args:
        out: Folder for the files; an earlier export there is replaced.
        format: onnx is read by ONNX Runtime and OpenVINO, openvino by OpenVINO alone.
        int8: Store and compute in 8 bits what the masks tolerate.
        fp16: Store weights in 16 bits; arithmetic stays in 32 bits.
        photos: Folder of photos like those to segment, of which 16 are used: for the check, and to calibrate --int8;
            default: three sample photos.
    """
    if int8 and fp16:
        raise FusionerError("--int8 and --fp16 exclude each other: choose one")

    found, errors = find_inputs([str(photos or sample_photos())], False, out)
    files = [file for file in found if not is_video(file)]
    if errors or not files:
        raise errors[0] if errors else FusionerError(f"there are no pictures in {photos}: name a folder of photos")
    chosen = [read_image(file) for file in files[:: -(-len(files) // MAX_PHOTOS)]]
    segmenter = load(device="cpu", runtime="torch", **model.arguments())
    precision = "int8" if int8 else "fp16" if fp16 else "fp32"
    write(segmenter, out, format, precision, chosen, lambda line: print(line, flush=True))
    size = sum(file.stat().st_size for file in out.iterdir() if file.is_file())
    print(f"wrote {out} ({size / 1e6:.0f} MB)")
    return 0


def sample_photos() -> Path:
    """Return the folder of the three bundled photos; raises FusionerError if it is missing."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "export" / "photos", package.parents[1] / "samples"):
        if folder.is_dir():
            return folder
    raise FusionerError("the sample photos are missing from this installation: name a folder with --photos")
