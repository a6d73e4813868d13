"""The folder of an exported model: three graphs, a tokenizer and the manifest `fusioner.json`."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fusioner.errors import FusionerError
from fusioner.io import atomic_write
from fusioner.model.checkpoint import ModelCard

MANIFEST, FORMAT = "fusioner.json", "fusioner-export-1"
ENDINGS = {"onnx": ".onnx", "openvino": ".xml"}
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Bundle:
    """Content of `fusioner.json`.

    Attributes:
        folder: of the files.
        format: "onnx" or "openvino".
        precision: "fp32", "fp16" or "int8", of the weights.
        card: the model's.
        step: sides of images must be multiples of it, px; 0: the card's resolution is the only size.
        stride: px per token.
        text: how words are read: `context` word pieces at most, `fixed` whether all texts are padded to that,
            `pad` the piece that fills up and its number, `lower` whether upper case is lost.
        parity: the table of `export.parity` when it was made.
    """

    folder: Path
    format: str
    precision: str
    card: ModelCard
    step: int
    stride: int
    text: dict[str, Any]
    parity: list[dict[str, Any]] = field(default_factory=list)

    def graph(self, part: str) -> Path:
        """Return the file of "image", "text" or "labels"."""
        return self.folder / f"{part}{ENDINGS[self.format]}"

    def write(self) -> None:
        """Write `fusioner.json`."""
        values = asdict(self) | {"card": json.loads(self.card.to_json()), "kind": FORMAT}
        del values["folder"]
        with atomic_write(self.folder / MANIFEST) as beside:
            beside.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", "utf-8")


def read_bundle(folder: str | Path) -> Bundle:
    """Read the manifest of a folder; raises FusionerError if it is not an exported model, corrupt or incomplete."""
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise FusionerError(f"{folder} is not an exported model (no {MANIFEST}): make one with `fusioner export`")
    try:
        values = json.loads(path.read_text("utf-8"))
        if values.pop("kind") != FORMAT:
            raise FusionerError(f"{path} comes from another version of Fusioner: export the model again")
        values["card"] = ModelCard.from_json(json.dumps(values["card"]))
        bundle = Bundle(folder=folder, **values)
        needed = [*(bundle.graph(part) for part in ("image", "text", "labels")), folder / TOKENIZER]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FusionerError(f"{path} is corrupt: copy the folder or export the model again") from error
    for file in needed:
        if not file.is_file():
            raise FusionerError(f"the exported model lacks {file}: copy the whole folder or export the model again")
    return bundle
