"""Parts and tars of a shard folder brought into line: members taken out, index rows read back from a tar."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa

from worldline.datasets.commit_log import CommitLog, parquet_bytes, read_unit
from worldline.datasets.schema import FAILED, OK, REJECTED, table_from_rows
from worldline.datasets.schema_versions import upgraded
from worldline.datasets.shard_format import (
    INDEX,
    TAR_END,
    ShardDir,
    scan_tar,
    split_member_name,
    tar_member,
)
from worldline.datasets.shard_plan import clips_of_shard
from worldline.datasets.shards import rows_of_tar, summary_of

Row = dict[str, Any]

_IDENTITY = (
    *("clip_id", "video_id", "source", "licence", "path"),
    *("start_s", "end_s", "tool_version", "config_hash"),
)


def part_rows(shards: ShardDir, number: int) -> list[Row] | None:
    """A shard's index rows, or None where its part is absent or damaged."""
    table = read_unit(shards.part(number))
    return None if table is None else upgraded(table, INDEX).to_pylist()


def rebuild_part(shards: ShardDir, number: int, log: CommitLog) -> None:
    """Makes a shard's part anew from its tar; clips of the plan that the tar lacks become failed rows.

    Their true outcome was in the lost part. Raises ClipRejected where the tar is damaged.
    """
    written = {row["clip_id"]: row for row in rows_of_tar(shards.tar(number))}
    rows = []
    for clip in clips_of_shard(shards, number):
        lost = {name: clip[name] for name in ("clip_id", "video_id", "config_hash")}
        lost |= {"start_s": 0.0, "end_s": 0.0, "tool_version": "", "status": FAILED}
        lost["reason"] = "verify: its outcome was lost with the shard's index rows"
        # Taken out, since a merged shard may have two outcomes of a clip, one of them written.
        rows.append(written.pop(clip["clip_id"], lost))
    commit_part(shards, number, rows, log)


def drop_members(shards: ShardDir, number: int, reasons: dict[str, str], log: CommitLog) -> int:
    """Rewrites a shard without the clips that `reasons` names; bytes freed.

    Their rows stay, rejected with the reason. The tar is replaced first: after a crash in between,
    `worldline verify --repair` makes the rows of what is there. Whoever has the old file open reads on.
    """
    tar = shards.tar(number)
    before = tar.stat().st_size
    temporary = tar.with_name(f".{tar.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for member, data in scan_tar(tar):
                if split_member_name(member.name)[0] not in reasons:
                    file.write(tar_member(member.name, data))
            file.write(TAR_END)
            file.flush()
            os.fsync(file.fileno())
        written = {row["clip_id"]: row for row in rows_of_tar(temporary, tar.name)}
        old = part_rows(shards, number)
        if old is None:
            raise ValueError(
                f"{shards.part(number)} is damaged: run `worldline verify {shards.root} --repair`"
            )
        os.replace(temporary, tar)
    finally:
        temporary.unlink(missing_ok=True)
    rows = []
    for row in old:
        if row["status"] != OK:
            rows.append(row)  # Perhaps an earlier outcome of a clip that is written.
        elif row["clip_id"] in reasons:
            gone = {name: row[name] for name in _IDENTITY}
            rows.append(gone | {"status": REJECTED, "reason": reasons[row["clip_id"]]})
        else:
            rows.append(written.get(row["clip_id"], row))
    commit_part(shards, number, rows, log)
    return before - tar.stat().st_size


def commit_part(shards: ShardDir, number: int, rows: list[Row], log: CommitLog) -> None:
    """Makes these the shard's index rows."""
    table: pa.Table = table_from_rows(rows, INDEX)
    log.commit(shards.part(number), parquet_bytes(table), stage="shard", **summary_of(rows))


def placed(rows: list[Row]) -> dict[str, Row]:
    """The rows that have bytes in the tar, by clip."""
    return {row["clip_id"]: row for row in rows if row["status"] == OK}


def shard_numbers(shards: ShardDir) -> list[int]:
    """Numbers of the shards that were written."""
    return [int(Path(part).stem) for part in shards.parts()]
