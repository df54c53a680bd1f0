"""ViPE (nv-tlabs/vipe, PyPI `nvidia-vipe`) as a whole engine: its poses, intrinsics and depth in our
conventions.

ViPE brings its own torch and CUDA extensions, so it lives in an environment of its own and is run as a
program (`vipe` on PATH); its results are files. Here they are read: pose/NAME.npz (world_from_cam 4x4, OpenCV
axes), intrinsics/NAME.npz (fx fy cx cy in pixels), depth/NAME.zip (half-float EXR a frame, metres up to its
estimator's error). The extra `worldline[vipe]` brings the EXR reader.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import OpenEXR

from worldline.annotate.camera import Intrinsics, invert
from worldline.annotate.depth import DepthConfig, DepthKind, DepthMap, FrameSource
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.view_selection import frame_camera
from worldline.datasets.schema import MissingBackend

_NAME = "frames"


class VipeDepth:
    """`vipe` of annotate/depth.py: runs ViPE on the whole clip; `weights` may name another of its pipelines
    (`dav3`, `no_vda`)."""

    def __init__(self, config: DepthConfig) -> None:
        self.pipeline = config.weights or "default"

    def __call__(
        self, frames: FrameSource, frame_idx: Sequence[int], reconstruction: Reconstruction | None
    ) -> Iterator[DepthMap]:
        with tempfile.TemporaryDirectory() as scratch:
            frames_dir = Path(scratch) / _NAME
            frames_dir.mkdir()
            for i in range(len(frames)):
                cv2.imwrite(str(frames_dir / f"{i:06d}.png"), np.asarray(frames[i])[..., ::-1])
            results_dir = Path(scratch) / "results"
            run_vipe(["--image-dir", str(frames_dir)], results_dir, self.pipeline)
            yield from read_vipe_depth(results_dir, _NAME, frame_idx)


def run_vipe(source: Sequence[str], results_dir: Path, pipeline: str = "default") -> None:
    """Runs `vipe infer SOURCE` (a video, or --image-dir and a folder) into `results_dir`.

    Raises MissingBackend where the program is not on PATH, RuntimeError with its last words where it fails.
    """
    program = shutil.which("vipe")
    if program is None:
        raise MissingBackend(
            "the program `vipe` is not on PATH: "
            "pip install nvidia-vipe in an environment of its own (needs CUDA)"
        )
    command = [program, "infer", *source, "--output", str(results_dir), "--pipeline", pipeline]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"vipe failed with status {done.returncode}: {done.stderr[-2000:]}")


def read_vipe(
    results_dir: Path, name: str, timestamps_s: np.ndarray, width: int, height: int
) -> Reconstruction:
    """ViPE's cameras of the clip `name` with frames at `timestamps_s` [T] of size width x height; no points.

    Frames ViPE leaves out have no pose. The world is ours: the first posed camera. Raises ValueError for a
    lens other than a pinhole and for frames beyond T.
    """
    types = results_dir / "intrinsics" / f"{name}_camera.txt"
    if types.exists() and any(
        line.split(":")[1].strip() != "PINHOLE" for line in types.read_text().splitlines()
    ):
        raise ValueError(f"{types.name}: only ViPE's PINHOLE cameras can be read")
    with np.load(results_dir / "pose" / f"{name}.npz") as poses:
        pose_idx, world_from_cam = poses["inds"], poses["data"][:, :3].astype(np.float64)
    with np.load(results_dir / "intrinsics" / f"{name}.npz") as cameras:
        camera_idx, values = cameras["inds"], cameras["data"][:, :4].astype(np.float64)
    num_frames = len(timestamps_s)
    if max(pose_idx.max(), camera_idx.max()) >= num_frames:
        raise ValueError(
            f"ViPE has frame {max(pose_idx.max(), camera_idx.max())}, the clip only {num_frames}"
        )
    cam_from_world = np.full((num_frames, 3, 4), np.nan)
    cam_from_world[pose_idx] = invert(world_from_cam)
    first = world_from_cam[np.argmin(pose_idx)]
    cam_from_world[..., 3] += np.einsum("tij,j->ti", cam_from_world[..., :3], first[:, 3])
    cam_from_world[..., :3] = cam_from_world[..., :3] @ first[:, :3]
    fxfycxcy_px = np.full((num_frames, 4), np.nan)
    fxfycxcy_px[camera_idx] = values
    return Reconstruction(
        timestamps_s=np.asarray(timestamps_s, dtype=np.float64),
        cam_from_world=cam_from_world,
        intrinsics=Intrinsics(fxfycxcy_px=fxfycxcy_px, width=width, height=height),
        points_in_world=np.zeros((0, 3)),
        point_rgb=np.zeros((0, 3), np.uint8),
        frame_idx=np.zeros(0, np.int32),
        point_idx=np.zeros(0, np.int32),
        xy_px=np.zeros((0, 2), np.float32),
    )


def read_vipe_depth(results_dir: Path, name: str, frame_idx: Sequence[int]) -> Iterator[DepthMap]:
    """ViPE's depth maps of the named frames. Raises KeyError for a frame it has no depth of."""
    with zipfile.ZipFile(results_dir / "depth" / f"{name}.zip") as archive:
        cameras = None
        for index in frame_idx:
            z = _read_exr(archive.read(f"{index:05d}.exr"))
            if cameras is None:
                height, width = z.shape
                cameras = read_vipe(
                    results_dir, name, np.arange(_num_frames(archive), dtype=float), width, height
                )
            is_known = np.isfinite(z) & (z > 0)
            yield DepthMap(
                frame_idx=index,
                z=np.where(is_known, z, np.nan).astype(np.float32),
                confidence=is_known.astype(np.float32),
                kind=DepthKind.METRIC,
                intrinsics=frame_camera(cameras, index),
            )


def _num_frames(archive: zipfile.ZipFile) -> int:
    return max(int(Path(member).stem) for member in archive.namelist()) + 1


def _read_exr(content: bytes) -> np.ndarray:
    """[H, W] float32 of the channel Z."""
    # The reader takes file names only.
    with tempfile.NamedTemporaryFile(suffix=".exr") as file:
        file.write(content)
        file.flush()
        with OpenEXR.File(file.name) as image:
            return np.array(image.channels()["Z"].pixels, dtype=np.float32)
