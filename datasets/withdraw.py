"""`worldline delete`: a source or licence in, a dataset or shard folder without its clips out, and a log of it.

For the day a licence is withdrawn. In a dataset folder the units, sidecars and rows go; content that another path
with another source holds too stays, under that path. In a shard folder the bytes leave the tars, and a row without
a place says why. `withdrawn.jsonl` keeps what went, when and for what reason, and what comes again is refused: by
`worldline annotate` and `worldline append`, until its lines are taken out of that file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

import worldline
from worldline.datasets.commit_log import CommitLog
from worldline.datasets.dataset_dir import DatasetDir, PathRecord
from worldline.datasets.shard_format import ShardDir
from worldline.datasets.shard_index import assemble_index, groups, write_manifest
from worldline.datasets.shard_plan import merge_state
from worldline.datasets.shard_rewrite import drop_members, part_rows, placed, shard_numbers
from worldline.datasets.table import assemble_bucket

LEDGER = "withdrawn.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class WithdrawConfig:
    """Delete every clip of a source or licence, with a log."""

    folder: tyro.conf.Positional[Path]
    """Folder of `worldline annotate` or `worldline shard`; no other job may be writing there."""
    reason: str
    """Why; goes into the log."""
    source: str | None = None
    """Clips of this source."""
    licence: str | None = None
    """Clips under this licence; with --source as well, those that are both."""
    dry_run: bool = False
    """Say what would go, and delete nothing."""

    def __post_init__(self) -> None:
        if self.source is None and self.licence is None:
            raise ValueError("name a source or a licence")
        if not self.reason.strip():
            raise ValueError("the log needs a reason")

    def concerns(self, source: str | None, licence: str | None) -> bool:
        """Whether something of this source and licence goes."""
        return Withdrawal(self.source, self.licence, self.reason).concerns(source, licence)


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """What a folder may not hold any more."""

    source: str | None
    licence: str | None
    reason: str

    def concerns(self, source: str | None, licence: str | None) -> bool:
        """Whether it is about something of this source and licence."""
        return self.source in (None, source) and self.licence in (None, licence)


def withdrawals(root: Path) -> list[Withdrawal]:
    """Of a dataset or shard folder, each once. A line that a crash tore is left out: its bytes had not gone yet."""
    path = root / LEDGER
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]
    return list(dict.fromkeys(Withdrawal(line["source"], line["licence"], line["reason"]) for line in whole))


def withdrawal_of(rules: list[Withdrawal], source: str | None, licence: str | None) -> Withdrawal | None:
    """The first that concerns something of this source and licence; None where it may be held."""
    return next((rule for rule in rules if rule.concerns(source, licence)), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Withdrawn:
    """What went."""

    videos: int = 0
    clips: int = 0
    size_bytes: int = 0


def withdraw(config: WithdrawConfig) -> Withdrawn:
    """Deletes; the log line of a video or shard is written before its bytes go, so that a crash leaves no gap.

    A second run of the same command finishes what a crash left. Raises ValueError for a folder of another kind.
    """
    if (config.folder / "shards.json").exists():
        return _from_shards(ShardDir(config.folder), config)
    if (config.folder / "dataset.json").exists():
        return _from_dataset(DatasetDir.open(config.folder), config)
    raise ValueError(f"{config.folder}: neither dataset.json nor shards.json; worldline did not write it")


def _from_dataset(dataset: DatasetDir, config: WithdrawConfig) -> Withdrawn:
    rule = Withdrawal(config.source, config.licence, config.reason)
    if not config.dry_run and rule not in withdrawals(dataset.root):
        _log(dataset.root, config, {"video_id": None, "paths": [], "is_kept": False, "clips": 0})
    videos, clips, size_bytes = 0, 0, 0
    for video_dir in sorted((dataset.root / "stages" / "videos").glob("*/*")):
        video_id = video_dir.name
        records = dataset.paths_of(video_id)
        going = [record for record in records if config.concerns(record.source, record.licence)]
        if not going:
            continue
        is_whole = len(going) == len(records)
        files = list(_files_of(dataset, video_dir)) if is_whole else []
        num_clips = len({file.name.split(".")[1] for file in files if file.name.startswith("clip.")})
        videos, clips = videos + is_whole, clips + num_clips
        size_bytes += sum(file.stat().st_size for file in files)
        if config.dry_run:
            continue
        paths = [record.path for record in going]
        _log(
            dataset.root,
            config,
            {"video_id": video_id, "paths": paths, "is_kept": not is_whole, "clips": num_clips},
        )
        _remove(dataset, video_dir, going, files, is_whole)
        assemble_bucket(dataset, dataset.bucket(video_id), worldline.__version__)
    if not config.dry_run:
        # Tables that a crash of an earlier run left behind.
        for path in (dataset.root / "trajectories").glob("*.parquet"):
            assemble_bucket(dataset, path.stem, worldline.__version__)
    return Withdrawn(videos=videos, clips=clips, size_bytes=size_bytes)


def _files_of(dataset: DatasetDir, video_dir: Path) -> Iterator[Path]:
    """Units and sidecars of one video."""
    sidecars = dataset.root / "sidecars" / video_dir.parent.name
    for unit in video_dir.glob("clip.*.parquet"):
        yield unit
        yield from sidecars.glob(f"{unit.name.split('.')[1]}.*")
    yield from video_dir.glob("scan.*.parquet")


def _remove(
    dataset: DatasetDir, video_dir: Path, going: list[PathRecord], files: list[Path], is_whole: bool
) -> None:
    for file in files:
        file.unlink(missing_ok=True)
    for record in going:
        dataset.path_record(record.path).unlink(missing_ok=True)
        if not is_whole:
            (video_dir / f"path.{record.path_id}.json").unlink(missing_ok=True)
    if is_whole:
        shutil.rmtree(video_dir)


def _from_shards(shards: ShardDir, config: WithdrawConfig) -> Withdrawn:
    videos: set[str] = set()
    clips, size_bytes = 0, 0
    log = CommitLog(shards.root, "delete")
    with contextlib.closing(log):
        if not config.dry_run:
            # A merge that a kill left without index rows holds clips too; it is made anew of what stays.
            for number in merge_state(shards).pending:
                shards.tar(number).unlink(missing_ok=True)
        for number in shard_numbers(shards):
            rows = part_rows(shards, number)
            if rows is None:
                raise ValueError(f"shard {number}: run `worldline verify {shards.root} --repair` first")
            going = {
                clip_id: row
                for clip_id, row in placed(rows).items()
                if config.concerns(row["source"], row["licence"])
            }
            if not going:
                continue
            videos |= {row["video_id"] for row in going.values()}
            clips += len(going)
            if config.dry_run:
                continue
            _log(shards.root, config, {"shard": shards.tar(number).name, "clips": sorted(going)})
            reason = f"withdrawn: {config.reason}"
            size_bytes += drop_members(shards, number, dict.fromkeys(going, reason), log)
    if not config.dry_run:
        for group in groups(shards):
            assemble_index(shards, group)
        write_manifest(shards)
    return Withdrawn(videos=len(videos), clips=clips, size_bytes=size_bytes)


def _log(root: Path, config: WithdrawConfig, facts: dict[str, Any]) -> None:
    line = {
        "unix_s": round(time.time(), 3),
        "reason": config.reason,
        "source": config.source,
        "licence": config.licence,
        **facts,
    }
    with (root / LEDGER).open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def main(config: WithdrawConfig) -> int:
    """Exit status: 0 done, 1 not, with the reason on stderr."""
    try:
        gone = withdraw(config)
    except (ValueError, OSError) as error:
        print(f"worldline delete: {error}", file=sys.stderr)
        return 1
    verb = "would go" if config.dry_run else "deleted"
    print(
        f"{verb}: {gone.clips} clips of {gone.videos} videos, {gone.size_bytes / 1e6:.1f} MB; log: {LEDGER}"
    )
    return 0
