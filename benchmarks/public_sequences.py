"""Real sequences with truth from public repositories: clones in, folders that benchmarks.poses measures out.

Four sequences that nothing in this project was made on before they were first measured. Two paths of one kitchen come
with two truths: that of a depth camera's SLAM (7-Scenes; the depth camera sits 2.5 cm beside the colour camera), and
COLMAP's over the scene's 12,000 images of the colour camera (Brachmann et al. 2021, "On the Limits of Pseudo Ground
Truth in Visual Camera Re-Localisation"), which takes the shutter as global. Clone first, into one folder:

    git clone https://github.com/niconielsen32/ComputerVision
    git clone https://github.com/andyzeng/tsdf-fusion-python
    git clone https://github.com/andyzeng/tsdf-fusion
    git clone https://github.com/tsattler/visloc_pseudo_gt_limitations

Mind their licences (KITTI: CC BY-NC-SA; 7-Scenes: research, non-commercial). Then

    python -m benchmarks.public_sequences --clones CLONES --out SEQUENCES
    python -m benchmarks.poses --data-dir SEQUENCES --report public_sequences \
        --sequences kitti_turn kitchen_1 kitchen_1_sfm kitchen_2 kitchen_2_sfm kitchen_3 kitchen_3_sfm
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from worldline.annotate.camera import invert, quat_xyzw_from_rotation, rotation_from_quat_xyzw


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicSequencesConfig:
    """Where from and where to."""

    clones: Path
    """Folder that holds the clones."""
    out: Path
    """Folder that gets one folder a sequence: video.mp4 and groundtruth.tum."""


@dataclass(frozen=True, slots=True)
class _Kitchen:
    """Frames of RedKitchen's first sequence."""

    name: str
    images: str
    """Pattern of the frames, below the clones."""
    first: int
    count: int


KITCHENS = (
    _Kitchen("kitchen_1", "tsdf-fusion-python/data/frame-%06d.color.jpg", 0, 500),
    _Kitchen("kitchen_2", "tsdf-fusion-python/data/frame-%06d.color.jpg", 500, 500),
    _Kitchen("kitchen_3", "tsdf-fusion/data/rgbd-frames/frame-%06d.color.png", 150, 50),
)


def main(config: PublicSequencesConfig) -> int:
    """Writes all sequences."""
    kitti = config.clones / "ComputerVision/VisualOdometry/KITTI_sequence_2"
    path = np.loadtxt(kitti / "poses.txt").reshape(-1, 3, 4)
    _write(config.out / "kitti_turn", kitti / "image_l/%06d.png", 0, 10, path)
    pseudo = config.clones / "visloc_pseudo_gt_limitations/pgt/sfm/7scenes"
    from_sfm = _colmap_poses(pseudo / "redkitchen_train.txt") | _colmap_poses(pseudo / "redkitchen_test.txt")
    for kitchen in KITCHENS:
        frames = range(kitchen.first, kitchen.first + kitchen.count)
        images = config.clones / kitchen.images
        poses = [np.loadtxt(images.parent / f"frame-{idx:06d}.pose.txt")[:3] for idx in frames]
        _write(config.out / kitchen.name, images, kitchen.first, 30, np.array(poses))
        poses = [from_sfm[f"seq-01/frame-{idx:06d}.color.png"] for idx in frames]
        _write(config.out / f"{kitchen.name}_sfm", images, kitchen.first, 30, np.array(poses))
    return 0


def _colmap_poses(path: Path) -> dict[str, np.ndarray]:
    """world_from_cam [3, 4] by image of lines `image qw qx qy qz tx ty tz focal`, which hold cam_from_world."""
    found = {}
    for line in path.read_text().splitlines():
        image, *numbers = line.split()
        qw, qx, qy, qz, *translation = (float(number) for number in numbers[:7])
        rotation = rotation_from_quat_xyzw(np.array([qx, qy, qz, qw]))
        found[image] = invert(np.c_[rotation, translation])
    return found


def _write(folder: Path, images: Path, first: int, fps: int, world_from_cam: np.ndarray) -> None:
    """A sequence's folder from numbered images, of even size and hardly compressed, and poses [T, 3, 4]."""
    folder.mkdir(parents=True, exist_ok=True)
    quat_xyzw = quat_xyzw_from_rotation(world_from_cam[:, :, :3])
    times = np.arange(len(world_from_cam)) / fps
    np.savetxt(folder / "groundtruth.tum", np.c_[times, world_from_cam[:, :, 3], quat_xyzw], fmt="%.8f")
    source = [
        "-framerate",
        str(fps),
        "-start_number",
        str(first),
        "-i",
        str(images),
        "-frames:v",
        str(len(times)),
    ]
    encoder = [
        "-vf",
        "crop=trunc(iw/2)*2:trunc(ih/2)*2:0:0",
        "-c:v",
        "libx264",
        "-crf",
        "14",
        "-pix_fmt",
        "yuv420p",
    ]
    subprocess.run(["ffmpeg", "-v", "error", "-y", *source, *encoder, str(folder / "video.mp4")], check=True)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(PublicSequencesConfig, description=__doc__)))
