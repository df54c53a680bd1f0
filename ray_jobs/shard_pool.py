"""What commands that write shards have in common: the pool's limits, its workers, their count, the exit status.

A shard is one unit of work: its tar is renamed into place, then its index rows are committed. The same command
again does only shards without a commit.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.data
from rich.console import Console

from worldline.datasets.commit_log import DISK_FULL_ERRORS, CommitLog, parquet_bytes, read_unit
from worldline.datasets.schema import FAILED, OK, REJECTED, ClipRejected, MissingBackend, table_from_rows
from worldline.datasets.shard_format import INDEX, ShardDir
from worldline.datasets.shard_index import assemble_index, groups, write_manifest
from worldline.datasets.shards import summary_of
from worldline.ray_jobs.annotate import RunConfig, new_run_id, start_ray
from worldline.ray_jobs.attempts import Attempts, memory_mib, timed_out
from worldline.ray_jobs.interrupts import Interrupts
from worldline.ray_jobs.progress import (
    ALL_ACCOUNTED,
    INTERRUPTED,
    NOTHING_USABLE,
    STOPPED_EARLY,
    TOO_MANY_FAILED,
)

logger = logging.getLogger(__name__)

Row = dict[str, Any]

_SHARDS_PER_CHUNK = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolConfig:
    """Where shards are written, by how many processes, and what one may cost."""

    out: Path
    """Shard folder; the same command again does only what is missing or new."""
    clip_timeout_s: float = 1800.0
    """Doing one clip: an hour-long source decoded once, ten times over."""
    max_deaths: int = 3
    """A clip on which this many worker processes died in one run becomes a failed row."""
    workers: int | None = None
    """Processes that write shards; default: one a CPU of the cluster."""
    address: str | None = None
    """Ray cluster to join ("auto": the one running here); default: RAY_ADDRESS, else a private local one."""
    max_failed_share: float = 0.1
    """Above this share of failed clips the exit status is 3."""
    max_worker_mib: float = 4096.0
    """A worker found above this between two shards is replaced by a fresh one."""
    verbose: bool = False
    """Show the logs of Ray and of the workers."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError("workers must be at least 1")
        if self.clip_timeout_s <= 0 or self.max_deaths < 1 or self.max_worker_mib <= 0:
            raise ValueError("limits must be positive")


class ShardWorker:
    """One shard number in, the counts of its clips out; a kind of shard says how its rows are made."""

    def __init__(self, config: PoolConfig, run_id: str) -> None:
        self._config, self._run_id = config, run_id
        self._shards = ShardDir(config.out.absolute())
        self._log = CommitLog(self._shards.root, run_id)
        self._num_done = 0

    def __call__(self, row: Row) -> Row:
        number = int(row["shard"])
        part = self._shards.part(number)
        if (done := read_unit(part)) is not None and self._shards.tar(number).exists():
            return row | summary_of(done.select(["status", "num_frames"]).to_pylist()) | {"is_new": False}
        if self._num_done and memory_mib() > self._config.max_worker_mib:
            os._exit(0)
        self._num_done += 1
        try:
            return row | self._write(number, part) | {"is_new": True}
        except (OSError, MissingBackend, ValueError) as error:
            if isinstance(error, OSError) and error.filename is not None:
                return row | {"stopped": f"{error.filename}: {error.strerror}"}
            return row | {"stopped": str(error)}

    def _write(self, number: int, part: Path) -> Row:
        started_s = time.monotonic()
        index_rows = self._rows(number)
        counts = summary_of(index_rows)
        wall_s = round(time.monotonic() - started_s, 3)
        data = parquet_bytes(table_from_rows(index_rows, INDEX))
        self._log.commit(part, data, stage="shard", **counts, wall_s=wall_s)
        return counts

    def _rows(self, number: int) -> list[Row]:
        """Writes the tar; its index rows."""
        raise NotImplementedError

    def _replay(self, clip_id: str) -> str:
        """The command that does this clip alone again."""
        raise NotImplementedError

    def _guard(self, row: Row, cut: Callable[[], Any]) -> Any:
        """Does one clip under the watchdog; what went wrong becomes the clip's outcome, not the shard's."""
        folder = self._shards.root / "stages" / "attempts"
        attempts = Attempts(folder, f"shard.{row['clip_id']}", self._run_id)
        deaths, replay = attempts.deaths(), self._replay(row["clip_id"])
        if deaths and timed_out(deaths[-1]):
            reason = f"worker: time-out ({self._config.clip_timeout_s:g} s)"
            return {"status": FAILED, "reason": reason, "error": deaths[-1], "replay": replay}
        if len(deaths) >= self._config.max_deaths:
            reason = f"worker: process died ({len(deaths)} times)"
            return {"status": FAILED, "reason": reason, "error": deaths[-1] or None, "replay": replay}
        try:
            with attempts.watch(self._config.clip_timeout_s):
                return cut()
        except ClipRejected as rejection:
            return {"status": REJECTED, "reason": str(rejection), "replay": replay}
        except MissingBackend:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL_ERRORS:
                raise
            reason = f"shard: {type(error).__name__} ({str(error)[:200]})"
            return {"status": FAILED, "reason": reason, "error": traceback.format_exc(), "replay": replay}


@dataclass(slots=True)
class ShardTally:
    """What became of every planned shard and clip."""

    num_shards: int = 0
    num_clips: int = 0
    num_shards_done: int = 0
    num_new: int = 0
    clips: dict[str, int] = field(default_factory=lambda: dict.fromkeys((OK, REJECTED, FAILED), 0))
    num_frames: int = 0
    stopped: str | None = None

    def add(self, row: Row) -> None:
        """Counts one row of the pipeline's end."""
        if row.get("stopped"):
            self.stopped = row["stopped"]
            return
        self.num_shards_done += 1
        self.num_new += bool(row["is_new"])
        self.num_frames += row["num_frames"]
        for status in self.clips:
            self.clips[status] += row[status]

    def missing(self) -> str | None:
        """Which planned clips have no row; None when the sums agree."""
        done = sum(self.clips.values())
        return None if done == self.num_clips else f"{self.num_clips} clips planned, {done} accounted for"

    def line(self) -> str:
        counts = ", ".join(f"{status} {count}" for status, count in self.clips.items())
        return f"shards {self.num_shards_done}/{self.num_shards}; clips {counts}; {self.num_frames} frames"


def run_pool(
    worker: type[ShardWorker],
    config: PoolConfig,
    numbers: Iterator[int],
    tally: ShardTally,
    check: Callable[[], None],
    *,
    num_gpus: float = 0.0,
) -> None:
    """Has the pool do the `tally.num_shards` shards of these numbers, counts what comes back, and brings the index
    up to date. `check` is called between shards and may raise.
    """
    shards = ShardDir(config.out.absolute())
    started = start_ray(RunConfig(address=config.address, verbose=config.verbose))
    try:
        check()
        workers = min(config.workers or int(ray.cluster_resources().get("CPU", 1)), tally.num_shards)
        _consume(worker, (config, new_run_id()), numbers, workers, tally, check, num_gpus)
        for group in groups(shards):
            assemble_index(shards, group)
        write_manifest(shards)
    finally:
        if started:
            ray.shutdown()


def _consume(
    worker: type[ShardWorker],
    arguments: tuple[PoolConfig, str],
    numbers: Iterator[int],
    workers: int,
    tally: ShardTally,
    check: Callable[[], None],
    num_gpus: float,
) -> None:
    chunks = [
        {"shards": chunk} for chunk in iter(lambda: list(itertools.islice(numbers, _SHARDS_PER_CHUNK)), [])
    ]
    rows = (
        ray.data.from_items(chunks, override_num_blocks=len(chunks))
        .flat_map(lambda chunk: [{"shard": number} for number in chunk["shards"]], num_cpus=0.05)
        # One shard in flight a process: shards take minutes, so a queue would only delay the last ones.
        .map(
            worker,  # type: ignore[arg-type]
            fn_constructor_args=arguments,
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            num_cpus=0.8,
            num_gpus=num_gpus or None,
        )
    )
    for row in rows.iter_rows():
        check()
        tally.add(row)
        logger.info("%s", tally.line())
        if tally.stopped is not None:
            return


def finish(command: str, config: PoolConfig, work: Callable[[Callable[[], None]], ShardTally]) -> int:
    """Does the work of a command that writes shards, says what came out, and gives its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if not config.verbose:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        with Interrupts() as interrupts:
            tally = work(interrupts.check)
            interrupts.check()
    except KeyboardInterrupt:
        print(f"\nstopped. Finished shards are kept in {config.out}; the same command goes on from there.")
        return INTERRUPTED
    except (ValueError, OSError) as error:
        print(f"worldline {command}: {getattr(error, 'cause', error)}", file=sys.stderr)
        return STOPPED_EARLY
    if tally.stopped is not None:
        print(f"worldline {command} stopped: {tally.stopped}", file=sys.stderr)
        return STOPPED_EARLY
    Console().print(tally.line() + f"; {tally.num_new} shards new; {config.out}")
    if (missing := tally.missing()) is not None:
        raise AssertionError(f"rows were lost: {missing}")
    if tally.clips[FAILED] > config.max_failed_share * max(1, tally.num_clips):
        return TOO_MANY_FAILED
    return ALL_ACCOUNTED if tally.clips[OK] else NOTHING_USABLE
