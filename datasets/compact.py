"""`worldline compact`: a dataset or shard folder in, the same folder without what nothing reads any more out.

Dataset: units and sidecars of superseded configurations, and the journals of finished jobs merged into one that
states each living unit once. Shards: members of clips that a newer shard holds with a newer annotation; small shards are
merged into full ones. The tables' rows and the samples stay as they are, but clips of merged shards have other
places: selections made before are to be made again.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

import worldline
from worldline.datasets.commit_log import CommitLog, read_unit, replace_file
from worldline.datasets.dataset_dir import DatasetDir
from worldline.datasets.shard_format import ShardDir
from worldline.datasets.shard_merge import finish_merges, plan_merges
from worldline.datasets.shard_rewrite import drop_members, part_rows, placed, shard_numbers
from worldline.datasets.table import assemble_bucket

_QUIET_S = 3600.0
"""A journal that changed later than this may belong to a running job and is left alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompactConfig:
    """Remove superseded units, merge journals, take superseded clips out of shards, merge small shards."""

    folder: tyro.conf.Positional[Path]
    """Folder of `worldline annotate` or `worldline shard`; no other job may be writing there or training from it."""


def compact(folder: Path, *, quiet_s: float = _QUIET_S) -> dict[str, int]:
    """What went: units and journals, or clips; and bytes. ValueError for a folder of another kind."""
    if (folder / "shards.json").exists():
        return _compact_shards(ShardDir(folder))
    if (folder / "dataset.json").exists():
        dataset = DatasetDir.open(folder)
        units, size_bytes = _drop_superseded(dataset)
        return {"units": units, "bytes": size_bytes, "journals": _merge_journals(folder, quiet_s)}
    raise ValueError(f"{folder}: neither dataset.json nor shards.json; worldline did not write it")


def _drop_superseded(dataset: DatasetDir) -> tuple[int, int]:
    count, size_bytes = 0, 0
    for video_dir in sorted((dataset.root / "stages" / "videos").glob("*/*")):
        video_id = video_dir.name
        generations = dataset.generations(video_id)
        if not generations:
            continue
        newest = generations[0]
        scan = read_unit(dataset.scan_unit(video_id, newest.scan_hash))
        scenes = json.loads(scan["scenes"][0].as_py() or "[]") if scan is not None else []
        clips = [scene["clip_id"] for scene in scenes]
        if scan is None or not all(dataset.clip_unit(video_id, c, newest.clip_hash).exists() for c in clips):
            continue  # the table still shows an older one
        kept = {dataset.scan_unit(video_id, newest.scan_hash)}
        kept |= {dataset.clip_unit(video_id, clip, newest.clip_hash) for clip in clips}
        replace_file(
            video_dir / "generations.json",
            json.dumps([{"scan_hash": newest.scan_hash, "clip_hash": newest.clip_hash}]).encode() + b"\n",
        )
        sidecars = dataset.root / "sidecars" / video_dir.parent.name
        for unit in video_dir.glob("*.parquet"):
            if unit in kept:
                continue
            name = unit.name.removeprefix("clip.").removesuffix(".parquet")
            gone = [unit, *(sidecars.glob(f"{name}.*") if unit.name.startswith("clip.") else [])]
            count += 1
            size_bytes += sum(file.stat().st_size for file in gone)
            for file in gone:
                file.unlink(missing_ok=True)
        assemble_bucket(dataset, dataset.bucket(video_id), worldline.__version__)
    return count, size_bytes


def _merge_journals(root: Path, quiet_s: float) -> int:
    """One journal of the last line of each living unit, in place of all journals at rest; how many went."""
    journals = [
        path
        for path in sorted((root / "commits").glob("*.jsonl"))
        if time.time() - path.stat().st_mtime > quiet_s
    ]
    if len(journals) < 2:
        return 0
    lines: dict[tuple[str, str], bytes] = {}
    for path in journals:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    facts = json.loads(line)
                    if (root / facts["unit"]).exists():
                        # By checksum too: which of several writings is the one in place, verify decides.
                        lines[facts["unit"], facts["sha256"]] = line
    target = root / "commits" / f"compact-{time.time_ns()}.jsonl"
    replace_file(target, b"".join(lines.values()))
    for path in journals:
        path.unlink()
    return len(journals)


def _compact_shards(shards: ShardDir) -> dict[str, int]:
    count, size_bytes = 0, 0
    with contextlib.closing(CommitLog(shards.root, "compact")) as log:
        finish_merges(shards, log)  # what an earlier run left
        newest: dict[str, int] = {}
        for number in shard_numbers(shards):
            for clip_id in placed(part_rows(shards, number) or []):
                newest[clip_id] = max(number, newest.get(clip_id, -1))
        for number in shard_numbers(shards):
            old = [clip for clip in placed(part_rows(shards, number) or []) if newest[clip] > number]
            if old:
                count += len(old)
                reason = "superseded: a newer shard holds the clip"
                size_bytes += drop_members(shards, number, dict.fromkeys(old, reason), log)
        before = len(shards.parts())
        plan_merges(shards)
        size_bytes += finish_merges(shards, log)
    return {"clips": count, "shards": before - len(shards.parts()), "bytes": size_bytes}


def main(config: CompactConfig) -> int:
    """Exit status: 0 done, 1 not, with the reason on stderr."""
    try:
        gone = compact(config.folder)
    except (ValueError, OSError) as error:
        print(f"worldline compact: {error}", file=sys.stderr)
        return 1
    print("removed: " + ", ".join(f"{count} {what}" for what, count in gone.items()))
    return 0
