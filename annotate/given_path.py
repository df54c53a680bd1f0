"""What the images say about a clip and its given trajectory in; the trajectory as it was given, with structure
triangulated from it, out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from worldline.annotate.bundle import adjust
from worldline.annotate.bundle_problem import Bundle, BundleConfig, reprojection_errors
from worldline.annotate.camera import Intrinsics, compose, invert, unproject
from worldline.annotate.given import Agreement, GivenConfig, GivenPoses, agreement, check_clock, match_poses
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.triangulate import meet_rays

_MAX_ERROR_PX = 6.0
"""Observations farther from their point are left out, for an image of 640 pixels: a given trajectory has errors
of its own, which no adjustment takes out."""
_MIN_ANGLE_RAD = np.radians(0.6)


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenPath:
    """A clip on its given trajectory."""

    reconstruction: Reconstruction
    """Poses as given, in the frame of the first given camera; NaN where none was given. Without points where
    the images gave no tracks."""
    agreement: Agreement | None
    """With the path seen in the images; None where they show none."""
    reprojection_px: float | None
    """Rms of the structure's inliers under the given poses."""


def keep_given_path(
    seen: Reconstruction | None,
    given: GivenPoses,
    timestamps_s: np.ndarray,
    config: GivenConfig,
    *,
    size_px: tuple[int, int],
    held: Intrinsics | None,
) -> GivenPath:
    """Puts the clip on its given trajectory. seen: what the images alone gave; held: known intrinsics.

    Raises ClipRejected where the trajectory cannot be the clip's.
    """
    world_from_cam = match_poses(given, timestamps_s, config)
    first = int(np.flatnonzero(np.isfinite(world_from_cam[:, 0, 0]))[0])
    cam_from_world = compose(invert(world_from_cam), world_from_cam[first])
    cam_from_world[first] = np.eye(3, 4)
    compared = None
    if seen is not None:
        check_clock(seen, given, config)
        compared = agreement(seen, invert(cam_from_world))
    if seen is None or len(seen.xy_px) == 0:
        bare = _without_structure(cam_from_world, timestamps_s, seen, size_px, held)
        return GivenPath(reconstruction=bare, agreement=compared, reprojection_px=None)
    structure, error_px = _triangulated(replace(seen, cam_from_world=cam_from_world), held is not None)
    return GivenPath(reconstruction=structure, agreement=compared, reprojection_px=error_px)


def _without_structure(
    cam_from_world: np.ndarray,
    timestamps_s: np.ndarray,
    seen: Reconstruction | None,
    size_px: tuple[int, int],
    held: Intrinsics | None,
) -> Reconstruction:
    if seen is not None:
        intrinsics = seen.intrinsics
    elif held is not None:
        one = held.resized(*size_px)
        intrinsics = replace(one, fxfycxcy_px=np.tile(one.fxfycxcy_px, (len(timestamps_s), 1)))
    else:
        unknown = np.full((len(timestamps_s), 4), np.nan)
        intrinsics = Intrinsics(fxfycxcy_px=unknown, width=size_px[0], height=size_px[1])
    return Reconstruction(
        timestamps_s=timestamps_s,
        cam_from_world=cam_from_world,
        intrinsics=intrinsics,
        points_in_world=np.zeros((0, 3)),
        point_rgb=np.zeros((0, 3), np.uint8),
        frame_idx=np.zeros(0, np.int32),
        point_idx=np.zeros(0, np.int32),
        xy_px=np.zeros((0, 2), np.float32),
    )


def _triangulated(posed: Reconstruction, is_held: bool) -> tuple[Reconstruction, float | None]:
    """Points where the rays of the given cameras meet, adjusted with the cameras held (and the focal length
    free unless known); observations that disagree are dropped. Rms error at the working size."""
    limit_px = _MAX_ERROR_PX * max(posed.intrinsics.width, posed.intrinsics.height) / 640
    rows = np.flatnonzero(posed.is_registered[posed.frame_idx])
    num_points = len(posed.points_in_world)
    error_px: float | None = None
    for is_last in (False, True):
        points = _meet(posed, rows, num_points)
        rows = rows[np.isfinite(points[posed.point_idx[rows], 0])]
        if len(rows) < 20:
            return _kept(posed, points, rows[:0]), None
        bundle = _bundle(posed, points, rows)
        config = BundleConfig(free_focal=not is_held, max_iterations=10, relative_tolerance=1e-4)
        bundle = adjust(bundle, config)
        error = reprojection_errors(bundle)
        points = points.copy()
        used = np.unique(posed.point_idx[rows])
        points[used] = bundle.points_in_world
        posed = _with_focal(posed, float(bundle.focal_px[0]))
        rows, error = rows[error < limit_px], error[error < limit_px]
        support = np.bincount(posed.point_idx[rows], minlength=num_points)[posed.point_idx[rows]]
        rows, error = rows[support >= 2], error[support >= 2]
        if is_last and len(rows):
            error_px = float(np.sqrt(np.mean(error**2)))
    return _kept(posed, points, rows), error_px


def _meet(posed: Reconstruction, rows: np.ndarray, num_points: int) -> np.ndarray:
    """[P, 3] meeting points of the rows' rays; NaN where they hardly cross."""
    one = replace(posed.intrinsics, fxfycxcy_px=posed.intrinsics.fxfycxcy_px[0])
    world_from_cam = invert(posed.cam_from_world[posed.frame_idx[rows]])
    rays = unproject(posed.xy_px[rows].astype(np.float64), one)
    direction = np.einsum("mij,mj->mi", world_from_cam[:, :, :3], rays)
    is_ray = np.isfinite(direction[:, 0])
    points, angle = meet_rays(
        direction[is_ray], world_from_cam[is_ray, :, 3], posed.point_idx[rows[is_ray]], num_points
    )
    return np.where((angle > _MIN_ANGLE_RAD)[:, None], points, np.nan)


def _bundle(posed: Reconstruction, points: np.ndarray, rows: np.ndarray) -> Bundle:
    frames, cam_idx = np.unique(posed.frame_idx[rows], return_inverse=True)
    used, point_idx = np.unique(posed.point_idx[rows], return_inverse=True)
    camera = posed.intrinsics
    return Bundle(
        cam_from_world=posed.cam_from_world[frames],
        points_in_world=points[used],
        cam_idx=cam_idx,
        point_idx=point_idx,
        xy_px=posed.xy_px[rows].astype(np.float64),
        focal_px=np.full(len(frames), float(camera.fxfycxcy_px[0, 0])),
        centre_px=np.array(camera.fxfycxcy_px[0, 2:]),
        model=camera.model,
        distortion=np.array(camera.distortion or (0.0, 0.0)),
        is_fixed=np.ones(len(frames), dtype=bool),
    )


def _with_focal(posed: Reconstruction, focal_px: float) -> Reconstruction:
    fxfycxcy = posed.intrinsics.fxfycxcy_px.copy()
    fxfycxcy[:, :2] = focal_px
    return replace(posed, intrinsics=replace(posed.intrinsics, fxfycxcy_px=fxfycxcy))


def _kept(posed: Reconstruction, points: np.ndarray, rows: np.ndarray) -> Reconstruction:
    """The reconstruction with the observations `rows` and the points they see."""
    used, point_idx = np.unique(posed.point_idx[rows], return_inverse=True)
    descriptor = posed.point_descriptor
    return replace(
        posed,
        points_in_world=points[used],
        point_rgb=posed.point_rgb[used],
        point_descriptor=None if descriptor is None else descriptor[used],
        frame_idx=posed.frame_idx[rows],
        point_idx=point_idx.astype(np.int32),
        xy_px=posed.xy_px[rows],
    )
