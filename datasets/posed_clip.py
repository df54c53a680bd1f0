"""A dataset folder and a clip id in, the clip's cameras as arrays out: the step between the table and its
readers."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from worldline.annotate.camera import Intrinsics
from worldline.datasets.schema import METRIC, OK, SCHEMA_VERSION, TRAJECTORIES


@dataclass(frozen=True, kw_only=True, slots=True)
class PosedClip:
    """Cameras of one clip, T frames, with what is known about them; None is unknown."""

    clip_id: str
    timestamps_s: np.ndarray
    """[T] float64, ascending."""
    world_from_cam: np.ndarray
    """[T, 3, 4] float64, OpenCV axes; NaN where the frame has no pose."""
    intrinsics: Intrinsics | None = None
    """fxfycxcy_px [T, 4]; None where a file format carries none."""
    scale_status: str | None = None
    """metric or up_to_scale (datasets/schema.py)."""
    scale_sigma: float | None = None
    """Relative 1-sigma of the scale."""
    sigma_translation: np.ndarray | None = None
    """[T] 1-sigma of the camera centre per axis, relative to the first registered frame."""
    media_path: str | None = None
    """The source video."""
    sidecar_path: Path | None = None
    """Sparse structure (annotate/reconstruction.py)."""
    depth_path: Path | None = None
    """Depth maps that were kept (annotate/depth_files.py)."""

    def __post_init__(self) -> None:
        count = len(self.timestamps_s)
        if self.world_from_cam.shape != (count, 3, 4):
            raise ValueError(f"clip {self.clip_id}: {count} timestamps, poses {self.world_from_cam.shape}")
        if self.intrinsics is not None and self.intrinsics.fxfycxcy_px.shape != (count, 4):
            raise ValueError(
                f"clip {self.clip_id}: intrinsics {self.intrinsics.fxfycxcy_px.shape}, not ({count}, 4)"
            )

    @property
    def is_registered(self) -> np.ndarray:
        """[T] bool: the frame has a pose."""
        return np.isfinite(self.world_from_cam).all(axis=(1, 2))

    @property
    def is_metric(self) -> bool:
        """Whether translations are metres."""
        return self.scale_status == METRIC


def load_clip(dataset_dir: Path, clip_id: str | None = None) -> PosedClip:
    """The clip with this id (or a unique start of it), or the folder's only posed clip.

    Raises ValueError for an unknown or ambiguous id, several clips without an id, a clip without a path, and
    a table of another schema version.
    """
    return clip_from_row(find_row(dataset_dir, clip_id), dataset_dir)


def find_row(dataset_dir: Path, clip_id: str | None = None) -> dict[str, Any]:
    """The table row that `load_clip` reads, as a dict; raises as it does."""
    table = open_table(dataset_dir)
    if clip_id is None:
        rows = table.head(2, filter=pads.field("status") == OK)
        if len(rows) == 1:
            return _with_schema(rows).to_pylist()[0]
        found = "has no clip with a path" if len(rows) == 0 else "has several clips; name one"
        raise ValueError(f"{dataset_dir} {found}: {_some_ids(table)}")
    rows = table.to_table(filter=pads.field("clip_id") == clip_id)
    if len(rows) == 0 and clip_id:
        rows = table.head(6, filter=pc.starts_with(pads.field("clip_id"), clip_id))
    if len(rows) == 1:
        return _with_schema(rows).to_pylist()[0]
    if len(rows) > 1:
        raise ValueError(
            f"clip {clip_id!r} fits {len(rows)} rows: {', '.join(rows['clip_id'].to_pylist()[:5])}"
        )
    ids = table.to_table(columns=["clip_id"])["clip_id"].to_pylist()
    close = difflib.get_close_matches(clip_id, ids, n=5, cutoff=0.3)
    raise ValueError(f"no clip {clip_id!r} in {dataset_dir}; close: {', '.join(close) or _some_ids(table)}")


def open_table(dataset_dir: Path) -> pads.Dataset:
    """The trajectories of a dataset folder; ValueError where there are none or their schema is another
    version."""
    folder = dataset_dir / "trajectories"
    found = sorted(folder.glob("**/*.parquet")) if folder.is_dir() else []
    files = [file for file in found if not file.name.startswith((".", "_"))]  # As pandas and pyarrow skip.
    if not files:
        raise ValueError(
            f"{folder}: no Parquet file; is {dataset_dir} a folder that `worldline annotate` wrote?"
        )
    table = pads.dataset([str(file) for file in files], format="parquet")
    version = (table.schema.metadata or {}).get(b"worldline_schema", b"none").decode()
    if version != str(SCHEMA_VERSION):
        raise ValueError(
            f"{folder}: schema version {version}, this is worldline for version {SCHEMA_VERSION}"
        )
    return table


def clip_from_row(row: dict[str, Any], dataset_dir: Path) -> PosedClip:
    """The cameras of one table row; ValueError where the row carries no path."""
    if row["status"] != OK or not row.get("world_from_cam"):
        why = row.get("reason") or row.get("degeneracy") or "no path stored"
        raise ValueError(f"clip {row['clip_id']} has no camera path: {row['status']}, {why}")
    poses = np.array(row["world_from_cam"], dtype=np.float64).reshape(-1, 3, 4)
    registered = row.get("is_registered")
    if registered is not None:
        poses = np.where(np.array(registered, dtype=bool)[:, None, None], poses, np.nan)
    sigma = row.get("sigma_translation")
    sidecar_path = dataset_dir / row["sidecar_path"] if row.get("sidecar_path") else None
    depth_path = dataset_dir / row["depth_path"] if row.get("depth_path") else None
    return PosedClip(
        clip_id=row["clip_id"],
        timestamps_s=np.array(row["timestamps_s"], dtype=np.float64),
        world_from_cam=poses,
        intrinsics=intrinsics_of_row(row),
        scale_status=row.get("scale_status"),
        scale_sigma=row.get("scale_sigma"),
        sigma_translation=None if sigma is None else np.array(sigma, dtype=np.float64),
        media_path=row.get("path"),
        sidecar_path=sidecar_path,
        depth_path=depth_path if depth_path is not None and depth_path.exists() else None,
    )


def intrinsics_of_row(row: dict[str, Any]) -> Intrinsics | None:
    """The cameras of a row of trajectories/ or shots/, fxfycxcy_px [T, 4]; None where it knows none."""
    if not row.get("fxfycxcy_px"):
        return None
    return Intrinsics(
        fxfycxcy_px=np.array(row["fxfycxcy_px"], dtype=np.float64).reshape(-1, 4),
        width=row["width"],
        height=row["height"],
        model=row.get("camera_model") or "pinhole",
        distortion=tuple(row.get("distortion") or ()),
    )


def _with_schema(rows: pa.Table) -> pa.Table:
    """The rows with every column of the schema: one that an older file of the version lacks is null."""
    columns = [
        rows[field.name] if field.name in rows.column_names else pa.nulls(len(rows), field.type)
        for field in TRAJECTORIES
    ]
    return pa.table(columns, names=TRAJECTORIES.names)


def _some_ids(table: pads.Dataset) -> str:
    rows = table.head(5, columns=["clip_id", "status"]).to_pylist()
    return ", ".join(f"{row['clip_id']} ({row['status']})" for row in rows) or "no rows"
