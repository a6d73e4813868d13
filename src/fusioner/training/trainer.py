"""The training loop.

A step computes loss and gradients with the current weights, may save these weights once the loss is finite, and then
updates them. So every checkpoint has passed a forward pass on a batch, and step s of a checkpoint means: s updates are
done, batch s is next.
"""

import copy
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor

from fusioner.errors import FusionerError, first_difference
from fusioner.model.checkpoint import ModelCard, save_model
from fusioner.model.fusioner import Fusioner
from fusioner.prefetch import taken_ahead, timed
from fusioner.progress import ProgressBar
from fusioner.training.config import BEST, LAST, RESUME, TrainConfig
from fusioner.training.data_loader import Batch, DataLoader
from fusioner.training.losses import COUNT_DECAY, THRESHOLDS, iou_counts, masked_bce, miou, multiclass_ce
from fusioner.training.optim import build_optimizer, set_rates
from fusioner.training.resume import Log, read_state, write_state

BATCHES_AHEAD = 2
"""Batches built ahead by a thread, unless the CPU also encodes."""


@dataclass(frozen=True)
class RunConfig:
    """Devices, processes and speed of a training; without influence on the weights.

    Attributes:
        out: folder of last.safetensors, best.safetensors, resume.pt, metrics.jsonl, and closed_set/ if fitted.
        resume: continue from the state in `out`, if there is one.
        device: auto, cpu, cuda, cuda:N or mps; devices: number of processes (torchrun's takes precedence).
        cache: folder of the feature cache; None: the user's own.
        init_from: model file with the initial weights.
        preset, command: recorded in the card.
        checkpoint_minutes: time between two checkpoints; 0 writes one every step.
        compile: torch.compile the network (worth its minute on a GPU).
    """

    out: Path
    resume: bool = False
    device: str = "auto"
    devices: int = 1
    cache: Path | None = None
    init_from: Path | None = None
    preset: str = ""
    command: str = ""
    checkpoint_minutes: float = 5.0
    compile: bool = False


@dataclass(frozen=True)
class TrainResult:
    """Outcome of a training.

    Attributes:
        step: updates done, of `steps`; fewer if a signal stopped it.
        loss: of the last step; miou: running over about 50 steps (training images, per cent).
        best: mIoU of the best checkpoint, per cent; None before the first evaluation.
        measured_on: images that `best` was measured on.
        seconds: of this process and those it resumed; waiting: share of this one's spent waiting for data.
        signal: number of the signal that stopped it; 0 if none did.
    """

    step: int
    steps: int
    loss: float
    miou: float
    best: float | None
    measured_on: str
    seconds: float
    waiting: float
    signal: int


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Context in which the first Ctrl-C or SIGTERM is only listed; a second one has its usual effect.

    The list stays empty outside the main thread, where Python cannot handle signals.
    """
    received: list[int] = []
    handlers: dict[int, Any] = {}

    def restore() -> None:
        while handlers:
            signal.signal(*handlers.popitem())

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        restore()


class Trainer:
    """One run: a network, its data, its settings, and its output folder.

    Args:
        model: moved to the fabric's device, and changed in place.
        identity: plain values that a resumed run must share (data, encoders), besides the settings that differ from the
            defaults: a version with further settings can resume it.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: Fusioner,
        loader: DataLoader,
        config: TrainConfig,
        card: ModelCard,
        run: RunConfig,
        identity: dict[str, Any],
        bar: ProgressBar,
    ) -> None:
        self.fabric, self.loader, self.config, self.card, self.out = fabric, loader, config, card, run.out
        self.run, self.bar = run, bar
        self.identity = {"settings": config.changes(), **identity}
        self.steps = config.optim.steps
        self.model = model.to(fabric.device)
        if self.model.decoder is not None:
            self.model.decoder.to(memory_format=torch.channels_last)  # pyright: ignore  (fastest for convolutions)
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False) if config.optim.ema else None
        optimizer = build_optimizer(self.model, config.optim)
        compiled: Any = torch.compile(self.model) if run.compile else self.model
        self.network, self.optimizer = fabric.setup(compiled, optimizer)
        self.counts = torch.zeros(loader.corpus.class_offsets[-1], 3, device=fabric.device)
        self.best: float | None = None
        self.val_miou: tuple[int, float] | None = None
        self.start, self.seconds = 0, 0.0

    def resume(self) -> bool:
        """Load the state in `out`, of the same settings, data and encoders; return False if there is none."""
        if not (self.out / RESUME).is_file():
            return False
        state = read_state(self.out, self.fabric.device)
        if change := first_difference(state["identity"], self.identity):
            raise FusionerError(
                f"cannot resume {self.out}: it was begun with other settings: {change}; repeat its command "
                "with --resume, or choose another --out"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.counts.copy_(state["counts"])
        self.best, self.start, self.seconds = state["best"], state["step"], state["seconds"]
        self.card = replace(self.card, threshold=state["threshold"])
        return True

    def fit(self) -> TrainResult:
        """Train to the end, or until a signal; the last weights are then saved and can be resumed from.

        After an error, such as a loss that is not finite, the last checkpoint stays.
        """
        log = Log(self.out, self.start) if self.fabric.is_global_zero else None
        devices = [self.fabric.device] if self.fabric.device.type == "cuda" else []
        with torch.random.fork_rng(devices), _stop_signals() as signals:
            return self._fit(signals, log)

    def _fit(self, signals: list[int], log: Log | None) -> TrainResult:
        begun = saved = time.monotonic()
        waited, speed, earlier_seconds = 0.0, 0.0, self.seconds
        log_interval, evaluation_interval = max(1, self.steps // 1000), -(-self.steps // self.config.optim.evaluations)
        batch_size, seed, rank = self.config.optim.batch_size, self.config.seed, self.fabric.global_rank
        batches = self.loader.training_batches(self.start, rank, self.fabric.world_size)
        live_on_cpu = self.config.data.features == "live" and self.fabric.device.type == "cpu"
        ahead = 0 if live_on_cpu else BATCHES_AHEAD
        task = self.bar.task("training", self.steps, self.start, unit="")
        for step, (batch, wait) in enumerate(timed(taken_ahead(batches, ahead)), self.start):
            step_start, waited = time.monotonic(), waited + wait
            torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0]))
            counts = self._sum([*batch.counts(), len(signals)])
            last = step == self.steps or counts[2] > 0
            rates = set_rates(self.optimizer, self.config.optim, step, self.steps)
            loss, step_counts = self._loss_and_gradients(batch, counts, learn=not last)
            if not math.isfinite(loss):
                state = self.out / RESUME
                checkpoint = f"the checkpoint before it is {state}" if state.is_file() else "there is no checkpoint yet"
                where = f"the loss is {loss} at step {step} (learning rate {rates['lr']:.3g})"
                raise FusionerError(f"{where}: lower --lr, or use --grad-clip 1; {checkpoint}")
            self.seconds = earlier_seconds + time.monotonic() - begun
            if step == self.steps or (step > 0 and step % evaluation_interval == 0):
                self._evaluate(step, log)
            if last or time.monotonic() - saved >= 60 * self.run.checkpoint_minutes:
                self._save(step)
                saved = time.monotonic()
            if last:
                waiting = waited / max(1e-9, time.monotonic() - begun)
                held_out = self.loader.corpus.num_held_out
                measured_on = f"{held_out} held-out training images" if held_out else "training images, running"
                score, stopped_by = miou(self.counts), signals[0] if signals else 0
                return TrainResult(
                    step, self.steps, loss, score, self.best, measured_on, self.seconds, waiting, stopped_by
                )
            self._update(step)
            self.counts.mul_(COUNT_DECAY).add_(step_counts)
            images_per_second = batch_size / (time.monotonic() - step_start + wait)
            speed = 0.9 * speed + 0.1 * images_per_second if speed else images_per_second
            score = miou(self.counts)
            if log and step % log_interval == 0:
                log.add(step, loss=loss, train_miou=score, **rates, images_per_s=speed, seconds=self.seconds)
            held_out = f", held-out {self.val_miou[1]:.1f}" if self.val_miou else ""
            task(step + 1, note=f"loss {loss:.4f}  mIoU training {score:.1f}{held_out}  {speed:.1f} images/s")
        raise AssertionError("batches never end")

    def _loss_and_gradients(self, batch: Batch, counts: list[float], learn: bool) -> tuple[float, Float[Tensor, "c 3"]]:
        """Return the loss of the whole batch and its IoU counts; gradients are left in the parameters."""
        self.network.train(learn)
        total = torch.zeros((), device=self.fabric.device)
        iou = torch.zeros_like(self.counts)
        micro_batches = batch.split(self.config.optim.grad_accum)
        for number, micro_batch in enumerate(micro_batches):
            micro_batch = micro_batch.to(self.fabric.device)
            final = number == len(micro_batches) - 1
            # DDP synchronises where the forward pass is not inside no_backward_sync
            unsynchronised = self.fabric.no_backward_sync(self.network, enabled=not final)
            with nullcontext() if learn else torch.no_grad(), unsynchronised:
                size = (micro_batch.labels.shape[1], micro_batch.labels.shape[2])
                logits = self.network(micro_batch.tokens, micro_batch.text, size, micro_batch.folds)
                loss = masked_bce(logits, micro_batch.target(), micro_batch.ignore(), max(1.0, counts[0]))
                if weight := self.config.optim.ce_weight:
                    ce = multiclass_ce(logits, micro_batch.labels, micro_batch.padded, max(1.0, counts[1]))
                    loss = loss + weight * ce
                if learn:
                    self.fabric.backward(loss * self.fabric.world_size)  # DDP averages, the loss is a sum
            total += loss.detach()
            iou += iou_counts(logits.detach(), micro_batch, len(iou))
        if self.fabric.world_size == 1:
            return float(total), iou
        loss_sum, *iou_sum = self._sum([total, *iou.flatten()])
        return loss_sum, torch.tensor(iou_sum, device=iou.device).view_as(iou)

    def _update(self, step: int) -> None:
        if clip := self.config.optim.grad_clip:
            self.fabric.clip_gradients(self.network, self.optimizer, max_norm=clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema:
            decay = min(self.config.optim.ema, (1 + step) / (10 + step))  # lower at first, to forget the random weights
            for slow, fast in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                slow.lerp_(fast.detach(), 1 - decay)

    def _evaluate(self, step: int, log: Log | None) -> None:
        """Measure the weights; save them as best.safetensors with their threshold if they are the best so far."""
        if self.loader.corpus.held_out:
            name = "val_miou"
            score, threshold = max(zip(self._held_out_mious(), THRESHOLDS, strict=True))
            self.val_miou = step, score
        else:
            name, score, threshold = "best_by_miou", miou(self.counts), self.card.threshold
        if log:
            log.add(step, **{name: score, "threshold": threshold})
        if self.best is None or score > self.best:
            self.best, self.card = score, replace(self.card, threshold=threshold)
            self._save_weights(BEST, step)

    @torch.no_grad()
    def _held_out_mious(self) -> list[float]:
        """Return the mIoU on held-out images at each of `THRESHOLDS`."""
        network: Any = self.ema or self.model
        network.eval()
        counts = torch.zeros(len(THRESHOLDS), *self.counts.shape, device=self.fabric.device)
        rank, world = self.fabric.global_rank, self.fabric.world_size
        for batch in self.loader.held_out_batches(rank, world):
            batch = batch.to(self.fabric.device)
            with self.fabric.autocast():
                logits = network(batch.tokens, batch.text, batch.labels.shape[-2:]).float()
            for total, threshold in zip(counts, THRESHOLDS, strict=True):
                total += iou_counts(logits, batch, len(total), threshold)
        summed = torch.tensor(self._sum(list(counts.flatten()))).view_as(counts)
        return [miou(total) for total in summed]

    def _save(self, step: int) -> None:
        """Write last.safetensors and resume.pt."""
        self._save_weights(LAST, step)
        if not self.fabric.is_global_zero:
            return
        state = {
            "step": step,
            "identity": self.identity,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "counts": self.counts,
            "best": self.best,
            "threshold": self.card.threshold,
            "seconds": self.seconds,
        }
        write_state(self.out, state)

    def _save_weights(self, name: str, step: int) -> None:
        """Save the weights; the card has their own scores: `val_miou` only if measured at this step."""
        if not self.fabric.is_global_zero:
            return
        entry = {"step": step, "train_miou": round(miou(self.counts), 2)}
        if self.val_miou is not None and self.val_miou[0] == step:
            entry["val_miou"] = round(self.val_miou[1], 2)
        save_model(self.out / name, self.ema or self.model, replace(self.card, training=self.card.training | entry))

    def _sum(self, values: list[Any]) -> list[float]:
        """Sum over all processes."""
        local = torch.tensor([float(value) for value in values], dtype=torch.float64)
        if self.fabric.world_size == 1:
            return local.tolist()
        summed: Any = self.fabric.all_reduce(local.to(self.fabric.device), reduce_op="sum")
        return summed.tolist()
