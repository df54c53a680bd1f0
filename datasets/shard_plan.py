"""A dataset folder and a query in, the list of which clip goes into which shard out.

Shards hold clips in the table's order (bucket, video, start) up to a fixed number of frames, a number the table
knows before anything is encoded; a clip is never split. The plan of a pass is one file, written whole before the
first shard: a resumed job makes the same shards with the same bytes. Clips that an earlier pass planned with the
same annotation are left alone, so appending to a dataset appends shards.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from worldline.datasets.captions import captions_of
from worldline.datasets.commit_log import parquet_bytes, replace_file
from worldline.datasets.dataset_dir import DatasetDir
from worldline.datasets.posed_clip import open_table
from worldline.datasets.schema import OK, TRAJECTORIES
from worldline.datasets.schema_versions import upgraded
from worldline.datasets.shard_format import ShardDir

PLAN = pa.schema(
    [
        ("shard", pa.int64()),
        ("clip_id", pa.string()),
        ("video_id", pa.string()),
        ("config_hash", pa.string()),
        ("num_frames", pa.int64()),
        ("from_shard", pa.int64()),
    ]
)
"""`num_frames` is the expected number of written frames; `from_shard` the shard whose clip goes over into this one, null
where it is cut from its video. Plans of before have no such column."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanConfig:
    """Which clips are cut, and how many make a shard."""

    where: str = f"status = '{OK}'"
    """SQL condition over the trajectory table's columns. Cut generously: the loader queries again."""
    frames_per_shard: int = 48_000
    """Fifty minutes at 16 fps; some 1 GB at 720p: few enough shards to list, small enough to copy or lose one."""

    def __post_init__(self) -> None:
        if self.frames_per_shard < 1:
            raise ValueError("frames_per_shard must be at least 1")


def extend_plan(dataset_dir: Path, shards: ShardDir, config: PlanConfig, fps: float) -> int:
    """Adds a pass for clips that no pass holds yet; how many there are. Raises ValueError for a wrong query."""
    rows = pads.dataset(open_table(dataset_dir).files, format="parquet", schema=TRAJECTORIES)
    plans = [str(path) for path in shards.plans()]
    planned = pads.dataset(plans, format="parquet", schema=PLAN) if plans else PLAN.empty_table()
    number = _next_shard(plans)
    path = shards.root / "plan" / f"{len(plans):06d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    total, filled = 0, 0
    try:
        with pq.ParquetWriter(temporary, PLAN, compression="zstd") as writer:
            for batch in query({"rows": rows, "planned": planned}, _SELECT, where=config.where):
                wanted = batch.to_pylist()
                for row in wanted:
                    frames = max(1, round((row.pop("end_s") - row.pop("start_s")) * fps))
                    if filled and filled + frames > config.frames_per_shard:
                        number, filled = number + 1, 0
                    filled += frames
                    row |= {"shard": number, "num_frames": frames, "from_shard": None}
                writer.write_table(pa.Table.from_pylist(wanted, PLAN), row_group_size=1000)
                total += len(wanted)
        if total:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return total


_SELECT = """
SELECT clip_id, video_id, config_hash, start_s, end_s
FROM rows ANTI JOIN planned USING (clip_id, config_hash)
WHERE ({where}) ORDER BY video_id, start_s, end_s, clip_id
"""


def query(tables: dict[str, Any], select: str, **expressions: str) -> Iterator[pa.RecordBatch]:
    """Runs `select` over Arrow tables or data sets under their names, batch by batch.

    `expressions` (SQL, from the user) fill the braces of `select`; each must be one expression, and the engine
    reads no other file for it. Raises ValueError with the engine's message.
    """
    connection = duckdb.connect()
    try:
        for name, table in tables.items():
            connection.register(name, table)
        connection.execute(
            "SET threads = 1; SET enable_external_access = false; SET lock_configuration = true"
        )
        for text in expressions.values():
            if len(duckdb.extract_statements(f"SELECT ({text}\n)")) != 1:
                raise ValueError(f"not one expression: {text!r}")
        filled = select.format(**{name: f"{text}\n" for name, text in expressions.items()})
        yield from connection.sql(filled).to_arrow_reader(10_000)
    except duckdb.Error as error:
        raise ValueError(f"query {' / '.join(expressions.values())!r}: {error}") from error
    finally:
        connection.close()


def _next_shard(plans: list[str]) -> int:
    """One more than the last number of the last pass, whose numbers ascend."""
    if not plans:
        return 0
    last = pq.ParquetFile(plans[-1])
    return last.read_row_group(last.num_row_groups - 1, columns=["shard"])["shard"][-1].as_py() + 1


def planned_shards(shards: ShardDir) -> Iterator[tuple[int, int]]:
    """(shard number, clips in it) of every pass, ascending; of a merge either the shards it is made of or the one they
    become, see `MergeState`."""
    state = merge_state(shards)
    for path in shards.plans():
        numbers = (
            n
            for batch in pq.ParquetFile(path).iter_batches(columns=["shard"])
            for n in batch["shard"].to_pylist()
        )
        for number, group in itertools.groupby(numbers):
            if number not in state.retired and number not in state.pending:
                yield number, sum(1 for _ in group)


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeState:
    """How far planned merges are. A merged shard counts from the moment that its index rows are committed, and the
    shards it was made of do no longer; should it be lost, they count again and are cut anew."""

    pending: dict[int, list[int]]
    """Number of a merged shard that is not there -> the shards it is to be made of, ascending."""
    retired: frozenset[int]
    """Shards that another has taken the place of; their files may still be there."""


def merge_state(shards: ShardDir) -> MergeState:
    """Read from the plans and from which files are there."""
    pending: dict[int, list[int]] = {}
    retired: set[int] = set()
    # The newest first: a merged shard that was merged again is there in that one.
    for number, sources in sorted(_merges(shards).items(), reverse=True):
        # Its sources go after its index rows were written, so where one is gone they were: they can be made again.
        was_there = shards.tar(number).exists() and not all(shards.part(s).exists() for s in sources)
        if number in retired or shards.part(number).exists() or was_there:
            retired.update(sources)
        else:
            pending[number] = sources
    return MergeState(pending=dict(sorted(pending.items())), retired=frozenset(retired))


def _merges(shards: ShardDir) -> dict[int, list[int]]:
    found: dict[int, set[int]] = {}
    for path in shards.plans():
        if "from_shard" not in pq.read_schema(path).names:
            continue
        chosen = pads.field("from_shard").is_valid()
        table = pq.read_table(path, columns=["shard", "from_shard"], filters=chosen)
        for number, source in zip(table["shard"].to_pylist(), table["from_shard"].to_pylist(), strict=True):
            found.setdefault(number, set()).add(source)
    return {number: sorted(sources) for number, sources in found.items()}


def add_merges(shards: ShardDir, merges: list[list[int]]) -> None:
    """Plans a shard of all clips of each list of shards, with the next free numbers."""
    plans = shards.plans()
    first = _next_shard([str(path) for path in plans])
    rows = [
        clip | {"shard": first + k, "from_shard": source}
        for k, sources in enumerate(merges)
        for source in sources
        for clip in clips_of_shard(shards, source)
    ]
    path = shards.root / "plan" / f"{len(plans):06d}.parquet"
    replace_file(path, parquet_bytes(pa.Table.from_pylist(rows, PLAN)))


def clips_of_shard(shards: ShardDir, number: int) -> list[dict[str, Any]]:
    """The plan's rows of one shard, in their order."""
    for path in shards.plans():
        rows = pq.read_table(path, filters=[("shard", "=", number)]).to_pylist()
        if rows:
            return rows
    raise ValueError(f"{shards.root}: no plan names shard {number}")


def trajectory_rows(dataset_dir: Path, planned: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table's rows of the planned clips, in the plan's order, with their captions (`worldline caption`); ValueError
    where one is gone."""
    wanted = {(clip["clip_id"], clip["config_hash"]) for clip in planned}
    found: dict[str, dict[str, Any]] = {}
    for files in _files_of(dataset_dir, planned):
        names = sorted({clip["clip_id"] for clip in planned})
        table = pads.dataset(files, format="parquet").to_table(filter=pads.field("clip_id").isin(names))
        for row in upgraded(table, TRAJECTORIES).to_pylist():
            if (row["clip_id"], row["config_hash"]) in wanted:
                found[row["clip_id"]] = row
    missing = [clip["clip_id"] for clip in planned if clip["clip_id"] not in found]
    if missing:
        raise ValueError(
            f"{dataset_dir}: {len(missing)} planned clips are no longer in the table as they were "
            f"({missing[0]}): it was annotated anew meanwhile; run `worldline shard` into another folder"
        )
    for name, caption in captions_of(dataset_dir, list(found)).items():
        found[name]["caption"] = found[name]["caption"] or caption
    return [found[clip["clip_id"]] for clip in planned]


def _files_of(dataset_dir: Path, planned: list[dict[str, Any]]) -> Iterator[list[str]]:
    """The Parquet files that may hold the clips: their buckets', where the folder is laid out so."""
    if (dataset_dir / "dataset.json").exists():
        dataset = DatasetDir.open(dataset_dir)
        for bucket in sorted({dataset.bucket(clip["video_id"]) for clip in planned}):
            path = dataset_dir / "trajectories" / f"{bucket}.parquet"
            if path.exists():
                yield [str(path)]
    else:
        yield list(open_table(dataset_dir).files)
