"""Drift of tracks: tracks and a map whose observations have been aligned in, the tracks freed of their drift out.

The tracker follows a patch as its last keyframe shows it, neither slanted nor scaled, and so slips a little on
the way to the next. How far shows at the keyframes, where annotate/refine.py has aligned the same patch properly.
Between two keyframes a track slips steadily: what it is off at both is taken out on a straight line in time.
"""

from __future__ import annotations

import numpy as np

from worldline.annotate.keyframe_map import KeyframeMap
from worldline.annotate.mapper import keyframe_observations
from worldline.annotate.tracks import Tracks


def without_drift(tracks: Tracks, keyframe_map: KeyframeMap) -> np.ndarray:
    """The tracks' pixels [M, 2] float64: at keyframes as aligned there, between two as much nearer the truth; behind a
    track's last keyframe what it is off there is taken out of all. Where the map has no inlier of a track at a keyframe
    nothing is known, and nothing taken out, on its side."""
    xy = tracks.xy_px.astype(np.float64)
    kf_frames = np.array([keyframe.frame_idx for keyframe in tracks.keyframes])
    offset = _Offsets(tracks, keyframe_map)
    before = np.searchsorted(kf_frames, tracks.frame_idx, side="right") - 1
    after = np.minimum(before + 1, len(kf_frames) - 1)
    off_before, is_before = offset.at(before)
    off_after, is_after = offset.at(after)
    step = np.maximum(kf_frames[after] - kf_frames[before], 1)
    share = (tracks.frame_idx - kf_frames[before]) / step
    share = np.where(is_before & is_after, share, np.where(is_after, 1.0, 0.0))[:, None]
    return xy - (1 - share) * off_before - share * off_after


class _Offsets:
    """How far tracks are from their aligned observations at keyframes."""

    def __init__(self, tracks: Tracks, keyframe_map: KeyframeMap) -> None:
        self._track_idx, self._num_kf = tracks.track_idx.astype(np.int64), len(tracks.keyframes)
        kf_idx, track_idx, xy_px = keyframe_observations(tracks)
        own = track_idx.astype(np.int64) * self._num_kf + kf_idx
        aligned = np.flatnonzero(keyframe_map.is_inlier & keyframe_map.is_posed[keyframe_map.kf_idx])
        theirs = (
            keyframe_map.track_idx[aligned].astype(np.int64) * self._num_kf + keyframe_map.kf_idx[aligned]
        )
        self._key, at_own, at_theirs = np.intersect1d(own, theirs, return_indices=True)
        self._offset = xy_px[at_own] - keyframe_map.xy_px[aligned[at_theirs]]

    def at(self, kf_idx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Offset [M, 2] of each observation's track at the keyframes [M], zero where unknown, and whether known."""
        if len(self._key) == 0:
            return np.zeros((len(kf_idx), 2)), np.zeros(len(kf_idx), dtype=bool)
        wanted = self._track_idx * self._num_kf + kf_idx
        at = np.minimum(np.searchsorted(self._key, wanted), len(self._key) - 1)
        is_known = self._key[at] == wanted
        return np.where(is_known[:, None], self._offset[at], 0.0), is_known
