"""Sekai trajectories: `extrinsic` [T, 4, 4] = world_from_cam, OpenCV axes, and `intrinsic` [T, 3, 3] divided
by W and H.

Translations are multiplied by one factor per video so that no coordinate exceeds 1 (its authors,
sekai-codebase issues 15, 21 and 24); the factor is not kept there, so a Sekai path is up to scale. We keep it
as `metres_per_unit` in the same .npz. The conventions are the authors'; the names of the arrays are ours.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from worldline.annotate.camera import Intrinsics, as_matrix
from worldline.datasets.formats.companion import (
    need_all_registered,
    need_intrinsics,
    read_companion,
    size_of,
    write_companion,
)
from worldline.datasets.posed_clip import PosedClip
from worldline.datasets.schema import UP_TO_SCALE


def write_sekai(clip: PosedClip, out_path: Path) -> None:
    """Writes a new folder with `trajectory.npz`; every frame must have a pose."""
    need_intrinsics(clip, "sekai")
    need_all_registered(clip, "sekai")
    assert clip.intrinsics is not None
    out_path.mkdir()
    poses = as_matrix(clip.world_from_cam)
    largest = float(np.abs(poses[:, :3, 3]).max())
    unit = largest if largest > 0 else 1.0
    poses[:, :3, 3] /= unit
    matrix = clip.intrinsics.matrix()
    matrix[:, 0] /= clip.intrinsics.width
    matrix[:, 1] /= clip.intrinsics.height
    np.savez(out_path / "trajectory.npz", extrinsic=poses, intrinsic=matrix, metres_per_unit=unit)
    write_companion(clip, out_path)


def read_sekai(
    path: Path, *, fps: float | None = None, width: int | None = None, height: int | None = None
) -> PosedClip:
    """Reads a folder's `trajectory.npz`; ValueError for unknown frame times or image size."""
    with np.load(path / "trajectory.npz", allow_pickle=False) as data:
        poses, matrix = data["extrinsic"].astype(np.float64), data["intrinsic"].astype(np.float64)
        unit = float(data["metres_per_unit"]) if "metres_per_unit" in data else None
    known = read_companion(path, name=path.name, num_frames=len(poses), fps=fps, width=width, height=height)
    image_width, image_height = size_of(known, str(path))
    poses[:, :3, 3] *= unit if unit is not None else 1.0
    fxfycxcy = np.stack(
        [
            matrix[:, 0, 0] * image_width,
            matrix[:, 1, 1] * image_height,
            matrix[:, 0, 2] * image_width,
            matrix[:, 1, 2] * image_height,
        ],
        axis=-1,
    )
    return PosedClip(
        clip_id=known.clip_id,
        timestamps_s=known.timestamps_s,
        world_from_cam=poses[:, :3],
        intrinsics=Intrinsics(fxfycxcy_px=fxfycxcy, width=image_width, height=image_height),
        scale_status=known.scale_status if unit is not None else UP_TO_SCALE,
    )
