"""Zoom: tracks and a keyframe map under one focal length in, the tracks of a lens that does not zoom out, where the
residuals demand it.

A zoom scales a frame about its principal point, so once it is known it can be taken out: pixels and keyframe images
scaled back are those of a fixed lens, and everything after is as for any other clip; what is stored is scaled again. It is
found by the bundle adjustment with a focal length for each keyframe. Steps forward look like a zoom of what is far, so
a zoom must both change the focal length and lower the cost by more than a fixed lens ever gains (model comparison).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from worldline.annotate.bundle import adjust
from worldline.annotate.bundle_problem import Bundle, BundleConfig, scatter
from worldline.annotate.keyframe_map import CameraFreedom, KeyframeMap
from worldline.annotate.mapper import Mapper, MappingConfig
from worldline.annotate.mapping import map_keyframes
from worldline.annotate.tracks import Tracks

_LENS_SIGMA = (0.1, 1e-4)
"""1-sigma of the distortion while the zoom is measured."""
_SETTLED_LOG, _SETTLED_GAIN = 0.003, 0.003
"""Change of the log focal lengths, and what it gains, under which another round finds nothing new."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ZoomConfig:
    """When a zoom of a travelling camera is believed."""

    min_gain: float = 0.04
    """A focal length for each keyframe must lower the robust cost by this share. With a range over `min_log_range` clips
    of fixed lenses gain up to 2.5 %, zooms by 15 % or more 8 % to 60 %, but those straight ahead as little as 2 %."""
    min_log_range: float = 0.03
    """Range of the log focal length over the clip from which it counts."""
    num_tracks: int = 300
    """Longest tracks that are asked."""
    max_rounds: int = 10
    """Maps made, each from the tracks that the last one's zoom leaves."""
    step_sigma: float = 0.05
    """Prior 1-sigma of the change of log focal length from one keyframe to the next."""


def without_zoom(tracks: Tracks, zoom: np.ndarray) -> Tracks:
    """The tracks and keyframe images that a fixed lens would have given. zoom [T]: the factor by which each frame is
    magnified over that lens, on top of what has been taken out before."""
    grey_of = []
    for keyframe in tracks.keyframes:
        scale = 1 / float(zoom[keyframe.frame_idx])
        # OpenCV counts pixels from the first one's centre.
        centre = np.array([tracks.width, tracks.height]) / 2 - 0.5
        matrix = np.concatenate([np.eye(2) * scale, (centre * (1 - scale))[:, None]], axis=1)
        grey_of.append(cv2.warpAffine(keyframe.grey, matrix, (tracks.width, tracks.height)))
    before = np.ones(tracks.num_frames) if tracks.zoom is None else tracks.zoom
    return replace(
        tracks,
        xy_px=_scaled(tracks.xy_px, 1 / zoom[tracks.frame_idx], tracks).astype(np.float32),
        keyframes=tuple(replace(kf, grey=grey) for kf, grey in zip(tracks.keyframes, grey_of, strict=True)),
        zoom=before * zoom,
    )


def as_seen(xy_px: np.ndarray, frame_idx: np.ndarray, tracks: Tracks) -> np.ndarray:
    """Pixels [n, 2] of a clip's fixed lens where the frames [n] really show them."""
    return xy_px if tracks.zoom is None else _scaled(xy_px, tracks.zoom[frame_idx], tracks)


def camera_of_frames(focal_px: np.ndarray, centre_px: np.ndarray, tracks: Tracks) -> np.ndarray:
    """[T, 4] (fx, fy, cx, cy) with which the frames were really taken, from the focal lengths [T] and the centre [2] of
    what is left without the zoom."""
    if tracks.zoom is not None:
        focal_px = focal_px * tracks.zoom
    frames = np.arange(tracks.num_frames)
    centre = as_seen(np.broadcast_to(centre_px, (tracks.num_frames, 2)), frames, tracks)
    return np.concatenate([focal_px[:, None], focal_px[:, None], centre], axis=1)


def find_zoom(
    tracks: Tracks, keyframe_map: KeyframeMap, mapping: MappingConfig, config: ZoomConfig
) -> tuple[Tracks, KeyframeMap] | None:
    """The tracks without their zoom and the map that they give; None where there is none to be seen, or none on which
    round after round agrees: then it is something else that a fixed lens does not explain. Raises ClipRejected where what
    a zoom leaves cannot be mapped."""
    fixed = keyframe_map
    # A bent lens must not pass for a zoom, so the lens may first be as bent as it likes.
    found = _focal_lengths(tracks, keyframe_map, mapping, config, lens_sigma=(0.0, 0.0))
    if found is None or found[1] < config.min_gain or np.ptp(found[0]) < config.min_log_range:
        return None
    for _ in range(config.max_rounds):
        found = _focal_lengths(tracks, keyframe_map, mapping, config, lens_sigma=_LENS_SIGMA)
        if found is None:
            return None
        log_focal, gain = found
        log_range = float(np.ptp(log_focal))
        if log_range < _SETTLED_LOG and gain < _SETTLED_GAIN:
            is_zoom = tracks.zoom is not None and np.ptp(np.log(tracks.zoom)) > config.min_log_range
            is_whole = bool((keyframe_map.is_posed | ~fixed.is_posed).all())
            return (tracks, keyframe_map) if is_zoom and is_whole else None
        tracks = without_zoom(tracks, np.exp(log_focal - log_focal.min()))
        keyframe_map = map_keyframes(tracks, mapping)
    return None


def refine_zoom(mapper: Mapper, tracks: Tracks, config: ZoomConfig) -> Tracks:
    """Adjusts the finished map of a clip that zooms once more with a focal length for each keyframe, which is then taken
    out of the map's observations and of the tracks."""
    bundle, (keyframes, track_idx) = mapper.bundle(mapper.rows())
    settings = mapper.camera_config(max_iterations=15, relative_tolerance=1e-5)
    solved = adjust(replace(bundle, sigma_px=scatter(bundle)), _freed(settings, config))
    log_focal = _of_frames(np.log(solved.focal_px), keyframes, tracks)
    zoom = np.exp(log_focal - log_focal.min())
    frame_idx = np.array([keyframe.frame_idx for keyframe in tracks.keyframes])[mapper.map.kf_idx]
    mapper.map.xy_px = _scaled(mapper.map.xy_px, 1 / zoom[frame_idx], tracks)
    fixed = np.full_like(solved.focal_px, np.exp(log_focal.min()))
    mapper.take(replace(solved, focal_px=fixed), keyframes, track_idx)
    mapper.freedom = replace(mapper.freedom, zoom_step_sigma=config.step_sigma)
    mapper.drop_outliers()
    return without_zoom(tracks, zoom)


def _focal_lengths(
    tracks: Tracks,
    keyframe_map: KeyframeMap,
    mapping: MappingConfig,
    config: ZoomConfig,
    *,
    lens_sigma: tuple[float, float],
) -> tuple[np.ndarray, float] | None:
    """Log focal length of every frame [T] where each keyframe has its own, and by which share that lowers the robust
    cost; None where there is no map to ask."""
    if keyframe_map.model == "pinhole":
        keyframe_map = replace(keyframe_map, model="radial")
    mapper = Mapper.of(keyframe_map, mapping, tracks, known_focal=False)
    mapper.freedom = CameraFreedom(distortion_sigma=lens_sigma)
    rows = mapper.longest_tracks(config.num_tracks)
    if mapper.map.is_posed.sum() < 3 or len(rows) == 0:
        return None
    bundle, (keyframes, _) = mapper.bundle(rows)
    settings = mapper.camera_config(max_iterations=20, relative_tolerance=1e-4)
    held = adjust(replace(bundle, sigma_px=scatter(bundle)), settings)
    solved: Bundle = adjust(held, _freed(settings, config))
    return _of_frames(np.log(solved.focal_px), keyframes, tracks), 1 - solved.cost / held.cost


def _freed(settings: BundleConfig, config: ZoomConfig) -> BundleConfig:
    return replace(settings, free_focal=False, free_camera_focal=True, focal_step_sigma=config.step_sigma)


def _of_frames(values: np.ndarray, keyframes: np.ndarray, tracks: Tracks) -> np.ndarray:
    """[T] from values at keyframes, straight between them."""
    frames = np.array([keyframe.frame_idx for keyframe in tracks.keyframes])[keyframes]
    return np.interp(np.arange(tracks.num_frames), frames, values)


def _scaled(xy_px: np.ndarray, factor: np.ndarray, tracks: Tracks) -> np.ndarray:
    """Pixels [n, 2] moved from the image's centre by a factor [n] each."""
    centre = np.array([tracks.width, tracks.height]) / 2
    return (xy_px - centre) * factor[:, None] + centre
