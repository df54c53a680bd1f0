"""Degeneracy: tracks in, the evidence that a camera moved out.

Two questions come before any reconstruction. Did the image move at all? And does turning the camera explain
all of it? A clip that fails either has no path to recover, and inventing one is the worst a pose tool can do.
Rotation is tested with the bundle adjustment itself, its cameras held at one centre (cf. the model selection
of Torr, GRIC, 1998: the simpler model must be refuted by the residuals).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from worldline.annotate.bundle import adjust
from worldline.annotate.bundle_problem import Bundle, BundleConfig, reprojection_errors
from worldline.annotate.camera import Intrinsics, unproject
from worldline.annotate.keyframe_map import KeyframeMap
from worldline.annotate.mapper import keyframe_observations
from worldline.annotate.threads import in_threads
from worldline.annotate.tracks import Tracks

_TRACKS_PER_KEYFRAME = 150
"""Tracks of each keyframe in the rotation fit."""
_TRACKS_OF_A_PAIR = 60
"""Fewest common tracks of two keyframes that are asked whether they lie on a plane."""
_HOPELESS = 0.35
"""Inlier share of the first rotation fit under which no other focal length is tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DegeneracyConfig:
    """Thresholds in pixels of a 640-pixel-wide image; scaled with the working size."""

    static_px: float = 1.0
    """A clip is static when the points that stand for the background never move further than this."""
    static_share: float = 0.35
    """Share of points, spread over the image, whose rest proves a still camera even if more than half of the
    image moves."""
    rotation_px: float = 0.6
    """Median residual up to which turning alone explains a clip."""
    rotation_inlier_share: float = 0.88
    """Share of observations within three times rotation_px that must agree with turning alone."""
    background_share: float = 0.5
    """Share of points that turning must explain before the others can count as moving by themselves."""
    moving_cells: float = 0.45
    """Share of the image that these others may cover at most."""
    moving_width: float = 0.6
    """Widest patch of them, as a share of the image's width: ground reaches from side to side, people do not."""
    gain_over_turning: float = 1.5
    """Factor by which a path must explain the background better than turning does (median residual)."""
    gain_over_zoom: float = 1.9
    """The same where the rotation fit zooms."""
    zoom_background_share: float = 0.62
    """Share of all points, short-lived ones too, that turning and zooming must explain to have that benefit of the
    doubt. The longest tracks, which the fit is made of, are those of the farthest things: there a step forward looks
    like a zoom."""
    gain_when_sharp: float = 1.5
    """The same on aligned observations: 0.8 to 1.15 of cameras that turn or zoom, 2 of a step of a tenth of a metre in a
    room."""
    planar_share: float = 0.95
    """Share of the points on one plane from which a clip is labelled planar: its focal length, and with it the
    path, may be another's."""
    planar_distance: float = 0.025
    """Largest distance from that plane, over the point's distance from the path."""
    flat_share: float = 0.85
    """Share of the tracks between keyframes far apart that one homography explains, in all pairs of them (of four or
    more in all but one), from which the clip is planar as well: under a wrong focal length the map of a plane is bent.
    Planes reach 0.97 in each pair, 0.9 where tracks are noisy; a walk through a room sees one wall alone in many pairs,
    and in two or more of eight no more than 0.77."""
    flat_px: float = 2.0
    """Error up to which it does."""
    relief_sigmas: float = 4.0
    """And yet it is not planar where that homography misses points by so many times the scatter of the map's residuals,"""
    relief_share: float = 0.15
    """of more than this share of the tracks in half of the pairs: aligned observations show depth that is small beside
    an image. Planes have under 0.1."""
    zoom_log_range: float = 0.04
    """Range of the log focal length over a turning clip from which it counts as zooming."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RotationFit:
    """The best explanation of the keyframes by a camera that only turns (and may zoom)."""

    kf_idx: np.ndarray
    """[k] keyframes used."""
    rotation: np.ndarray
    """[k, 3, 3] cam_from_world rotations."""
    direction: np.ndarray
    """[N, 3] rays of the tracks in world; NaN where a track was not used."""
    focal_px: np.ndarray
    """[k] of each keyframe; they differ where the camera zooms."""
    median_px: float
    inlier_share: float


def is_static(tracks: Tracks, config: DegeneracyConfig) -> bool:
    """Whether the camera stands still: the points stay where they first were, but for a minority that moves
    on its own."""
    limit = config.static_px * max(tracks.width, tracks.height) / 640
    order = np.lexsort((tracks.frame_idx, tracks.track_idx))
    track, xy = tracks.track_idx[order], tracks.xy_px[order]
    begins = np.flatnonzero(np.diff(track, prepend=-1))
    length = np.diff(np.append(begins, len(track)))
    first = np.repeat(xy[begins], length, axis=0)
    moved = np.linalg.norm(xy - first, axis=1)
    furthest = np.maximum.reduceat(moved, begins)
    lasts = length >= max(3, min(0.5 * tracks.num_frames, 30))
    if not lasts.any():
        return False
    at_rest = furthest[lasts] < limit
    if at_rest.mean() > 0.6:
        return True
    resting = xy[begins][lasts][at_rest]
    if at_rest.mean() < config.static_share or len(resting) < 20:
        return False
    # Distant points in the middle of a forward drive rest too; a still camera rests all over the image.
    hull = cv2.contourArea(cv2.convexHull(resting.astype(np.float32)))
    return hull > 0.4 * tracks.width * tracks.height


def is_planar(points: np.ndarray, centre: np.ndarray, config: DegeneracyConfig) -> bool:
    """Whether points [N, 3] lie on one plane as seen from `centre` [3], the middle of the path (RANSAC)."""
    points = points[np.isfinite(points[:, 0])] - centre
    if len(points) < 20:
        return False
    triples = points[np.random.default_rng(0).integers(0, len(points), (200, 3))]
    normal = np.cross(triples[:, 1] - triples[:, 0], triples[:, 2] - triples[:, 0])
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    normal /= np.maximum(length, 1e-12)
    offset = np.abs(points @ normal.T - np.sum(normal * triples[:, 0], axis=1))
    near = offset < config.planar_distance * np.linalg.norm(points, axis=1)[:, None]
    return bool(near.mean(axis=0)[length[:, 0] > 0].max(initial=0.0) > config.planar_share)


def looks_flat(
    keyframe_map: KeyframeMap,
    config: DegeneracyConfig,
    *,
    sigma_px: float | None = None,
    num_pairs: int = 8,
) -> bool:
    """Whether one homography takes each keyframe's inliers to the furthest keyframe that shares enough of them.
    sigma_px: scatter of the map's residuals, beside which depth shows that is small beside an image; None: not asked."""
    rows = np.flatnonzero(keyframe_map.is_inlier & keyframe_map.is_posed[keyframe_map.kf_idx])
    rows = rows[np.argsort(keyframe_map.kf_idx[rows], kind="stable")]
    num_kf = len(keyframe_map.cam_from_world)
    bounds = np.searchsorted(keyframe_map.kf_idx[rows], np.arange(num_kf + 1))
    threshold = config.flat_px * max(keyframe_map.width, keyframe_map.height) / 640
    # Without the lens's distortion, which bends a plane as well.
    rays = unproject(keyframe_map.ideal_px(rows), keyframe_map.intrinsics())
    xy_px = keyframe_map.focal_px * rays[:, :2] / rays[:, 2:]
    shares, reliefs = [], []
    for first in np.unique(np.linspace(0, max(num_kf - 2, 0), num_pairs).astype(int)):
        a = np.arange(bounds[first], bounds[first + 1])
        for second in range(num_kf - 1, first, -1):
            b = np.arange(bounds[second], bounds[second + 1])
            _, at_a, at_b = np.intersect1d(
                keyframe_map.track_idx[rows[a]], keyframe_map.track_idx[rows[b]], return_indices=True
            )
            if len(at_a) < _TRACKS_OF_A_PAIR:
                continue
            error = _off_homography(xy_px[a[at_a]], xy_px[b[at_b]], threshold)
            shares.append(float(np.mean(error < threshold)))
            if sigma_px is not None:
                reliefs.append(float(np.mean(error > config.relief_sigmas * np.sqrt(2) * sigma_px)))
            break
    if not shares or sorted(shares)[int(len(shares) >= 4)] <= config.flat_share:
        return False
    return not reliefs or float(np.median(reliefs)) <= config.relief_share


def _off_homography(xy_a: np.ndarray, xy_b: np.ndarray, threshold: float) -> np.ndarray:
    """Pixels [n] by which the homography that most agree with to within `threshold` misses xy_b; inf where there is
    none."""
    matrix, _ = cv2.findHomography(xy_a, xy_b, cv2.RANSAC, threshold)
    if matrix is None:
        return np.full(len(xy_a), np.inf)
    mapped = cv2.perspectiveTransform(xy_a[None], matrix)[0]
    return np.linalg.norm(mapped - xy_b, axis=1)


def fit_rotation(
    tracks: Tracks, focal_guesses_px: list[float], *, max_keyframes: int = 14, known_focal: bool = False
) -> RotationFit | None:
    """Fits a purely turning camera to at most `max_keyframes` keyframes; None where too few points connect
    them. With `known_focal` the guess is the focal length of all frames, else each may zoom."""
    kf_idx, track_idx, xy = keyframe_observations(tracks)
    num_kf = len(tracks.keyframes)
    chosen = np.unique(np.linspace(0, num_kf - 1, min(num_kf, max_keyframes)).round().astype(int))
    rows = np.isin(kf_idx, chosen)
    kf_idx, track_idx, xy = np.searchsorted(chosen, kf_idx[rows]), track_idx[rows], xy[rows]
    # The longest tracks carry the evidence; a few dozen a keyframe settle the question.
    seen = np.bincount(track_idx, minlength=tracks.num_tracks)
    order = np.lexsort((-seen[track_idx], kf_idx))
    rank = np.arange(len(order)) - np.searchsorted(kf_idx[order], kf_idx[order])
    is_used = np.zeros(tracks.num_tracks, dtype=bool)
    is_used[track_idx[order[rank < _TRACKS_PER_KEYFRAME]]] = True
    rows = is_used[track_idx] & (seen[track_idx] >= 2)
    kf_idx, track_idx, xy = kf_idx[rows], track_idx[rows], xy[rows]

    def fit(focal_px: float) -> RotationFit | None:
        return _fit_rotation(tracks, chosen, kf_idx, track_idx, xy, focal_px, known_focal)

    best = fit(focal_guesses_px[0])
    if best is not None and best.inlier_share < _HOPELESS:
        return best  # The focal length was free: other starts do not make a travelling camera turn.
    for each in in_threads(fit, focal_guesses_px[1:]):
        if each is not None and (best is None or each.median_px < best.median_px):
            best = each
    return best


def is_explained(fit: RotationFit, tracks: Tracks, config: DegeneracyConfig) -> bool:
    """Whether the rotation fit leaves nothing for a translation to explain."""
    limit = config.rotation_px * max(tracks.width, tracks.height) / 640
    return fit.median_px < limit and fit.inlier_share > config.rotation_inlier_share


def is_zooming(fit: RotationFit, config: DegeneracyConfig) -> bool:
    """Whether the focal length changes over the clip by more than noise makes it."""
    return float(np.ptp(np.log(fit.focal_px))) > config.zoom_log_range


def _fit_rotation(
    tracks: Tracks,
    chosen: np.ndarray,
    kf_idx: np.ndarray,
    track_idx: np.ndarray,
    xy: np.ndarray,
    focal: float,
    known_focal: bool,
) -> RotationFit | None:
    intrinsics = Intrinsics(
        fxfycxcy_px=np.array([focal, focal, tracks.width / 2, tracks.height / 2]),
        width=tracks.width,
        height=tracks.height,
    )
    rays = unproject(xy, intrinsics)
    rotation = np.zeros((len(chosen), 3, 3))
    rotation[0] = np.eye(3)
    direction = np.full((tracks.num_tracks, 3), np.nan)
    zoom = np.ones(len(chosen))
    for kf in range(len(chosen)):
        at = np.flatnonzero(kf_idx == kf)
        if kf > 0:
            known = at[np.isfinite(direction[track_idx[at], 0])]
            if len(known) < 12:
                return None
            if known_focal:
                rotation[kf] = _align_rays(rays[known], direction[track_idx[known]])
            else:
                rotation[kf], zoom[kf] = _align_zoomed(rays[known], direction[track_idx[known]])
            at_focal = rays[at] * [1 / zoom[kf], 1 / zoom[kf], 1]
            rays[at] = at_focal / np.linalg.norm(at_focal, axis=1, keepdims=True)
        fresh = at[~np.isfinite(direction[track_idx[at], 0])]
        direction[track_idx[fresh]] = rays[fresh] @ rotation[kf]
    used, point_idx = np.unique(track_idx, return_inverse=True)
    bundle = Bundle(
        cam_from_world=np.concatenate([rotation, np.zeros((len(chosen), 3, 1))], axis=2),
        points_in_world=direction[used],
        cam_idx=kf_idx,
        point_idx=point_idx,
        xy_px=xy,
        focal_px=focal * zoom,
        centre_px=np.array([tracks.width / 2, tracks.height / 2]),
        sigma_px=0.5,
    )
    config = BundleConfig(
        free_translation=False, free_focal=not known_focal, max_iterations=8, relative_tolerance=1e-3
    )
    bundle = adjust(bundle, config)
    if not known_focal:
        bundle = adjust(
            bundle, replace(config, free_focal=False, free_camera_focal=True, focal_step_sigma=0.1)
        )
    error = reprojection_errors(bundle)
    limit = 3 * 0.6 * max(tracks.width, tracks.height) / 640
    return RotationFit(
        kf_idx=chosen,
        rotation=bundle.cam_from_world[:, :, :3],
        direction=_scatter(bundle.points_in_world, used, tracks.num_tracks),
        focal_px=bundle.focal_px,
        median_px=float(np.median(error)),
        inlier_share=float(np.mean(error < limit)),
    )


def _align_zoomed(rays_in_cam: np.ndarray, rays_in_world: np.ndarray) -> tuple[np.ndarray, float]:
    """cam_from_world rotation between two sets of rays, and the factor by which the camera's focal length
    exceeds the one that its rays were computed with."""
    zoom, rotation = 1.0, np.eye(3)
    for _ in range(4):
        flattened = rays_in_cam * [1 / zoom, 1 / zoom, 1]
        rotation = _align_rays(flattened / np.linalg.norm(flattened, axis=1, keepdims=True), rays_in_world)
        turned = rays_in_world @ rotation.T
        seen, expected = rays_in_cam[:, :2] / rays_in_cam[:, 2:], turned[:, :2] / turned[:, 2:]
        radius2 = np.sum(expected**2, axis=1)
        outer = (radius2 > np.quantile(radius2, 0.3)) & (turned[:, 2] > 0.1)
        if outer.sum() < 6:
            break
        zoom = float(np.median(np.sum(seen * expected, axis=1)[outer] / radius2[outer]))
    return rotation, float(np.clip(zoom, 0.2, 5.0))


def _scatter(points: np.ndarray, at: np.ndarray, count: int) -> np.ndarray:
    full = np.full((count, 3), np.nan)
    full[at] = points
    return full


def _align_rays(rays_in_cam: np.ndarray, rays_in_world: np.ndarray) -> np.ndarray:
    """cam_from_world rotation that turns one set of rays onto the other (Kabsch), re-weighted against
    outliers."""
    weight = np.ones(len(rays_in_cam))
    rotation = np.eye(3)
    for _ in range(5):
        u, _, vt = np.linalg.svd((rays_in_cam * weight[:, None]).T @ rays_in_world)
        rotation = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
        error = np.linalg.norm(rays_in_cam - rays_in_world @ rotation.T, axis=1)
        scale = max(float(np.median(error)), 1e-5)
        weight = 1 / (1 + (error / (2 * scale)) ** 2)
    return rotation
