"""Geometry of one clip: frames in, a degeneracy label and, where there is one, the camera path with error
bars out.

tracks -> still? -> moving things out -> keyframe map -> only turning? -> lens -> sharper and longer tracks -> poses of all frames
-> covariance. No weights, no GPU. Known intrinsics are held; unknown ones are estimated with the path.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from worldline.annotate.all_frames import FramePoses, pose_all_frames
from worldline.annotate.bridge import bridge
from worldline.annotate.camera import Intrinsics, compose, invert, rotation_angle
from worldline.annotate.degeneracy import (
    DegeneracyConfig,
    RotationFit,
    fit_rotation,
    is_explained,
    is_planar,
    is_static,
    is_zooming,
    looks_flat,
)
from worldline.annotate.distorted import DistortedConfig, is_distorted
from worldline.annotate.features import FeaturesConfig, load_matcher
from worldline.annotate.keyframe_map import KeyframeMap
from worldline.annotate.lens import LensConfig, choose_camera, settle_lens
from worldline.annotate.mapper import Mapper, MappingConfig
from worldline.annotate.mapping import map_keyframes
from worldline.annotate.moving import MovingConfig, find_moving
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.refine import RefineConfig, find_again, refine_observations
from worldline.annotate.relocalise import RelocaliseConfig, relocalise
from worldline.annotate.shutter import ShutterConfig, image_velocity, velocity_of_rows
from worldline.annotate.tracks import TrackConfig, Tracks, track_points, without
from worldline.annotate.turning import may_only_turn, only_turns, travels_when_sharp
from worldline.annotate.uncertainty import FrameSigma, SigmaConfig, frame_sigmas
from worldline.annotate.zoom import (
    ZoomConfig,
    as_seen,
    camera_of_frames,
    find_zoom,
    refine_zoom,
)
from worldline.datasets.schema import ClipRejected

logger = logging.getLogger(__name__)

_FOCAL_TURN_DEG = 2.0
"""A camera that turns less shows changes of its focal length but not the focal length itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GeometryConfig:
    """Settings of the weight-free engine."""

    tracks: TrackConfig = field(default_factory=TrackConfig)
    mapping: MappingConfig = field(default_factory=MappingConfig)
    degeneracy: DegeneracyConfig = field(default_factory=DegeneracyConfig)
    moving: MovingConfig = field(default_factory=MovingConfig)
    zoom: ZoomConfig = field(default_factory=ZoomConfig)
    lens: LensConfig = field(default_factory=LensConfig)
    shutter: ShutterConfig = field(default_factory=ShutterConfig)
    distorted: DistortedConfig = field(default_factory=DistortedConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    relocalise: RelocaliseConfig = field(default_factory=RelocaliseConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    sigma: SigmaConfig = field(default_factory=SigmaConfig)
    min_frames: int = 8
    """Shorter scenes are labelled too_short."""
    low_parallax_deg: float = 1.5
    """A path whose points' rays span less than this (median) is labelled low_parallax."""
    max_sigma_share: float = 0.1
    """And so is one whose error bars (median, per axis) are a larger share of its reach, or unknown: paths that can be
    used have under 0.01."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """What was found. T frames; lengths in the reconstruction's own unit."""

    degeneracy: str
    reconstruction: Reconstruction | None
    """None where the label says that there is no path to reconstruct."""
    sigma: FrameSigma | None
    reprojection_px: float | None = None
    num_observations: int | None = None
    inlier_share: float | None = None
    parallax_deg: float | None = None
    readout_s: float | None = None
    """Time from the first to the last line of a frame; 0: no sign of a rolling shutter."""


def estimate_geometry(
    frames: Iterable[tuple[np.ndarray, np.ndarray]],
    timestamps_s: list[float],
    config: GeometryConfig,
    *,
    known: Intrinsics | None = None,
    adjust_map: Callable[[Mapper, Tracks], bool] | None = None,
) -> Geometry:
    """Recovers the camera's path through (grey [H, W], rgb [H, W, 3]) uint8 frames with square pixels.

    `timestamps_s` is filled by the caller as the frames are drawn. `known`: intrinsics to hold.
    `adjust_map` may bring further measurements (depth) into the finished keyframe map before the frames
    between are posed; it says whether it has. Raises ClipRejected where tracks exist but no path can be found.
    """
    tracks = track_points(frames, config.tracks)
    times = np.array(timestamps_s, dtype=np.float64)
    if tracks.num_frames < config.min_frames:
        return Geometry(degeneracy="too_short", reconstruction=None, sigma=None)
    if is_static(tracks, config.degeneracy):
        return Geometry(degeneracy="static", reconstruction=_still(tracks, times, known), sigma=None)
    tracks = bridge(tracks, config.features)
    longer = max(tracks.width, tracks.height)
    if known is not None:
        guesses = [float(known.resized(tracks.width, tracks.height).fxfycxcy_px[0])]
    else:
        guesses = [share * longer for share in config.mapping.focal_guesses]
    as_filmed = tracks = without(tracks, find_moving(tracks, config.moving))
    turning = fit_rotation(tracks, guesses, known_focal=known is not None)
    if turning is not None and not may_only_turn(turning, tracks, config.degeneracy):
        turning = None
    try:
        tracks, keyframe_map = _start(tracks, turning, config, known)
    except ClipRejected:
        if turning is not None and is_explained(turning, tracks, config.degeneracy):
            return _resting(tracks, times, turning, config)
        raise
    if turning is not None and _rests(
        turning, tracks, keyframe_map, guesses, config, is_known=known is not None
    ):
        return _resting(as_filmed, times, turning, config)
    mapper = Mapper.of(keyframe_map, config.mapping, tracks, known_focal=known is not None)
    if not mapper.map.is_posed.all() and relocalise(
        mapper, tracks, config.relocalise, load_matcher(config.features)
    ):
        # Descriptors place points to a few pixels only, which would bend the lens.
        greys = [keyframe.grey for keyframe in tracks.keyframes]
        mapper.map = refine_observations(greys, mapper.map, config.refine)
        mapper.adjust_all(max_iterations=8)
        mapper.drop_outliers()
    velocity = image_velocity(tracks, times)
    rows_velocity = velocity_of_rows(tracks, velocity, mapper.map)
    if choose_camera(mapper, rows_velocity, config.lens, config.shutter):
        # Under a strong distortion the pinhole map has lost its borders: map again with the lens found.
        freedom, old = mapper.freedom, mapper.map
        keyframe_map = map_keyframes(tracks, config.mapping, old.intrinsics())
        mapper = Mapper.of(keyframe_map, config.mapping, tracks, known_focal=False)
        mapper.freedom = freedom
        if freedom.free_readout:
            mapper.map.velocity_px = velocity_of_rows(tracks, velocity, keyframe_map)
            mapper.map.readout, mapper.map.scan_axis = old.readout, old.scan_axis
    _polish(mapper, [keyframe.grey for keyframe in tracks.keyframes], config.refine)
    settle_lens(mapper, config.lens)
    mapper.adjust_sharply(max_iterations=30)
    mapper.drop_outliers()
    if not mapper.map.is_posed.any() or not np.isfinite(mapper.map.points).any():
        raise ClipRejected("mapping", "no_map", "no keyframe or no point survived the adjustment")
    if tracks.zoom is not None:
        tracks = refine_zoom(mapper, tracks, config.zoom)
    has_more = adjust_map is not None and adjust_map(mapper, tracks)
    focal_px = None if tracks.zoom is None else np.full(tracks.num_frames, mapper.map.focal_px)
    poses = pose_all_frames(
        tracks,
        mapper.map,
        max_error_px=mapper.max_error_px,
        move_points=not has_more,
        velocity_px=velocity,
        focal_px=focal_px,
    )
    return _conclude(tracks, times, mapper, poses, config)


def _start(
    tracks: Tracks, turning: RotationFit | None, config: GeometryConfig, known: Intrinsics | None
) -> tuple[Tracks, KeyframeMap]:
    """A first map, and the tracks that it is made of: those of a lens that does not zoom."""
    # Of several starts one may well grow into a map of what moves before a camera that rests.
    mapping = config.mapping if turning is None else replace(config.mapping, max_starts=1)
    if known is not None:
        return tracks, map_keyframes(tracks, mapping, known, is_known=True)
    keyframe_map = map_keyframes(tracks, mapping)
    is_turning = turning is not None and is_explained(turning, tracks, config.degeneracy)
    # Over a plane a step and a zoom look alike.
    if is_turning or looks_flat(keyframe_map, config.degeneracy):
        return tracks, keyframe_map
    return find_zoom(tracks, keyframe_map, mapping, config.zoom) or (tracks, keyframe_map)


def _rests(
    turning: RotationFit,
    tracks: Tracks,
    keyframe_map: KeyframeMap,
    guesses: list[float],
    config: GeometryConfig,
    *,
    is_known: bool,
) -> bool:
    """Whether a clip that turning may explain has nothing more in its map; judged without its zoom where that has been
    taken out."""
    if tracks.zoom is not None:
        again = fit_rotation(tracks, [*guesses, keyframe_map.focal_px])
        if again is None or not may_only_turn(again, tracks, config.degeneracy):
            return False
        turning = again
    if not only_turns(turning, keyframe_map, tracks, config.degeneracy):
        return False
    mapper = Mapper.of(keyframe_map, config.mapping, tracks, known_focal=is_known)
    return not travels_when_sharp(turning, mapper, tracks, config.refine, config.degeneracy)


def _resting(tracks: Tracks, times: np.ndarray, turning: RotationFit, config: GeometryConfig) -> Geometry:
    label = "zoom" if is_zooming(turning, config.degeneracy) else "pure_rotation"
    return Geometry(degeneracy=label, reconstruction=_turning(tracks, times, turning), sigma=None)


def _polish(mapper: Mapper, greys: Sequence[np.ndarray], config: RefineConfig) -> None:
    """Aligns all observations to one patch per point, finds lost points again, and adjusts, until loops
    are closed."""
    mapper.map = refine_observations(greys, mapper.map, config)
    mapper.adjust_all(max_iterations=4)
    mapper.drop_outliers()
    for _ in range(config.num_rounds):
        before = len(mapper.map.xy_px)
        mapper.map = find_again(greys, mapper.map, config)
        mapper.index()
        mapper.adjust_all(max_iterations=4)
        mapper.drop_outliers()
        if len(mapper.map.xy_px) - before < 0.01 * before:
            break
    mapper.map = refine_observations(greys, mapper.map, config)
    mapper.triangulate(np.flatnonzero(mapper.map.is_posed))
    mapper.adjust_all(max_iterations=4)
    mapper.drop_outliers()


def _conclude(
    tracks: Tracks, times: np.ndarray, mapper: Mapper, poses: FramePoses, config: GeometryConfig
) -> Geometry:
    inliers = poses.error_px < mapper.max_error_px
    registered = np.isfinite(poses.cam_from_world[:, 0, 0])
    if not registered.any() or not inliers.any():
        raise ClipRejected("geometry", "no_frame_posed", "no frame agrees with the map")
    judged = np.isfinite(poses.error_px)
    sigma = frame_sigmas(tracks, mapper, poses, config.sigma)
    reconstruction = _reconstruction(tracks, times, mapper.map, poses, inliers)
    logger.info(
        "%d of %d frames posed, focal %.1f px", registered.sum(), len(registered), mapper.map.focal_px
    )
    return Geometry(
        degeneracy=_label(mapper, invert(poses.cam_from_world[registered])[:, :, 3], sigma, config),
        reconstruction=reconstruction,
        sigma=sigma,
        reprojection_px=float(np.sqrt(np.mean(poses.error_px[inliers] ** 2))),
        num_observations=int(inliers.sum()),
        inlier_share=float(inliers.sum() / max(judged.sum(), 1)),
        parallax_deg=mapper.median_angle_deg(),
        readout_s=mapper.map.readout * float(np.median(np.diff(times))),
    )


def _label(mapper: Mapper, centres: np.ndarray, sigma: FrameSigma, config: GeometryConfig) -> str:
    """How far a path through the centres [n, 3] can be trusted."""
    reach = float(np.linalg.norm(centres - centres[0], axis=1).max())
    known = sigma.translation[np.isfinite(sigma.translation)]
    is_vague = len(known) == 0 or float(np.median(known)) > config.max_sigma_share * reach
    if is_vague or mapper.median_angle_deg() < config.low_parallax_deg:
        return "low_parallax"
    if is_distorted(mapper, config.distorted):
        return "distorted"
    if is_planar(mapper.map.points, np.median(centres, axis=0), config.degeneracy):
        return "planar"
    if looks_flat(mapper.map, config.degeneracy, sigma_px=mapper.adjusted_bundle()[0].sigma_px):
        return "planar"
    return "ok"


def _reconstruction(
    tracks: Tracks, times: np.ndarray, keyframe_map: KeyframeMap, poses: FramePoses, inliers: np.ndarray
) -> Reconstruction:
    """The map in the frame of the first registered camera; observations of keyframes only, to keep the file
    small."""
    registered = np.flatnonzero(np.isfinite(poses.cam_from_world[:, 0, 0]))
    first_from_old = poses.cam_from_world[registered[0]]
    old_from_first = invert(first_from_old)
    cam_from_world = np.full_like(poses.cam_from_world, np.nan)
    cam_from_world[registered] = compose(poses.cam_from_world[registered], old_from_first)
    is_keyframe = np.isin(poses.frame_idx, [kf.frame_idx for kf in tracks.keyframes])
    kept = np.flatnonzero(inliers & is_keyframe)
    used, point_idx = np.unique(poses.track_idx[kept], return_inverse=True)
    rgb = np.zeros((tracks.num_tracks, 3), dtype=np.uint8)
    descriptor = np.zeros((tracks.num_tracks, 32), dtype=np.uint8)
    for keyframe in tracks.keyframes:
        rgb[keyframe.track_idx] = keyframe.rgb
        descriptor[keyframe.track_idx] = keyframe.descriptors
    return Reconstruction(
        timestamps_s=times,
        cam_from_world=cam_from_world,
        intrinsics=Intrinsics(
            fxfycxcy_px=camera_of_frames(poses.focal_px, keyframe_map.centre_px, tracks),
            width=tracks.width,
            height=tracks.height,
            model=keyframe_map.model,
            distortion=tuple(float(k) for k in keyframe_map.distortion)
            if keyframe_map.model != "pinhole"
            else (),
        ),
        points_in_world=poses.points[used] @ first_from_old[:, :3].T + first_from_old[:, 3],
        point_rgb=rgb[used],
        frame_idx=poses.frame_idx[kept].astype(np.int32),
        point_idx=point_idx.astype(np.int32),
        xy_px=as_seen(poses.xy_px[kept], poses.frame_idx[kept], tracks).astype(np.float32),
        point_descriptor=descriptor[used],
    )


def _without_structure(
    tracks: Tracks, times: np.ndarray, cam_from_world: np.ndarray, fxfycxcy_px: np.ndarray
) -> Reconstruction:
    return Reconstruction(
        timestamps_s=times,
        cam_from_world=cam_from_world,
        intrinsics=Intrinsics(fxfycxcy_px=fxfycxcy_px, width=tracks.width, height=tracks.height),
        points_in_world=np.zeros((0, 3)),
        point_rgb=np.zeros((0, 3), dtype=np.uint8),
        frame_idx=np.zeros(0, dtype=np.int32),
        point_idx=np.zeros(0, dtype=np.int32),
        xy_px=np.zeros((0, 2), dtype=np.float32),
    )


def _still(tracks: Tracks, times: np.ndarray, known: Intrinsics | None) -> Reconstruction:
    """A camera at rest: every pose is the first one, which is a measurement; the focal length stays
    unknown."""
    poses = np.broadcast_to(np.eye(3, 4), (tracks.num_frames, 3, 4)).copy()
    fxfycxcy = np.full((tracks.num_frames, 4), np.nan)
    if known is not None:
        fxfycxcy[:] = known.resized(tracks.width, tracks.height).fxfycxcy_px
    return _without_structure(tracks, times, poses, fxfycxcy)


def _turning(tracks: Tracks, times: np.ndarray, fit: RotationFit) -> Reconstruction:
    """A camera that only turns: rotations of all frames about one centre, no structure."""
    num_kf = len(tracks.keyframes)
    cam_from_world = np.full((num_kf, 3, 4), np.nan)
    cam_from_world[fit.kf_idx] = np.concatenate([fit.rotation, np.zeros((len(fit.kf_idx), 3, 1))], axis=2)
    turning_map = KeyframeMap(
        cam_from_world=cam_from_world,
        points=fit.direction,
        width=tracks.width,
        height=tracks.height,
        focal_px=float(np.median(fit.focal_px)),
        centre_px=np.array([tracks.width / 2, tracks.height / 2]),
        model="pinhole",
        distortion=np.zeros(2),
        kf_idx=np.zeros(0, dtype=int),
        track_idx=np.zeros(0, dtype=int),
        xy_px=np.zeros((0, 2)),
        is_inlier=np.zeros(0, dtype=bool),
    )
    limit = 3.0 * max(tracks.width, tracks.height) / 640
    kf_frames = np.array([kf.frame_idx for kf in tracks.keyframes])[fit.kf_idx]
    focal = np.exp(np.interp(np.arange(tracks.num_frames), kf_frames, np.log(fit.focal_px)))
    poses = pose_all_frames(tracks, turning_map, max_error_px=limit, free_translation=False, focal_px=focal)
    focal = poses.focal_px
    turned = rotation_angle(fit.rotation @ fit.rotation[0].T)
    if float(np.max(turned)) < np.radians(_FOCAL_TURN_DEG):
        focal = np.full(tracks.num_frames, np.nan)
    registered = np.flatnonzero(np.isfinite(poses.cam_from_world[:, 0, 0]))
    if len(registered) == 0:
        raise ClipRejected("geometry", "no_rotation", "no frame agrees with the turning camera")
    relative = np.full_like(poses.cam_from_world, np.nan)
    relative[registered] = compose(
        poses.cam_from_world[registered], invert(poses.cam_from_world[registered[0]])
    )
    relative[registered, :, 3] = 0.0
    centre = np.broadcast_to([tracks.width / 2, tracks.height / 2], (tracks.num_frames, 2))
    fxfycxcy = np.concatenate([focal[:, None], focal[:, None], centre], axis=1)
    return _without_structure(tracks, times, relative, fxfycxcy)
