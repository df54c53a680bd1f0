"""The table contract: stable identities, hashes that see every field, no unknown columns."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worldline.datasets import schema

VIDEO_ID = "0123456789abcdef0123456789abcdef"
CLIP_ID = "d40cfdb9-75e8-507d-bb44-e906415bd116"
CONFIG_HASH = "929b0db60af1b339"
"""Literals on purpose: a change would orphan every stored clip and redo all work."""


@dataclass(frozen=True, kw_only=True)
class Inner:
    threshold: float = 0.5
    names: tuple[str, ...] = ("a", "b")


@dataclass(frozen=True, kw_only=True)
class Outer:
    size: int = 3
    is_on: bool = False
    limit_px: float | None = None
    inner: Inner = field(default_factory=Inner)


def test_clip_id_is_the_same_forever() -> None:
    assert schema.clip_id(VIDEO_ID, 1.5, 9.25) == CLIP_ID
    assert schema.clip_id(VIDEO_ID, 1.5 + 4e-7, 9.25 - 4e-7) == CLIP_ID  # below a microsecond
    assert schema.clip_id(VIDEO_ID, 1.500001, 9.25) != CLIP_ID
    assert schema.clip_id(VIDEO_ID, 1.5, 9.250001) != CLIP_ID
    assert schema.clip_id("f" * 32, 1.5, 9.25) != CLIP_ID


@pytest.mark.parametrize(
    "changed",
    [
        Outer(size=4),
        Outer(is_on=True),
        Outer(limit_px=0.0),
        Outer(inner=Inner(threshold=0.25)),
        Outer(inner=Inner(names=("a",))),
    ],
)
def test_config_hash_changes_with_each_field(changed: Outer) -> None:
    assert schema.config_hash(changed) != schema.config_hash(Outer())
    assert schema.config_hash(Inner(), changed) != schema.config_hash(Inner(), Outer())


def test_config_hash_is_stable() -> None:
    assert schema.config_hash(Outer()) == schema.config_hash(dataclasses.replace(Outer())) == CONFIG_HASH
    assert schema.config_hash(Outer(), Inner()) != schema.config_hash(Inner(), Outer())
    assert len(CONFIG_HASH) == 16
    assert int(CONFIG_HASH, 16) >= 0


def trajectory_row(**changes: Any) -> dict[str, Any]:
    return {
        "clip_id": CLIP_ID,
        "video_id": VIDEO_ID,
        "start_s": 1.5,
        "end_s": 9.25,
        "num_frames": 2,
        "world_from_cam": [1.0, 0, 0, 0, 0, 1.0, 0, 0, 0, 0, 1.0, 0] + [math.nan] * 12,
        "is_registered": [True, False],
        "status": schema.OK,
        "tool_version": "0.1.0",
        "config_hash": CONFIG_HASH,
    } | changes


def test_absent_columns_are_null_and_given_ones_survive() -> None:
    row = schema.table_from_rows([trajectory_row()], schema.TRAJECTORIES).to_pylist()[0]
    assert list(row) == schema.TRAJECTORIES.names
    assert row["scale"] is None
    assert row["caption"] is None
    assert row["world_from_cam"][:12] == trajectory_row()["world_from_cam"][:12]
    assert all(math.isnan(v) for v in row["world_from_cam"][12:])
    assert row["is_registered"] == [True, False]


def test_unknown_columns_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['focal', 'pose'\]"):
        schema.table_from_rows([trajectory_row(), trajectory_row(pose=[], focal=1.0)], schema.TRAJECTORIES)


def test_wrong_types_are_refused() -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        schema.table_from_rows([trajectory_row(num_frames="many")], schema.TRAJECTORIES)


def test_no_rows_make_an_empty_table_of_the_schema() -> None:
    table = schema.table_from_rows([], schema.VIDEOS)
    assert table.num_rows == 0
    assert table.schema.equals(schema.VIDEOS, check_metadata=True)


def test_metadata_survives_parquet(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    pq.write_table(schema.table_from_rows([trajectory_row()], schema.TRAJECTORIES), path)
    stored = pq.read_schema(path)
    assert stored.equals(schema.TRAJECTORIES, check_metadata=False)
    assert stored.metadata[b"worldline_schema"] == str(schema.SCHEMA_VERSION).encode()
    assert json.loads(stored.metadata[b"worldline_conventions"]) == schema.CONVENTIONS
    about = stored.field("fxfycxcy_px").metadata
    assert about[b"unit"] == b"px"
    assert about[b"about"] == b"4 a frame"


@pytest.mark.parametrize("table_schema", [schema.TRAJECTORIES, schema.VIDEOS])
def test_every_column_says_what_it_is_and_units_are_in_names(table_schema: pa.Schema) -> None:
    units = {"_s": "s", "_px": "px", "_deg": "deg", "_rad": "rad", "_bytes": "B"}
    assert len(set(table_schema.names)) == len(table_schema.names)
    for column in table_schema:
        assert column.metadata[b"about"], column.name
        for suffix, unit in units.items():
            if column.name.endswith(suffix):
                assert column.metadata.get(b"unit") == unit.encode(), column.name


def test_identity_outcome_and_versions_are_never_null() -> None:
    needed = {"clip_id", "video_id", "start_s", "end_s", "status", "tool_version", "config_hash"}
    assert needed == {f.name for f in schema.TRAJECTORIES if not f.nullable}
    assert {"video_id", "status", "tool_version", "config_hash"} == {
        f.name for f in schema.VIDEOS if not f.nullable
    }


def test_clip_rejected_reads_well_and_survives_pickling() -> None:
    error = schema.ClipRejected("tracks", "too few", "3 of 40")
    assert str(error) == "tracks: too few (3 of 40)"
    assert str(schema.ClipRejected("tracks", "too few")) == "tracks: too few"
    copy = pickle.loads(pickle.dumps(error))  # it crosses process borders
    assert (copy.stage, copy.reason, copy.detail) == ("tracks", "too few", "3 of 40")
