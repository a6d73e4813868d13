"""Fixtures shared by all tests."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from fusioner.segmenter import Segmenter

settings.register_profile("fusioner", deadline=None, max_examples=50)  # a busy machine must not fail tests
settings.load_profile("fusioner")

REPO = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    """Restore the Ctrl-C handler, because shells ignore SIGINT for commands in the background."""
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real photographs and published fold lists beside the checkout; skip if it is missing."""
    folder = Path(os.environ.get("FUSIONER_SHARED_DIR", REPO.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no folder {folder}/data with the development photographs (set FUSIONER_SHARED_DIR)")
    return folder


@pytest.fixture(scope="session")
def reference() -> Path:
    """Return the folder of golden tensors of the official implementation, or that of FUSIONER_REFERENCE_DIR."""
    return Path(os.environ.get("FUSIONER_REFERENCE_DIR", REPO / "tests" / "reference" / "tensors"))


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of one megabyte; skip where mounting is not allowed."""
    folder = tmp_path / "one-megabyte"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a tiny file system can only be mounted by root on Linux")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # a failed writer may hold its file


class Spawned(subprocess.Popen[bytes]):
    """A process in a new group whose output goes to files, because an unread pipe would block it."""

    def __init__(self, command: Sequence[str], folder: Path, **environment: str) -> None:
        self.files = folder / "stdout", folder / "stderr"
        with self.files[0].open("wb") as out, self.files[1].open("wb") as err:
            super().__init__(command, stdout=out, stderr=err, env=os.environ | environment, start_new_session=True)

    def finish(self) -> tuple[str, str]:
        """Wait for the end and return stdout and stderr."""
        self.wait()
        output, errors = (file.read_text("utf-8") for file in self.files)
        return output, errors

    def succeed(self) -> str:
        """Wait for the end, assert exit code 0, and return stdout."""
        output, errors = self.finish()
        assert self.returncode == 0, errors
        return output

    def wait_for_step(self, logs: str, step: int) -> None:
        """Wait until the log of a training, found by a glob pattern, has a line of a step."""
        while not any(f'"step": {step},' in Path(log).read_text("utf-8") for log in glob(logs)):
            assert self.poll() is None, self.finish()[1]
            time.sleep(0.01)

    def kill_group(self) -> None:
        """Kill the process and its children with -9."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()


@pytest.fixture
def spawn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Spawned]]:
    """Return `start(command, VARIABLE=value...)`, which starts a process that is killed at the end of the test."""
    running: list[Spawned] = []

    def start(command: Sequence[str], **environment: str) -> Spawned:
        running.append(Spawned(command, tmp_path_factory.mktemp("spawned"), **environment))
        return running[-1]

    yield start
    for process in running:
        process.kill_group()


START_UP = """
import os, signal, sys, time
if {"train", "fusioner.sweep.cell"} & set(sys.orig_argv):
    from fusioner.training.trainer import Trainer
    update = Trainer._update
    def update_after(trainer, step):
        CODE
        update(trainer, step)
    Trainer._update = update_after
"""


@pytest.fixture
def before_update(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    """Return `environment(code)`, by which training commands run `code` of `trainer` and `step` at every step.

    A step is logged after its update, and its checkpoint is written before.
    """

    def environment(code: str) -> dict[str, str]:
        folder = tmp_path_factory.mktemp("site")
        (folder / "sitecustomize.py").write_text(START_UP.replace("CODE", code))
        return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}

    return environment


@pytest.fixture
def pause_before(before_update: Callable[[str], dict[str, str]]) -> Callable[..., dict[str, str]]:
    """Return `environment(step, condition)`, by which training commands wait at a step for a signal."""

    def environment(step: int, condition: str = "True") -> dict[str, str]:
        waiting = f"step == {step} and {condition} and callable(signal.getsignal(signal.SIGTERM))"  # no signal yet
        return before_update(f"while {waiting}: time.sleep(0.01)")

    return environment


@pytest.fixture(scope="session")
def make_tiny_segmenter() -> "Callable[..., Segmenter]":
    """Return `make(resolution=32, **config)`, which creates a toy Segmenter with random weights.

    Its image encoder (stride 4, 8-d) projects mean colours; its text encoder (6-d) draws a vector by the text's hash.
    """
    import hashlib

    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from fusioner.encoders.base import Frozen, FrozenImageEncoder
    from fusioner.model.checkpoint import ModelCard
    from fusioner.model.config import FusionerConfig
    from fusioner.model.fusioner import Fusioner
    from fusioner.segmenter import Segmenter

    class TinyImageEncoder(FrozenImageEncoder):
        name, dim, stride = "tiny-image", 8, 4
        mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

        def __init__(self, dim: int) -> None:
            super().__init__()
            self.dim, self.calls = dim, 0
            self.project = torch.nn.Linear(3, dim)
            self.freeze()

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            pixels = (images - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.std).view(3, 1, 1)
            colours = F.avg_pool2d(pixels, self.stride).movedim(1, -1)
            return F.normalize(self.project(colours), dim=-1).movedim(-1, 1)

        def fingerprint(self) -> str:
            return hashlib.sha256(self.project.weight.numpy().tobytes()).hexdigest()

    class TinyTextEncoder(Frozen):
        name, dim = "tiny-text", 6

        def forward(self, texts: Sequence[str]) -> Tensor:
            seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in texts]
            drawn = [torch.randn(self.dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
            return F.normalize(torch.stack(drawn), dim=-1)

        def fingerprint(self) -> str:
            return "tiny-text"

    def make(resolution: int = 32, **config: Any) -> Segmenter:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            settings: dict[str, Any] = {"width": 16, "layers": 2, "heads": 2, "decoder_widths": (16, 16)} | config
            shape = FusionerConfig(image_dim=8, text_dim=TinyTextEncoder.dim, **settings)
            model = Fusioner(shape)
            for weight in model.parameters():  # large compared to initial weights, so that results differ
                torch.nn.init.normal_(weight, std=0.5)
            encoder = TinyImageEncoder(8 + shape.similarity_dim)
        card = ModelCard(shape, "tiny-image", "tiny-text", resolution=resolution)
        return Segmenter.from_parts(model, encoder, TinyTextEncoder(), card)

    return make


@pytest.fixture
def tiny_segmenter(make_tiny_segmenter: "Callable[..., Segmenter]") -> "Segmenter":
    """Return a Segmenter with the paper's network at toy size and random weights."""
    return make_tiny_segmenter()


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a random CLIP of patch 8, with the words of PASCAL as vocabulary, by `save_pretrained`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    from fusioner.data.classes import PASCAL_CLASSES

    folder = tmp_path_factory.mktemp("clip")
    words = sorted({word for name in PASCAL_CLASSES for word in name.split()} | {"dining", "table", "potted", "plant"})
    known = ["<pad>", "<unk>", "<s>", "</s>", "a", "photo", "of", "tv", *words]
    vocabulary = {word: number for number, word in enumerate(known)}
    body = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = {**body, "vocab_size": len(vocabulary), "max_position_embeddings": 16}
    ends = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    vision = {**body, "image_size": 32, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(vision_config=vision, text_config={**text, **ends}, projection_dim=12))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sliding_windows() -> "Callable[..., Any]":
    """Return `slide(image, crop, predict, ...)`: images (B, C, H, W) -> logits (B, K, H, W), official layout.

    `predict` maps windows to logits of their size; `pad` is the value beyond the image; `flip` averages with the logits
    of the flipped windows; `batch` windows of each image are predicted at once.
    """
    import torch
    from torch import Tensor

    from fusioner.sliding_window import Canvas, WindowGrid

    def slide(
        image: Tensor,
        crop: int,
        predict: "Callable[[Tensor], Tensor]",
        stride: int = 0,
        pad: float = 0.0,
        flip: bool = False,
        batch: int = 4,
    ) -> Tensor:
        grid = WindowGrid(image.shape[-2], image.shape[-1], crop, stride)
        canvas, origins = Canvas(grid, crop), grid.origins
        for start in range(0, len(origins), batch):
            here = origins[start : start + batch]
            cut = [torch.from_numpy(grid.cut((picture - pad).movedim(0, -1).numpy(), here)) + pad for picture in image]
            windows = torch.stack(cut, dim=1).movedim(-1, 2).flatten(0, 1)  # (n * b, c, crop, crop)
            logits = predict(windows)
            if flip:
                logits = (logits + predict(windows.flip(-1)).flip(-1)) / 2
            for part, origin in zip(logits.unflatten(0, (len(here), -1)), here, strict=True):
                canvas.add(part.detach().numpy(), origin)
        return torch.from_numpy(canvas.mean())

    return slide
