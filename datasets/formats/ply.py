"""A coloured point cloud with the camera's path as a .ply file, for any viewer: the sidecar's points and the
frusta.

The path runs from blue to red through small points; every so often stands a camera as the edges of its view.
Coordinates are the table's world (OpenCV axes, metres where the clip is metric).
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import open3d

from worldline.annotate.camera import Intrinsics, transform, unproject
from worldline.annotate.reconstruction import Reconstruction
from worldline.datasets.posed_clip import PosedClip

_NUM_FRUSTA = 12
_POINTS_PER_EDGE = 40


def write_ply(clip: PosedClip, out_path: Path) -> None:
    """Writes points, path and frusta; ValueError where the clip has no sidecar with points."""
    if clip.sidecar_path is None or not clip.sidecar_path.exists():
        raise ValueError(f"ply shows the scene's points, but clip {clip.clip_id} has no sidecar file")
    structure = Reconstruction.load(clip.sidecar_path)
    if len(structure.points_in_world) == 0:
        raise ValueError(f"ply shows the scene's points, but the sidecar of clip {clip.clip_id} has none")
    keep = _near(structure.points_in_world)
    path_points, path_rgb = path_and_frusta(clip, structure)
    cloud = open3d.geometry.PointCloud()
    points = np.concatenate([structure.points_in_world[keep], path_points]).astype(np.float64)
    rgb = np.concatenate([structure.point_rgb[keep] / 255.0, path_rgb])
    cloud.points = open3d.utility.Vector3dVector(points)
    cloud.colors = open3d.utility.Vector3dVector(rgb)
    # open3d picks the format by the suffix, which a path given by the user need not have.
    written = out_path if out_path.suffix == ".ply" else out_path.with_name(f"{out_path.name}.ply")
    if not open3d.io.write_point_cloud(written, cloud):
        raise OSError(f"{out_path}: open3d could not write the point cloud")
    written.replace(out_path)


def path_and_frusta(clip: PosedClip, structure: Reconstruction) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] along the path and along the edges of evenly spread cameras, and their colours [N, 3] in
    0-1."""
    registered = np.flatnonzero(clip.is_registered)
    poses = clip.world_from_cam[registered]
    share = np.linspace(0, 1, len(registered))
    colours = matplotlib.colormaps["turbo"](0.1 + 0.8 * share)[:, :3]
    points, rgb = [poses[:, :, 3]], [colours]
    intrinsics = clip.intrinsics or structure.intrinsics
    depth = 0.15 * float(np.median(np.linalg.norm(structure.points_in_world - poses[0, :, 3], axis=-1)))
    for order in np.unique(np.linspace(0, len(registered) - 1, _NUM_FRUSTA).astype(int)):
        edges = transform(poses[order], _frustum(intrinsics, int(registered[order]), depth))
        points.append(edges)
        rgb.append(np.broadcast_to(colours[order], edges.shape))
    return np.concatenate(points), np.concatenate(rgb)


def _frustum(intrinsics: Intrinsics, frame: int, depth: float) -> np.ndarray:
    """Points along the eight edges of a camera's view, in the camera: four rays to the corners, four
    sides."""
    width, height = intrinsics.width, intrinsics.height
    corners_px = np.array([[0.0, 0], [width, 0], [width, height], [0, height]])
    camera = Intrinsics(
        fxfycxcy_px=intrinsics.fxfycxcy_px[frame],
        width=width,
        height=height,
        model=intrinsics.model,
        distortion=intrinsics.distortion,
    )
    corners = depth * unproject(corners_px, camera)
    corners = corners[np.isfinite(corners).all(axis=1)]  # A lens model may have no ray at a corner.
    along = np.linspace(0, 1, _POINTS_PER_EDGE)[:, None]
    rays = [along * corner for corner in corners]
    sides = [a + along * (b - a) for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True)]
    return np.concatenate(rays + sides) if rays else np.zeros((0, 3))


def _near(points: np.ndarray) -> np.ndarray:
    """Indices of points that are not so far that a viewer would shrink the scene to a dot."""
    distance = np.linalg.norm(points - np.median(points, axis=0), axis=-1)
    return np.flatnonzero(distance < 20 * np.median(distance))
