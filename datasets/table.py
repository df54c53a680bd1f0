"""Finished units of a bucket in, its two Parquet files out; and the dataset folder read back as a summary.

Rows come in the order (video_id, start_s) and carry nothing of when or where they were made, so equal units
give equal bytes. A file is replaced whole by a rename: a reader sees the old table or the new one. Rows of
a superseded configuration stay until every row that replaces them is there.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from worldline.datasets.commit_log import read_unit, replace_file
from worldline.datasets.dataset_dir import DatasetDir, Generation, PathRecord
from worldline.datasets.schema import OK, REJECTED, TRAJECTORIES, VIDEOS, table_from_rows

logger = logging.getLogger(__name__)

SCAN = pa.schema(
    [
        *VIDEOS,
        pa.field("timestamps_s", pa.list_(pa.float64())),
        pa.field("info", pa.string()),
        pa.field("scenes", pa.string()),
    ]
)
"""A scan unit: the video's row without what belongs to its path, every frame's time, the other facts of the
probe and the scenes as JSON."""

ROWS_PER_GROUP, BYTES_PER_GROUP = 1024, 64 << 20
"""Row group of the trajectories, whichever is reached first: some 400 rows of a minute each. Queries over scores pay for
every group, an assembly holds one in memory."""

_PATH_COLUMNS = ("source", "licence", "path")


def assemble_bucket(dataset: DatasetDir, bucket: str, tool_version: str) -> bool:
    """Brings `trajectories/<bucket>.parquet` and `videos/<bucket>.parquet` up to date; whether a byte had
    to change.

    `tool_version` is stated in rows of paths that never became a unit (missing or unreadable files). Raises
    OSError naming the file.
    """
    stamp = dataset.root / "stages" / "tables" / f"{bucket}.json"
    files = [dataset.root / folder / f"{bucket}.parquet" for folder in ("trajectories", "videos")]
    changed = False
    while True:
        digest = _listing_digest(dataset, bucket)
        if (
            stamp.exists()
            and json.loads(stamp.read_text()) == digest
            and all(file.exists() for file in files)
        ):
            return changed
        videos: list[dict[str, Any]] = []
        _write_table(files[0], TRAJECTORIES, _trajectory_tables(dataset, bucket, tool_version, videos))
        _write_table(files[1], VIDEOS, iter([table_from_rows(videos, VIDEOS)]))
        replace_file(stamp, json.dumps(digest).encode())
        changed = True
        # Once more: units that another job finished meanwhile must not stay hidden behind this file.


def is_up_to_date(dataset: DatasetDir, bucket: str) -> bool:
    """Whether the bucket's tables were made from the units and records that lie there now."""
    stamp = dataset.root / "stages" / "tables" / f"{bucket}.json"
    return stamp.exists() and json.loads(stamp.read_text()) == _listing_digest(dataset, bucket)


def summary(root: Path) -> dict[str, Any]:
    """Counts and totals of a dataset folder, read column by column; ValueError where there is no table."""
    found: dict[str, Any] = {"dataset": str(root)}
    for name, schema in (("videos", VIDEOS), ("trajectories", TRAJECTORIES)):
        files = sorted((root / name).glob("**/*.parquet"))
        if not files:
            raise ValueError(
                f"{root / name}: no Parquet file; is {root} a folder that `worldline annotate` wrote?"
            )
        table = pads.dataset([str(file) for file in files], format="parquet", schema=schema)
        found[name] = _video_summary(table) if name == "videos" else _clip_summary(table)
    return found


def _video_summary(table: pads.Dataset) -> dict[str, Any]:
    status: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    total = {"duration_s": 0.0, "size_bytes": 0, "copies": 0}
    columns = ["status", "reason", "duration_s", "size_bytes", "other_paths"]
    for row in _rows(table, columns):
        status[row["status"]] += 1
        if row["status"] != OK:
            reasons[_short(row["reason"])] += 1
        total["duration_s"] += row["duration_s"] or 0.0
        total["size_bytes"] += row["size_bytes"] or 0
        total["copies"] += len(row["other_paths"] or ())
    return {"status": dict(status), "reasons": dict(reasons.most_common(10)), **total}


def _clip_summary(table: pads.Dataset) -> dict[str, Any]:
    counters: dict[str, collections.Counter[str]] = {
        name: collections.Counter() for name in ("status", "degeneracy", "scale_status", "licence", "reasons")
    }
    total = {"num_frames": 0, "num_registered": 0, "duration_s": 0.0}
    columns = ["status", "reason", "degeneracy", "scale_status", "licence", "num_frames", "num_registered"]
    for row in _rows(table, [*columns, "start_s", "end_s"]):
        counters["status"][row["status"]] += 1
        counters["licence"][row["licence"] or "unknown"] += 1
        total["duration_s"] += row["end_s"] - row["start_s"]
        total["num_frames"] += row["num_frames"] or 0
        if row["status"] == OK:
            counters["degeneracy"][row["degeneracy"] or "unknown"] += 1
            counters["scale_status"][row["scale_status"] or "no path"] += 1
            total["num_registered"] += row["num_registered"] or 0
        else:
            counters["reasons"][_short(row["reason"])] += 1
    return {**{name: dict(counter.most_common(10)) for name, counter in counters.items()}, **total}


def _rows(table: pads.Dataset, columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(columns=columns):
        yield from batch.to_pylist()


def _short(reason: str | None) -> str:
    """A reason without its detail, so that equal ones count together."""
    return (reason or "unknown").split(" (")[0]


def _listing_digest(dataset: DatasetDir, bucket: str) -> str:
    """Changes when a unit or record of the bucket appears, goes or is written again."""
    found = []
    for folder, _, names in os.walk(dataset.root / "stages" / "videos" / bucket):
        for name in names:
            if name.startswith((".", "claim.")):
                continue
            with contextlib.suppress(FileNotFoundError):
                state = os.stat(os.path.join(folder, name))
                found.append((os.path.basename(folder), name, state.st_size, state.st_mtime_ns))
    return hashlib.sha256(json.dumps(sorted(found)).encode()).hexdigest()


def _trajectory_tables(
    dataset: DatasetDir, bucket: str, tool_version: str, videos: list[dict[str, Any]]
) -> Iterator[pa.Table]:
    """One table a clip, in row order; appends each video's row to `videos` on the way."""
    folder = dataset.root / "stages" / "videos" / bucket
    for video_id in sorted(os.listdir(folder)) if folder.is_dir() else []:
        paths = dataset.paths_of(video_id)
        if not paths:
            continue  # every path that held this content holds another now
        if paths[0].rejection is not None:
            videos.append(_rejected_video(paths, tool_version))
            continue
        generation = _shown_generation(dataset, video_id)
        scan = generation and read_unit(dataset.scan_unit(video_id, generation.scan_hash))
        if not generation or not scan:
            continue  # its scan is under way
        row = scan.select(VIDEOS.names).to_pylist()[0]
        videos.append(row | _path_columns(paths[0]) | {"other_paths": [p.path for p in paths[1:]]})
        for clip in _clip_ids(scan):
            table = read_unit(dataset.clip_unit(video_id, clip, generation.clip_hash))
            if table is not None:
                yield _with_path(table, paths[0])


def _shown_generation(dataset: DatasetDir, video_id: str) -> Generation | None:
    """The newest complete configuration; while the first is under way, the newest."""
    generations = dataset.generations(video_id)
    for generation in generations:
        scan = read_unit(dataset.scan_unit(video_id, generation.scan_hash))
        if scan is not None and all(
            dataset.clip_unit(video_id, clip, generation.clip_hash).exists() for clip in _clip_ids(scan)
        ):
            return generation
    return generations[0] if generations else None


def _clip_ids(scan: pa.Table) -> list[str]:
    scenes = json.loads(scan["scenes"][0].as_py() or "[]")
    return [scene["clip_id"] for scene in sorted(scenes, key=lambda s: (s["start_s"], s["end_s"]))]


def _path_columns(record: PathRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in _PATH_COLUMNS}


def _rejected_video(paths: list[PathRecord], tool_version: str) -> dict[str, Any]:
    return {
        "video_id": paths[0].video_id,
        **_path_columns(paths[0]),
        "other_paths": [p.path for p in paths[1:]],
        "num_scenes": 0,
        "status": REJECTED,
        "reason": paths[0].rejection,
        "tool_version": tool_version,
        "config_hash": "",
    }


def _with_path(clip: pa.Table, record: PathRecord) -> pa.Table:
    """A clip's row with the columns that belong to the path, which the unit, being about content, leaves
    null."""
    for name in _PATH_COLUMNS:
        column = pa.array([getattr(record, name)], pa.string())
        clip = clip.set_column(clip.schema.get_field_index(name), TRAJECTORIES.field(name), column)
    return clip.cast(TRAJECTORIES)


def _write_table(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    """Streams tables into one Parquet file in row groups of bounded size, then renames it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:6]}.tmp")
    try:
        with (
            temporary.open("wb") as file,
            pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer,
        ):
            group: list[pa.Table] = []
            num_rows = num_bytes = 0
            for table in tables:
                group.append(table)
                num_rows, num_bytes = num_rows + len(table), num_bytes + table.nbytes
                if num_rows >= ROWS_PER_GROUP or num_bytes >= BYTES_PER_GROUP:
                    writer.write_table(pa.concat_tables(group))
                    group, num_rows, num_bytes = [], 0, 0
            if group:
                writer.write_table(pa.concat_tables(group))
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
