"""ViPE artifacts: `pose/NAME.npz` (world_from_cam 4x4, OpenCV axes) and `intrinsics/NAME.npz` (fx, fy, cx, cy
in pixels).

Both hold `data` and `inds`, the frames they belong to, so frames without a pose are left out.
`intrinsics/NAME_camera.txt` names the camera of each. ViPE stores single precision, near-metric lengths and
no image size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from worldline.annotate.camera import Intrinsics, as_matrix
from worldline.datasets.formats.companion import (
    need_intrinsics,
    read_companion,
    size_of,
    spread,
    write_companion,
)
from worldline.datasets.posed_clip import PosedClip


def write_vipe(clip: PosedClip, out_path: Path) -> None:
    """Writes a new artifact folder with one clip, named by its id."""
    fxfycxcy = need_intrinsics(clip, "vipe")
    inds = np.flatnonzero(clip.is_registered)
    (out_path / "pose").mkdir(parents=True)
    (out_path / "intrinsics").mkdir()
    poses = as_matrix(clip.world_from_cam[inds]).astype(np.float32)
    np.savez(out_path / "pose" / f"{clip.clip_id}.npz", data=poses, inds=inds)
    data = fxfycxcy[inds].astype(np.float32)
    np.savez(out_path / "intrinsics" / f"{clip.clip_id}.npz", data=data, inds=inds)
    cameras = "".join(f"{frame}: PINHOLE\n" for frame in inds)
    (out_path / "intrinsics" / f"{clip.clip_id}_camera.txt").write_text(cameras)
    write_companion(clip, out_path)


def read_vipe(
    path: Path, *, fps: float | None = None, width: int | None = None, height: int | None = None
) -> PosedClip:
    """Reads an artifact folder of one clip.

    Raises ValueError for several clips, cameras other than PINHOLE, unknown frame times or image size.
    """
    poses = sorted((path / "pose").glob("*.npz"))
    if len(poses) != 1:
        raise ValueError(f"{path}/pose: expected one .npz, found {len(poses)}")
    name = poses[0].stem
    with np.load(poses[0], allow_pickle=False) as data:
        pose_inds, world_from_cam = data["inds"], data["data"].astype(np.float64)[:, :3]
    with np.load(path / "intrinsics" / f"{name}.npz", allow_pickle=False) as data:
        camera_inds, fxfycxcy = data["inds"], data["data"].astype(np.float64)
    cameras = path / "intrinsics" / f"{name}_camera.txt"
    kinds = (
        {line.split(":")[1].strip() for line in cameras.read_text().splitlines()}
        if cameras.exists()
        else {"PINHOLE"}
    )
    if kinds != {"PINHOLE"} or fxfycxcy.shape[1] != 4:
        raise ValueError(
            f"{path}: cameras {sorted(kinds)} with {fxfycxcy.shape[1]} numbers; only PINHOLE is read"
        )
    last = int(max(pose_inds.max(), camera_inds.max()))
    known = read_companion(path, name=name, num_frames=last + 1, fps=fps, width=width, height=height)
    count = len(known.timestamps_s)
    image_width, image_height = size_of(known, str(path))
    return PosedClip(
        clip_id=known.clip_id,
        timestamps_s=known.timestamps_s,
        world_from_cam=spread(world_from_cam, pose_inds, count),
        intrinsics=Intrinsics(
            fxfycxcy_px=spread(fxfycxcy, camera_inds, count), width=image_width, height=image_height
        ),
        scale_status=known.scale_status,
    )
