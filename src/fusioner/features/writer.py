"""From encoded views to shards: collected until they are worth a file, written by a thread of its own."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Self

from jaxtyping import Float
from torch import Tensor

from fusioner.errors import FusionerError
from fusioner.features.quantise import Quantised, Rounding, quantise, restore, token_errors
from fusioner.features.shard import Entry, Manifest, Stored, row_digest, write_shard
from fusioner.features.space import Dtype, Space

SHARD_BYTES = 2**26  # 64 MiB: large enough to be read in one go, small enough to be collected in memory
SHARD_SECONDS = 20.0  # the most work that a power cut can cost


class Finished(NamedTuple):
    """A view ready to be written."""

    digest: str
    view: int
    image: str
    stored: Stored


class ShardWriter:
    """Takes views, writes shards.

    Args:
        written: called, in the writing thread, with the views of every shard once it is on disk.
        background: False writes in the calling thread.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        written: Callable[[Sequence[Finished]], None] = lambda _: None,
        background: bool = True,
    ) -> None:
        self.folder, self.space, self._written = folder, space, written
        self.rounding = Rounding()
        self._pool = ThreadPoolExecutor(1, "features") if background else None
        self._job: Future[None] | None = None
        self._pending: dict[tuple[str, int], Finished] = {}
        self._errors = Rounding()
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or kind is KeyboardInterrupt:  # what is encoded is not thrown away
                self.flush()
        finally:
            if self._pool is not None:
                self._pool.shutdown()

    def pack(self, tokens: Float[Tensor, "b d gh gw"]) -> list[Stored]:
        """Tokens as they are stored, on the CPU; what that costs in precision goes into `rounding`."""
        check_tokens(tokens, self.space)
        rows = pack(tokens, self.space.dtype)
        for row, exact in zip(rows, tokens, strict=True):
            if isinstance(row, Quantised):
                self._errors.add(token_errors(exact.cpu(), restore(row)))
        return rows

    def add(self, finished: Finished) -> None:
        """Take one view."""
        if not self._pending:
            self._since = time.monotonic()
        self._pending[finished.digest, finished.view] = finished

    def pending(self, digest: str, view: int) -> Stored | None:
        """A view that is not on its way to the disk yet."""
        found = self._pending.get((digest, view))
        return found and found.stored

    def flush_if_due(self) -> None:
        """Write a shard when there is enough for one, or the oldest view has waited long enough."""
        large = len(self._pending) * self.space.entry_bytes >= SHARD_BYTES
        if large or (self._pending and time.monotonic() - self._since >= SHARD_SECONDS):
            self._submit()

    def flush(self) -> None:
        """Write everything and wait until it is on disk; FusionerError when the system refuses."""
        if self._pending:
            self._submit()
        self._wait()

    def _submit(self) -> None:
        self._wait()  # at most one shard being written and one being collected
        batch, errors = list(self._pending.values()), self._errors
        self._pending, self._errors = {}, Rounding()
        if self._pool is None:
            self._write(batch, errors)
        else:
            self._job = self._pool.submit(self._write, batch, errors)

    def _wait(self) -> None:
        if self._job is not None:
            job, self._job = self._job, None
            job.result()

    def _write(self, batch: list[Finished], errors: Rounding) -> None:
        entries = tuple(
            Entry(one.digest, one.view, row_digest(one.digest, one.view, one.stored), one.image) for one in batch
        )
        error = (errors.mean, errors.worst) if self.space.dtype == "int8" else None
        write_shard(self.folder, Manifest(self.space, entries, error), [one.stored for one in batch])
        self.rounding.merge(errors)
        self._written(batch)


def pack(tokens: Float[Tensor, "b d gh gw"], dtype: Dtype) -> list[Stored]:
    """Tokens as they are stored, one view each, on the CPU."""
    if dtype == "fp16":
        return list(tokens.half().cpu())
    values, scales = quantise(tokens)
    return [Quantised(*pair) for pair in zip(values.cpu(), scales.cpu(), strict=True)]


def check_tokens(tokens: Float[Tensor, "b d gh gw"], space: Space) -> None:
    """FusionerError unless an encoder's answer is what its attributes promise, and finite."""
    expected = (space.dim, *space.grid)
    if tuple(tokens.shape[1:]) != expected:
        raise FusionerError(
            f"encoder '{space.encoder}' gives tokens of shape {tuple(tokens.shape[1:])} at {space.resolution} px, "
            f"its width and stride promise {expected}"
        )
    if not tokens.isfinite().all():
        raise FusionerError(f"encoder '{space.encoder}' gives numbers that are not finite: its weights are broken")
