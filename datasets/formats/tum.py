"""TUM RGB-D trajectory files: one line `t tx ty tz qx qy qz qw` a pose, world_from_cam, OpenCV axes, seconds.

Frames without a pose have no line; the time tells which frame a line belongs to. The format carries neither
intrinsics nor a unit, so the unit stands in a comment.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from worldline.annotate.camera import quat_xyzw_from_rotation, rotation_from_quat_xyzw
from worldline.datasets.posed_clip import PosedClip


def write_tum(clip: PosedClip, out_path: Path) -> None:
    """Writes the registered frames of a clip."""
    keep = clip.is_registered
    poses = clip.world_from_cam[keep]
    quat_xyzw = quat_xyzw_from_rotation(poses[:, :, :3])
    unit = "metre" if clip.is_metric else "arbitrary"
    header = (
        f"clip {clip.clip_id}; world_from_cam, OpenCV axes, unit: {unit}\ntimestamp_s tx ty tz qx qy qz qw"
    )
    rows = np.column_stack([clip.timestamps_s[keep], poses[:, :, 3], quat_xyzw])
    np.savetxt(out_path, rows, fmt=["%.9f"] + ["%.9g"] * 7, header=header)


def read_tum(
    path: Path, *, fps: float | None = None, width: int | None = None, height: int | None = None
) -> PosedClip:
    """Reads a TUM file, whose stem becomes the clip id; poses are sorted by time.

    The keywords are those of every importer and change nothing here: times are in the file, intrinsics are
    not.

    Raises ValueError for a line that is not eight finite numbers or a quaternion that is not of unit length
    to 1 %.
    """
    del fps, width, height
    try:
        rows = np.loadtxt(path, comments="#", delimiter="," if _has_commas(path) else None, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path}: not a TUM trajectory: {error}") from error
    if rows.shape[1:] != (8,):
        raise ValueError(f"{path}: a TUM line has 8 numbers (t tx ty tz qx qy qz qw), found {rows.shape[1:]}")
    lengths = np.linalg.norm(rows[:, 4:], axis=1)
    if not np.isfinite(rows).all() or np.any(np.abs(lengths - 1) > 0.01):
        raise ValueError(f"{path}: a number is not finite or a quaternion is not of unit length")
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    rotation = rotation_from_quat_xyzw(rows[:, 4:])
    return PosedClip(
        clip_id=path.stem,
        timestamps_s=rows[:, 0],
        world_from_cam=np.concatenate([rotation, rows[:, 1:4, None]], axis=-1),
    )


def _has_commas(path: Path) -> bool:
    with path.open() as file:
        return any("," in line for line in file if not line.startswith("#"))
