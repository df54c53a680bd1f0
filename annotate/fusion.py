"""Posed depth maps and their frames in, one coloured surface out: truncated signed distance fusion (Curless &
Levoy 1996).

Open3D's hashed volume keeps only the blocks near surfaces, so memory follows the surface seen, not the room.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from worldline.annotate.camera import Intrinsics, as_matrix
from worldline.annotate.depth import DepthKind, DepthMap, FrameSource
from worldline.annotate.flatten import flattened, pixels_seen_by, sample_inverse_depth
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.view_selection import frame_camera
from worldline.datasets.schema import ClipRejected, MissingBackend


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionConfig:
    """Settings of the fusion; lengths are in the unit of the trajectory."""

    voxel: float | None = None
    """Side of a voxel; None: 1/200 of the median depth, about a pixel of a 320-pixel map."""
    truncation_voxels: float = 4.0
    """Distance from a surface, in voxels, within which maps are averaged; must exceed the depth noise."""
    min_confidence: float = 0.3
    """Depth with less confidence is left out."""
    max_depth_ratio: float = 4.0
    """Depth beyond this multiple of the first map's median is left out: far depth is the least certain."""
    trajectory_per_depth: float = 1.0
    """Multiplies depth to bring it to the trajectory's unit, for metric maps on a path that is up to
    scale."""

    def __post_init__(self) -> None:
        if self.voxel is not None and self.voxel <= 0:
            raise ValueError(f"voxel must be positive, got {self.voxel}")
        if min(self.truncation_voxels, self.max_depth_ratio, self.trajectory_per_depth) <= 0:
            raise ValueError("truncation_voxels, max_depth_ratio and trajectory_per_depth must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedScene:
    """A triangle mesh in world coordinates; its vertices are also the point cloud."""

    points_in_world: np.ndarray
    """[V, 3] float64."""
    rgb: np.ndarray
    """[V, 3] uint8."""
    normals_in_world: np.ndarray
    """[V, 3] unit vectors towards the side seen."""
    triangles: np.ndarray
    """[F, 3] int32 vertex indices."""
    voxel: float
    """The voxel side used."""


def fuse_depth(
    maps: Iterable[DepthMap],
    frames: FrameSource,
    reconstruction: Reconstruction,
    config: FusionConfig | None = None,
) -> FusedScene:
    """Fuses depth maps of one clip; frames without a pose are passed over.

    Raises ValueError for maps that are only known up to a scale per frame, ClipRejected where nothing can be
    fused, MissingBackend without open3d.
    """
    config = config or FusionConfig()
    if importlib.util.find_spec("open3d") is None:
        raise MissingBackend("fusion needs open3d: pip install 'worldline[cloud]'")
    volume = None
    for one in maps:
        if one.kind is DepthKind.UP_TO_SCALE:
            raise ValueError(f"frame {one.frame_idx}: depth up to a scale per frame cannot be fused")
        z = np.where(one.confidence >= config.min_confidence, one.z, np.nan) * config.trajectory_per_depth
        if not reconstruction.is_registered[one.frame_idx] or not np.isfinite(z).any():
            continue
        if volume is None:
            median = float(np.nanmedian(z))
            volume = _Volume(
                voxel=config.voxel or median / 200,
                truncation_voxels=config.truncation_voxels,
                max_depth=median * config.max_depth_ratio,
            )
        camera = frame_camera(reconstruction, one.frame_idx).resized(one.z.shape[1], one.z.shape[0])
        volume.add(z, np.asarray(frames[one.frame_idx]), camera, reconstruction.cam_from_world[one.frame_idx])
    if volume is None:
        raise ClipRejected("fusion", "no depth", "no posed frame has depth of enough confidence")
    return volume.scene()


class _Volume:
    """Open3D's sparse voxel grid. Its older ScalableTSDFVolume comes out empty in the CPU build of 0.20."""

    def __init__(self, *, voxel: float, truncation_voxels: float, max_depth: float) -> None:
        from open3d import core
        from open3d.t import geometry

        self.voxel, self.truncation_voxels, self.max_depth = voxel, truncation_voxels, max_depth
        self.grid = geometry.VoxelBlockGrid(
            attr_names=("tsdf", "weight", "color"),
            attr_dtypes=(core.float32, core.float32, core.float32),
            attr_channels=((1), (1), (3)),
            voxel_size=voxel,
            block_resolution=16,
            block_count=1000,  # to begin with: the grid grows
        )

    def add(self, z: np.ndarray, frame: np.ndarray, camera: Intrinsics, cam_from_world: np.ndarray) -> None:
        """Integrates one map z [H, W] (NaN unknown), flattened where the lens is not a pinhole."""
        from open3d import core
        from open3d.t import geometry

        height, width = z.shape
        colour = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        flat = flattened(camera)
        if flat is not camera:
            pixels = pixels_seen_by(flat, camera)
            z = 1 / sample_inverse_depth(1 / z, pixels)
            grid = pixels.astype(np.float32) - 0.5
            colour = cv2.remap(colour, grid[..., 0], grid[..., 1], cv2.INTER_LINEAR)
        # Open3D puts the first pixel's centre at 0, we at 0.5.
        matrix = flat.matrix() - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
        intrinsic = core.Tensor.from_numpy(matrix)
        extrinsic = core.Tensor.from_numpy(np.ascontiguousarray(as_matrix(cam_from_world)))
        depth = geometry.Image(core.Tensor.from_numpy(np.nan_to_num(z, nan=0.0).astype(np.float32)))
        image = geometry.Image(core.Tensor.from_numpy(colour.astype(np.float32) / 255))
        limits = {
            "depth_scale": 1.0,
            "depth_max": self.max_depth,
            "trunc_voxel_multiplier": self.truncation_voxels,
        }
        blocks = self.grid.compute_unique_block_coordinates(depth, intrinsic, extrinsic, **limits)
        self.grid.integrate(blocks, depth, image, intrinsic, intrinsic, extrinsic, **limits)

    def scene(self) -> FusedScene:
        """The surface where the averaged distance is zero."""
        mesh = self.grid.extract_triangle_mesh(weight_threshold=0.5)
        vertex = mesh.vertex
        return FusedScene(
            points_in_world=vertex.positions.numpy().astype(np.float64),
            rgb=np.clip(np.rint(vertex.colors.numpy() * 255), 0, 255).astype(np.uint8),
            normals_in_world=vertex.normals.numpy().astype(np.float64),
            triangles=mesh.triangle.indices.numpy().astype(np.int32),
            voxel=self.voxel,
        )
