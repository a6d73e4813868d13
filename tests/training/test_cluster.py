"""Train with several processes on several simulated machines, one of which is lost."""

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fusioner.cli.main import main
from fusioner.errors import FusionerError
from fusioner.model.checkpoint import load_model
from fusioner.training.build import build_fabric

Words = Callable[..., list[str]]
Launch = Callable[..., Any]


@pytest.fixture
def torchrun(spawn: Callable[..., Any]) -> Launch:
    """Return `start(flags..., words=..., environment=...)`, which starts a launcher in the background."""

    def start(*flags: str, words: list[str], environment: dict[str, str] | None = None) -> Any:
        command = [sys.executable, "-m", "torch.distributed.run", *flags, "-m", "fusioner", *words]
        return spawn(command, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", **environment or {})

    return start


def log(out: Path) -> list[dict[str, Any]]:
    lines = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in log(out) if "loss" in line]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_model(out / "last.safetensors")[0].state_dict()


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


@pytest.mark.slow
def test_two_nodes_and_a_killed_rank_train_as_one_process(
    train_words: Words, torchrun: Launch, before_update: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    """Connect two launchers with one process each over an address, as on two machines, by gloo.

    Then kill one of two processes of a machine: torchrun restarts both, and --resume leads to the weights of an
    undisturbed run.
    """
    single, double, broken = (tmp_path / name for name in ("one", "two", "broken"))
    settings: dict[str, Any] = {
        "steps": 8,
        "ema": 0.9,
        "evaluations": 4,
        "ce_weight": 1.0,
        "val_images": 1,
        "lr": 1e-2,
        "decoder_lr": 1e-2,
    }
    assert main(train_words(single, **settings)) == 0
    rendezvous = ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}")
    nodes = [torchrun(*rendezvous, words=train_words(double, **settings)) for _ in range(2)]
    for node in nodes:
        node.succeed()
    assert len(losses(double)) == 8
    assert losses(single) == pytest.approx(losses(double), rel=1e-3)  # summation order differs
    for line, other in zip(log(single), log(double), strict=True):
        assert line.get("train_miou", 0) == pytest.approx(other.get("train_miou", 0), abs=1)

    second_rank = "trainer.fabric.global_rank == 1 and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'"
    environment = before_update(f"if step == 5 and {second_rank}: os.kill(os.getpid(), 9)")
    words = train_words(broken, "--resume", "--checkpoint-minutes", "0", **settings)
    process = torchrun("--standalone", "--nproc-per-node=2", "--max-restarts=1", words=words, environment=environment)
    process.succeed()
    assert f"resuming {broken} at step" in process.finish()[1]
    assert losses(broken) == losses(double)
    assert all(torch.equal(weights(double)[name], tensor) for name, tensor in weights(broken).items())


def test_restarts_with_a_shared_store_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment of torchrun where two machines share one store for all attempts."""
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    for name, value in (("USE_AGENT_STORE", "True"), ("MAX_RESTARTS", "3"), ("RUN_ID", "a")):
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    with pytest.raises(FusionerError, match="set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 where torchrun is called"):
        build_fabric("cpu", 1, "32")
