"""The training loop, top to bottom.

A step computes loss and gradients on the weights as they are, and only then, the loss being finite, may these weights
be saved, and then they are updated. So every checkpoint has proved itself on a batch, and "step s" of a checkpoint
means: s updates done, batch s is next.
"""

import copy
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor

from fusioner.errors import FusionerError
from fusioner.model.checkpoint import ModelCard, save_model
from fusioner.model.fusioner import Fusioner
from fusioner.prefetch import taken_ahead, timed
from fusioner.training.config import TrainConfig
from fusioner.training.data_loader import Batch, Batches, held_out, steps
from fusioner.training.dataset import Order
from fusioner.training.graceful_stop import StopSignals
from fusioner.training.losses import choice, masked_bce
from fusioner.training.optim import build_optimizer, set_rates
from fusioner.training.progress import Display
from fusioner.training.resume import BEST, LAST, RESUME, Log, check_same, read_state, write_state
from fusioner.training.running_iou import MEMORY, THRESHOLDS, iou_counts, miou


@dataclass(frozen=True)
class Pace:
    """What does not change the weights.

    Attributes:
        checkpoint_minutes: time between two checkpoints; 0 writes one every step.
        prefetch: batches made ahead by a thread while the device computes; None: 2, and 0 where a CPU also encodes.
        compile: torch.compile the network (worth its minute on a GPU).
    """

    checkpoint_minutes: float = 5.0
    prefetch: int | None = None
    compile: bool = False


@dataclass(frozen=True)
class Result:
    """How a training ended.

    Attributes:
        step: updates done, of `steps`; fewer where a signal ended it.
        loss, miou: of the last step, and running over about the last fifty (training images, per cent).
        best: mIoU of the best checkpoint, per cent; None where none was due yet. judged: on what.
        seconds: of this process and those it resumed; waiting: share of this one's spent waiting for data.
        signal: number of the signal that ended it; 0 where none did.
    """

    step: int
    steps: int
    loss: float
    miou: float
    best: float | None
    judged: str
    seconds: float
    waiting: float
    signal: int


class Trainer:
    """One run: a network, its data, its settings, and the folder it writes to.

    Args:
        model: on any device; moved to the fabric's, and changed in place.
        out: writes last.safetensors, best.safetensors, resume.pt and metrics.jsonl here.
        identity: plain values that a resumed run must share, besides the settings (data, encoders).
        order: of the examples; None: shuffled.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: Fusioner,
        batches: Batches,
        config: TrainConfig,
        card: ModelCard,
        out: Path,
        identity: dict[str, Any],
        pace: Pace | None = None,
        display: Display | None = None,
        order: Order | None = None,
    ) -> None:
        self.fabric, self.batches, self.config, self.card, self.out = fabric, batches, config, card, out
        self.pace, self.display = pace or Pace(), display or Display()
        self.identity = {"settings": config.to_dict(), **identity}
        self.order = order or Order(batches.corpus.examples, config.batch_size, config.seed)
        self.steps = config.steps or self.order.steps(config.epochs)
        self.model = model.to(fabric.device)
        if self.model.decoder is not None:
            decoder: Any = self.model.decoder
            decoder.to(memory_format=torch.channels_last)  # what convolutions are fastest in
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False) if config.ema else None
        optimizer = build_optimizer(self.model, config)
        compiled: Any = torch.compile(self.model) if self.pace.compile else self.model
        self.network, self.optimizer = fabric.setup(compiled, optimizer)
        self.running = torch.zeros(batches.corpus.offsets[-1], 3, device=fabric.device)
        self.best: float | None = None
        self.start, self.seconds = 0, 0.0

    def resume(self) -> bool:
        """Take up the state in `out`; False where there is none.

        Raises:
            FusionerError: the state is damaged, or of other settings, data or encoders (named).
        """
        if not (self.out / RESUME).is_file():
            return False
        state = read_state(self.out, self.fabric.device)
        check_same(state["identity"], self.identity, self.out)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.running.copy_(state["running"])
        self.best, self.start, self.seconds = state["best"], state["step"], state["seconds"]
        self.card = replace(self.card, threshold=state["threshold"])
        return True

    def fit(self) -> Result:
        """Train to the end, or until a signal; then the last weights are saved and it can be resumed.

        Raises:
            FusionerError: a loss that is not finite, an unreadable image, no space left. The last checkpoint stays.
        """
        log = Log(self.out, self.start) if self.fabric.is_global_zero else None
        devices = [self.fabric.device] if self.fabric.device.type == "cuda" else []
        with torch.random.fork_rng(devices), StopSignals() as signals, self.display:
            self.display.begin(self.start, self.steps)
            return self._fit(signals, log)

    def _fit(self, signals: StopSignals, log: Log | None) -> Result:
        begun, saved, waited, speed = time.monotonic(), time.monotonic(), 0.0, 0.0
        before, every = self.seconds, max(1, self.steps // 1000)
        made = steps(self.batches, self.order, self.start, self.fabric.global_rank, self.fabric.world_size)
        for step, (batch, wait) in enumerate(timed(taken_ahead(made, self.pace.prefetch or 0)), self.start):
            tick, waited = time.monotonic(), waited + wait
            torch.manual_seed(_seed(self.config.seed, step, self.fabric.global_rank))
            counts = self._sum([*batch.counts(), signals.number])
            last = step == self.steps or counts[2] > 0
            rates = set_rates(self.optimizer, self.config, step, self.steps)
            loss, found = self._loss_and_gradients(batch, counts, learn=not last)
            if not math.isfinite(loss):
                raise FusionerError(self._not_finite(step, loss, rates["lr"]))
            self.seconds = before + time.monotonic() - begun
            if self._evaluation_due(step):
                self._keep_best(step, log)
            if last or time.monotonic() - saved >= 60 * self.pace.checkpoint_minutes:
                self._save(step)
                saved = time.monotonic()
            if last:
                waiting = waited / max(1e-9, time.monotonic() - begun)
                score = miou(self.running)
                judged = "held-out training images" if self.batches.corpus.held_out else "the training as it ran"
                return Result(step, self.steps, loss, score, self.best, judged, self.seconds, waiting, signals.number)
            self._update(step)
            self.running.mul_(MEMORY).add_(found)
            took = time.monotonic() - tick + wait
            speed = self.config.batch_size / took if not speed else 0.9 * speed + 0.1 * self.config.batch_size / took
            score = miou(self.running)
            if log and step % every == 0:
                log.add(step, loss=loss, miou=score, **rates, images_per_s=speed, seconds=self.seconds)
            self.display.step(step + 1, loss, score, speed)
        raise AssertionError("batches never end")

    def _loss_and_gradients(self, batch: Batch, counts: list[float], learn: bool) -> tuple[float, Float[Tensor, "c 3"]]:
        """Loss of the whole batch, and what its pixels say of the IoU; gradients are left in the parameters."""
        self.network.train(learn)
        total = torch.zeros((), device=self.fabric.device)
        found = torch.zeros_like(self.running)
        pieces = batch.pieces(self.config.accumulate)
        for number, piece in enumerate(pieces):
            piece = piece.to(self.fabric.device)
            final = number == len(pieces) - 1
            with nullcontext() if learn else torch.no_grad():
                logits = self.network(piece.tokens, piece.text, piece.labels.shape[-2:], piece.portion)
                loss = self._loss(logits, piece, counts)
            if learn:
                with self.fabric.no_backward_sync(self.network, enabled=not final):
                    self.fabric.backward(loss * self.fabric.world_size)  # processes average, the loss is a sum
            total += loss.detach()
            found += iou_counts(logits.detach(), piece, len(found))
        first, *rest = self._sum([total, *found.flatten()]) if self.fabric.world_size > 1 else [float(total)]
        return first, torch.tensor(rest, device=found.device).view_as(found) if rest else found

    def _loss(self, logits: Float[Tensor, "b p h w"], batch: Batch, counts: list[float]) -> Float[Tensor, ""]:
        loss = masked_bce(logits, batch.target(), batch.ignore(), max(1.0, counts[0]))
        if self.config.choice_weight:
            competing = choice(logits, batch.labels, batch.closed(), max(1.0, counts[1]))
            loss = loss + self.config.choice_weight * competing
        return loss

    def _update(self, step: int) -> None:
        if self.config.clip:
            self.fabric.clip_gradients(
                self.network, self.optimizer, max_norm=self.config.clip, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema:
            decay = min(self.config.ema, (1 + step) / (10 + step))  # the first weights are forgotten soon
            for slow, fast in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                slow.lerp_(fast.detach(), 1 - decay)

    def _evaluation_due(self, step: int) -> bool:
        every = -(-self.steps // self.config.evaluations)
        return step == self.steps or (step > 0 and step % every == 0)

    def _keep_best(self, step: int, log: Log | None) -> None:
        """Score the weights; where they are the best so far, save them as best.safetensors with their threshold."""
        held = bool(self.batches.corpus.held_out)
        scores, at = (self._held_out_mious(), THRESHOLDS) if held else ([miou(self.running)], [self.card.threshold])
        score, threshold = max(zip(scores, at, strict=True))
        if log:
            log.add(step, **{"held_out_miou" if held else "best_by_miou": score, "threshold": threshold})
        if self.best is None or score > self.best:
            self.best, self.card = score, replace(self.card, threshold=threshold)
            self._save_weights(BEST, step)

    @torch.no_grad()
    def _held_out_mious(self) -> list[float]:
        """One mIoU for each of `THRESHOLDS`."""
        network: Any = self.ema or self.model
        network.eval()
        counts = torch.zeros(len(THRESHOLDS), *self.running.shape, device=self.fabric.device)
        share = held_out(self.batches, self.config.batch_size, self.fabric.global_rank, self.fabric.world_size)
        for batch in share:
            batch = batch.to(self.fabric.device)
            with self.fabric.autocast():
                logits = network(batch.tokens, batch.text, batch.labels.shape[-2:]).float()
            for total, threshold in zip(counts, THRESHOLDS, strict=True):
                total += iou_counts(logits, batch, len(total), threshold)
        summed = torch.tensor(self._sum(list(counts.flatten()))).view_as(counts)
        return [miou(one) for one in summed]

    def _save(self, step: int) -> None:
        """Write last.safetensors and resume.pt."""
        self._save_weights(LAST, step)
        if not self.fabric.is_global_zero:
            return
        write_state(
            self.out,
            {
                "step": step,
                "identity": self.identity,
                "model": self.model.state_dict(),
                "ema": self.ema.state_dict() if self.ema else None,
                "optimizer": self.optimizer.state_dict(),
                "precision": self.fabric.strategy.precision.state_dict(),
                "running": self.running,
                "best": self.best,
                "threshold": self.card.threshold,
                "seconds": self.seconds,
            },
        )

    def _save_weights(self, name: str, step: int) -> None:
        if self.fabric.is_global_zero:
            done = {"step": step, "miou": round(miou(self.running), 2), "best_miou": self.best and round(self.best, 2)}
            card = replace(self.card, training=self.card.training | done)
            save_model(self.out / name, self.ema or self.model, card)

    def _sum(self, values: list[Any]) -> list[float]:
        """Sums over all processes."""
        own = torch.tensor([float(value) for value in values], dtype=torch.float64)
        if self.fabric.world_size == 1:
            return own.tolist()
        summed: Any = self.fabric.all_reduce(own.to(self.fabric.device), reduce_op="sum")
        return summed.tolist()

    def _not_finite(self, step: int, loss: float, lr: float) -> str:
        kept = self.out / RESUME
        rest = f"the checkpoint before it is in {kept}" if kept.is_file() else "no checkpoint had been made yet"
        return f"the loss is {loss} at step {step} (learning rate {lr:.3g}): lower --lr, or set --clip 1; {rest}"


def _seed(*numbers: int) -> int:
    """One seed from several numbers, well mixed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
