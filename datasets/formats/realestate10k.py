"""RealEstate10K / CameraCtrl text: first a line with the source, then per frame 19 numbers.

`timestamp_us fx/W fy/H cx/W cy/H 0 0` and cam_from_world as 3x4 row-major, OpenCV axes. The times name the
frames, so frames without a pose have no line. The image size is not in the file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from worldline.annotate.camera import Intrinsics, invert
from worldline.datasets.formats.companion import need_intrinsics
from worldline.datasets.posed_clip import PosedClip


def write_realestate10k(clip: PosedClip, out_path: Path) -> None:
    """Writes the registered frames; the first line holds the media path."""
    fxfycxcy = need_intrinsics(clip, "realestate10k")
    assert clip.intrinsics is not None
    keep = clip.is_registered
    width, height = clip.intrinsics.width, clip.intrinsics.height
    normalised = fxfycxcy[keep] / [width, height, width, height]
    poses = invert(clip.world_from_cam[keep]).reshape(-1, 12)
    lines = [clip.media_path or clip.clip_id]
    for time_s, camera, pose in zip(clip.timestamps_s[keep], normalised, poses, strict=True):
        numbers = [*camera, 0.0, 0.0, *pose]
        lines.append(" ".join([str(round(time_s * 1e6)), *(f"{value:.9f}" for value in numbers)]))
    out_path.write_text("\n".join(lines) + "\n")


def read_realestate10k(
    path: Path, *, fps: float | None = None, width: int | None = None, height: int | None = None
) -> PosedClip:
    """Reads a camera file, whose stem becomes the clip id; the scale is unknown by the format's nature.

    Raises ValueError without width and height, and for lines that are not 19 numbers.
    """
    del fps  # Times are in the file.
    if not width or not height:
        raise ValueError(f"{path}: the format carries no image size; pass width and height")
    first, *lines = [line for line in path.read_text().splitlines() if line.strip()]
    rows = [line.split() for line in lines]
    if not rows or any(len(row) != 19 for row in rows):
        raise ValueError(
            f"{path}: a RealEstate10K line has 19 numbers (time, 6 of the camera, 12 of the pose)"
        )
    numbers = np.array(rows, dtype=np.float64)
    return PosedClip(
        clip_id=path.stem,
        timestamps_s=numbers[:, 0] * 1e-6,
        world_from_cam=invert(numbers[:, 7:].reshape(-1, 3, 4)),
        intrinsics=Intrinsics(
            fxfycxcy_px=numbers[:, 1:5] * [width, height, width, height], width=width, height=height
        ),
        media_path=first.strip(),
    )
