"""Moving things: tracks of one clip in, those that move by themselves out.

The background is what covers most of the image, not what has most corners: the fundamental matrix between two
keyframes is fitted to a few tracks of every cell of a grid (MAGSAC, Barath et al. 2019), and tracks that leave
their epipolar lines in many pairs are taken to move. Pairs that one homography explains say nothing, since there
the epipole is free to follow a moving thing; annotate/turning.py judges those clips.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from worldline.annotate.mapper import keyframe_observations
from worldline.annotate.threads import in_threads
from worldline.annotate.tracks import Tracks


@dataclass(frozen=True, kw_only=True, slots=True)
class MovingConfig:
    """Settings of the motion test; pixels are those of a 640-pixel-wide image and scaled with the size."""

    gaps: tuple[int, ...] = (1, 2, 4, 7)
    """Distances in keyframes between the pairs compared."""
    inlier_px: float = 1.0
    """Scale of the robust fit."""
    off_px: float = 2.5
    """Distance from the epipolar line from which a track votes as moving."""
    grid: tuple[int, int] = (12, 8)
    tracks_per_cell: int = 3
    flat_share: float = 0.8
    """Share of tracks on one homography from which a pair says nothing."""
    min_votes: float = 0.4
    """Share of its pairs in which a track must be off to be taken as moving."""
    min_share: float = 0.1
    """Fewer moving tracks than this share are left to the robust adjustment: a bent lens has as many."""


def find_moving(tracks: Tracks, config: MovingConfig) -> np.ndarray:
    """[N] bool: tracks that move by themselves; none where these are few."""
    kf_idx, track_idx, xy = keyframe_observations(tracks)
    num_kf = len(tracks.keyframes)
    bounds = np.searchsorted(kf_idx, np.arange(num_kf + 1))
    scale = max(tracks.width, tracks.height) / 640

    def distances(pair: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
        a, b = (slice(*bounds[kf : kf + 2]) for kf in pair)
        common, at_a, at_b = np.intersect1d(track_idx[a], track_idx[b], return_indices=True)
        if len(common) < 60:
            return common, None
        return common, _off_epipolar(xy[a][at_a], xy[b][at_b], tracks, config, scale)

    pairs = [(first, first + gap) for first in range(num_kf) for gap in config.gaps if first + gap < num_kf]
    off, votes = np.zeros(tracks.num_tracks), np.zeros(tracks.num_tracks)
    for common, distance in in_threads(distances, pairs):
        if distance is not None:
            off[common] += distance > config.off_px * scale
            votes[common] += 1
    is_moving = (votes > 0) & (off > config.min_votes * votes)
    if is_moving.sum() < config.min_share * (votes > 0).sum():
        return np.zeros(tracks.num_tracks, dtype=bool)
    return is_moving


def _off_epipolar(
    a: np.ndarray, b: np.ndarray, tracks: Tracks, config: MovingConfig, scale: float
) -> np.ndarray | None:
    """Sampson distances [n] of pairs of pixels from the background's epipolar geometry; None where the pair says
    nothing."""
    chosen = _few_of_each_cell(a, tracks, config)
    threshold = config.inlier_px * scale
    _, flat = cv2.findHomography(a[chosen], b[chosen], cv2.USAC_FAST, 2 * threshold, maxIters=500)
    if flat is None or flat.mean() > config.flat_share:
        return None
    try:
        matrix, _ = cv2.findFundamentalMat(a[chosen], b[chosen], cv2.USAC_MAGSAC, threshold, 0.999, 1000)
    except cv2.error:  # No sample gave a model.
        return None
    if matrix is None or matrix.shape != (3, 3):
        return None
    ones = np.ones((len(a), 1))
    line_in_b, line_in_a = np.hstack([a, ones]) @ matrix.T, np.hstack([b, ones]) @ matrix
    product = np.sum(np.hstack([b, ones]) * line_in_b, axis=1)
    slope = np.sum(line_in_b[:, :2] ** 2, axis=1) + np.sum(line_in_a[:, :2] ** 2, axis=1)
    return np.abs(product) / np.sqrt(np.maximum(slope, 1e-12))


def _few_of_each_cell(xy: np.ndarray, tracks: Tracks, config: MovingConfig) -> np.ndarray:
    """Indices of at most `tracks_per_cell` points of every cell, the same ones each time."""
    columns, rows = config.grid
    cell = (np.clip(xy[:, 0] / tracks.width, 0, 0.999) * columns).astype(int)
    cell += columns * (np.clip(xy[:, 1] / tracks.height, 0, 0.999) * rows).astype(int)
    shuffled = np.random.default_rng(0).permutation(len(xy))
    order = shuffled[np.argsort(cell[shuffled], kind="stable")]
    rank = np.arange(len(order)) - np.searchsorted(cell[order], cell[order])
    return order[rank < config.tracks_per_cell]
