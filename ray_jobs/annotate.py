"""`worldline annotate`: videos in, a dataset folder of camera trajectories out, on Ray.

    inputs -> scan (probe, cut into scenes) -> annotate (geometry and scores of a scene) -> tables

Workers write what they finish into the folder and pass on names and counts; the driver counts rows and
keeps none. Run it on this machine, or on a cluster: `ray job submit --working-dir . -- python -m
worldline.ray_jobs.annotate ...`; then inputs and the folder must be reachable from every node under the
same names.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

import pyarrow as pa
import ray
import ray.data
import tyro
from rich.console import Console

import worldline
from worldline.annotate.clip import ClipConfig
from worldline.annotate.scenes import SceneConfig
from worldline.datasets.commit_log import DISK_FULL_ERRORS, replace_file
from worldline.datasets.dataset_dir import DatasetDir
from worldline.datasets.shots import assemble_shots
from worldline.datasets.table import assemble_bucket
from worldline.ray_jobs.inputs import list_inputs
from worldline.ray_jobs.interrupts import Interrupts
from worldline.ray_jobs.progress import (
    INTERRUPTED,
    STOPPED_EARLY,
    JournalFollower,
    Progress,
    Tally,
    final_table,
)
from worldline.ray_jobs.stages import AnnotateClip, Limits, ScanVideo, Work

logger = logging.getLogger(__name__)

_INPUTS_PER_CHUNK = 500
"""Input lines of one file that the pipeline's first stage reads: 10^7 inputs are 20,000 names in the
driver."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """How the job runs; none of it changes a result."""

    workers: int | None = None
    """Processes that annotate scenes; default: one a CPU of the cluster."""
    address: str | None = None
    """Ray cluster to join ("auto": the one running here); default: RAY_ADDRESS, else a private local one."""
    limits: Limits = field(default_factory=Limits)
    max_failed_share: float = 0.1
    """Above this share of failed videos and scenes the job stops with exit status 3; rejected ones do not
    count."""
    retry_failed: bool = False
    """Do failed videos and scenes again (rejected and ok ones stay as they are)."""
    assemble_every_s: float = 300.0
    """While the job runs, finished scenes appear in the tables after at most about this time."""
    bucket_digits: int | None = None
    """Of a new folder: 16 to this power table files. 2 suits up to a million scenes, 4 a hundred million."""
    verbose: bool = False
    """Show the logs of Ray and of the workers."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError("workers must be at least 1")
        if not 0 <= self.max_failed_share <= 1:
            raise ValueError("max_failed_share must be within 0 and 1")
        if self.bucket_digits is not None and not 1 <= self.bucket_digits <= 6:
            raise ValueError("bucket_digits must be within 1 and 6")


@dataclass(frozen=True, kw_only=True, slots=True)
class JobConfig:
    """Annotate videos: scenes, camera trajectories and scores into a Parquet dataset folder."""

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Video files, folders, globs, text lists (.txt, one a line) or URIs such as s3://bucket/key."""
    out: Path
    """Dataset folder; the same command again does only what is missing."""
    source: str | None = None
    """Where the videos come from; a sidecar `name.mp4.json` or `name.json` beside a video overrules it."""
    licence: str | None = None
    """Licence of the videos; overruled by a sidecar too."""
    clip_id: Annotated[str | None, tyro.conf.arg(name="clip")] = None
    """Annotate only this scene (clip id or its start), again, in this process without Ray: to look into a
    failure."""
    scenes: SceneConfig = field(default_factory=SceneConfig)
    engine: ClipConfig = field(default_factory=ClipConfig)
    run: RunConfig = field(default_factory=RunConfig)


def pipeline(chunks: list[str], work: Work, workers: int) -> ray.data.Dataset:
    """The job's stages. Rows are names and counts; a block is one row, so that any worker may take any
    scene."""
    pool = ray.data.ActorPoolStrategy
    return (
        ray.data.from_items([{"chunk": name} for name in chunks], override_num_blocks=max(1, len(chunks)))
        # Reads a small text file: needs a slot, hardly a CPU.
        .flat_map(read_chunk, num_cpus=0.05)
        # Cutting runs some ten times faster than geometry, so one process for every two of the next stage
        # is ample. 0.1 CPU is what it takes over time; the pool floats, because the share depends on the
        # videos.
        .flat_map(
            ScanVideo,
            fn_constructor_args=(work,),
            compute=pool(min_size=1, max_size=max(1, workers // 2), max_tasks_in_flight_per_actor=1),
            num_cpus=0.1,
        )
        # One process a core, at 0.8 so that all of them fit beside the stages above: with whole CPUs two
        # processes on two cores leave nothing for scanning and the job stands still. One scene in flight
        # each: a second would wait behind a long one while another process idles.
        .map(
            AnnotateClip,  # type: ignore[arg-type]
            fn_constructor_args=(work,),
            compute=pool(size=workers, max_tasks_in_flight_per_actor=1),
            num_cpus=0.8,
        )
    )


def read_chunk(row: dict[str, Any]) -> list[dict[str, Any]]:
    """One file of input lines in, one row an input out."""
    with open(row["chunk"], encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def run_job(
    config: JobConfig, console: Console, work: Work | None = None, check: Callable[[], None] = lambda: None
) -> Tally:
    """Annotates everything the config names and brings the tables up to date.

    `work` replaces the stages (tests). `check` is called between rows and steps and may raise. Raises ValueError
    for a wrong config, OSError for a disk that cannot be written, KeyboardInterrupt when interrupted; whatever
    happens, finished work is kept.
    """
    dataset = DatasetDir.open(config.out.absolute(), config.run.bucket_digits)
    work = work or make_work(config, new_run_id())
    chunks, num_inputs = _write_run(dataset, config, work.run_id)
    logger.info("%d inputs; run %s", num_inputs, work.run_id)
    tally = Tally(num_inputs)
    if num_inputs == 0:
        return tally
    if config.clip_id is not None:
        for row in itertools.chain.from_iterable(read_chunk({"chunk": chunk}) for chunk in chunks):
            annotate = AnnotateClip(work)
            for scene_row in ScanVideo(work)(row):
                tally.add(annotate(scene_row))
        _assemble(dataset, tally.buckets)
        for bucket in sorted(tally.buckets):
            assemble_shots(dataset, bucket)
        return tally
    started = start_ray(config.run)
    try:
        check()
        rows = pipeline(chunks, work, _num_workers(config.run))
        _consume(config, dataset, rows, work.run_id, tally, console, check)
        _assemble_on_ray(dataset, tally.buckets)
        check()
        _join_shots_on_ray(dataset, tally.buckets)
    finally:
        if started:
            ray.shutdown()
    return tally


def _consume(
    config: JobConfig,
    dataset: DatasetDir,
    rows: ray.data.Dataset,
    run_id: str,
    tally: Tally,
    console: Console,
    check: Callable[[], None],
) -> None:
    """Counts rows as they come; assembles tables now and then; stops early where going on makes no sense."""
    pause_s = config.run.assemble_every_s
    next_assembly_s = time.monotonic() + pause_s
    with Progress(tally, JournalFollower(dataset.root, run_id), console):
        for row in _stream(rows):
            check()
            tally.add(row)
            if tally.stopped is not None:
                return
            if tally.has_too_many_failures(config.run.max_failed_share, is_final=False):
                tally.stopped = f"more than {config.run.max_failed_share:.0%} of the videos and scenes failed"
                return
            if time.monotonic() >= next_assembly_s:
                begun_s = time.monotonic()
                _assemble_on_ray(dataset, tally.buckets)
                # Tables grow; at most a twentieth of the time goes into bringing them up to date.
                next_assembly_s = time.monotonic() + max(pause_s, 20 * (time.monotonic() - begun_s))


def _stream(rows: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from cast(pa.Table, batch).to_pylist()


def start_ray(run: RunConfig) -> bool:
    """Joins the cluster or starts a private one; whether this call did it (and must end it)."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # One row a block: scenes of one long video spread over all workers, and a retry repeats one scene.
    context.target_max_block_size = 1
    # A row is some 500 bytes: no stage runs more than a few thousand rows ahead, however many inputs there
    # are.
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(
        object_store_memory=8e6
    )
    if not run.verbose:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        return False
    address = run.address or os.environ.get("RAY_ADDRESS")
    local = {} if address else {"include_dashboard": False, "object_store_memory": 100_000_000}
    # By default Ray's workers yield to everything else (niceness 15): beside any other program hardly a frame was done.
    os.environ.setdefault("RAY_worker_niceness", "0")
    level = logging.INFO if run.verbose else logging.ERROR
    ray.init(address or "local", log_to_driver=run.verbose, logging_level=level, **local)  # type: ignore[arg-type]
    return True


def make_work(config: JobConfig, run_id: str) -> Work:
    """What the workers need of the config."""
    return Work(
        out=str(config.out),
        run_id=run_id,
        scenes=config.scenes,
        engine=config.engine,
        limits=config.run.limits,
        source=config.source,
        licence=config.licence,
        retry_failed=config.run.retry_failed,
        flags=changed_flags("scenes", config.scenes) + changed_flags("engine", config.engine),
        only_clip=config.clip_id,
    )


def changed_flags(prefix: str, config: Any, default: Any = None) -> str:
    """The command-line flags that make `config` from its defaults, each with a leading space."""
    default = type(config)() if default is None else default
    flags = ""
    for item in dataclasses.fields(config):
        value, usual = getattr(config, item.name), getattr(default, item.name)
        name = f"{prefix}.{item.name.replace('_', '-')}"
        if value == usual:
            continue
        if dataclasses.is_dataclass(value) and type(value) is type(usual):
            flags += changed_flags(name, value, usual)
        elif isinstance(value, bool):
            flags += f" --{name}" if value else f" --{prefix}.no-{item.name.replace('_', '-')}"
        else:
            words = value if isinstance(value, tuple | list) else [value]
            flags += f" --{name} {shlex.join(str(word) for word in words)}"
    return flags


def new_run_id() -> str:
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}"


def _write_run(dataset: DatasetDir, config: JobConfig, run_id: str) -> tuple[list[str], int]:
    """Stores the run's config and its inputs, numbered, in files of a few hundred lines; their names and
    the count."""
    folder = dataset.root / "runs" / run_id
    facts = {"version": worldline.__version__, "config": dataclasses.asdict(config)}
    replace_file(folder / "config.json", json.dumps(facts, default=str, indent=1).encode() + b"\n")
    chunks: list[str] = []
    num_inputs = 0
    lines = (
        json.dumps({"input_idx": k, "path": item.path, "rejection": item.rejection}) + "\n"
        for k, item in enumerate(list_inputs(config.inputs))
    )
    while block := list(itertools.islice(lines, _INPUTS_PER_CHUNK)):
        path = folder / f"inputs-{len(chunks):06d}.jsonl"
        replace_file(path, "".join(block).encode())
        chunks.append(str(path))
        num_inputs += len(block)
    return chunks, num_inputs


def _num_workers(run: RunConfig) -> int:
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if run.workers is not None and run.workers > cpus:
        raise ValueError(f"--run.workers {run.workers}, but the cluster has {cpus} CPUs")
    return run.workers or max(1, cpus)


def _assemble(dataset: DatasetDir, buckets: set[str]) -> None:
    for bucket in sorted(buckets):
        assemble_bucket(dataset, bucket, worldline.__version__)


def _assemble_on_ray(dataset: DatasetDir, buckets: set[str]) -> None:
    """One small task a bucket, wherever the cluster has room; each bucket has one writer."""
    assemble = ray.remote(num_cpus=0.05)(assemble_bucket)
    waiting = [assemble.remote(dataset, bucket, worldline.__version__) for bucket in sorted(buckets)]
    ray.get(waiting)


def _join_shots_on_ray(dataset: DatasetDir, buckets: set[str]) -> None:
    """Once, when all windows of all shots are there; a whole CPU each, since long shots take seconds."""
    join = ray.remote(num_cpus=1)(assemble_shots)
    ray.get([join.remote(dataset, bucket) for bucket in sorted(buckets)])


def main(config: JobConfig, work: Work | None = None) -> int:
    """Exit status: 0 all accounted for, 1 stopped early, 2 nothing usable, 3 failed share over the limit,
    130 Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if not config.run.verbose:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    console = Console()
    started_s = time.monotonic()
    try:
        with Interrupts() as interrupts:
            tally = run_job(config, console, work, interrupts.check)
            interrupts.check()
    except KeyboardInterrupt:
        print(f"\nstopped. Finished scenes are kept in {config.out}; the same command goes on from there.")
        return INTERRUPTED
    except (ValueError, OSError) as error:
        # An error in a Ray task arrives wrapped in a class of its own.
        cause = getattr(error, "cause", error)
        print(f"worldline annotate: {cause}", file=sys.stderr)
        if isinstance(cause, OSError) and cause.errno in DISK_FULL_ERRORS:
            print("nothing finished is lost: free space and run the same command again", file=sys.stderr)
        return STOPPED_EARLY
    return _report(config, tally, console, time.monotonic() - started_s)


def _report(config: JobConfig, tally: Tally, console: Console, elapsed_s: float) -> int:
    console.print(final_table(tally, elapsed_s))
    if tally.stopped is not None:
        print(f"worldline annotate stopped: {tally.stopped}", file=sys.stderr)
        return tally.exit_status(config.run.max_failed_share)
    if (missing := tally.missing()) is not None:
        raise AssertionError(f"rows were lost: {missing}")
    if tally.num_inputs == 0:
        print(f"nothing to do: no video in {' '.join(config.inputs) or 'no input'}", file=sys.stderr)
    status = tally.exit_status(config.run.max_failed_share)
    if not tally.clips and tally.num_inputs:
        print("no input was usable: `worldline show` lists the reasons", file=sys.stderr)
    console.print(
        f"tables: {config.out}/trajectories, {config.out}/videos   summary: worldline show {config.out}"
    )
    return status


if __name__ == "__main__":
    sys.exit(main(tyro.cli(JobConfig)))
