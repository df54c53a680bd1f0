"""Single cues to the metric scale: known heights, poses, baselines and depth in, log-scale with its sigma
out.

Each cue compares one length of the reconstruction with the same length in metres. `log_scale` is ln(metres
per unit of the reconstruction), `sigma` its standard deviation: both the scatter of the measurement and the
doubt about the known length. A cue that cannot be measured is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import gammaincinv

from worldline.annotate.camera import invert, project, transform, umeyama
from worldline.annotate.ground import Ground
from worldline.annotate.reconstruction import Reconstruction

DepthMaps = Callable[[int], "tuple[np.ndarray, np.ndarray | None] | None"]
"""Frame index -> (z_m [h, w] metres along the camera's z axis, 0 or NaN where unknown; confidence [h, w] >= 0
or None), at any size with the frame's aspect; None where the frame has no depth."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cue:
    """One measurement of the metric scale."""

    name: str
    log_scale: float
    """ln(metres per unit of the reconstruction)."""
    sigma: float
    """Standard deviation of log_scale, which is the relative error of the scale."""
    detail: str = ""
    is_used: bool = True
    """Whether the fusion believed it (`annotate/scale.py`)."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.log_scale) and math.isfinite(self.sigma) and self.sigma > 0):
            raise ValueError(
                f"cue {self.name}: log_scale {self.log_scale}, sigma {self.sigma} must be finite, sigma > 0"
            )


def camera_height_cue(
    ground: Ground, height_m: float, sigma_m: float, *, about: str, focal_sigma: float = 0.0
) -> Cue:
    """A camera that is known to be `height_m` +- `sigma_m` above the ground; `about` names who says so.

    focal_sigma: relative error of the focal length. A camera that moves ahead sees the ground at an angle of
    height over distance, so the height in units of the path errs by as much as the focal length.
    """
    sigma = math.hypot(sigma_m / height_m, ground.log_height_sigma, focal_sigma)
    detail = (
        f"{about} {height_m:g} +- {sigma_m:g} m over {ground.method} ground at {len(ground.height)} places, "
        f"height {ground.median_height:.4g} units +- {100 * ground.log_height_sigma:.1f} %, "
        f"focal length +- {100 * focal_sigma:.1f} %"
    )
    log_scale = math.log(height_m / ground.median_height)
    return Cue(name="camera_height", log_scale=log_scale, sigma=sigma, detail=detail)


def known_poses_cue(
    reconstruction: Reconstruction,
    known_world_from_cam: np.ndarray,
    *,
    sigma: float = 0.002,
    inlier_share: float = 0.8,
) -> Cue | None:
    """Known metric poses [T, 3, 4] (NaN where unknown): Sim(3) of the camera centres with the best 80 %
    (SANA-WM Sec. 4).

    sigma: relative doubt about the known poses' own unit. None with fewer than 3 common frames or without
    extent.
    """
    has_both = reconstruction.is_registered & np.isfinite(known_world_from_cam).all(axis=(1, 2))
    if has_both.sum() < 3:
        return None
    known = known_world_from_cam[has_both][:, :, 3]
    ours = invert(reconstruction.cam_from_world[has_both])[:, :, 3]
    if not np.ptp(ours, axis=0).max() > 0 or not np.ptp(known, axis=0).max() > 0:
        return None
    keep = np.ones(len(ours), dtype=bool)
    for _ in range(5):
        known_from_ours = umeyama(known[keep], ours[keep])
        error = np.linalg.norm(known_from_ours.points(ours) - known, axis=1)
        new_keep = error <= np.quantile(error, inlier_share)
        if (new_keep == keep).all():
            break
        keep = new_keep
    # d(log scale) of a least-squares fit: residual per axis over the root sum of squared extents. The best 80
    # % alone would understate the residual, so its size comes from their quantile, which for Gaussian errors
    # is known.
    residual = known - known_from_ours.points(ours)
    # The chi distribution's quantile for three axes; scipy.stats takes a second to import in every worker.
    usual = math.sqrt(2 * float(gammaincinv(1.5, inlier_share)))
    deviation = float(np.quantile(error, inlier_share)) / usual  # per axis
    extent = float(np.sum((known[keep] - known[keep].mean(axis=0)) ** 2))
    independent = _num_independent(residual[keep])
    # The similarity itself takes 7 of the residuals' freedoms, and choosing the best wastes about their
    # share.
    freedom = 3 * independent / max(3 * independent - 7, 1.0)
    deviation *= math.sqrt(freedom) / inlier_share
    fit_sigma = deviation / math.sqrt(max(extent * independent / int(keep.sum()), 1e-300))
    detail = f"{int(keep.sum())} of {int(has_both.sum())} poses, deviation {deviation:.3g} m an axis"
    if not known_from_ours.scale > 0:
        return None
    return Cue(
        name="known_poses",
        log_scale=math.log(known_from_ours.scale),
        sigma=math.hypot(sigma, fit_sigma),
        detail=detail,
    )


def baseline_cue(
    cam_from_world: np.ndarray, partner_cam_from_world: np.ndarray, baseline_m: float, *, sigma_m: float
) -> Cue | None:
    """Two cameras on one rig, both [T, 3, 4] in one reconstruction: the distance of their centres is
    `baseline_m`.

    NaN where a camera has no pose; None with fewer than 3 frames posed in both.
    """
    distance = np.linalg.norm(
        invert(cam_from_world)[:, :, 3] - invert(partner_cam_from_world)[:, :, 3], axis=1
    )
    distance = distance[np.isfinite(distance) & (distance > 0)]
    if len(distance) < 3:
        return None
    log_distance = np.log(distance)
    sigma = math.hypot(sigma_m / baseline_m, median_error(log_distance))
    return Cue(
        name="baseline",
        log_scale=math.log(baseline_m) - float(np.median(log_distance)),
        sigma=max(sigma, 1e-4),
        detail=f"{baseline_m:g} +- {sigma_m:g} m at {len(distance)} frames",
    )


def depth_cue(
    reconstruction: Reconstruction,
    depth_maps: DepthMaps,
    *,
    sigma: float,
    max_frames: int = 40,
    min_points: int = 15,
    candidates: np.ndarray | None = None,
) -> Cue | None:
    """Metric depth maps against the depth of the sparse points, by the weighted closed form of `depth_ratio`,
    per frame.

    sigma: the maps' own relative doubt that all frames share (a sensor 0.01, a network 0.05 to 0.15). Up to
    `max_frames` frames are asked for, evenly spread over those with observations, or over the posed ones of
    `candidates` [T] bool; a candidate without observations of its own is compared at the points seen in the
    frames with observations before and after it. None with fewer than 3 frames of `min_points` comparable
    points.
    """
    count = np.bincount(reconstruction.frame_idx, minlength=len(reconstruction.timestamps_s))
    posed = np.flatnonzero(
        reconstruction.is_registered & (count >= min_points if candidates is None else candidates)
    )
    asked = (
        posed[np.linspace(0, len(posed) - 1, min(max_frames, len(posed))).astype(int)]
        if len(posed)
        else posed
    )
    log_ratios = []
    for frame in np.unique(asked):
        maps = depth_maps(int(frame))
        if maps is None:
            continue
        ratio = frame_ratio(reconstruction, int(frame), *maps, min_points=min_points)
        if ratio is not None:
            log_ratios.append(math.log(ratio))
    if len(log_ratios) < 3:
        return None
    values = np.array(log_ratios)
    scatter = median_error(values)
    return Cue(
        name="depth",
        log_scale=float(np.median(values)),
        sigma=math.hypot(sigma, scatter),
        detail=f"{len(values)} frames, scatter {100 * float(np.std(values)):.1f} %, stated {100 * sigma:g} %",
    )


def frame_ratio(
    reconstruction: Reconstruction,
    frame: int,
    z: np.ndarray,
    confidence: np.ndarray | None,
    *,
    min_points: int = 15,
) -> float | None:
    """How many of the map's units one unit of the reconstruction is, by the map z [h, w] of one frame; None
    with fewer than `min_points` comparable points."""
    reconstructed, measured, weight = _depth_pairs(reconstruction, frame, z, confidence)
    return None if len(measured) < min_points else depth_ratio(reconstructed, measured, weight)


def depth_ratio(reconstructed: np.ndarray, metric: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Metres per unit from paired depths [N]: argmin_s sum w (s d - m)^2 with w = weight / d (SANA-WM Sec.
    4), made robust.

    With w = 1 / d the closed form is s = sum m / sum d. Pairs whose ratio is off the median by over 3 scaled
    MAD are left out first, since depths across an outline differ by any factor.
    """
    log_ratio = np.log(metric / reconstructed)
    middle = np.median(log_ratio)
    spread = 1.4826 * np.median(np.abs(log_ratio - middle))
    keep = np.abs(log_ratio - middle) <= 3 * spread + 1e-9
    weight = np.ones(len(metric)) if weight is None else weight
    return float((weight * metric)[keep].sum() / (weight * reconstructed)[keep].sum())


def smoothed_ratios(ratios: np.ndarray, *, momentum: float = 0.99) -> np.ndarray:
    """Exponential moving average over frames [T] -> [T], started at the first value; NaN frames keep the last
    average."""
    smoothed = np.full(len(ratios), np.nan)
    average = math.nan
    for i, ratio in enumerate(ratios):
        if math.isfinite(ratio):
            average = (
                float(ratio) if math.isnan(average) else momentum * average + (1 - momentum) * float(ratio)
            )
        smoothed[i] = average
    return smoothed


def _depth_pairs(
    reconstruction: Reconstruction, frame: int, z_m: np.ndarray, confidence: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sparse depth [N], metric depth [N] and weight [N] at the frame's observations."""
    points, xy_px = _points_seen(reconstruction, frame)
    sparse = transform(reconstruction.cam_from_world[frame], points)[:, 2]
    height, width = z_m.shape
    size = np.array([reconstruction.intrinsics.width, reconstruction.intrinsics.height])
    pixel = np.floor(np.nan_to_num(xy_px, nan=-1e6) / size * [width, height]).astype(int)
    is_inside = (pixel >= 0).all(axis=1) & (pixel[:, 0] < width) & (pixel[:, 1] < height)
    x, y = pixel[is_inside].T
    sparse, metric = sparse[is_inside], z_m[y, x].astype(np.float64)
    weight = np.ones(len(metric)) if confidence is None else confidence[y, x].astype(np.float64)
    valid = np.isfinite(metric) & (metric > 0) & np.isfinite(sparse) & (sparse > 0) & (weight > 0)
    return sparse[valid], metric[valid], weight[valid]


def _points_seen(reconstruction: Reconstruction, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] that a frame sees and their pixels [N, 2]: as observed, or, in a frame without
    observations, projected if both the frame with observations before and the one after see them."""
    is_here = reconstruction.frame_idx == frame
    if is_here.any():
        return reconstruction.points_in_world[reconstruction.point_idx[is_here]], reconstruction.xy_px[
            is_here
        ]
    observed = np.unique(reconstruction.frame_idx)
    after = int(np.searchsorted(observed, frame))
    if after == 0 or after == len(observed):
        return np.zeros((0, 3)), np.zeros((0, 2))
    beside = [
        reconstruction.point_idx[reconstruction.frame_idx == f]
        for f in (observed[after - 1], observed[after])
    ]
    points = reconstruction.points_in_world[np.intersect1d(*beside)]
    camera = replace(
        reconstruction.intrinsics, fxfycxcy_px=np.asarray(reconstruction.intrinsics.fxfycxcy_px[frame])
    )
    return points, project(transform(reconstruction.cam_from_world[frame], points), camera)


def median_error(values: np.ndarray) -> float:
    """Standard error of the median of values [N] in order of time."""
    scatter = 1.4826 * float(np.median(np.abs(values - np.median(values))))
    return 1.25 * scatter / math.sqrt(_num_independent(values[:, None]))


def _num_independent(values: np.ndarray) -> float:
    """How many independent samples values [N, C] in order of time are worth: N over the autocorrelation time.

    The sum over lags stops where the correlation fades into its own noise.
    """
    count = len(values)
    centred = values - values.mean(axis=0)
    power = float((centred**2).sum())
    if count < 3 or not power > 0:
        return float(count)
    time = 1.0
    for lag in range(1, count // 2):
        correlation = float((centred[lag:] * centred[:-lag]).sum()) / power
        if correlation < 2 / math.sqrt(count * values.shape[1]):
            break
        time += 2 * correlation
    return max(1.0, count / time)
