"""`worldline shard`: a dataset folder in, WebDataset shards with a Parquet index out, on Ray.

    plan -> shards (each cut, encoded and written by one process) -> index

A shard is one unit of work: its tar is renamed into place, then its index rows are committed. The same command
again writes only shards without a commit, and adds shards for clips that are new in the table.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.data
import tyro
from rich.console import Console

import worldline
from worldline.datasets.clip_video import EncodeConfig
from worldline.datasets.commit_log import DISK_FULL_ERRORS, CommitLog, parquet_bytes, read_unit
from worldline.datasets.schema import (
    FAILED,
    OK,
    REJECTED,
    ClipRejected,
    MissingBackend,
    config_hash,
    table_from_rows,
)
from worldline.datasets.shard_format import INDEX, ShardDir
from worldline.datasets.shard_index import assemble_index, groups, write_manifest
from worldline.datasets.shard_plan import (
    PlanConfig,
    clips_of_shard,
    extend_plan,
    planned_shards,
    trajectory_rows,
)
from worldline.datasets.shards import summary_of, write_shard
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
class ShardConfig:
    """Cut, resample and encode kept scenes into WebDataset tars with a Parquet index."""

    dataset: tyro.conf.Positional[Path]
    """Folder that `worldline annotate` wrote."""
    out: Path
    """Shard folder; the same command again does only what is missing or new."""
    latents: Path | None = None
    """Folder of `<clip_id>.npy` autoencoder latents to put beside the videos."""
    plan: PlanConfig = field(default_factory=PlanConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    clip_timeout_s: float = 1800.0
    """Cutting and encoding one clip: an hour-long source decoded once, ten times over."""
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


class WriteShard:
    """One shard number in, the counts of its clips out."""

    def __init__(self, config: Any, run_id: str) -> None:
        """config: a ShardConfig, or one with its limits and `out`."""
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
        config = self._config
        return write_shard(
            trajectory_rows(config.dataset.absolute(), clips_of_shard(self._shards, number)),
            self._shards.tar(number),
            config.encode,
            latent_dir=config.latents,
            guard=self._guard,
        )

    def _replay(self, clip_id: str) -> str:
        again = shlex.join(["worldline", "shard", str(self._config.dataset), "--out", "NEW_FOLDER"])
        return f"{again} --plan.where \"clip_id = '{clip_id}'\""

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


def run_shards(config: ShardConfig, check: Callable[[], None] = lambda: None) -> ShardTally:
    """Plans, writes what is missing and brings the index up to date.

    `check` is called between shards and steps and may raise.
    Raises ValueError for a wrong config or query, OSError for a disk that cannot be written.
    """
    shards = ShardDir(config.out.absolute())
    shards.describe(
        {
            "encode": dataclasses.asdict(config.encode),
            "frames_per_shard": config.plan.frames_per_shard,
            "config_hash": config_hash(config.encode),
            "version": worldline.__version__,
        }
    )
    extend_plan(config.dataset.absolute(), shards, config.plan, config.encode.fps)
    tally = ShardTally()
    for _, clips in planned_shards(shards):
        tally.num_shards += 1
        tally.num_clips += clips
    if not tally.num_shards:
        return tally
    run_id = new_run_id()
    started = start_ray(RunConfig(address=config.address, verbose=config.verbose))
    try:
        check()
        workers = min(config.workers or int(ray.cluster_resources().get("CPU", 1)), tally.num_shards)
        numbers = (number for number, _ in planned_shards(shards))
        consume(numbers, WriteShard, (config, run_id), workers, tally, check)
        for group in groups(shards):
            assemble_index(shards, group)
        write_manifest(shards)
    finally:
        if started:
            ray.shutdown()
    return tally


def consume(
    numbers: Iterator[int],
    worker: type[WriteShard],
    arguments: tuple[Any, ...],
    workers: int,
    tally: ShardTally,
    check: Callable[[], None],
    *,
    num_gpus: float = 0.0,
) -> None:
    """Has `workers` processes do the shards of these numbers, and counts what comes back."""
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


def main(config: ShardConfig) -> int:
    """Exit status: 0 all accounted for, 1 stopped early, 2 nothing written, 3 failed share over the limit, 130
    Ctrl-C."""
    return finish("shard", config, functools.partial(run_shards, config))


def finish(command: str, config: Any, work: Callable[[Callable[[], None]], ShardTally]) -> int:
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


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ShardConfig)))
