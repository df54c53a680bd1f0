"""A shard folder's index and a query in, a Selection out: which samples there are and where their bytes lie.

Filtering again needs no new shards: the query runs over the index's columns and the loader reads only what it
selects. A Selection is one array of fixed-size records, so 10^8 samples are a memory-mapped file that all
workers of a machine share, and sample i is found by arithmetic.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from worldline.datasets.commit_log import read_unit, replace_file
from worldline.datasets.schema import OK
from worldline.datasets.shard_format import (
    INDEX,
    MEMBERS,
    SHARDS_PER_INDEX,
    ShardDir,
    shard_name,
    shard_number,
)
from worldline.datasets.shard_plan import merge_state, query

RECORD = np.dtype(
    [
        ("clip_id", "S36"),
        ("shard", "<u4"),
        *(
            field
            for member in MEMBERS
            for field in ((f"{member}_offset", "<u8"), (f"{member}_size", "<u4"), (f"{member}_crc32", "<u4"))
        ),
    ]
)
"""One sample's place; a size of 0 means that the clip has no such member."""


# Index files


def assemble_index(shards: ShardDir, group: int) -> bool:
    """Brings `index/index-<group>.parquet` up to date with the parts that count; whether a byte had to change.

    The file goes where none of the group is left. Raises OSError naming the file.
    """
    path = shards.root / "index" / f"index-{group:06d}.parquet"
    stamp = shards.root / "stages" / "index" / f"{group:06d}.json"
    parts = parts_of_index(shards, group)
    digest = [[part.name, (state := part.stat()).st_size, state.st_mtime_ns] for part in parts]
    if path.exists() == bool(parts) and stamp.exists() and json.loads(stamp.read_text()) == digest:
        return False
    if not parts:
        path.unlink(missing_ok=True)
        replace_file(stamp, b"[]")
        return True
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:6]}.tmp")
    try:
        with pq.ParquetWriter(temporary, INDEX, compression="zstd", write_page_checksum=True) as writer:
            for part in parts:
                table = read_unit(part)
                if table is None:
                    raise ValueError(f"{part} is damaged: run `worldline verify {shards.root} --repair`")
                writer.write_table(table, row_group_size=64)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    replace_file(stamp, json.dumps(digest).encode())
    return True


def parts_of_index(shards: ShardDir, group: int) -> list[Path]:
    """The parts whose rows an index file holds: those there are, without shards that were merged into others."""
    retired = merge_state(shards).retired
    numbers = range(group * SHARDS_PER_INDEX, (group + 1) * SHARDS_PER_INDEX)
    return [part for n in numbers if n not in retired and (part := shards.part(n)).exists()]


def groups(shards: ShardDir) -> list[int]:
    """Every group that has parts or an index file."""
    found = {int(part.stem) // SHARDS_PER_INDEX for part in shards.parts()}
    return sorted(found | {int(path.stem.removeprefix("index-")) for path in shards.indexes()})


def open_index(location: str | Path) -> pads.Dataset:
    """The index of a shard folder, a local path or fsspec URI; ValueError where there is none."""
    files, root = fsspec.core.url_to_fs(str(location))
    names = sorted(name for name in _listing(files, root) if name.rsplit("/", 1)[-1].startswith("index-"))
    if not names:
        raise ValueError(f"{location}/index: no index file; is it a folder that `worldline shard` wrote?")
    return pads.dataset(names, format="parquet", schema=INDEX, filesystem=files)


def _listing(files: fsspec.AbstractFileSystem, root: str) -> list[str]:
    """The index files; plain web servers list nothing, so the manifest beside them is asked first."""
    manifest = f"{root}/index.json"
    if files.exists(manifest):
        return [f"{root}/index/{name}" for name in json.loads(files.cat_file(manifest))]
    return [name for name in files.ls(f"{root}/index", detail=False) if name.endswith(".parquet")]


def write_manifest(shards: ShardDir) -> None:
    """Names the index files in `index.json`, for readers over http."""
    names = [path.name for path in shards.indexes()]
    path, data = shards.root / "index.json", json.dumps(names).encode() + b"\n"
    if not path.exists() or path.read_bytes() != data:
        replace_file(path, data)


# Selections


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """The samples that a query chose, in the order of shards and offsets."""

    location: str
    """The shard folder: a local path or fsspec URI."""
    records: np.ndarray
    """[N] of RECORD, possibly a read-only memory map."""
    cumulative_weight: np.ndarray | None
    """[N] float64, ascending, or None: every sample once an epoch."""
    fingerprint: str
    """Changes with any record, weight or their order; not with the location."""

    def __len__(self) -> int:
        return len(self.records)

    def save(self, folder: Path) -> None:
        """Writes records.npy, weights.npy and selection.json; `load` maps them without reading them."""
        folder.mkdir(parents=True, exist_ok=True)
        _save(folder / "records.npy", self.records)
        if self.cumulative_weight is not None:
            _save(folder / "weights.npy", self.cumulative_weight)
        facts = {
            "location": self.location,
            "fingerprint": self.fingerprint,
            "has_weights": self.cumulative_weight is not None,
        }
        replace_file(folder / "selection.json", json.dumps(facts).encode() + b"\n")

    @staticmethod
    def load(folder: Path, location: str | None = None) -> Selection:
        """A saved selection; `location` replaces where the shards lie."""
        facts = json.loads((folder / "selection.json").read_text())
        records = np.load(folder / "records.npy", mmap_mode="r", allow_pickle=False)
        if records.dtype != RECORD:
            raise ValueError(f"{folder}: records of another version; select again")
        weights = np.load(folder / "weights.npy", mmap_mode="r") if facts["has_weights"] else None
        return Selection(
            location=location or facts["location"],
            records=records,
            cumulative_weight=weights,
            fingerprint=facts["fingerprint"],
        )


def select(
    location: str | Path,
    where: str = "TRUE",
    *,
    weight: str | None = None,
    decisions: Path | None = None,
) -> Selection:
    """Chooses samples of a shard folder.

    `where`: SQL condition over the index's columns, e.g. "scale_sigma < 0.1 and degeneracy = 'ok'". `weight`: SQL
    expression, the sample's expected share of an epoch; 0 leaves it out. `decisions`: Parquet file with clip_id and
    a boolean `keep` (`worldline decide` writes one), joined to the rows; clips it does not name are left out, and its
    weight is the column `decision_weight`. Where a clip lies in several shards,
    annotated anew, the newest counts. Raises ValueError for a wrong query, a weight that is not a finite number of
    at least 0, and where nothing is selected.
    """
    tables: dict[str, Any] = {"index_rows": open_index(location)}
    join = ""
    if decisions is not None:
        tables["decisions"] = pads.dataset(str(decisions), format="parquet")
        own_weight = ", weight AS decision_weight" if "weight" in tables["decisions"].schema.names else ""
        join = f"JOIN (SELECT clip_id{own_weight} FROM decisions WHERE keep) USING (clip_id)"
    columns = ", ".join(f'"{m}_{name}"' for m in MEMBERS for name in ("offset", "size", "crc32"))
    latest = f"SELECT clip_id, max(shard) AS shard FROM index_rows WHERE status = '{OK}' GROUP BY clip_id"
    text = (
        f"SELECT clip_id, shard, {columns}, CAST(({{weight}}) AS DOUBLE) AS selected_weight "
        f"FROM (index_rows JOIN ({latest}) USING (clip_id, shard)) AS rows {join} "
        f"WHERE status = '{OK}' AND ({{where}}) ORDER BY shard, json_offset"
    )
    found = [_records(batch) for batch in query(tables, text, where=where, weight=weight or "1")]
    records = np.concatenate([record for record, _ in found]) if found else np.empty(0, RECORD)
    weights = np.concatenate([number for _, number in found]) if found else np.empty(0)
    if len(records) == 0:
        raise ValueError(f"{location}: no sample where {where}")
    if weight is None:
        return selection_of(str(location), records)
    return selection_of(str(location), records, weights)


def selection_of(location: str, records: np.ndarray, weights: np.ndarray | None = None) -> Selection:
    """A selection of records [N], with weights [N] where samples are not to be seen equally often."""
    digest = hashlib.sha256(np.ascontiguousarray(records).tobytes())
    cumulative = None
    if weights is not None:
        if not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() <= 0:
            raise ValueError("weights must be finite numbers of at least 0, some above it")
        cumulative = np.cumsum(weights, dtype=np.float64)
        digest.update(cumulative.tobytes())
    return Selection(
        location=location,
        records=records,
        cumulative_weight=cumulative,
        fingerprint=digest.hexdigest()[:32],
    )


def _records(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """The batch as records; ValueError where the index is not possible (a shard's name, a size)."""
    out = np.zeros(len(batch), RECORD)
    out["clip_id"] = np.array(batch["clip_id"].to_pylist(), dtype="S36")
    names = batch["shard"].dictionary_encode()
    numbers = np.array([shard_number(name) for name in names.dictionary.to_pylist()], dtype=np.uint32)
    out["shard"] = numbers[names.indices.to_numpy()] if len(batch) else 0
    for column in RECORD.names or ():
        if column in ("clip_id", "shard"):
            continue
        values = batch[column].fill_null(0).to_numpy(zero_copy_only=False)
        if len(values) and (values.min() < 0 or values.max() > np.iinfo(RECORD[column]).max):
            raise ValueError(f"index column {column} holds an impossible number")
        out[column] = values
    return out, batch["selected_weight"].fill_null(np.nan).to_numpy(zero_copy_only=False)


def shard_location(location: str, number: int) -> str:
    return f"{location}/shards/{shard_name(number)}"


def members_of(record: tuple[Any, ...]) -> Iterator[tuple[str, int, int, int]]:
    """(suffix, offset, size, crc32) of each member that a sample has; the record as plain numbers (`.item()`)."""
    for k, member in enumerate(MEMBERS):
        offset, size, crc32 = record[2 + 3 * k : 5 + 3 * k]
        if size:
            yield member, offset, size, crc32


def _save(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    replace_file(path, buffer.getvalue())
