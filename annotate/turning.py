"""Turning or travelling: a rotation fit and a keyframe map of one clip in, the verdict out.

A camera that only turns can always be given a path: its background goes to infinity and whatever moves by itself
becomes the near structure that the path is made of. A camera that travels in front of a wall or far from
everything, on the other hand, is nearly explained by turning and zooming. Both are told apart by what the map does
to the points that turning explains: where the camera travels, the map places them and explains them clearly
better; where it only turns, they stay without depth or gain nothing. Tracks are good to a fifth of a pixel, aligned
observations to a twentieth, so a clip that seems to turn has a second hearing on those.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace

import cv2
import numpy as np

from worldline.annotate.bundle import adjust
from worldline.annotate.bundle_problem import Bundle, BundleConfig, reprojection_errors, scatter
from worldline.annotate.degeneracy import DegeneracyConfig, RotationFit, is_explained, is_zooming
from worldline.annotate.keyframe_map import KeyframeMap
from worldline.annotate.mapper import Mapper, keyframe_observations
from worldline.annotate.refine import RefineConfig, refine_observations
from worldline.annotate.tracks import Tracks
from worldline.datasets.schema import ClipRejected

_CELLS = (12, 8)
"""Columns and rows of the grid on which the spread of points over the image is counted."""
_ROUNDS, _FEWEST_SHARP = 2, 200
"""Alignments of the second hearing, each after an adjustment, and the observations that it is not held without."""


@dataclass(frozen=True, slots=True)
class _Evidence:
    """Observations that the rotation fit speaks of."""

    kf_idx: np.ndarray
    track_idx: np.ndarray
    xy_px: np.ndarray
    error_px: np.ndarray
    """[M] of the rotation fit."""
    is_inlier: np.ndarray
    """[M]"""
    is_background: np.ndarray
    """[N] tracks that turning explains over most of their life."""


def may_only_turn(fit: RotationFit, tracks: Tracks, config: DegeneracyConfig) -> bool:
    """Whether turning explains the clip but for things that could be moving: most of the points, over most of the
    image, the rest in patches that are not as wide as the image."""
    if is_explained(fit, tracks, config):
        return True
    evidence = _evidence(fit, tracks, config)
    seen = np.unique(evidence.track_idx)
    if len(seen) == 0 or evidence.is_background[seen].mean() < config.background_share:
        return False
    shares, widths = [], []
    size = np.array([tracks.width, tracks.height])
    for kf in np.unique(evidence.kf_idx):
        rows = evidence.kf_idx == kf
        cell = np.clip((evidence.xy_px[rows] / size * _CELLS).astype(int), 0, np.array(_CELLS) - 1)
        total, off = np.zeros(_CELLS[::-1]), np.zeros(_CELLS[::-1])
        np.add.at(total, (cell[:, 1], cell[:, 0]), 1)
        np.add.at(off, (cell[:, 1], cell[:, 0]), ~evidence.is_inlier[rows])
        is_off = (off > 0.5 * total).astype(np.uint8)
        stats = cv2.connectedComponentsWithStats(is_off, connectivity=8)[2][1:]
        shares.append(is_off.sum() / np.count_nonzero(total))
        widths.append(max(stats[:, cv2.CC_STAT_WIDTH], default=0) / _CELLS[0])
    return bool(np.mean(shares) < config.moving_cells and np.mean(widths) < config.moving_width)


def only_turns(fit: RotationFit, keyframe_map: KeyframeMap, tracks: Tracks, config: DegeneracyConfig) -> bool:
    """Whether the map of a clip that `may_only_turn` has nothing over turning."""
    evidence = _evidence(fit, tracks, config)
    placed = np.isfinite(keyframe_map.points[:, 0])
    seen = np.zeros(tracks.num_tracks, dtype=bool)
    seen[evidence.track_idx] = True
    background, rest = seen & evidence.is_background, seen & ~evidence.is_background
    share = float(placed[background].mean()) if background.any() else 0.0
    share_of_rest = float(placed[rest].mean()) if rest.any() else 0.0
    # Where turning does not explain everything, a map of distant things may place few of them: ask for hardly any.
    if is_explained(fit, tracks, config):
        is_unplaced = share < 0.5
    else:
        is_unplaced = share < 0.2 and share_of_rest > max(2 * share, 0.1)
    if is_unplaced:
        return True
    rows = np.flatnonzero(
        evidence.is_inlier
        & background[evidence.track_idx]
        & placed[evidence.track_idx]
        & keyframe_map.is_posed[evidence.kf_idx]
    )
    if len(rows) < 50:
        return is_explained(fit, tracks, config)
    bundle = Bundle(
        cam_from_world=keyframe_map.cam_from_world,
        points_in_world=keyframe_map.points,
        cam_idx=evidence.kf_idx[rows],
        point_idx=evidence.track_idx[rows],
        xy_px=evidence.xy_px[rows],
        focal_px=np.full(len(keyframe_map.cam_from_world), keyframe_map.focal_px),
        centre_px=keyframe_map.centre_px,
        model=keyframe_map.model,
        distortion=keyframe_map.distortion,
    )
    of_map = float(np.median(reprojection_errors(bundle)))
    of_turning = float(np.median(evidence.error_px[rows]))
    # Forward motion mimics a zoom of what is far so well that more is asked of it, but not of what is near.
    may_zoom = is_zooming(fit, config) and explained_share(fit, tracks, config) > config.zoom_background_share
    needed = config.gain_over_zoom if may_zoom else config.gain_over_turning
    return of_turning < needed * of_map


def travels_when_sharp(
    fit: RotationFit, mapper: Mapper, tracks: Tracks, refine: RefineConfig, config: DegeneracyConfig
) -> bool:
    """Whether the map of a clip that seems to turn is clearly better than turning once its observations are aligned.
    Both are fitted to the same ones, of points that turning explains on the tracks. The mapper's map is left as it is."""
    sharp = deepcopy(mapper)
    greys = [keyframe.grey for keyframe in tracks.keyframes]
    try:
        for _ in range(_ROUNDS):
            sharp.map = refine_observations(greys, sharp.map, refine)
            sharp.adjust_all(max_iterations=8)
            sharp.drop_outliers()
    except ClipRejected:
        return False
    evidence = _evidence(fit, tracks, config)
    is_judged = np.zeros(tracks.num_tracks, dtype=bool)
    is_judged[evidence.track_idx] = evidence.is_background[evidence.track_idx]
    rows = sharp.rows(fit.kf_idx)
    rows = rows[is_judged[sharp.map.track_idx[rows]]]
    if len(rows) < _FEWEST_SHARP:
        return False
    travelling, _ = sharp.bundle(rows)
    seen, point_idx = np.unique(sharp.map.track_idx[rows], return_inverse=True)
    turning = replace(
        travelling,
        cam_from_world=np.concatenate([fit.rotation, np.zeros((len(fit.kf_idx), 3, 1))], axis=2),
        points_in_world=fit.direction[seen],
        cam_idx=np.searchsorted(fit.kf_idx, sharp.map.kf_idx[rows]),
        point_idx=point_idx,
        focal_px=fit.focal_px,
        sigma_px=scatter(travelling),
    )
    freedom = BundleConfig(
        free_translation=False,
        free_camera_focal=not mapper.known_focal,
        focal_step_sigma=0.1,
        max_iterations=10,
    )
    of_turning = float(np.median(reprojection_errors(adjust(turning, freedom))))
    return of_turning > config.gain_when_sharp * float(np.median(reprojection_errors(travelling)))


def explained_share(fit: RotationFit, tracks: Tracks, config: DegeneracyConfig) -> float:
    """Share of all tracks in the fit's keyframes, used by it or not, that it explains over most of their life."""
    kf_idx, track_idx, xy = keyframe_observations(tracks)
    rows = np.isin(kf_idx, fit.kf_idx)
    at, track_idx = np.searchsorted(fit.kf_idx, kf_idx[rows]), track_idx[rows]
    across = (xy[rows] - [tracks.width / 2, tracks.height / 2]) / fit.focal_px[at, None]
    in_cam = np.concatenate([across, np.ones((len(across), 1))], axis=1)
    in_cam /= np.linalg.norm(in_cam, axis=1, keepdims=True)
    direction = np.zeros((tracks.num_tracks, 3))
    np.add.at(direction, track_idx, np.einsum("mji,mj->mi", fit.rotation[at], in_cam))
    evidence = _evidence(replace(fit, direction=direction), tracks, config)
    judged = np.bincount(track_idx, minlength=tracks.num_tracks) > 1
    return float(evidence.is_background[judged].mean()) if judged.any() else 0.0


def _evidence(fit: RotationFit, tracks: Tracks, config: DegeneracyConfig) -> _Evidence:
    kf_idx, track_idx, xy = keyframe_observations(tracks)
    rows = np.isin(kf_idx, fit.kf_idx) & np.isfinite(fit.direction[track_idx, 0])
    kf_idx, track_idx, xy = kf_idx[rows], track_idx[rows], xy[rows]
    at = np.searchsorted(fit.kf_idx, kf_idx)
    in_cam = np.einsum("mij,mj->mi", fit.rotation[at], fit.direction[track_idx])
    pixels = in_cam[:, :2] / in_cam[:, 2:] * fit.focal_px[at, None] + [tracks.width / 2, tracks.height / 2]
    error = np.linalg.norm(pixels - xy, axis=1)
    is_inlier = error < 3 * config.rotation_px * max(tracks.width, tracks.height) / 640
    total = np.bincount(track_idx, minlength=tracks.num_tracks)
    agreeing = np.bincount(track_idx, is_inlier, minlength=tracks.num_tracks)
    return _Evidence(kf_idx, track_idx, xy, error, is_inlier, (total > 0) & (agreeing > 0.7 * total))
