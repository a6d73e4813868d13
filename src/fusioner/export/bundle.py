"""The folder of an exported model: its graphs, a tokenizer and the manifest `fusioner.json`."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fusioner.errors import FusionerError
from fusioner.io import atomic_write
from fusioner.model.checkpoint import EXPORT_MANIFEST, ModelCard, read_card
from fusioner.weights import DEFAULT_MODEL, weights_file

FORMAT = "fusioner-export-1"
ENDINGS = {"onnx": ".onnx", "openvino": ".xml"}
FEATURES = "features_"  # start of the names of image features
PARTS = ("image", "text", "labels", "features")


@dataclass(frozen=True)
class Bundle:
    """Content of `fusioner.json`.

    Attributes:
        folder: contains the files.
        format: "onnx" or "openvino".
        precision: "fp32", "fp16" or "int8", of the weights.
        card: the model's card.
        step: sides of images in pixels must be multiples of it; 0: the card's resolution is the only size.
        stride: pixels per token.
        text: tokenizer settings: `context`, the maximum number of tokens; `fixed`, whether all texts are padded to it;
            `pad`, the padding token and its id; `lower`, whether texts are converted to lower case first.
        parity: the table of `export.parity`.
        tokenizer: name of the tokenizer's file.
        features: whether there is a graph of image features; models without similarity maps have none.
    """

    folder: Path
    format: str
    precision: str
    card: ModelCard
    step: int
    stride: int
    text: dict[str, Any]
    parity: list[dict[str, Any]] = field(default_factory=list)
    tokenizer: str = "tokenizer.json"
    features: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of its graphs, among `PARTS`."""
        return PARTS if self.features else PARTS[:-1]

    def graph(self, part: str) -> Path:
        """Return the path of the graph of a part."""
        return self.folder / f"{part}{ENDINGS[self.format]}"

    def write(self) -> None:
        """Write `fusioner.json`."""
        values = asdict(self) | {"card": json.loads(self.card.to_json()), "kind": FORMAT}
        del values["folder"]
        with atomic_write(self.folder / EXPORT_MANIFEST) as beside:
            beside.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", "utf-8")


def read_bundle(folder: str | Path) -> Bundle:
    """Read the manifest of a folder; raises FusionerError if it is not an exported model, corrupt or incomplete."""
    folder = Path(folder)
    path = folder / EXPORT_MANIFEST
    if not path.is_file():
        raise FusionerError(f"{folder} is not an exported model (no {path.name}): make one with `fusioner export`")
    try:
        values = json.loads(path.read_text("utf-8"))
        if values.pop("kind") != FORMAT:
            raise FusionerError(f"{path} comes from another version of Fusioner: export the model again")
        values["card"] = ModelCard.from_json(json.dumps(values["card"]))
        bundle = Bundle(folder=folder, **values)
        needed = [*(bundle.graph(part) for part in bundle.parts), folder / bundle.tokenizer]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FusionerError(f"{path} is corrupt: copy the folder or export the model again") from error
    for file in needed:
        if not file.is_file():
            raise FusionerError(f"the exported model lacks {file}: copy the whole folder or export the model again")
    return bundle


def bundled_model() -> Bundle:
    """Return the bundled model, whose graphs (tools/build_graphs.py) read their weights from the safetensors files."""
    path = weights_file(DEFAULT_MODEL)
    text = {"context": 256, "fixed": False, "pad": ["[PAD]", 0], "lower": False}
    return Bundle(
        path.parent, "onnx", "fp16", read_card(path), 14, 14, text, tokenizer="minilm.tokenizer.json", features=True
    )
