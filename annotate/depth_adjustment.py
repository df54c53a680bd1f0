"""A keyframe map and depth maps of its keyframes in, the map adjusted to both out, with the scale they agree
on.

Every depth measurement is one more residual of the bundle adjustment: log of the measured depth against log
of the point's depth plus a scale of the keyframe's own, which keeps near the scale that all keyframes share.
So depth moves the poses: where rays hardly cross it says how far the points are, and a drift of the path's
unit along the clip meets resistance. Depth fitted to a finished path could do neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from worldline.annotate.bundle import adjust
from worldline.annotate.bundle_problem import (
    Bundle,
    BundleConfig,
    DepthObservations,
    linearise,
    scatter,
)
from worldline.annotate.camera import Intrinsics
from worldline.annotate.depth import DepthKind, DepthMap
from worldline.annotate.depth_samples import DepthSamplesConfig, sample_depth
from worldline.annotate.mapper import Mapper
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.scale_cues import Cue, median_error
from worldline.annotate.tracks import Tracks

_MIN_POINTS, _MIN_KEYFRAMES = 5, 2
"""Fewer depth measurements in a keyframe, or keyframes with any, say nothing that can be checked."""
_NARROWEST = 0.1
"""Depth is believed to be better than stated by this factor at most."""
_FREE_SCALE = 10.0
"""Spread of the log scales of maps that have no common unit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthAdjustmentConfig:
    """How far depth is trusted against the images."""

    samples: DepthSamplesConfig = field(default_factory=DepthSamplesConfig)
    """How depth is read at the observations, and its sigma within a frame."""
    scale_sigma: float = 0.05
    """1-sigma of a keyframe's log scale around the clip's; networks flicker by a few percent."""
    independent_per_frame: float = 25.0
    """Errors of neighbouring pixels are alike: a frame's measurements count as no more than this many."""
    max_frames: int = 100
    """Keyframes with depth, evenly spread; bounds the cost of a network."""
    max_iterations: int = 12

    def __post_init__(self) -> None:
        if not self.scale_sigma > 0 or not self.independent_per_frame > 0:
            raise ValueError("scale_sigma and independent_per_frame must be positive")
        if self.max_frames < 3 or self.max_iterations < 1:
            raise ValueError("max_frames must be at least 3 and max_iterations at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthAdjustment:
    """What depth said about the map. K keyframes with depth measurements."""

    kind: DepthKind
    frame_idx: np.ndarray
    """[K] frames of the clip."""
    log_scale: np.ndarray
    """[K] log of (measured depth / depth in the map's unit)."""
    num_residuals: int
    residual_log: float
    """Rms of the measurements' log residuals; robust, so that depth edges do not count."""

    @property
    def scale_variation(self) -> float:
        """Standard deviation of the keyframes' scales over their mean."""
        scale = np.exp(self.log_scale - np.median(self.log_scale))
        return float(np.std(scale) / np.mean(scale))

    def cue(self, name: str, sigma: float) -> Cue | None:
        """The metric scale as a cue, with the doubt `sigma` that all maps share; None where they are not in
        metres."""
        if self.kind is not DepthKind.METRIC or len(self.log_scale) < _MIN_KEYFRAMES:
            return None
        scatter = median_error(self.log_scale)
        detail = (
            f"{len(self.log_scale)} keyframes in the adjustment, scale varies by "
            f"{100 * self.scale_variation:.2g} %, stated {100 * sigma:g} %"
        )
        return Cue(
            name=name,
            log_scale=float(np.median(self.log_scale)),
            sigma=math.hypot(sigma, scatter),
            detail=detail,
        )


def keyframes_for_depth(mapper: Mapper, tracks: Tracks, config: DepthAdjustmentConfig) -> list[int]:
    """Frames of the clip whose depth is wanted: posed keyframes, thinned evenly to `max_frames`."""
    frames = _kf_frames(tracks)[np.flatnonzero(mapper.map.is_posed)]
    if len(frames) > config.max_frames:
        frames = frames[np.linspace(0, len(frames) - 1, config.max_frames).round().astype(int)]
    return [int(frame) for frame in frames]


def adjust_with_depth(
    mapper: Mapper, tracks: Tracks, maps: Iterable[DepthMap], config: DepthAdjustmentConfig
) -> DepthAdjustment | None:
    """Adjusts the mapper's map to its observations and to depth maps of its keyframes together.

    Maps in the unit of the trajectory were made from the map itself and say nothing new: they raise
    ValueError. None, and the map untouched, where fewer than two keyframes have usable depth.
    """
    use = mapper.map
    rows = np.flatnonzero(
        use.is_inlier & use.is_posed[use.kf_idx] & np.isfinite(use.points[use.track_idx, 0])
    )
    bundle, (keyframes, track_idx) = mapper.bundle(rows)
    kinds: list[DepthKind] = []
    samples = sample_depth(_noted(maps, kinds), keyframe_reconstruction(mapper, tracks, rows), config.samples)
    measured = np.flatnonzero(np.isfinite(samples.z) & (samples.z > 0))
    cam = bundle.cam_idx[measured]
    count = np.bincount(cam, minlength=len(keyframes))
    if (count >= _MIN_POINTS).sum() < _MIN_KEYFRAMES:
        return None
    measured = measured[count[cam] >= _MIN_POINTS]
    cam = bundle.cam_idx[measured]
    weaker = np.sqrt(np.maximum(1.0, count / config.independent_per_frame))
    depth = DepthObservations(
        obs_idx=measured,
        log_depth=np.log(samples.z[measured]),
        sigma=samples.sigma_log[measured] * weaker[cam],
        scale_step_sigma=config.scale_sigma if kinds[0] is DepthKind.METRIC else _FREE_SCALE,
    )
    bundle = replace(bundle, depth=depth, sigma_px=scatter(bundle))
    solved = adjust(bundle, _bundle_config(mapper, config))
    residual_log = _residual_log(solved)
    # Depth better than its stated noise is worth more, and only a narrow loss keeps the points at outlines,
    # whose measured depth is that of what lies behind them, from biasing the scale.
    narrower = max(residual_log / float(np.median(samples.sigma_log[measured])), _NARROWEST)
    if narrower < 1:
        depth = replace(depth, sigma=depth.sigma * narrower)
        solved = adjust(replace(solved, depth=depth), _bundle_config(mapper, config))
        residual_log = _residual_log(solved)
    mapper.take(solved, keyframes, track_idx)
    mapper.drop_outliers()
    with_depth = np.flatnonzero(np.bincount(cam, minlength=len(keyframes)) > 0)
    assert solved.log_depth_scale is not None
    return DepthAdjustment(
        kind=kinds[0],
        frame_idx=_kf_frames(tracks)[keyframes[with_depth]],
        log_scale=solved.log_depth_scale[with_depth],
        num_residuals=len(measured),
        residual_log=residual_log,
    )


def _residual_log(solved: Bundle) -> float:
    """Robust rms of the log depth residuals."""
    assert solved.depth is not None
    residual = linearise(solved, BundleConfig())["depth_residual"] * solved.depth.sigma
    return 1.4826 * float(np.median(np.abs(residual)))


def keyframe_reconstruction(mapper: Mapper, tracks: Tracks, rows: np.ndarray) -> Reconstruction:
    """The map as a reconstruction of the whole clip in which only keyframes have a pose, with the
    observations `rows` in their order."""
    use = mapper.map
    frames = _kf_frames(tracks)
    cam_from_world = np.full((tracks.num_frames, 3, 4), np.nan)
    cam_from_world[frames] = use.cam_from_world
    one = use.intrinsics()
    return Reconstruction(
        timestamps_s=np.arange(tracks.num_frames, dtype=np.float64),
        cam_from_world=cam_from_world,
        intrinsics=Intrinsics(
            fxfycxcy_px=np.tile(one.fxfycxcy_px, (tracks.num_frames, 1)),
            width=one.width,
            height=one.height,
            model=one.model,
            distortion=one.distortion,
        ),
        points_in_world=use.points,
        point_rgb=np.zeros((len(use.points), 3), np.uint8),
        frame_idx=frames[use.kf_idx[rows]].astype(np.int32),
        point_idx=use.track_idx[rows].astype(np.int32),
        xy_px=use.xy_px[rows].astype(np.float32),
    )


def _noted(maps: Iterable[DepthMap], kinds: list[DepthKind]) -> Iterable[DepthMap]:
    for one in maps:
        if one.kind is DepthKind.TRAJECTORY:
            raise ValueError("depth made from the trajectory itself cannot correct it")
        kinds.append(one.kind)
        yield one


def _kf_frames(tracks: Tracks) -> np.ndarray:
    return np.array([keyframe.frame_idx for keyframe in tracks.keyframes])


def _bundle_config(mapper: Mapper, config: DepthAdjustmentConfig) -> BundleConfig:
    """Free is what the map's own adjustment leaves free."""
    return mapper.camera_config(max_iterations=config.max_iterations)
