"""The contract of a shard folder: where its files lie, what an index row says, and tar members that are safe to
name.

    SHARDS/shards.json                      format, encoding, where the clips came from
    SHARDS/plan/<pass>.parquet              which clip goes into which shard; written once, never changed
    SHARDS/shards/worldline-00000042.tar      WebDataset tar: <clip_id>.json, .latent.npy (optional), .mp4
    SHARDS/parts/00000/00000042.parquet     the shard's index rows, one a planned clip: the commit of the shard
    SHARDS/index/index-000000.parquet       the parts of 64 shards in one file: what readers open
    SHARDS/index.json                       names of the index files, for readers over http
    SHARDS/commits, SHARDS/stages           journals and marks of dying workers, as in a dataset folder

The tar is a plain ustar file with constant owner, mode and time, so equal clips give equal bytes. A clip's
members stand side by side, small ones first: whoever wants cameras and latents reads one range and never touches
the video.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pydantic_core

from worldline.datasets import schema
from worldline.datasets.commit_log import replace_file
from worldline.datasets.schema import CONVENTIONS, SCHEMA_VERSION, TRAJECTORIES, ClipRejected

FORMAT = 1

MEMBERS = ("json", "latent.npy", "mp4")
"""Suffixes of a clip's members, in the order they stand in the tar."""

SHARDS_PER_INDEX = 64
"""Parts of one index file: at 60 one-minute clips a shard some 300 MB, a size Parquet readers are at ease with."""

PER_FRAME = schema.PER_FRAME | {"frame_idx": 1}
"""List columns with this many numbers a written frame."""

_BLOCK = 512
_SHARD_NAME = re.compile(r"worldline-(\d{8})\.tar")
_MEMBER_NAME = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.(json|latent\.npy|mp4)")


def _field(name: str, kind: pa.DataType, about: str) -> pa.Field:
    return pa.field(name, kind, metadata={"about": about})


PLACE = [
    _field("shard", pa.string(), "tar file in shards/; null where the clip could not be written"),
    *(
        field
        for member in MEMBERS
        for field in (
            _field(
                f"{member}_offset", pa.int64(), f"first byte of the .{member} in the tar; null: not there"
            ),
            _field(f"{member}_size", pa.int64(), "bytes"),
            _field(f"{member}_crc32", pa.int64(), "CRC-32, which every read checks"),
            _field(f"{member}_sha256", pa.string(), "SHA-256, which `worldline verify` checks"),
        )
    ),
]
"""Where a clip lies."""

WRITTEN = [
    _field("frame_idx", pa.list_(pa.int64()), "frame of the scene that each written frame is"),
    _field("repeated_share", pa.float64(), "written frames that repeat the one before: the source is slower"),
    _field("resize_factor", pa.float64(), "written over source pixels; above 1 the video was enlarged"),
]

INDEX = pa.schema(
    [*TRAJECTORIES, *WRITTEN, *PLACE],
    metadata={
        "worldline_schema": str(SCHEMA_VERSION),
        "worldline_shards": str(FORMAT),
        "worldline_conventions": json.dumps(
            CONVENTIONS
            | {
                "frames": "per-frame lists, num_frames, fps, width and height are of the written mp4",
                "poses": "frame i of the mp4 is frame frame_idx[i] of the scene, and row i its pose: nothing "
                "is interpolated",
                "pixels": "every quantity in px except flow_px refers to the written width and height",
                "status": "of the cutting: failed and rejected clips have a row and no place",
            }
        ),
    },
)
"""One row a planned clip: the columns of the trajectories at the written frames, and the clip's place."""


@dataclass(frozen=True, slots=True)
class ShardDir:
    """Names of the files of one shard folder."""

    root: Path

    def describe(self, facts: dict[str, Any]) -> None:
        """Writes shards.json, or checks that it says the same; ValueError where it does not, or for a foreign
        folder."""
        path = self.root / "shards.json"
        wanted = {"format": FORMAT, **facts}
        if path.exists():
            stored = json.loads(path.read_text())
            if stored != wanted:
                changed = sorted(k for k in stored | wanted if stored.get(k) != wanted.get(k))
                raise ValueError(f"{path} was made with another {', '.join(changed)}; name another --out")
        elif self.root.is_dir() and any(self.root.iterdir()):
            raise ValueError(f"{self.root} is not empty and not a shard folder; name another --out")
        else:
            replace_file(path, json.dumps(wanted, indent=1, sort_keys=True).encode() + b"\n")

    def facts(self) -> dict[str, Any]:
        """What shards.json says; ValueError where it is absent or of another format."""
        path = self.root / "shards.json"
        if not path.exists():
            raise ValueError(f"{path}: not there; is {self.root} a folder that `worldline shard` wrote?")
        stored = json.loads(path.read_text())
        if stored.get("format") != FORMAT:
            raise ValueError(f"{path}: format {stored.get('format')}, this is worldline for format {FORMAT}")
        return stored

    def tar(self, number: int) -> Path:
        return self.root / "shards" / shard_name(number)

    def part(self, number: int) -> Path:
        return self.root / "parts" / f"{number // 1000:05d}" / f"{number:08d}.parquet"

    def plans(self) -> list[Path]:
        return sorted((self.root / "plan").glob("[0-9]*.parquet"))

    def parts(self) -> list[Path]:
        return sorted((self.root / "parts").glob("*/[0-9]*.parquet"))

    def indexes(self) -> list[Path]:
        return sorted((self.root / "index").glob("index-*.parquet"))


def shard_name(number: int) -> str:
    """Eight digits, so that names sort as numbers do."""
    return f"worldline-{number:08d}.tar"


def shard_number(name: str) -> int:
    """ValueError for a name that no shard has, whatever folder it might point to."""
    match = _SHARD_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"not a shard's name: {name!r}")
    return int(match[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One file of a tar."""

    name: str
    offset: int
    size: int
    crc32: int
    sha256: str


def tar_member(name: str, data: bytes) -> bytes:
    """Header, data and padding of one member."""
    split_member_name(name)
    header = tarfile.TarInfo(name)
    header.size, header.mode = len(data), 0o644
    return header.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % _BLOCK)


TAR_END = bytes(2 * _BLOCK)


def split_member_name(name: str) -> tuple[str, str]:
    """(clip_id, suffix); ValueError for anything else: folders, `..`, pickles, other people's files."""
    match = _MEMBER_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"not the name of a clip's member: {name!r}")
    return match[1], match[2]


def scan_tar(path: Path) -> Iterator[tuple[Member, bytes]]:
    """Every member with its data, one at a time.

    Raises ClipRejected("shard", reason): not_a_tar, torn (ends early), unsafe_member (a name or type that is not
    ours: links, folders, pickles); nothing is ever extracted or unpickled.
    """
    with path.open("rb") as file:
        while True:
            start = file.tell()
            header = file.read(_BLOCK)
            if header == bytes(_BLOCK) and file.read(_BLOCK) == bytes(_BLOCK):
                return
            yield _read_member(path, file, header, start)


def _read_member(path: Path, file: BinaryIO, header: bytes, start: int) -> tuple[Member, bytes]:
    if len(header) < _BLOCK:
        raise ClipRejected("shard", "torn", f"{path.name} ends at byte {start} without an end mark")
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise ClipRejected("shard", "not_a_tar", f"{path.name} at byte {start}: {error}") from error
    try:
        split_member_name(info.name)
    except ValueError as error:
        raise ClipRejected("shard", "unsafe_member", f"{path.name}: {error}") from error
    if not info.isreg():
        raise ClipRejected("shard", "unsafe_member", f"{path.name}: {info.name} is not a plain file")
    data = file.read(info.size)
    if len(data) < info.size or len(file.read(-info.size % _BLOCK)) != -info.size % _BLOCK:
        raise ClipRejected("shard", "torn", f"{path.name} ends inside {info.name}")
    return describe_member(info.name, start + _BLOCK, data), data


def describe_member(name: str, offset: int, data: bytes) -> Member:
    digest = hashlib.sha256(data).hexdigest()
    return Member(name=name, offset=offset, size=len(data), crc32=zlib.crc32(data), sha256=digest)


def place_columns(members: list[Member], shard: str) -> dict[str, Any]:
    """The index columns that say where one clip's members lie."""
    columns: dict[str, Any] = {"shard": shard}
    for member in members:
        suffix = split_member_name(member.name)[1]
        for name in ("offset", "size", "crc32", "sha256"):
            columns[f"{suffix}_{name}"] = getattr(member, name)
    return columns


def json_bytes(columns: dict[str, Any]) -> bytes:
    """A clip's row as strict JSON: NaN, which JSON lacks, becomes null; equal rows give equal bytes."""
    plain = {name: _without_nan(value) for name, value in columns.items() if value is not None}
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def row_from_json(data: bytes) -> dict[str, Any]:
    """The row back; null inside a list of numbers is NaN. Raises ValueError where it is not such a row.

    Python's own parser takes longer over the cameras of five seconds than reading their latents from the page cache.
    """
    columns = pydantic_core.from_json(data, allow_inf_nan=False)
    if not isinstance(columns, dict) or not isinstance(columns.get("clip_id"), str):
        raise ValueError("not the JSON of a clip")
    if b"null" in data:
        for name in ("world_from_cam", "fxfycxcy_px", "sigma_translation", "sigma_rotation_rad"):
            if columns.get(name) is not None:
                columns[name] = [math.nan if value is None else value for value in columns[name]]
    return columns


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
