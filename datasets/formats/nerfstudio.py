"""nerfstudio / instant-ngp `transforms.json`: world_from_cam 4x4 with OpenGL camera axes (x right, y up, z
backward).

The world stays ours; only the camera's y and z axes turn. Pixels count from the corner, as ours do.
Intrinsics stand at the top when all frames share them, else with each frame. Keys of our own (`timestamp_s`,
`worldline`) are ignored elsewhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from worldline.annotate.camera import Intrinsics, as_matrix
from worldline.datasets.formats.companion import companion_of, facts, need_intrinsics, spread
from worldline.datasets.posed_clip import PosedClip

_GL_FROM_CV = np.diag([1.0, -1.0, -1.0])
_KEYS = ("fl_x", "fl_y", "cx", "cy")


def write_nerfstudio(clip: PosedClip, out_path: Path) -> None:
    """Writes the registered frames; `file_path` is images/frame_000042.png for frame 42."""
    fxfycxcy = need_intrinsics(clip, "nerfstudio", pinhole=False)
    assert clip.intrinsics is not None
    frames = np.flatnonzero(clip.is_registered)
    is_shared = bool(np.all(fxfycxcy[frames] == fxfycxcy[frames[0]]))
    is_fisheye = clip.intrinsics.model == "fisheye"
    k1, k2 = clip.intrinsics.distortion or (0.0, 0.0)
    content: dict[str, Any] = {
        "camera_model": "OPENCV_FISHEYE" if is_fisheye else "OPENCV",
        "w": clip.intrinsics.width,
        "h": clip.intrinsics.height,
        "k1": k1,
        "k2": k2,
        **({"k3": 0.0, "k4": 0.0, "is_fisheye": True} if is_fisheye else {"p1": 0.0, "p2": 0.0}),
        **(_camera(fxfycxcy[frames[0]]) if is_shared else {}),
        "worldline": facts(clip),
        "frames": [],
    }
    poses = as_matrix(turn_camera_axes(clip.world_from_cam))
    for frame in frames:
        content["frames"].append(
            {
                "file_path": f"images/frame_{frame:06d}.png",
                "transform_matrix": poses[frame].tolist(),
                "frame_idx": int(frame),
                "timestamp_s": float(clip.timestamps_s[frame]),
                **({} if is_shared else _camera(fxfycxcy[frame])),
            }
        )
    out_path.write_text(json.dumps(content, indent=1))


def read_nerfstudio(
    path: Path, *, fps: float | None = None, width: int | None = None, height: int | None = None
) -> PosedClip:
    """Reads a transforms.json (or the folder that holds one); frames without our index count in file order.

    An `applied_transform` of nerfstudio's own tools is undone. Raises ValueError for lenses beyond radial or
    fisheye (k1, k2), per-frame lenses or sizes, missing intrinsics, and unknown frame times.
    """
    path = path / "transforms.json" if path.is_dir() else path
    content = json.loads(path.read_text())
    frames = content["frames"]
    if not frames:
        raise ValueError(f"{path}: no frames")
    frame_idx = np.array([frame.get("frame_idx", order) for order, frame in enumerate(frames)])
    known = companion_of(
        content.get("worldline", {}),
        name=path.parent.name if path.name == "transforms.json" else path.stem,
        num_frames=int(frame_idx.max()) + 1,
        fps=fps,
        width=width,
        height=height,
    )
    gl_poses = np.array([frame["transform_matrix"] for frame in frames], dtype=np.float64)[:, :3]
    poses = turn_camera_axes(_without_applied(gl_poses, content))
    count = len(known.timestamps_s)
    return PosedClip(
        clip_id=known.clip_id,
        timestamps_s=known.timestamps_s,
        world_from_cam=spread(poses, frame_idx, count),
        intrinsics=_read_intrinsics(content, path, frame_idx, count),
        scale_status=known.scale_status,
    )


def turn_camera_axes(world_from_cam: np.ndarray) -> np.ndarray:
    """OpenCV camera axes to OpenGL's and back: y and z change sign."""
    return np.concatenate([world_from_cam[:, :, :3] @ _GL_FROM_CV, world_from_cam[:, :, 3:]], axis=-1)


def _without_applied(poses: np.ndarray, content: dict[str, Any]) -> np.ndarray:
    applied = np.array(content.get("applied_transform", np.eye(3, 4)), dtype=np.float64)[:3]
    rotation, shift = applied[:, :3], applied[:, 3:]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-6:
        raise ValueError("applied_transform is not rigid")
    return np.concatenate([rotation.T @ poses[:, :, :3], rotation.T @ (poses[:, :, 3:] - shift)], axis=-1)


def _camera(fxfycxcy: np.ndarray) -> dict[str, float]:
    return dict(zip(_KEYS, (float(value) for value in fxfycxcy), strict=True))


def _read_intrinsics(content: dict[str, Any], path: Path, frame_idx: np.ndarray, count: int) -> Intrinsics:
    model = content.get("camera_model", "OPENCV_FISHEYE" if content.get("is_fisheye") else "OPENCV")
    if model not in ("OPENCV", "OPENCV_FISHEYE", "PINHOLE", "SIMPLE_PINHOLE"):
        raise ValueError(f"{path}: camera model {model} has no place in the table")
    beyond = [key for key in ("k3", "k4", "p1", "p2") if content.get(key)]
    per_frame = [
        key for key in ("w", "h", "k1", "k2", "camera_model") if any(key in f for f in content["frames"])
    ]
    if beyond or per_frame:
        raise ValueError(f"{path}: has {', '.join(beyond + per_frame)}, which the table has no place for")
    k = (float(content.get("k1", 0.0)), float(content.get("k2", 0.0)))
    ours = "fisheye" if model == "OPENCV_FISHEYE" else "radial" if any(k) else "pinhole"
    try:
        rows = [[frame.get(key, content.get(key)) for key in _KEYS] for frame in content["frames"]]
        fxfycxcy = np.array(rows, dtype=np.float64)
        width, height = int(content["w"]), int(content["h"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: needs fl_x, fl_y, cx, cy, w and h: {error}") from error
    return Intrinsics(
        fxfycxcy_px=spread(fxfycxcy, frame_idx, count),
        width=width,
        height=height,
        model=ours,
        distortion=() if ours == "pinhole" else k,
    )
