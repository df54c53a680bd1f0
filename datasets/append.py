"""`worldline append`: another dataset folder's finished units in, this folder's tables with its rows out.

For folders that were annotated apart, on other machines or by other people. Units are copied, not rows: they keep
their configuration, checksums and sidecars, and what both folders have is taken once. Killed at any moment, the
same command goes on.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

import worldline
from worldline.datasets.commit_log import CommitLog, read_unit
from worldline.datasets.dataset_dir import DatasetDir
from worldline.datasets.table import assemble_bucket
from worldline.datasets.withdraw import withdrawal_of, withdrawals


@dataclass(frozen=True, kw_only=True, slots=True)
class AppendConfig:
    """Add the finished work of another dataset folder to this one."""

    folder: tyro.conf.Positional[Path]
    """Dataset folder that grows."""
    other: tyro.conf.Positional[Path]
    """Dataset folder that is read and stays as it is."""


def append(folder: Path, other: Path) -> dict[str, int]:
    """Copies; returns counts of videos seen, units copied, units already there, damaged units and withdrawn videos left
    out.

    A path that both name with different content stays as this folder has it; a video all of whose paths are of a
    withdrawn source or licence stays out. Raises ValueError for a folder of another kind.
    """
    for path in (folder, other):
        if not (path / "dataset.json").exists():
            raise ValueError(f"{path}: no dataset.json; `worldline annotate` did not write it")
    into, source = DatasetDir.open(folder), DatasetDir.open(other)
    if into.bucket_digits != source.bucket_digits:
        raise ValueError(
            f"{folder} has {into.bucket_digits} bucket digits, {other} {source.bucket_digits}: rows name sidecars by them"
        )
    counts = {"videos": 0, "copied": 0, "present": 0, "damaged": 0, "withdrawn": 0}
    buckets, rules = set(), withdrawals(into.root)
    with contextlib.closing(CommitLog(into.root, "append")) as log:
        for video_dir in sorted((source.root / "stages" / "videos").glob("*/*")):
            video_id = video_dir.name
            counts["videos"] += 1
            records = [
                record
                for record in source.paths_of(video_id)
                if withdrawal_of(rules, record.source, record.licence) is None
            ]
            if rules and not records:
                counts["withdrawn"] += 1
                continue
            buckets.add(into.bucket(video_id))
            for unit in sorted(video_dir.glob("*.parquet")):
                _copy_unit(into, source, video_id, unit, log, counts)
            for record in records:
                if into.read_path(record.path) is None:
                    into.write_path(record, None)
            known = into.generations(video_id)
            # This folder's own configurations stay in front.
            for generation in reversed(
                [*known, *(g for g in source.generations(video_id) if g not in known)]
            ):
                into.put_generation_first(video_id, generation)
    for config in (source.root / "configs").glob("*.json"):
        target = into.root / "configs" / config.name
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(config, target)
    for bucket in sorted(buckets):
        assemble_bucket(into, bucket, worldline.__version__)
    return counts


def _copy_unit(
    into: DatasetDir, source: DatasetDir, video_id: str, unit: Path, log: CommitLog, counts: dict[str, int]
) -> None:
    target = into.video_dir(video_id) / unit.name
    if read_unit(target) is not None:
        counts["present"] += 1
        return
    table = read_unit(unit)
    if table is None:
        counts["damaged"] += 1
        return
    if unit.name.startswith("clip."):
        name = unit.name.removeprefix("clip.").removesuffix(".parquet")
        for sidecar in (source.root / "sidecars" / source.bucket(video_id)).glob(f"{name}.*"):
            place = into.root / "sidecars" / into.bucket(video_id) / sidecar.name
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = place.with_name(f".{place.name}.tmp")
            shutil.copyfile(sidecar, temporary)
            temporary.replace(place)
    facts = {name: table[name][0].as_py() for name in ("status", "num_frames")}
    facts["num_frames"] = facts["num_frames"] or 0
    log.commit(target, unit.read_bytes(), stage=unit.name.split(".")[0], **facts)
    counts["copied"] += 1


def main(config: AppendConfig) -> int:
    """Exit status: 0 done, 1 not or not all, with the reason on stderr."""
    try:
        counts = append(config.folder, config.other)
    except (ValueError, OSError) as error:
        print(f"worldline append: {error}", file=sys.stderr)
        return 1
    print(", ".join(f"{what} {count}" for what, count in counts.items()))
    if counts["damaged"]:
        print(
            f"worldline append: {counts['damaged']} damaged units of {config.other} left out", file=sys.stderr
        )
    return 1 if counts["damaged"] else 0
