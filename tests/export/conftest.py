"""A tiny model with encoders in the format of transformers, and its exports."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from fusioner.cli.main import main
from fusioner.export.bundle import read_bundle
from fusioner.image import read_image

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
WORDS = ["a", "photo", "of", "the", "cat", "person", "cup", "dog", "table", "car", "sofa", "."]


ALONE = """
import sys
for name in ("torch", "transformers", "huggingface_hub", "torchmetrics", "lightning_fabric"):
    sys.modules[name] = None  # importing it fails as where it is not installed
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else find(name, package)
from fusioner.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="session")
def without_torch() -> list[str]:
    """Return the command that starts `fusioner` in a process that cannot import torch or transformers."""
    return [sys.executable, "-c", ALONE]


@pytest.fixture(scope="session")
def run_without_torch(without_torch: list[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs `fusioner` in such a process, with warnings as errors."""

    def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        command = [without_torch[0], "-W", "error", *without_torch[1:], *map(str, words)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)

    return run


@pytest.fixture(scope="session")
def make_trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return `make(resolution=48, **config)`: save random weights to a model file whose encoders are folders."""
    return lambda resolution=48, **config: _save_random(tmp_path_factory.mktemp("trained"), resolution, config)


def _save_random(folder: Path, resolution: int, options: dict[str, Any]) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model, PreTrainedTokenizerFast

    from fusioner.model.checkpoint import ModelCard, save_model
    from fusioner.model.config import FusionerConfig
    from fusioner.model.fusioner import Fusioner

    image, text = folder / "image", folder / "text"
    body: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        vision = Dinov2Model(Dinov2Config(**body, image_size=32, patch_size=8))
        words = BertModel(BertConfig(**body, vocab_size=len(vocabulary), max_position_embeddings=20))
        sizes: dict[str, Any] = {"text_dim": 32, "width": 16, "layers": 1, "heads": 2, "decoder_widths": (16, 16)}
        config = FusionerConfig(**{"image_dim": 32, "logit_bias": True, **sizes, **options})
        network = Fusioner(config)
        for module in (vision, words, network):
            for weight in module.parameters():  # small initial weights would hide errors
                if weight.ndim > 1:
                    weight.copy_(0.3 * torch.randn(weight.shape))
        if hasattr(network, "logit_bias"):
            network.logit_bias.fill_(0.0)
    vision.save_pretrained(image)
    words.save_pretrained(text)
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(text)
    card = ModelCard(config, f"hf:{image}", f"hf:{text}", resolution=resolution)
    save_model(folder / "model.safetensors", network, card)
    return folder / "model.safetensors"


@pytest.fixture(scope="session")
def trained(make_trained: Callable[..., Path]) -> Path:
    """Return a model file with the paper's network at toy size."""
    return make_trained()


@pytest.fixture(scope="session")
def photo() -> Any:
    """Return a photograph for the parity check, as an array."""
    return read_image(SAMPLES / "chelsea.jpg")


@pytest.fixture(scope="session")
def exported(trained: Path, page_commands: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export `trained` by the command of docs/export.md, with one photograph for the check."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "photos").mkdir()
    shutil.copy(SAMPLES / "chelsea.jpg", folder / "photos")
    command = page_commands[0]
    assert command[0] == "export"
    with contextlib.chdir(folder):
        assert main([*command, "--model", str(trained), "--photos", "photos"]) == 0
    return folder / "exported"


@pytest.fixture(scope="session")
def page_commands() -> list[list[str]]:
    """Return the commands of docs/export.md, as the words after `fusioner`."""
    page = (SAMPLES.parent / "docs" / "export.md").read_text("utf-8")
    (block,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    commands = [shlex.split(line) for line in block.splitlines()]
    assert [command[0] for command in commands] == ["fusioner"] * len(commands)
    return [command[1:] for command in commands]


@pytest.fixture(scope="session")
def traced(exported: Path) -> Any:
    """Return the graphs of `exported`, for writing them in other formats and precisions."""
    bundle = read_bundle(exported)
    return {part: onnx.load(bundle.graph(part)) for part in bundle.parts}, bundle.step
