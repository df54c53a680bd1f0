"""Small shards of a folder in, few full ones with the same clips in their place out.

Daily passes and deletions leave shards far below their size; listing and opening them costs readers more than their
bytes. A merge is planned, written whole before anything else (`plan/`, with the shards that the clips come from), so
that a killed job makes the same files. From the moment that a merged shard's index rows are committed it counts and
those it was made of do not (`shard_plan.merge_state`); their files go after the index names the new one alone. The
clips' bytes and index rows stay as they are but for their place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worldline.datasets.commit_log import CommitLog
from worldline.datasets.schema import OK
from worldline.datasets.shard_format import MEMBERS, ShardDir
from worldline.datasets.shard_index import assemble_index, groups, write_manifest
from worldline.datasets.shard_plan import add_merges, clips_of_shard, merge_state, planned_shards
from worldline.datasets.shard_rewrite import commit_part, part_rows
from worldline.datasets.shards import write_tar

Row = dict[str, Any]


def plan_merges(shards: ShardDir) -> int:
    """Plans the merging of shards that hold less than half of the folder's frames a shard; how many go.

    A folder of latents has its source's plan and follows that alone.
    """
    limit = shards.facts().get("frames_per_shard")
    if limit is None:
        return 0
    merges: list[list[int]] = []
    group: list[int] = []
    filled = 0
    for number, frames in _small_shards(shards, limit):
        if filled + frames > limit:
            merges.append(group)
            group, filled = [], 0
        group.append(number)
        filled += frames
    merges = [sources for sources in [*merges, group] if len(sources) > 1]
    if merges:
        add_merges(shards, merges)
    return sum(map(len, merges))


def _small_shards(shards: ShardDir, limit: int) -> Iterator[tuple[int, int]]:
    """(number, frames) of those that can be merged."""
    waiting = {source for sources in merge_state(shards).pending.values() for source in sources}
    for number, _ in planned_shards(shards):
        rows = None if number in waiting else part_rows(shards, number)
        if rows is not None and shards.tar(number).exists():
            frames = sum(row["num_frames"] or 0 for row in rows if row["status"] == OK)
            if 2 * frames < limit:
                yield number, frames


def finish_merges(shards: ShardDir, log: CommitLog) -> int:
    """Makes planned merges whose shards are all there, brings the index up to date, then removes the files of merged
    shards; bytes freed less bytes written.

    Raises ValueError where a shard to be merged is damaged, OSError.
    """
    freed = 0
    for number, sources in merge_state(shards).pending.items():
        if not all(shards.part(source).exists() and shards.tar(source).exists() for source in sources):
            continue
        rows = write_tar(shards.tar(number), _outcomes(shards, number, sources))
        commit_part(shards, number, rows, log)
        freed -= shards.tar(number).stat().st_size
    # Merged shards have the highest numbers: while both are named a reader takes them, and never finds neither.
    for group in reversed(groups(shards)):
        assemble_index(shards, group)
        write_manifest(shards)
    for number in sorted(merge_state(shards).retired):
        tar = shards.tar(number)
        freed += tar.stat().st_size if tar.exists() else 0
        tar.unlink(missing_ok=True)
        shards.part(number).unlink(missing_ok=True)
    return freed


def _outcomes(shards: ShardDir, number: int, sources: list[int]) -> Iterator[list[tuple[str, bytes]] | Row]:
    """What goes into a merged shard, clip by clip in the plan's order."""
    rows_of: dict[int, dict[str, Row]] = {}
    for source in sources:
        rows = part_rows(shards, source)
        if rows is None:
            raise _damaged(shards, shards.part(source))
        rows_of[source] = {row["clip_id"]: row for row in rows}
    for clip in clips_of_shard(shards, number):
        source = clip["from_shard"]
        row = rows_of[source][clip["clip_id"]]
        yield _members(shards, source, row) if row["status"] == OK else row


def _members(shards: ShardDir, source: int, row: Row) -> list[tuple[str, bytes]]:
    """(name, bytes) of a clip's members, each as its row vouches for it."""
    members = []
    with shards.tar(source).open("rb") as tar:
        for suffix in MEMBERS:
            if row[f"{suffix}_offset"] is None:
                continue
            tar.seek(row[f"{suffix}_offset"])
            data = tar.read(row[f"{suffix}_size"])
            if hashlib.sha256(data).hexdigest() != row[f"{suffix}_sha256"]:
                raise _damaged(shards, shards.tar(source))
            members.append((f"{row['clip_id']}.{suffix}", data))
    return members


def _damaged(shards: ShardDir, path: Path) -> ValueError:
    return ValueError(f"{path} is damaged: run `worldline verify {shards.root} --repair`")
