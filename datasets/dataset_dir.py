"""Where everything of a dataset folder lives, and the small records that tie paths to contents and contents
to units.

    DIR/dataset.json                                    format, number of hex digits of a bucket
    DIR/trajectories/<bucket>.parquet                   the table, one row a scene
    DIR/videos/<bucket>.parquet                         the table, one row a source file
    DIR/sidecars/<bucket>/<clip_id>.<hash>.npz          sparse structure of a clip
    DIR/stages/paths/<xx>/<path id>.json                what a path holds: content id, signature, provenance
    DIR/stages/videos/<bucket>/<video_id>/
        path.<path id>.json                             the same record, found from the content
        generations.json                                configurations it was annotated with, newest first
        scan.<hash>.parquet, clip.<clip id>.<hash>.parquet   finished units and their config's hash
    DIR/stages/tables/<bucket>.json                     what the bucket's Parquet files were made from
    DIR/commits/<writer>.jsonl, DIR/configs/<hash>.json, DIR/runs/<run_id>/

A bucket is the first hex digits of a content id. With 2 digits (256 files) a million clips make files of
some 400 MB; 10^8 clips want 4 digits: 65,536 files of about 1,500 rows and 150 MB, the size at which
Parquet readers are at ease. One file a video would mean 10^7 files to open for a query, one growing file a
rewrite of everything for every row.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldline.datasets.commit_log import replace_file

FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class PathRecord:
    """What one input path holds."""

    path: str
    """Absolute local path or fsspec URI."""
    video_id: str
    """Content id; of the path itself where its bytes cannot be read."""
    signature: str
    """Changes when the file or its sidecar does, without reading the file: size and modification time."""
    source: str | None = None
    licence: str | None = None
    geometry: str = "{}"
    """JSON object: fields of the geometry config that the sidecar sets for this video."""
    rejection: str | None = None
    """Why this path cannot be used (missing, unreadable, wrong sidecar); None: it can."""

    @property
    def path_id(self) -> str:
        return path_id(self.path)


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """One pair of configurations with which a video was, or is being, annotated."""

    scan_hash: str
    clip_hash: str


def path_id(path: str) -> str:
    """32 hex digits that stand for a path's name, not for what it holds."""
    return hashlib.sha256(b"path:" + path.encode("utf-8", "surrogateescape")).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class DatasetDir:
    """Names of the files of one dataset folder."""

    root: Path
    bucket_digits: int = 2

    @staticmethod
    def open(root: Path, bucket_digits: int | None = None) -> DatasetDir:
        """The folder, made where absent. `bucket_digits` counts only for a new one; ValueError for a
        foreign folder."""
        described = root / "dataset.json"
        if not described.exists():
            if root.is_dir() and any(name not in ("runs", "commits") for name in os.listdir(root)):
                raise ValueError(
                    f"{root} is not empty and not a dataset folder (no dataset.json); name another --out"
                )
            content = {"format": FORMAT, "bucket_digits": 2 if bucket_digits is None else bucket_digits}
            replace_file(described, json.dumps(content).encode() + b"\n")
        content = json.loads(described.read_text())
        if content.get("format") != FORMAT:
            raise ValueError(
                f"{described}: format {content.get('format')}, this is worldline for format {FORMAT}"
            )
        return DatasetDir(root, content["bucket_digits"])

    def bucket(self, video_id: str) -> str:
        return video_id[: self.bucket_digits]

    def video_dir(self, video_id: str) -> Path:
        return self.root / "stages" / "videos" / self.bucket(video_id) / video_id

    def scan_unit(self, video_id: str, scan_hash: str) -> Path:
        return self.video_dir(video_id) / f"scan.{scan_hash}.parquet"

    def clip_unit(self, video_id: str, clip_id: str, clip_hash: str) -> Path:
        return self.video_dir(video_id) / f"clip.{clip_id}.{clip_hash}.parquet"

    def sidecar(self, video_id: str, clip_id: str, clip_hash: str) -> Path:
        return self.root / "sidecars" / self.bucket(video_id) / f"{clip_id}.{clip_hash}.npz"

    def path_record(self, path: str) -> Path:
        name = path_id(path)
        return self.root / "stages" / "paths" / name[:2] / f"{name}.json"

    def attempts_dir(self) -> Path:
        return self.root / "stages" / "attempts"

    def read_path(self, path: str) -> PathRecord | None:
        """What is known of a path; None before it was first looked at."""
        return _read_record(self.path_record(path))

    def write_path(self, record: PathRecord, previous: PathRecord | None) -> None:
        """Stores a path's record under its content and under the path; untouched where already so.

        In this order a crash in between leaves the path to be looked at again, never two contents with one
        path.
        """
        data = json.dumps(dataclasses.asdict(record), sort_keys=True).encode() + b"\n"
        name = f"path.{record.path_id}.json"
        if previous is not None and previous.video_id != record.video_id:
            (self.video_dir(previous.video_id) / name).unlink(missing_ok=True)
        _write_if_new(self.video_dir(record.video_id) / name, data)
        _write_if_new(self.path_record(record.path), data)

    def paths_of(self, video_id: str) -> list[PathRecord]:
        """Paths that hold this content now, usable ones first, each group by name."""
        files = self.video_dir(video_id).glob("path.*.json")
        records = [record for file in files if (record := _read_record(file)) is not None]
        return sorted(records, key=lambda r: (r.rejection is not None, r.path))

    def claim(self, video_id: str, run_id: str, owner: str) -> bool:
        """Whether `owner` (one row of one run) is the one that annotates this content in this run.

        The first to ask wins; asked again by the same owner (a retry after a crash) the answer stays true.
        """
        path = self.video_dir(video_id) / f"claim.{run_id}"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".claim.{run_id}.{owner}")
        temporary.write_text(owner)
        try:
            # link() is exclusive on network disks too, and the name never appears without its content.
            os.link(temporary, path)
        except FileExistsError:
            return path.read_text() == owner
        finally:
            temporary.unlink(missing_ok=True)
        for old in path.parent.glob("claim.*"):
            if old != path:
                old.unlink(missing_ok=True)
        return True

    def generations(self, video_id: str) -> list[Generation]:
        """Newest first."""
        path = self.video_dir(video_id) / "generations.json"
        return [Generation(**g) for g in json.loads(path.read_text())] if path.exists() else []

    def put_generation_first(self, video_id: str, generation: Generation) -> None:
        known = self.generations(video_id)
        wanted = [generation, *(g for g in known if g != generation)]
        if wanted != known:
            data = json.dumps([dataclasses.asdict(g) for g in wanted]).encode() + b"\n"
            replace_file(self.video_dir(video_id) / "generations.json", data)

    def write_config(self, name: str, config: Any) -> None:
        """Keeps the configuration behind a hash, so that a row's `config_hash` can be looked up."""
        data = json.dumps(dataclasses.asdict(config), sort_keys=True, default=str, indent=1).encode() + b"\n"
        _write_if_new(self.root / "configs" / f"{name}.json", data)


def _read_record(path: Path) -> PathRecord | None:
    try:
        return PathRecord(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None


def _write_if_new(path: Path, data: bytes) -> None:
    if not path.exists() or path.read_bytes() != data:
        replace_file(path, data)
