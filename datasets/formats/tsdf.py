"""Depth maps and camera poses of one clip in, one coloured surface out (truncated signed distance fusion in
open3d).

Only depth in the unit of the path can be fused: kind `trajectory`, or `metric` where the clip is metric. Maps
of a distorted lens are resampled to a pinhole first, since the volume knows no other camera. Maps are read
one at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import open3d

from worldline.annotate.camera import Intrinsics, as_matrix, invert, pixel_centres, project
from worldline.annotate.depth import DepthKind, DepthMap
from worldline.annotate.depth_files import DepthFile
from worldline.annotate.video import Span, probe, read_frames
from worldline.datasets.posed_clip import PosedClip
from worldline.datasets.schema import ClipRejected

logger = logging.getLogger(__name__)

_VOXELS_TO_MEDIAN_DEPTH = 100
"""A voxel is this fraction of the median depth: 3 cm in a room seen from 3 m."""
_NUM_BLOCKS = 2000
"""Blocks of 16^3 voxels reserved at first, 80 kB each; the grid grows by itself."""
_FARTHEST = 4.0
"""Depth beyond this many medians is left out: it is the least certain and costs the most memory."""
_MIN_CONFIDENCE = 0.3


def fuse_depth(clip: PosedClip, depth_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Surface points [N, 3] in the world and their colours [N, 3] in 0-1, grey where the video cannot be
    read.

    Raises ValueError where the depth is not in the path's unit or no map belongs to a registered frame.
    """
    with DepthFile(depth_path) as depths:
        if depths.kind is DepthKind.UP_TO_SCALE or (depths.kind is DepthKind.METRIC and not clip.is_metric):
            raise ValueError(
                f"{depth_path}: depth is {depths.kind.value}, which cannot be fused with this path"
            )
        frames = [int(f) for f in depths.frame_idx if f < len(clip.timestamps_s) and clip.is_registered[f]]
        if not frames:
            raise ValueError(f"{depth_path}: no map belongs to a frame with a pose")
        sample = [depths.read(f).z for f in frames[:: max(1, len(frames) // 8)]]
        median = float(np.nanmedian(np.stack(sample)))
        grid = open3d.t.geometry.VoxelBlockGrid(
            attr_names=("tsdf", "weight", "color"),
            attr_dtypes=(open3d.core.float32,) * 3,
            attr_channels=[open3d.core.SizeVector([width]) for width in (1, 1, 3)],
            voxel_size=median / _VOXELS_TO_MEDIAN_DEPTH,
            block_resolution=16,
            block_count=_NUM_BLOCKS,
        )
        for frame, rgb in _with_colours(clip, frames, depths.width, depths.height):
            _integrate(grid, clip, depths.read(frame), rgb, _FARTHEST * median)
    # A surface that one map alone has seen is dropped, unless there are hardly more.
    cloud = grid.extract_point_cloud(weight_threshold=1.0 if len(frames) >= 3 else 0.0)
    return cloud.point.positions.numpy(), cloud.point.colors.numpy()


def _integrate(
    grid: open3d.t.geometry.VoxelBlockGrid,
    clip: PosedClip,
    depth: DepthMap,
    rgb: np.ndarray | None,
    farthest: float,
) -> None:
    z = np.where((depth.confidence >= _MIN_CONFIDENCE) & (depth.z < farthest), depth.z, 0).astype(np.float32)
    height, width = z.shape
    if rgb is None:
        rgb = np.full((height, width, 3), 153, np.uint8)
    camera = _camera(clip, depth, width, height)
    if camera.model != "pinhole":
        z, rgb = _as_pinhole(z, camera), _as_pinhole(rgb, camera)
    z_image = open3d.t.geometry.Image(np.ascontiguousarray(z))
    rgb_image = open3d.t.geometry.Image(np.ascontiguousarray(rgb.astype(np.float32) / 255))
    fx, fy, cx, cy = (float(value) for value in camera.fxfycxcy_px)
    # open3d counts pixels from the first pixel's centre.
    matrix = open3d.core.Tensor.from_numpy(np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]]))
    cam_from_world = np.ascontiguousarray(as_matrix(invert(clip.world_from_cam[depth.frame_idx])))
    pose = open3d.core.Tensor.from_numpy(cam_from_world)
    range_of_depth = {"depth_scale": 1.0, "depth_max": farthest}
    blocks = grid.compute_unique_block_coordinates(z_image, matrix, pose, **range_of_depth)
    grid.integrate(blocks, z_image, rgb_image, matrix, matrix, pose, **range_of_depth)


def _camera(clip: PosedClip, depth: DepthMap, width: int, height: int) -> Intrinsics:
    """The map's camera: the clip's where it has one, else what the estimator found."""
    if clip.intrinsics is not None and np.isfinite(clip.intrinsics.fxfycxcy_px[depth.frame_idx]).all():
        resized = clip.intrinsics.resized(width, height)
        return replace(resized, fxfycxcy_px=resized.fxfycxcy_px[depth.frame_idx])
    if depth.intrinsics is None:
        raise ValueError(f"clip {clip.clip_id} has no intrinsics to place depth with")
    return depth.intrinsics


def _as_pinhole(image: np.ndarray, camera: Intrinsics) -> np.ndarray:
    """The image as a pinhole of the same fx, fy, cx, cy would see it, nearest neighbour; 0 where it saw
    nothing."""
    fx, fy, cx, cy = camera.fxfycxcy_px
    pixels = pixel_centres(np, camera.width, camera.height).reshape(-1, 2)
    rays = np.concatenate([(pixels - [cx, cy]) / [fx, fy], np.ones((len(pixels), 1))], axis=-1)
    source = project(rays, camera).reshape(camera.height, camera.width, 2).astype(np.float32) - 0.5
    source = np.where(np.isfinite(source), source, -1e6).astype(np.float32)
    return cv2.remap(image, source[..., 0], source[..., 1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)


def _with_colours(
    clip: PosedClip, frames: list[int], width: int, height: int
) -> Iterator[tuple[int, np.ndarray | None]]:
    """Every frame with its image at the maps' size, one at a time; None where the video does not show it."""
    times = clip.timestamps_s[frames]
    missing = {round(float(time_s) * 1e6): frame for time_s, frame in zip(times, frames, strict=True)}
    try:
        if clip.media_path is None:
            raise ClipRejected("probe", "not_found", "the clip names no video")
        span = Span(start_s=float(times.min()), end_s=float(times.max()) + 1e-3)
        for decoded in read_frames(probe(clip.media_path), span):
            frame = missing.pop(round(decoded.timestamp_s * 1e6), None)
            if frame is not None:
                yield frame, cv2.resize(decoded.image, (width, height), interpolation=cv2.INTER_AREA)
    except (ClipRejected, OSError) as error:
        logger.warning("clip %s is fused without colour: %s", clip.clip_id, error)
    for frame in missing.values():
        yield frame, None
