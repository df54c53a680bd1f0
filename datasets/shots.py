"""A bucket's trajectories in, its shots out: `DIR/shots/<bucket>.parquet`, one row an unbroken camera path.

A pure function of the rows and their sidecars, made after them: equal rows give equal bytes. A shot of one window
is that window's path; longer ones are stitched (annotate/stitch.py), each kept as a file of its own under
`DIR/stages/shots/`, so that a job cut short loses one shot's work at most. Every shot has a row: one a piece of
path, or one that says why there is none. Rows are read a group at a time.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.stitch import Piece, StitchConfig, stitch_shot
from worldline.annotate.window_joint import Window
from worldline.datasets.commit_log import parquet_bytes, read_unit, replace_file
from worldline.datasets.dataset_dir import DatasetDir
from worldline.datasets.posed_clip import PosedClip, intrinsics_of_row
from worldline.datasets.schema import (
    METRIC,
    OK,
    REJECTED,
    SHOTS,
    UP_TO_SCALE,
    config_hash,
    shot_id,
    table_from_rows,
)

Row = dict[str, Any]


def assemble_shots(dataset: DatasetDir, bucket: str, config: StitchConfig | None = None) -> bool:
    """Brings `shots/<bucket>.parquet` up to date with `trajectories/<bucket>.parquet`; whether a byte had to
    change. Raises OSError naming the file."""
    config = config or StitchConfig()
    source = dataset.root / "trajectories" / f"{bucket}.parquet"
    target = dataset.root / "shots" / f"{bucket}.parquet"
    if not source.exists():
        return False
    state = {"source": _digest(source), "config": config_hash(config)}
    stamp = dataset.root / "stages" / "tables" / f"shots.{bucket}.json"
    if target.exists() and stamp.exists() and json.loads(stamp.read_text()) == state:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with pq.ParquetWriter(temporary, SHOTS, compression="zstd", write_page_checksum=True) as writer:
            for rows in _shots(source):
                writer.write_table(_shot_table(dataset, bucket, rows, config))
        os.replace(temporary, target)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(target)) from error
    finally:
        temporary.unlink(missing_ok=True)
    replace_file(stamp, json.dumps(state).encode())
    return True


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _shots(source: Path) -> Iterator[list[Row]]:
    """The rows of each shot, in order of time. The table is sorted by video and time."""
    batches = pq.ParquetFile(source).iter_batches(batch_size=8)
    rows = (row for batch in batches for row in batch.to_pylist())
    for (_, shot), group in itertools.groupby(rows, lambda row: (row["video_id"], row.get("shot_idx"))):
        if shot is None:  # written before the column was: windows of one shot overlap, shots do not
            for row in group:
                yield [row]
            continue
        yield sorted(group, key=lambda row: row["start_s"])


def _shot_table(dataset: DatasetDir, bucket: str, rows: list[Row], config: StitchConfig) -> pa.Table:
    """The rows of one shot; of several windows from its own file where that is there."""
    if len(rows) == 1:
        return table_from_rows(shot_rows(rows, dataset.root, config), SHOTS)
    made_from = [[row["clip_id"], row["config_hash"], row["status"]] for row in rows]
    key = config_hash(config, {"clips": made_from})
    name = shot_id(rows[0]["video_id"], rows[0]["shot_idx"] or 0, rows[0]["start_s"])
    kept = dataset.root / "stages" / "shots" / bucket / f"{name}.{key}.parquet"
    table = read_unit(kept)
    if table is None or table.schema.names != SHOTS.names:
        table = table_from_rows(shot_rows(rows, dataset.root, config), SHOTS)
        replace_file(kept, parquet_bytes(table))
    # Provenance is the path's, not the content's, and may have changed since.
    for column in ("source", "licence", "path"):
        values = pa.array([rows[0].get(column)] * len(table), pa.string())
        table = table.set_column(table.schema.get_field_index(column), SHOTS.field(column), values)
    return table.cast(SHOTS)


def shot_rows(rows: list[Row], dataset_dir: Path, config: StitchConfig) -> list[Row]:
    """The pieces of one shot's path as rows of `SHOTS`, from its clips' rows in order of time; one rejected row
    where no clip has a path."""
    windows = [_window(row, dataset_dir) for row in rows]
    pieces = stitch_shot(windows, config)
    if not pieces:
        reasons = "; ".join(f"{k}: {window}" for k, window in enumerate(windows))
        row = _identity(rows, 0, rows[0]["start_s"], rows[-1]["end_s"], config)
        return [
            row | {"num_pieces": 0, "status": REJECTED, "reason": f"shot: no window with a path ({reasons})"}
        ]
    return [_piece_row(rows, piece, k, len(pieces), config) for k, piece in enumerate(pieces)]


def _identity(rows: list[Row], piece_idx: int, start_s: float, end_s: float, config: StitchConfig) -> Row:
    first = rows[0]
    shot = first.get("shot_idx") or 0
    return {
        "shot_id": shot_id(first["video_id"], shot, start_s),
        "video_id": first["video_id"],
        **{name: first.get(name) for name in ("source", "licence", "path", "width", "height")},
        "shot_idx": shot,
        "piece_idx": piece_idx,
        "start_s": start_s,
        "end_s": end_s,
        "tool_version": first["tool_version"],
        "config_hash": config_hash(config, {"clips": [row["config_hash"] for row in rows]}),
    }


def _window(row: Row, dataset_dir: Path) -> Window | str:
    """A clip as a window, or why it cannot be one."""
    if row["status"] != OK or not row["world_from_cam"] or not row["timestamps_s"]:
        return row["reason"] or "no path stored"
    poses = np.array(row["world_from_cam"], dtype=np.float64).reshape(-1, 3, 4)
    if not np.isfinite(poses[:, 0, 0]).any():
        return "no frame with a pose"
    return Window(
        clip_id=row["clip_id"],
        timestamps_s=np.array(row["timestamps_s"], dtype=np.float64),
        world_from_cam=poses,
        is_metric=row["scale_status"] == METRIC,
        scale_sigma=row["scale_sigma"],
        sigma_translation=_numbers(row["sigma_translation"]),
        sigma_rotation_rad=_numbers(row["sigma_rotation_rad"]),
        structure=_loader(dataset_dir / row["sidecar_path"]) if row["sidecar_path"] else lambda: None,
    )


def _loader(path: Path) -> Callable[[], Reconstruction | None]:
    """Reads the sidecar; a file that is gone is as good as none was."""
    return lambda: Reconstruction.load(path) if path.exists() else None


def _numbers(values: list[float | None] | None) -> np.ndarray | None:
    return None if values is None else np.array(values, dtype=np.float64)


def _piece_row(rows: list[Row], piece: Piece, piece_idx: int, num_pieces: int, config: StitchConfig) -> Row:
    used = [rows[k] for k in piece.windows]
    registered = np.isfinite(piece.world_from_cam[:, 0, 0])
    steps = np.diff(piece.world_from_cam[registered][:, :, 3], axis=0)
    lenses = {(row["camera_model"], tuple(row["distortion"] or ())) for row in used}
    model, distortion = lenses.pop() if len(lenses) == 1 else (None, None)
    joints = [
        {
            "first": link.first,
            "second": link.second,
            "is_loop": link.joint.is_loop,
            "num_frames": link.joint.num_frames,
            "num_points": link.joint.num_points,
            "log_scale_sigma": link.joint.log_scale_sigma,
            "residual": link.residual,
        }
        for link in piece.links
    ]
    return _identity(rows, piece_idx, used[0]["start_s"], used[-1]["end_s"], config) | {
        "num_pieces": num_pieces,
        "clip_ids": [row["clip_id"] for row in used],
        "num_frames": len(piece.timestamps_s),
        "timestamps_s": piece.timestamps_s.tolist(),
        "world_from_cam": piece.world_from_cam.reshape(-1).tolist(),
        "fxfycxcy_px": _intrinsics(rows, piece),
        "camera_model": model,
        "distortion": None if distortion is None else list(distortion),
        "clip_idx": (piece.window_of_frame - piece.windows[0]).tolist(),
        "is_registered": registered.tolist(),
        "sigma_translation": piece.sigma_translation.tolist(),
        "sigma_rotation_rad": piece.sigma_rotation_rad.tolist(),
        "num_registered": int(registered.sum()),
        "scale_status": METRIC if piece.is_metric else UP_TO_SCALE,
        "scale_sigma": piece.scale_sigma,
        "scale_spread": piece.scale_spread,
        "path_length": float(np.linalg.norm(steps, axis=1).sum()),
        "joints": json.dumps(joints),
        "num_loops": sum(link.joint.is_loop for link in piece.links),
        "status": OK,
        "reason": piece.why_ended,
    }


def _intrinsics(rows: list[Row], piece: Piece) -> list[float] | None:
    """4 a frame, from the row of each frame's clip; None where one clip knows none."""
    if any(not rows[k]["fxfycxcy_px"] for k in piece.windows):
        return None
    every = {k: np.array(rows[k]["fxfycxcy_px"]).reshape(-1, 4) for k in piece.windows}
    picked = [every[int(k)][i] for k, i in zip(piece.window_of_frame, piece.frame_of_window, strict=True)]
    return np.concatenate(picked).tolist()


def load_shot(dataset_dir: Path, name: str | None = None) -> PosedClip:
    """The piece of a shot with this id (or a unique start of it), or the folder's only one.

    Raises ValueError for an unknown or ambiguous id, and where there are no shots.
    """
    files = sorted((dataset_dir / "shots").glob("[!._]*.parquet"))
    if not files:
        raise ValueError(
            f"{dataset_dir / 'shots'}: no Parquet file; `worldline annotate` writes it with its tables"
        )
    found: list[Row] = []
    some: list[str] = []
    for file in files:
        names = pq.read_table(file, columns=["shot_id", "status"]).to_pylist()
        some += [row["shot_id"] for row in names if row["status"] == OK][: 5 - len(some)]
        for k, row in enumerate(names):
            if row["status"] == OK and row["shot_id"].startswith(name or ""):
                found.append({"file": file, "row": k, "shot_id": row["shot_id"]})
    if len(found) != 1:
        what = "no such shot" if not found else f"{len(found)} shots fit"
        raise ValueError(f"{dataset_dir}: {what} ({name!r}); there are {', '.join(some) or 'none'}")
    row = pq.read_table(found[0]["file"]).slice(found[0]["row"], 1).to_pylist()[0]
    return PosedClip(
        clip_id=row["shot_id"],
        timestamps_s=np.array(row["timestamps_s"], dtype=np.float64),
        world_from_cam=np.array(row["world_from_cam"], dtype=np.float64).reshape(-1, 3, 4),
        intrinsics=intrinsics_of_row(row) if row["camera_model"] else None,
        scale_status=row["scale_status"],
        scale_sigma=row["scale_sigma"],
        sigma_translation=_numbers(row["sigma_translation"]),
        media_path=row["path"],
    )
