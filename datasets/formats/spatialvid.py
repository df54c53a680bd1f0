"""SpatialVID annotations: `poses.npy` [N, 7] = cam_from_world (tx ty tz, quaternion xyzw), OpenCV axes, not
metric.

`intrinsics.npy` [N, 4] = fx/W, fy/H, cx/W, cy/H; the data set itself holds cx = cy = 0.5 always.
`indexes.txt` pairs the order of the poses with the video's frames (theirs are 0.2 s apart).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from worldline.annotate.camera import Intrinsics, invert, quat_xyzw_from_rotation, rotation_from_quat_xyzw
from worldline.datasets.formats.companion import (
    need_intrinsics,
    read_companion,
    size_of,
    spread,
    write_companion,
)
from worldline.datasets.posed_clip import PosedClip


def write_spatialvid(clip: PosedClip, out_path: Path) -> None:
    """Writes a new folder with every registered frame of a clip."""
    fxfycxcy = need_intrinsics(clip, "spatialvid")
    assert clip.intrinsics is not None
    out_path.mkdir()
    frames = np.flatnonzero(clip.is_registered)
    cam_from_world = invert(clip.world_from_cam[frames])
    quat_xyzw = quat_xyzw_from_rotation(cam_from_world[:, :, :3])
    np.save(out_path / "poses.npy", np.concatenate([cam_from_world[:, :, 3], quat_xyzw], axis=1))
    width, height = clip.intrinsics.width, clip.intrinsics.height
    np.save(out_path / "intrinsics.npy", fxfycxcy[frames] / [width, height, width, height])
    (out_path / "indexes.txt").write_text("".join(f"{order} {frame}\n" for order, frame in enumerate(frames)))
    write_companion(clip, out_path)


def read_spatialvid(
    path: Path, *, fps: float | None = None, width: int | None = None, height: int | None = None
) -> PosedClip:
    """Reads a clip's annotation folder; frames that were not annotated have no pose.

    Without a companion the clip counts as up to scale, as its authors say. Raises ValueError for unknown
    frame times or image size.
    """
    poses, normalised = np.load(path / "poses.npy"), np.load(path / "intrinsics.npy")
    lines = [line.split() for line in (path / "indexes.txt").read_text().splitlines() if line.strip()]
    frames = np.array([int(line[1]) for line in lines if len(line) == 2])
    if poses.shape != (len(frames), 7) or normalised.shape != (len(frames), 4):
        raise ValueError(f"{path}: {len(frames)} indexes, poses {poses.shape}, intrinsics {normalised.shape}")
    known = read_companion(
        path, name=path.name, num_frames=int(frames.max()) + 1, fps=fps, width=width, height=height
    )
    count = len(known.timestamps_s)
    image_width, image_height = size_of(known, str(path))
    rotation = rotation_from_quat_xyzw(poses[:, 3:].astype(np.float64))
    world_from_cam = invert(np.concatenate([rotation, poses[:, :3, None]], axis=-1))
    fxfycxcy = normalised * [image_width, image_height, image_width, image_height]
    return PosedClip(
        clip_id=known.clip_id,
        timestamps_s=known.timestamps_s,
        world_from_cam=spread(world_from_cam, frames, count),
        intrinsics=Intrinsics(
            fxfycxcy_px=spread(fxfycxcy, frames, count), width=image_width, height=image_height
        ),
        scale_status=known.scale_status or "up_to_scale",
    )
