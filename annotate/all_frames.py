"""Poses of every frame: the keyframe map and all tracks in, one pose per frame or a flag out.

A frame between keyframes starts at their interpolation (slerp of rotations, straight line of centres) and is
then adjusted to the points its tracks see, freed of their drift, by the same robust residuals as the map. Points are
then moved to where all frames see them, and frames to the points, a few times in turn: a point that two or three
keyframes see is seen by dozens of frames, each with noise of its own. A frame is registered
only if enough of its own observations agree; the start value is never passed off as an answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from worldline.annotate.bundle import adjust, settle
from worldline.annotate.bundle_problem import (
    Bundle,
    BundleConfig,
    linearise,
    reprojection_errors,
    robust_cost,
    scatter,
)
from worldline.annotate.camera import hat, invert
from worldline.annotate.drift import without_drift
from worldline.annotate.keyframe_map import KeyframeMap, shutter_px
from worldline.annotate.resection import resect
from worldline.annotate.tracks import Tracks

_TURNS = 3
"""Turns of points and frames: on rendered truth errors fall by an eighth in three and rise again after six."""
_STEP_OF_TURN, _STEP_OF_TRAVEL = 0.02, 0.002
"""Prior 1-sigma of the change of log focal length from frame to frame: of a turning camera, whose zoom nothing else
knows, and of a travelling one beside the zoom that lies between its keyframes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FramePoses:
    """Poses of all T frames and the observations behind them."""

    cam_from_world: np.ndarray
    """[T, 3, 4]; NaN where not registered."""
    points: np.ndarray
    """[N, 3] as the poses see them, NaN where not triangulated."""
    frame_idx: np.ndarray
    """[M] observations of triangulated tracks in all frames."""
    track_idx: np.ndarray
    """[M]"""
    xy_px: np.ndarray
    """[M, 2], without the tracker's drift, as a global shutter would show them."""
    focal_px: np.ndarray
    """[T] focal length of each frame."""
    error_px: np.ndarray
    """[M] reprojection error; inf in frames without a pose."""
    own_variance: np.ndarray
    """[T, 2] variance (rms axis) of centre and rotation that the frame's own observations leave if the points
    are taken as known, in units of the residuals' own scatter; NaN where not registered."""


def pose_all_frames(
    tracks: Tracks,
    keyframe_map: KeyframeMap,
    *,
    max_error_px: float,
    min_points: int = 15,
    free_translation: bool = True,
    move_points: bool = True,
    focal_px: np.ndarray | None = None,
    velocity_px: np.ndarray | None = None,
) -> FramePoses:
    """Poses every frame of a clip from its keyframe map.

    free_translation=False: a camera that only turns. move_points=False: the map's points stay, and with them its
    keyframes, because more than images has placed them. focal_px [T]: start values of a focal length that changes from
    frame to frame and is then free but for a travelling camera's keyframes; None: the map's. velocity_px [M, 2]: of
    all observations (annotate/shutter.py), used where the map's shutter rolls.
    """
    rows = np.isfinite(keyframe_map.points[:, 0])[tracks.track_idx]
    frame_idx, track_idx, xy = (
        tracks.frame_idx[rows],
        tracks.track_idx[rows],
        without_drift(tracks, keyframe_map)[rows],
    )
    if keyframe_map.readout and velocity_px is not None:
        size = (tracks.width, tracks.height)
        xy -= keyframe_map.readout * shutter_px(xy, velocity_px[rows], size, keyframe_map.scan_axis)
    start = _start_poses(tracks, keyframe_map)
    num_frames = tracks.num_frames
    bundle = Bundle(
        cam_from_world=start,
        points_in_world=keyframe_map.points,
        cam_idx=frame_idx,
        point_idx=track_idx,
        xy_px=xy,
        focal_px=np.full(num_frames, keyframe_map.focal_px) if focal_px is None else focal_px,
        centre_px=keyframe_map.centre_px,
        model=keyframe_map.model,
        distortion=keyframe_map.distortion,
        sigma_px=max_error_px / 6,
    )
    if free_translation and focal_px is None:
        bundle = resect(bundle)
    else:
        config = BundleConfig(
            free_points=False,
            free_translation=free_translation,
            free_camera_focal=focal_px is not None,
            focal_step_sigma=_STEP_OF_TRAVEL if free_translation else _STEP_OF_TURN,
            max_iterations=6,
            loss_scale=2.0,
            relative_tolerance=1e-4,
        )
        if free_translation:
            bundle = replace(
                bundle, is_fixed=np.isin(np.arange(num_frames), _mapped_frames(tracks, keyframe_map))
            )
        bundle = adjust(bundle, config)
    error = reprojection_errors(bundle)
    is_inlier = error < max_error_px
    count = np.bincount(frame_idx, is_inlier, minlength=num_frames)
    total = np.bincount(frame_idx, minlength=num_frames)
    registered = (count >= min_points) & (count >= 0.4 * np.maximum(total, 1))
    cam_from_world = np.where(registered[:, None, None], bundle.cam_from_world, np.nan)
    mapped = _mapped_frames(tracks, keyframe_map)
    cam_from_world[mapped] = keyframe_map.cam_from_world[keyframe_map.is_posed]
    registered[mapped] = True
    bundle = replace(
        bundle, cam_from_world=np.where(registered[:, None, None], cam_from_world, bundle.cam_from_world)
    )
    if free_translation and move_points:
        bundle = _in_turn(bundle, registered, max_error_px)
        cam_from_world[registered] = bundle.cam_from_world[registered]
    error = np.where(registered[frame_idx], reprojection_errors(bundle), np.inf)
    return FramePoses(
        cam_from_world=cam_from_world,
        points=bundle.points_in_world,
        frame_idx=frame_idx,
        track_idx=track_idx,
        xy_px=xy,
        error_px=error,
        focal_px=bundle.focal_px,
        own_variance=_own_variance(bundle, error, registered),
    )


def _in_turn(bundle: Bundle, registered: np.ndarray, max_error_px: float) -> Bundle:
    """The bundle with its points moved to where all registered frames [T] see them, then the frames to the points,
    `_TURNS` times, at the scatter that the residuals have. The adjustment of the map decides what bends the whole path;
    few turns hardly reach that."""
    rows = np.flatnonzero(registered[bundle.cam_idx] & (reprojection_errors(bundle) < max_error_px))
    if len(rows) == 0:
        return bundle
    seen, point_idx = np.unique(bundle.point_idx[rows], return_inverse=True)
    part = replace(
        bundle,
        points_in_world=bundle.points_in_world[seen],
        cam_idx=bundle.cam_idx[rows],
        point_idx=point_idx,
        xy_px=bundle.xy_px[rows],
    )
    for _ in range(_TURNS):
        part = replace(part, sigma_px=scatter(part))
        part = resect(settle(part, BundleConfig(loss_scale=2.0)))
    points = bundle.points_in_world.copy()
    points[seen] = part.points_in_world
    return replace(bundle, cam_from_world=part.cam_from_world, points_in_world=points)


def _mapped_frames(tracks: Tracks, keyframe_map: KeyframeMap) -> np.ndarray:
    """Frames that are posed keyframes."""
    return np.array([kf.frame_idx for kf in tracks.keyframes])[keyframe_map.is_posed]


def _start_poses(tracks: Tracks, keyframe_map: KeyframeMap) -> np.ndarray:
    """Start values [T, 3, 4]: keyframes as mapped, frames between by interpolation, the rest as the nearest
    keyframe."""
    kf_frames = _mapped_frames(tracks, keyframe_map)
    world_from_cam = invert(keyframe_map.cam_from_world[keyframe_map.is_posed])
    wanted = np.clip(np.arange(tracks.num_frames), kf_frames[0], kf_frames[-1])
    if len(kf_frames) == 1:
        rotation = np.broadcast_to(world_from_cam[0, :, :3], (tracks.num_frames, 3, 3))
    else:
        rotation = Slerp(kf_frames, Rotation.from_matrix(world_from_cam[:, :, :3]))(wanted).as_matrix()
    centre = np.stack([np.interp(wanted, kf_frames, world_from_cam[:, i, 3]) for i in range(3)], axis=1)
    return invert(np.concatenate([rotation, centre[:, :, None]], axis=2))


def _own_variance(bundle: Bundle, error_px: np.ndarray, registered: np.ndarray) -> np.ndarray:
    """Inverse of each frame's 6x6 information, with the robust weights and the scatter of its residuals."""
    config = BundleConfig(free_points=False, loss_scale=2.0)
    terms = linearise(bundle, config)
    _, weight = robust_cost(bundle, config, terms)
    jacobian = np.nan_to_num(terms["cam"]) * np.sqrt(weight)[:, None, None]
    bounds = np.searchsorted(bundle.cam_idx, np.arange(len(registered) + 1))
    variance = np.full((len(registered), 2), np.nan)
    for frame in np.flatnonzero(registered):
        rows = slice(bounds[frame], bounds[frame + 1])
        stacked = jacobian[rows].reshape(-1, 6)
        # Rotating about the world's origin moves the centre; held at the camera the two are told apart.
        stacked = stacked @ _about_camera(bundle.cam_from_world[frame])
        scatter = np.median(error_px[rows]) / 1.18
        covariance = np.linalg.pinv(stacked.T @ stacked, hermitian=True) * scatter**2
        variance[frame] = np.trace(covariance[3:, 3:]) / 3, np.trace(covariance[:3, :3]) / 3
    return variance


def _about_camera(cam_from_world: np.ndarray) -> np.ndarray:
    """[6, 6] change of variables from (w, d) of R <- exp(w) R, t <- t + d to (w, change of the centre)."""
    change = np.eye(6)
    change[3:, :3] = hat(cam_from_world[:, 3])
    change[3:, 3:] = -cam_from_world[:, :3]
    return change
