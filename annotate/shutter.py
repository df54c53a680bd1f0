"""Rolling shutter: tracks in, the velocity of every observation out, and the readout that the residuals demand.

Most sensors read a frame line by line, so an observation in line y was taken (y / height - 1/2) readouts after the
frame's middle, and lies off by its point's motion in that time. To first order that motion is the track's own, from
the frame before and the frame after; taken off, the observation is where a global shutter would show it, and the
frame's pose is that of its middle line. Left alone, a hand-held camera's focal length comes out percents wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from worldline.annotate.bundle import adjust
from worldline.annotate.bundle_problem import Bundle, BundleConfig
from worldline.annotate.keyframe_map import KeyframeMap, shutter_px
from worldline.annotate.threads import in_threads
from worldline.annotate.tracks import Tracks


@dataclass(frozen=True, kw_only=True, slots=True)
class ShutterConfig:
    """When a rolling shutter is believed."""

    min_gain: float = 0.005
    """A readout must lower the robust cost by this share: clips of global shutters gain 0.1 %, of rolling ones 2 % to 10 %."""
    max_readout: float = 1.1
    """Longest readout, as a share of the frame interval: a line cannot be read again before it has been read; the rest
    is for its error."""


def image_velocity(tracks: Tracks, timestamps_s: np.ndarray) -> np.ndarray:
    """Velocity [M, 2] of every observation in pixels per (median) frame interval, from the track's places in the frame
    before and the frame after; where one of them is missing, from the other. Zero for a track of one frame, which no
    map uses."""
    order = np.lexsort((tracks.frame_idx, tracks.track_idx))
    track, frame = tracks.track_idx[order], tracks.frame_idx[order]
    xy = tracks.xy_px[order].astype(np.float64)
    gap_s = np.diff(timestamps_s[frame])
    follows = (np.diff(track) == 0) & (np.diff(frame) == 1) & (gap_s > 0)
    interval_s = float(np.median(np.diff(timestamps_s)))
    step = np.diff(xy, axis=0)[follows] / gap_s[follows, None] * interval_s
    at = np.flatnonzero(follows)
    total, count = np.zeros_like(xy), np.zeros(len(xy))
    for end in (at, at + 1):
        total[end] += step
        count[end] += 1
    velocity = np.empty_like(xy)
    velocity[order] = total / np.maximum(count, 1)[:, None]
    return velocity


def velocity_of_rows(tracks: Tracks, velocity_px: np.ndarray, keyframe_map: KeyframeMap) -> np.ndarray:
    """The velocity [M, 2] of each of the map's observations; those without a track of their own in their keyframe
    (found again by their looks) get that of the tracks around them."""
    frame = np.array([keyframe.frame_idx for keyframe in tracks.keyframes])[keyframe_map.kf_idx]
    key = tracks.frame_idx.astype(np.int64) * tracks.num_tracks + tracks.track_idx
    order = np.argsort(key)
    wanted = frame.astype(np.int64) * tracks.num_tracks + keyframe_map.track_idx
    at = order[np.minimum(np.searchsorted(key[order], wanted), len(key) - 1)]
    velocity = velocity_px[at]
    is_own = key[at] == wanted
    for kf in np.unique(keyframe_map.kf_idx[~is_own]):
        rows = keyframe_map.kf_idx == kf
        velocity[rows & ~is_own] = velocity_nearby(
            keyframe_map.xy_px[rows & is_own], velocity[rows & is_own], keyframe_map.xy_px[rows & ~is_own]
        )
    return velocity


def velocity_nearby(xy_px: np.ndarray, velocity_px: np.ndarray, wanted_px: np.ndarray) -> np.ndarray:
    """The velocity at other pixels of the same frame: the median of the five nearest known."""
    if len(xy_px) == 0:
        return np.zeros_like(wanted_px)
    _, nearest = cKDTree(xy_px).query(wanted_px, k=min(5, len(xy_px)))
    return np.median(velocity_px[nearest.reshape(len(wanted_px), -1)], axis=1)


def choose_readout(
    bundle: Bundle,
    velocity_px: np.ndarray,
    settings: BundleConfig,
    size_px: tuple[int, int],
    config: ShutterConfig,
) -> tuple[Bundle, int] | None:
    """The adjusted bundle under a rolling shutter and the image axis (0: x, 1: y) along which its lines follow each
    other, where the residuals demand one: model comparison, not habit. Rotated videos have their lines as columns.

    bundle: adjusted with `settings` for a global shutter; velocity_px [M, 2]: of its observations.
    """

    def read_along(axis: int) -> Bundle:
        offset = shutter_px(bundle.xy_px, velocity_px, size_px, axis)
        return adjust(replace(bundle, shutter_px=offset), replace(settings, free_readout=True))

    best, best_axis = bundle, None
    for axis, rolling in zip((1, 0), in_threads(read_along, (1, 0)), strict=True):
        if rolling.cost < best.cost and abs(rolling.readout) <= config.max_readout:
            best, best_axis = rolling, axis
    if best_axis is None or best.cost > bundle.cost * (1 - config.min_gain):
        return None
    return best, best_axis


def is_rolling(bundle: Bundle, settings: BundleConfig, config: ShutterConfig) -> bool:
    """Whether a bundle adjusted with a free readout still gains from it under the lens it has now: what a shutter
    gained under a lens too straight may have been the lens."""
    still = adjust(replace(bundle, shutter_px=None, readout=0.0), replace(settings, free_readout=False))
    return bundle.cost < still.cost * (1 - config.min_gain)
