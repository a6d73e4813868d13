"""Several processes on several (pretended) machines, one of which is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fusioner.cli.main import main
from fusioner.errors import FusionerError
from fusioner.model.checkpoint import load_model
from fusioner.training.build import build_fabric
from fusioner.training.config import TrainConfig

Tiny = Callable[..., TrainConfig]
Words = Callable[..., list[str]]
Launch = Callable[..., Any]


@pytest.fixture
def words(voc_tree: Path, tiny: Tiny, to_toml: Callable[[TrainConfig], str], tmp_path: Path) -> Words:
    """`words(out, flags..., setting=value...)`: a `train` command line."""

    def make(out: Path, *more: str, **changes: Any) -> list[str]:
        settings = tmp_path / "tiny.toml"
        settings.write_text(to_toml(tiny(**changes)))
        given = ["train", "pascal", "--root", str(voc_tree), "--config", str(settings), "--device", "cpu"]
        return [*given, "--out", str(out), *more]

    return make


@pytest.fixture
def torchrun(spawn: Callable[..., Any]) -> Launch:
    """`torchrun(flags..., words=...)`: a launcher that runs by itself."""

    def start(*flags: str, words: list[str]) -> Any:
        command = [sys.executable, "-m", "torch.distributed.run", *flags, "-m", "fusioner", *words]
        return spawn(command, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")

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
def test_two_nodes_train_as_one_process(words: Words, torchrun: Launch, tmp_path: Path) -> None:
    """Two launchers, one process each, that find each other at an address, as machines do; gloo between them."""
    given: dict[str, Any] = {"steps": 6, "ce_weight": 1.0}
    assert main(words(tmp_path / "one", "--cache", "off", **given)) == 0
    meeting = ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}")
    nodes = [torchrun(*meeting, words=words(tmp_path / "two", "--cache", "off", **given)) for _ in range(2)]
    for node in nodes:
        node.succeed()
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-3)
    assert len(losses(tmp_path / "two")) == 6


@pytest.mark.slow
def test_a_rank_that_is_killed_costs_no_more_than_the_steps_since_the_checkpoint(
    words: Words, torchrun: Launch, tmp_path: Path
) -> None:
    """torchrun starts all ranks anew, and --resume takes them to the weights of a run that nothing happened to."""
    once = ("--standalone", "--nproc-per-node=2")
    given: dict[str, Any] = {"steps": 60, "ema": 0.9, "evaluations": 4}
    kept = ("--cache", str(tmp_path / "cache"), "--resume", "--checkpoint-minutes", "0")
    whole = torchrun(*once, words=words(tmp_path / "whole", *kept, **given))
    whole.succeed()
    process = torchrun(*once, "--max-restarts=5", words=words(tmp_path / "broken", *kept, **given))
    while len(losses(tmp_path / "broken")) < 10 and process.poll() is None:
        time.sleep(0.02)
    first, second = ranks(process.pid)
    os.kill(second, signal.SIGKILL)
    process.succeed()
    assert first not in ranks(process.pid)
    assert len(losses(tmp_path / "broken")) == 60
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_restarts_that_would_wait_for_the_dead_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun tells its processes where two machines share one store for all attempts."""
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    for name, value in (("USE_AGENT_STORE", "True"), ("MAX_RESTARTS", "3"), ("RUN_ID", "a")):
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    with pytest.raises(FusionerError, match="set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 where torchrun is called"):
        build_fabric("cpu", 1, "32")


def ranks(launcher: int) -> list[int]:
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    lines = [line.split(None, 2) for line in table.splitlines()]
    return [int(pid) for pid, parent, args in lines if int(parent) == launcher and "-m fusioner" in args]
