"""`worldline verify`: a dataset or shard folder in, everything about it that is wrong out, and what can be mended
mended.

Nothing is thrown away: damaged and unknown files go to `quarantine/`. A damaged unit or shard is taken out so that
the next run of the job that made it makes it again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import tyro

import worldline
from worldline.datasets.commit_log import CommitLog, broken_units, read_unit
from worldline.datasets.dataset_dir import DatasetDir
from worldline.datasets.schema import OK, ClipRejected
from worldline.datasets.shard_format import MEMBERS, ShardDir
from worldline.datasets.shard_index import assemble_index, groups, parts_of_index, write_manifest
from worldline.datasets.shard_plan import clips_of_shard, merge_state, planned_shards
from worldline.datasets.shard_rewrite import part_rows, placed, rebuild_part
from worldline.datasets.shards import rows_of_tar
from worldline.datasets.table import assemble_bucket, is_up_to_date

_STALE_S = 3600.0
"""Temporary files younger than this may belong to a running job."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyConfig:
    """Check a folder that worldline wrote, byte for byte: checksums, counts, index against tars, orphans."""

    folder: tyro.conf.Positional[Path]
    """Folder of `worldline annotate` or `worldline shard`."""
    repair: bool = False
    """Mend what can be mended; no other job may be writing there. What cannot be kept goes to FOLDER/quarantine."""
    json: bool = False
    """Print one JSON object a problem."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong."""

    kind: str
    path: str
    """Relative to the folder."""
    detail: str
    remedy: str
    """What `--repair` does, or what a person has to do."""
    is_repaired: bool = False


def verify(folder: Path, *, repair: bool = False) -> list[Problem]:
    """Everything wrong with a dataset or shard folder; ValueError for another kind of folder."""
    if (folder / "shards.json").exists():
        shards = ShardDir(folder)
        shards.facts()
        return [*_temporary_files(folder, repair), *_verify_shards(shards, repair)]
    if (folder / "dataset.json").exists():
        return [*_temporary_files(folder, repair), *_verify_dataset(DatasetDir.open(folder), repair)]
    raise ValueError(f"{folder}: neither dataset.json nor shards.json; worldline did not write it")


# Shards


def _verify_shards(shards: ShardDir, repair: bool) -> Iterator[Problem]:
    log = CommitLog(shards.root, "repair")
    planned = set()
    try:
        for number, _ in planned_shards(shards):
            planned.add(number)
            yield from _verify_shard(shards, number, log, repair)
    finally:
        log.close()
    yield from _unfinished_merges(shards)
    state = merge_state(shards)
    planned |= state.retired | state.pending.keys()
    known = {shards.tar(n) for n in planned} | {shards.part(n) for n in planned}
    there = [*(shards.root / "shards").glob("*"), *(shards.root / "parts").glob("*/*")]
    for path in sorted(there):
        if path not in known and not path.name.startswith("."):
            yield _quarantined(shards.root, path, "orphan", "no plan names this file", repair)
    for group in groups(shards):
        yield from _verify_index(shards, group, repair)
    if repair:
        write_manifest(shards)


def _unfinished_merges(shards: ShardDir) -> Iterator[Problem]:
    state = merge_state(shards)
    begun = [n for n, sources in state.pending.items() if all(shards.part(s).exists() for s in sources)]
    left = [n for n in state.retired if shards.tar(n).exists() or shards.part(n).exists()]
    for number in sorted([*begun, *left]):
        yield Problem(
            kind="merge_unfinished",
            path=f"shards/{shards.tar(number).name}",
            detail="to be made of smaller ones" if number in begun else "merged into another and still there",
            remedy="run `worldline compact` again",
        )


def _verify_shard(shards: ShardDir, number: int, log: CommitLog, repair: bool) -> Iterator[Problem]:
    tar, part = shards.tar(number), shards.part(number)
    if not tar.exists() and not part.exists():
        yield Problem(
            kind="not_written",
            path=f"shards/{tar.name}",
            detail="planned, not yet there",
            remedy="run `worldline shard` again",
        )
        return
    rows = part_rows(shards, number)
    damage = None
    try:
        in_tar = {row["clip_id"]: row for row in rows_of_tar(tar)} if tar.exists() else None
    except ClipRejected as rejection:
        in_tar, damage = None, str(rejection)
    if in_tar is None or (rows is not None and (damage := _bytes_differ(placed(rows), in_tar))):
        kind = "tar_damaged" if tar.exists() else "tar_missing"
        yield _quarantined(shards.root, tar, kind, damage or "its index rows are there", repair)
        if repair:
            part.unlink(missing_ok=True)
    elif rows is None or (wrong := _rows_differ(shards, number, rows, in_tar)):
        detail = "absent or damaged" if rows is None else str(wrong)
        if repair:
            rebuild_part(shards, number, log)
        yield Problem(
            kind="index_rows",
            path=part.relative_to(shards.root).as_posix(),
            detail=detail,
            remedy="made anew from the tar",
            is_repaired=repair,
        )


def _bytes_differ(rows: dict[str, dict], in_tar: dict[str, dict]) -> str | None:
    """Where the tar holds other bytes than its index vouches for, at the place that both name."""
    for clip_id in rows.keys() & in_tar.keys():
        for member in MEMBERS:
            stated, found = rows[clip_id].get(f"{member}_sha256"), in_tar[clip_id].get(f"{member}_sha256")
            same_place = rows[clip_id].get(f"{member}_offset") == in_tar[clip_id].get(f"{member}_offset")
            if stated != found and same_place:
                return f"{clip_id}.{member}: checksum differs"
    return None


def _rows_differ(shards: ShardDir, number: int, rows: list[dict], in_tar: dict[str, dict]) -> str | None:
    """Where index rows do not say what the tar holds or what the plan asked for."""
    asked = [clip["clip_id"] for clip in clips_of_shard(shards, number)]
    if [row["clip_id"] for row in rows] != asked:
        return f"{len(rows)} rows, planned were {len(asked)} clips"
    stated = placed(rows)
    if stated.keys() != in_tar.keys():
        return f"{len(stated)} clips stated, {len(in_tar)} in the tar"
    for clip_id, row in stated.items():
        for name, value in in_tar[clip_id].items():
            if not _same(row.get(name), value):
                return f"{clip_id}: {name} is another in the tar"
    return None


def _same(one: object, other: object) -> bool:
    """Equal, where NaN equals NaN."""
    return one == other or json.dumps(one) == json.dumps(other)


def _verify_index(shards: ShardDir, group: int, repair: bool) -> Iterator[Problem]:
    path = shards.root / "index" / f"index-{group:06d}.parquet"
    parts = parts_of_index(shards, group)
    expected = [row for part in parts if (table := read_unit(part)) is not None for row in _places(table)]
    table = read_unit(path)
    if table is not None and _places(table) == expected:
        return
    if repair:
        (shards.root / "stages" / "index" / f"{group:06d}.json").unlink(missing_ok=True)
        assemble_index(shards, group)
    yield Problem(
        kind="index",
        path=path.relative_to(shards.root).as_posix(),
        detail="absent, damaged or not what the parts say",
        remedy="made anew from the parts",
        is_repaired=repair,
    )


def _places(table: pq.Table) -> list[dict]:
    columns = [
        "clip_id",
        "status",
        "shard",
        *(f"{m}_{n}" for m in MEMBERS for n in ("offset", "size", "crc32")),
    ]
    return table.select(columns).to_pylist()


# Dataset folders


def _verify_dataset(dataset: DatasetDir, repair: bool) -> Iterator[Problem]:
    root = dataset.root
    for unit in broken_units(root):
        yield _quarantined(root, root / unit, "unit_damaged", "differs from its journal's checksum", repair)
    buckets = {path.name for path in (root / "stages" / "videos").glob("*")}
    buckets |= {path.stem for path in (root / "trajectories").glob("*.parquet")}
    for bucket in sorted(buckets):
        tables = [root / folder / f"{bucket}.parquet" for folder in ("trajectories", "videos")]
        damaged = [path for path in tables if read_unit(path) is None]
        if damaged or not is_up_to_date(dataset, bucket):
            if repair:
                for path in damaged:
                    path.unlink(missing_ok=True)
                assemble_bucket(dataset, bucket, worldline.__version__)
            yield Problem(
                kind="table",
                path=f"trajectories/{bucket}.parquet",
                detail="damaged" if damaged else "older than the units it is made of",
                remedy="made anew from the units",
                is_repaired=repair,
            )
        if not damaged or repair:
            yield from _verify_counts(dataset, bucket)
    yield from _orphan_sidecars(dataset, repair)


def _verify_counts(dataset: DatasetDir, bucket: str) -> Iterator[Problem]:
    root = dataset.root
    videos = pq.read_table(
        root / "videos" / f"{bucket}.parquet", columns=["video_id", "status", "num_scenes"]
    )
    clips = pq.read_table(root / "trajectories" / f"{bucket}.parquet", columns=["video_id", "sidecar_path"])
    ids = clips["video_id"].to_pylist()
    for video in videos.to_pylist():
        count = ids.count(video["video_id"])
        if video["status"] == OK and count != video["num_scenes"]:
            yield Problem(
                kind="rows_missing",
                path=f"trajectories/{bucket}.parquet",
                detail=f"video {video['video_id']}: {count} rows, {video['num_scenes']} scenes",
                remedy="run `worldline annotate` again on its source",
            )
    for name in clips["sidecar_path"].drop_null().to_pylist():
        if not (root / name).exists():
            yield Problem(
                kind="sidecar_missing",
                path=name,
                detail="named by a row",
                remedy="annotate the clip again with --clip",
            )


def _orphan_sidecars(dataset: DatasetDir, repair: bool) -> Iterator[Problem]:
    for path in sorted((dataset.root / "sidecars").glob("*/*")):
        if path.name.startswith("."):
            continue
        clip_id, clip_hash = path.name.split(".")[:2]
        units = dataset.root / "stages" / "videos" / path.parent.name
        if not any(units.glob(f"*/clip.{clip_id}.{clip_hash}.parquet")):
            yield _quarantined(dataset.root, path, "orphan", "no finished clip names this sidecar", repair)


# Both


def _temporary_files(root: Path, repair: bool) -> Iterator[Problem]:
    for path in sorted(root.rglob(".*.tmp")):
        if time.time() - path.stat().st_mtime > _STALE_S:
            if repair:
                path.unlink(missing_ok=True)
            yield Problem(
                kind="temporary",
                path=path.relative_to(root).as_posix(),
                detail="left by a process that died",
                remedy="deleted",
                is_repaired=repair,
            )


def _quarantined(root: Path, path: Path, kind: str, detail: str, repair: bool) -> Problem:
    """A problem whose remedy is to move the file out of the way."""
    if repair and path.exists():
        target = root / "quarantine" / f"{time.time_ns()}-{path.name}"
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)
    job = "worldline shard" if kind.startswith("tar") else "worldline annotate"
    remedy = "moved to quarantine/" + ("" if kind == "orphan" else f"; `{job}` makes it again")
    return Problem(
        kind=kind, path=path.relative_to(root).as_posix(), detail=detail, remedy=remedy, is_repaired=repair
    )


def main(config: VerifyConfig) -> int:
    """Exit status: 0 all is well (or mended), 1 something is wrong, 2 not such a folder."""
    try:
        problems = verify(config.folder, repair=config.repair)
    except ValueError as error:
        print(f"worldline verify: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        if config.json:
            print(json.dumps(dataclasses.asdict(problem)))
        else:
            state = "mended" if problem.is_repaired else "remedy"
            print(f"{problem.kind}: {problem.path}: {problem.detail} ({state}: {problem.remedy})")
    left = sum(not problem.is_repaired for problem in problems)
    if not config.json:
        print(f"{config.folder}: {len(problems)} problems, {left} left")
    return 1 if left else 0
