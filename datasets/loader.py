"""A Selection in, batches of samples out, the same in every run: the exact, elastic loader.

Batch t holds the stream positions [start + t G, start + (t + 1) G) of `SampleOrder`; rank r of W takes the r-th of
W even slices, and worker w of K makes every K-th batch of its rank. So the global batches depend on the selection,
the order's config and G alone, never on ranks or workers, and the state is one number. Epochs follow each other
without a gap: every batch is full, and each epoch still holds every sample once.

A sample is read by byte range and checked against the index. One that cannot be had (shard missing, checksum,
undecodable, refused by the transform) is recorded and replaced by a sample that the order draws for that position,
which is again a pure function: a run with a broken shard can be repeated too.

Large samples are read and checked by threads ahead of their use. They decide nothing: samples are made of what they
bring in the stream's order, by the thread that asks for them.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from worldline.datasets.byte_ranges import is_remote
from worldline.datasets.member_content import member_content
from worldline.datasets.sample_bytes import Fetched, ReadAhead, Record, SampleBytes
from worldline.datasets.sample_order import OrderConfig, SampleOrder
from worldline.datasets.schema import ClipRejected
from worldline.datasets.shard_format import MEMBERS
from worldline.datasets.shard_index import Selection, shard_location

logger = logging.getLogger(__name__)

Sample = dict[str, Any]
Batch = list[tuple[int, Record]]
"""Stream positions and what the order puts there."""

_STATE_VERSION = 1
_BATCHES_PER_LOOKUP = 32
"""Batches whose sample numbers are worked out in one go: array operations cost the same for one as for a thousand."""
_READ_THREADS = 3
_MIN_AHEAD_BYTES = 1 << 18
"""Handing smaller samples from thread to thread costs more than reading them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderConfig:
    """How samples are shared out, read and checked."""

    global_batch: int
    """Samples of one step over all ranks. Where ranks do not divide it their shares differ by one."""
    order: OrderConfig = field(default_factory=OrderConfig)
    members: tuple[str, ...] = ("json", "mp4")
    """Which files of a clip are read; the others are not touched."""
    rank: int = 0
    world_size: int = 1
    num_workers: int = 0
    """Processes of this rank that read and decode; 0: this process."""
    prefetch_batches: int = 2
    """Batches a worker makes ahead."""
    read_ahead: int = 4
    """Samples, of a quarter of a megabyte and more on local disks, that threads read and check while this process
    decodes or hands out those before them; 0: none."""
    map_files: bool = False
    """Arrays are read-only views of local files in the page cache in place of copies: no slower than reading the bare tar,
    on one core. The checksum is that of the very pages; but a disk that fails, or a file that is cut short while it
    is used, kills the process (SIGBUS), where copying ends in an error that names the file."""
    pin_memory: bool = False
    """Copy batches of tensors to pinned memory; without a GPU it does nothing."""
    epochs: int | None = None
    """Stop after this many epochs, counted from the stream's beginning; the last batch may then be short, and a
    rank whose share of it is empty ends one step before the others. None: never stop."""
    quarantine_dir: Path | None = None
    """Folder for one JSON line a replaced sample, a file a process; None: the log alone."""
    check_bytes: bool = True
    """Compare what was read with the index's CRC-32, 2.5 MB in 0.04 ms. Off only for storage that checks itself: a
    flipped bit would be trained on."""
    max_replacements: int = 8
    """Tries for one position before the loader gives up."""
    max_replaced_share: float = 0.05
    """Above this share of replaced samples in a process, from the hundredth on, it gives up: the data is not
    scratched but wrong."""
    start_method: str | None = None
    """How workers start: fork, spawn or forkserver; None: the platform's usual."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size or self.global_batch < self.world_size:
            raise ValueError(
                f"rank {self.rank} of {self.world_size} with a global batch of {self.global_batch}: "
                "each rank needs a sample"
            )
        if unknown := set(self.members) - set(MEMBERS):
            raise ValueError(f"members {sorted(unknown)}: known are {', '.join(MEMBERS)}")
        if (
            min(self.num_workers, self.read_ahead) < 0
            or min(self.prefetch_batches, self.max_replacements) < 1
        ):
            raise ValueError("num_workers, read_ahead, prefetch_batches and max_replacements count things")
        if not 0 <= self.max_replaced_share <= 1 or (self.epochs is not None and self.epochs < 1):
            raise ValueError("max_replaced_share must be within 0 and 1, epochs at least 1")


class Loader:
    """Iterates over batches of this rank; see the module's text.

    A batch is `collate` of a list of samples. A sample is a dict as webdataset makes them: `__key__`, `__url__`,
    `json` (the index row without its place), `mp4` (bytes, as only the transform knows which frames it needs),
    `latent.npy` (array); beside them `__position__` in the stream, `__seed__` for all that is random about it and,
    where it stands in for others, their keys in `__replaces__`. `map` adds a function of one sample, which may
    raise ClipRejected to have the sample replaced.
    """

    def __init__(
        self, selection: Selection, config: LoaderConfig, collate: Callable[[list[Any]], Any] | None = None
    ) -> None:
        self._selection, self._config, self._collate = selection, config, collate
        self._steps: tuple[Callable[[Any], Any], ...] = ()
        self._position = 0

    def map(self, step: Callable[[Any], Any]) -> Loader:
        """A loader whose samples go through `step` as well; it starts where this one stands."""
        mapped = Loader(self._selection, self._config, self._collate)
        mapped._steps, mapped._position = (*self._steps, step), self._position
        return mapped

    @property
    def position(self) -> int:
        """Samples that all ranks together have been given."""
        return self._position

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the last batch given; equal on all ranks at the same step."""
        return {
            "version": _STATE_VERSION,
            "position": self._position,
            "epoch": self._position // len(self._selection),
            "step": self._position // self._config.global_batch,
            "order": dataclasses.asdict(self._config.order),
            "num_samples": len(self._selection),
            "fingerprint": self._selection.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state`, whatever ranks and workers wrote it; a change of the global batch is allowed.

        Raises ValueError where the samples or the order are others, since the position then means nothing.
        """
        expected = self.state_dict()
        for name in ("version", "fingerprint", "num_samples", "order"):
            if state.get(name) != expected[name]:
                raise ValueError(
                    f"the state is of another {name} ({state.get(name)}, here {expected[name]}): "
                    "load the selection and the order it was made with"
                )
        self._position = int(state["position"])

    def __iter__(self) -> Iterator[Any]:
        config = self._config
        batches = _Batches(self._selection, config, self._steps, self._collate, self._position)
        workers: dict[str, Any] = {}
        if config.num_workers:
            workers = {
                "prefetch_factor": config.prefetch_batches,
                "multiprocessing_context": config.start_method,
            }
        stream = DataLoader(
            batches,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=config.num_workers,
            pin_memory=config.pin_memory and torch.cuda.is_available(),
            **workers,
        )
        end = None if config.epochs is None else config.epochs * len(self._selection)
        for batch in stream:
            # Counted before the batch is handed out: a state taken while it is in use says that it was.
            self._position += config.global_batch
            if end is not None:
                self._position = min(self._position, end)
            yield batch

    def samples(self) -> Iterator[Any]:
        """This rank's samples one by one in this process: the source of a `webdataset.DataPipeline`."""
        batches = _Batches(self._selection, self._config, self._steps, None, self._position)
        yield from batches.samples(collections.deque(maxlen=0))


def share_of(count: int, rank: int, world_size: int) -> range:
    """Places in a global batch of `count` samples that are one rank's."""
    return range(count * rank // world_size, count * (rank + 1) // world_size)


def _as_it_is(batch: Any) -> Any:
    """In place of torch's conversion of every array to a tensor."""
    return batch


class _Batches(IterableDataset):
    """The batches of one worker of one rank."""

    def __init__(
        self,
        selection: Selection,
        config: LoaderConfig,
        steps: tuple[Callable[[Any], Any], ...],
        collate: Callable[[list[Any]], Any] | None,
        start: int,
    ) -> None:
        self._selection, self._config, self._steps, self._start = selection, config, steps, start
        self._collate = collate or list

    def __iter__(self) -> Iterator[Any]:
        lengths: collections.deque[int] = collections.deque()
        samples = self.samples(lengths)
        for first in samples:
            yield self._collate([first, *itertools.islice(samples, lengths.popleft() - 1)])

    def samples(self, lengths: collections.deque[int]) -> Iterator[Any]:
        """Batch after batch, one by one, each made when it is asked for; appends how many make each batch."""
        reader = SampleReader(self._selection, self._config, self._steps)
        return reader.read(self._batches(reader, lengths))

    def _batches(self, reader: SampleReader, lengths: collections.deque[int]) -> Iterator[Batch]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        for block in itertools.count():
            batches = [
                self._positions(first + (block * _BATCHES_PER_LOOKUP + k) * stride)
                for k in range(_BATCHES_PER_LOOKUP)
            ]
            records = self._selection.records[reader.numbers_at(np.concatenate(batches))].tolist()
            start = 0
            for positions in batches:
                if len(positions) == 0:
                    return
                lengths.append(len(positions))
                end = start + len(positions)
                yield list(zip(positions.tolist(), records[start:end], strict=True))
                start = end

    def _positions(self, batch_idx: int) -> np.ndarray:
        """Stream positions of this rank's share of a batch; empty behind the end."""
        config = self._config
        start = self._start + batch_idx * config.global_batch
        count = config.global_batch
        if config.epochs is not None:
            count = max(0, min(count, config.epochs * len(self._selection) - start))
        share = share_of(count, config.rank, config.world_size)
        return np.arange(start + share.start, start + share.stop)


class SampleReader:
    """Stream positions in, samples out, read, checked, transformed and, where need be, replaced."""

    def __init__(
        self, selection: Selection, config: LoaderConfig, steps: tuple[Callable[[Any], Any], ...] = ()
    ) -> None:
        self._selection, self._config, self._steps = selection, config, steps
        self._order = SampleOrder(len(selection), config.order, selection.cumulative_weight)
        self._source = self._make_source()
        self._num_read, self._num_replaced = 0, 0

    def _make_source(self) -> SampleBytes:
        config = self._config
        location = self._selection.location
        if config.map_files and is_remote(location):
            raise ValueError(f"map_files is for local shards, not {location}")
        return SampleBytes(location, config.members, check=config.check_bytes, is_mapped=config.map_files)

    def numbers_at(self, positions: np.ndarray) -> np.ndarray:
        """The samples that the order puts at stream positions."""
        return self._order.samples(positions)

    def read(self, batches: Iterator[Batch]) -> Iterator[Any]:
        """One sample a position, made when it is asked for.

        Raises OSError, and RuntimeError where too many samples cannot be used.
        """
        try:
            for (position, record), parts in self._fetched(batches):
                yield self._sample(position, record, parts)
        finally:
            self._source.close()

    def _fetched(self, batches: Iterator[Batch]) -> Iterator[tuple[tuple[int, Record], Fetched]]:
        if is_remote(self._selection.location):
            for batch in batches:
                yield from zip(batch, self._source.fetch([record for _, record in batch]), strict=True)
            return
        # One by one: what a step leaves of a sample is small, and its bytes then lie where the last one's lay.
        one_by_one = itertools.chain.from_iterable(batches)
        if self._config.read_ahead == 0:
            yield from ((item, self._source.fetch_one(item[1])) for item in one_by_one)
            return
        threads = ReadAhead(self._make_source, min(_READ_THREADS, self._config.read_ahead))
        waiting: collections.deque[tuple[int, Record]] = collections.deque()
        try:
            for item in one_by_one:
                if self._source.size(item[1]) >= _MIN_AHEAD_BYTES:
                    threads.put(item[1])
                    waiting.append(item)
                    if len(waiting) > self._config.read_ahead:
                        yield waiting.popleft(), threads.get()
                    continue
                while waiting:
                    yield waiting.popleft(), threads.get()
                yield item, self._source.fetch_one(item[1])
            while waiting:
                yield waiting.popleft(), threads.get()
        finally:
            threads.close()

    def _sample(self, position: int, record: Record, parts: Fetched) -> Any:
        self._num_read += 1
        replaced: list[str] = []
        reasons: set[str] = set()
        for attempt in range(1, self._config.max_replacements + 1):
            key, shard = record[0].decode(), record[1]
            try:
                if isinstance(parts, ClipRejected):
                    raise parts
                return self._made(position, key, shard, parts, tuple(replaced))
            except ClipRejected as rejection:
                replaced.append(key)
                reasons.add(str(rejection))
                self._record(position, shard, key, rejection)
                record = self._selection.records[self._order.replacement(position, attempt)].item()
                parts = self._source.fetch_one(record)
        raise RuntimeError(
            f"position {position}: none of {sorted(set(replaced))} can be used: {'; '.join(sorted(reasons))}"
        )

    def _made(
        self, position: int, key: str, shard: int, parts: dict[str, memoryview], replaced: tuple[str, ...]
    ) -> Any:
        sample: Any = {
            "__key__": key,
            "__url__": shard_location(self._selection.location, shard),
            "__position__": position,
            "__seed__": self._order.seed_of(position),
            **({"__replaces__": replaced} if replaced else {}),
        }
        for member, data in parts.items():
            sample[member] = member_content(member, data, key)
        for step in self._steps:
            sample = step(sample)
        return sample

    def _record(self, position: int, shard: int, key: str, rejection: ClipRejected) -> None:
        """Logs a replaced sample, and stops where there are too many."""
        self._num_replaced += 1
        facts = {"position": position, "clip_id": key, "shard": shard, "reason": str(rejection)}
        logger.warning("sample replaced: %s", facts)
        if self._config.quarantine_dir is not None:
            self._config.quarantine_dir.mkdir(parents=True, exist_ok=True)
            name = f"rank{self._config.rank}-{socket.gethostname()}-{os.getpid()}.jsonl"
            with (self._config.quarantine_dir / name).open("a") as lines:
                lines.write(json.dumps(facts) + "\n")
        share = self._num_replaced / self._num_read
        if self._num_read >= 100 and share > self._config.max_replaced_share:
            raise RuntimeError(
                f"{share:.1%} of {self._num_read} samples could not be used; last: {rejection}"
            )
