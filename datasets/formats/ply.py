"""A coloured point cloud with the camera's path as a .ply file, for any viewer.

The scene is the surface fused from the clip's depth maps where they were kept, else the sidecar's points. The
path runs from blue to red through small points; every so often stands a camera as the edges of its view.
Coordinates are the table's world (OpenCV axes, metres where the clip is metric).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import open3d

from worldline.annotate.camera import Intrinsics, transform, unproject
from worldline.annotate.reconstruction import Reconstruction
from worldline.datasets.formats.tsdf import fuse_depth
from worldline.datasets.posed_clip import PosedClip

_NUM_FRUSTA = 12
_POINTS_PER_EDGE = 40


def write_ply(clip: PosedClip, out_path: Path) -> None:
    """Writes scene, path and frusta; ValueError where neither depth nor points were kept for the clip."""
    scene, scene_rgb, camera = _scene(clip)
    path, path_rgb = path_and_frusta(clip, camera, size=0.15 * _median_distance(scene, clip))
    cloud = open3d.geometry.PointCloud()
    cloud.points = open3d.utility.Vector3dVector(np.concatenate([scene, path]).astype(np.float64))
    cloud.colors = open3d.utility.Vector3dVector(np.concatenate([scene_rgb, path_rgb]))
    # open3d picks the format by the suffix, which a path given by the user need not have.
    written = out_path if out_path.suffix == ".ply" else out_path.with_name(f"{out_path.name}.ply")
    if not open3d.io.write_point_cloud(written, cloud):
        raise OSError(f"{out_path}: open3d could not write the point cloud")
    written.replace(out_path)


def path_and_frusta(clip: PosedClip, camera: Intrinsics, *, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] along the path and along the edges of evenly spread cameras, and their colours [N, 3] in
    0-1.

    `camera` has fxfycxcy_px [T, 4]; the edges are `size` long, in the unit of the path.
    """
    registered = np.flatnonzero(clip.is_registered)
    poses = clip.world_from_cam[registered]
    colours = matplotlib.colormaps["turbo"](0.1 + 0.8 * np.linspace(0, 1, len(registered)))[:, :3]
    points, rgb = [poses[:, :, 3]], [colours]
    for order in np.unique(np.linspace(0, len(registered) - 1, _NUM_FRUSTA).astype(int)):
        one = replace(camera, fxfycxcy_px=camera.fxfycxcy_px[registered[order]])
        edges = transform(poses[order], _frustum(one, size))
        points.append(edges)
        rgb.append(np.broadcast_to(colours[order], edges.shape))
    return np.concatenate(points), np.concatenate(rgb)


def _scene(clip: PosedClip) -> tuple[np.ndarray, np.ndarray, Intrinsics]:
    """Points [N, 3], colours [N, 3] in 0-1 and the camera."""
    if clip.depth_path is not None and clip.intrinsics is not None:
        points, rgb = fuse_depth(clip, clip.depth_path)
        return points, rgb, clip.intrinsics
    if clip.sidecar_path is None or not clip.sidecar_path.exists():
        raise ValueError(f"ply shows the scene's points, but clip {clip.clip_id} has no sidecar file")
    structure = Reconstruction.load(clip.sidecar_path)
    if len(structure.points_in_world) == 0:
        raise ValueError(f"ply shows the scene's points, but the sidecar of clip {clip.clip_id} has none")
    keep = _near(structure.points_in_world)
    return structure.points_in_world[keep], structure.point_rgb[keep] / 255.0, structure.intrinsics


def _median_distance(points: np.ndarray, clip: PosedClip) -> float:
    start = clip.world_from_cam[clip.is_registered][0, :, 3]
    return float(np.median(np.linalg.norm(points - start, axis=-1)))


def _frustum(camera: Intrinsics, size: float) -> np.ndarray:
    """Points along the eight edges of a camera's view, in the camera: four rays to the corners, four
    sides."""
    width, height = camera.width, camera.height
    corners = size * unproject(np.array([[0.0, 0], [width, 0], [width, height], [0, height]]), camera)
    corners = corners[np.isfinite(corners).all(axis=1)]  # A lens model may have no ray at a corner.
    along = np.linspace(0, 1, _POINTS_PER_EDGE)[:, None]
    rays = [along * corner for corner in corners]
    sides = [a + along * (b - a) for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True)]
    return np.concatenate(rays + sides) if rays else np.zeros((0, 3))


def _near(points: np.ndarray) -> np.ndarray:
    """Indices of points that are not so far that a viewer would shrink the scene to a dot."""
    distance = np.linalg.norm(points - np.median(points, axis=0), axis=-1)
    return np.flatnonzero(distance < 20 * np.median(distance))
