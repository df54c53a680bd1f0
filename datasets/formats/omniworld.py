"""OmniWorld cameras: `camera/split_0.json` with cam_from_world as `quats` (wxyz) and `trans`, OpenCV axes,
one focal length.

`split_info.json` lists the frames of each split. Lengths are the game engine's units, so a path read from
there without our companion is up to scale. Pixels count from the corner, as ours do.
"""

from __future__ import annotations

import json
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
from worldline.datasets.schema import UP_TO_SCALE


def write_omniworld(clip: PosedClip, out_path: Path) -> None:
    """Writes a new scene folder with one split, the registered frames.

    Raises ValueError where fx and fy differ or the principal point moves: the format has one of each.
    """
    fxfycxcy = need_intrinsics(clip, "omniworld")
    frames = np.flatnonzero(clip.is_registered)
    fx, fy, cx, cy = fxfycxcy[frames].T
    if np.any(np.abs(fx - fy) > 1e-6 * fx) or np.ptp(cx) > 0 or np.ptp(cy) > 0:
        raise ValueError(
            f"omniworld has one focal length a frame and one centre, clip {clip.clip_id} has more"
        )
    cam_from_world = invert(clip.world_from_cam[frames])
    quat_wxyz = np.roll(quat_xyzw_from_rotation(cam_from_world[:, :, :3]), 1, axis=-1)
    (out_path / "camera").mkdir(parents=True)
    camera = {
        "focals": fx.tolist(),
        "cx": float(cx[0]),
        "cy": float(cy[0]),
        "quats": quat_wxyz.tolist(),
        "trans": cam_from_world[:, :, 3].tolist(),
    }
    (out_path / "camera" / "split_0.json").write_text(json.dumps(camera))
    (out_path / "split_info.json").write_text(json.dumps({"split_num": 1, "split": [frames.tolist()]}))
    write_companion(clip, out_path)


def read_omniworld(
    path: Path,
    *,
    fps: float | None = None,
    width: int | None = None,
    height: int | None = None,
    split_idx: int = 0,
) -> PosedClip:
    """Reads one split of a scene folder; ValueError for unknown frame times or image size."""
    frames = np.array(json.loads((path / "split_info.json").read_text())["split"][split_idx])
    camera = json.loads((path / "camera" / f"split_{split_idx}.json").read_text())
    known = read_companion(
        path, name=path.name, num_frames=int(frames.max()) + 1, fps=fps, width=width, height=height
    )
    count = len(known.timestamps_s)
    image_width, image_height = size_of(known, str(path))
    quat_xyzw = np.roll(np.array(camera["quats"], dtype=np.float64), -1, axis=-1)
    trans = np.array(camera["trans"], dtype=np.float64)
    world_from_cam = invert(np.concatenate([rotation_from_quat_xyzw(quat_xyzw), trans[:, :, None]], axis=-1))
    focal, one = np.array(camera["focals"], dtype=np.float64), np.ones(len(frames))
    fxfycxcy = np.stack([focal, focal, camera["cx"] * one, camera["cy"] * one], axis=-1)
    return PosedClip(
        clip_id=known.clip_id,
        timestamps_s=known.timestamps_s,
        world_from_cam=spread(world_from_cam, frames, count),
        intrinsics=Intrinsics(
            fxfycxcy_px=spread(fxfycxcy, frames, count), width=image_width, height=image_height
        ),
        scale_status=known.scale_status or UP_TO_SCALE,
    )
