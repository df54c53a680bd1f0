"""Bridges: tracks that break between keyframes in, the same tracks with learned matches across the breaks out.

Neighbouring keyframes that few tracks join (a covered lens, large steps between frames) are matched by a learned
matcher, and matches that one epipolar geometry explains become tracks of their own: a point matched from keyframe to
keyframe is one track. ORB at tracked corners is left to re-localisation, which needs no chains.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from worldline.annotate.features import FeatureMatcher, FeaturesConfig, load_matcher
from worldline.annotate.relocalise import view_of
from worldline.annotate.tracks import Tracks

_MIN_MATCHES = 20
"""Matches on one epipolar geometry from which a bridge counts."""
_EPIPOLAR_PX = 2.0
"""Distance from the epipolar line at 640 pixels."""


def bridge(tracks: Tracks, config: FeaturesConfig) -> Tracks:
    """The tracks and those that a learned matcher adds; unchanged where no bridge is needed, or under orb."""
    pairs = list(_weak_pairs(tracks, config))
    if not pairs:
        return tracks
    matcher = load_matcher(config)
    if matcher.is_on_tracks:
        return tracks
    kf, xy, links = _matched(tracks, matcher, pairs)
    if len(links) == 0:
        return tracks
    graph = coo_array((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(len(kf), len(kf)))
    _, label = connected_components(graph, directed=False)
    twice = np.unique(np.stack([label, kf], axis=1), axis=0, return_counts=True)
    is_odd = np.isin(label, twice[0][twice[1] > 1][:, 0])
    # A chain that meets one keyframe in two points has a false link somewhere.
    kept = ~is_odd & (np.bincount(label)[label] >= 2)
    fresh, track = np.unique(label[kept], return_inverse=True)
    frame_of_kf = np.array([keyframe.frame_idx for keyframe in tracks.keyframes])
    frame_idx = np.concatenate([tracks.frame_idx, frame_of_kf[kf[kept]]]).astype(np.int32)
    order = np.argsort(frame_idx, kind="stable")
    return replace(
        tracks,
        num_tracks=tracks.num_tracks + len(fresh),
        frame_idx=frame_idx[order],
        track_idx=np.concatenate([tracks.track_idx, tracks.num_tracks + track]).astype(np.int32)[order],
        xy_px=np.concatenate([tracks.xy_px, xy[kept]]).astype(np.float32)[order],
    )


def _weak_pairs(tracks: Tracks, config: FeaturesConfig) -> Iterator[tuple[int, int]]:
    """Keyframes at most `bridge_span` apart with few common tracks."""
    seen = []
    for keyframe in tracks.keyframes:
        begin, end = np.searchsorted(tracks.frame_idx, [keyframe.frame_idx, keyframe.frame_idx + 1])
        seen.append(tracks.track_idx[begin:end])
    for first in range(len(seen)):
        for second in range(first + 1, min(first + 1 + config.bridge_span, len(seen))):
            if len(np.intersect1d(seen[first], seen[second])) < config.bridge_below:
                yield first, second


def _matched(
    tracks: Tracks, matcher: FeatureMatcher, pairs: list[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(kf [P], xy_px [P, 2], links [L, 2]): all matched points and which of them are one."""
    described: dict[int, Any] = {}
    number: dict[tuple[int, int], int] = {}
    kf: list[int] = []
    xy: list[np.ndarray] = []
    links: list[tuple[int, int]] = []
    threshold = _EPIPOLAR_PX * max(tracks.width, tracks.height) / 640
    for first, second in pairs:
        for each in (first, second):
            if each not in described:
                described[each] = matcher.describe(view_of(tracks, each))
        found = matcher.match(described[first], described[second])
        if len(found.a_idx) < _MIN_MATCHES:
            continue
        _, mask = cv2.findFundamentalMat(
            found.xy_a_px, found.xy_b_px, cv2.USAC_MAGSAC, threshold, 0.999, 2000
        )
        good = np.flatnonzero(mask) if mask is not None else np.zeros(0, dtype=int)
        if len(good) < _MIN_MATCHES:
            continue
        for row in good.tolist():
            ends = []
            for each, idx, place in (
                (first, found.a_idx[row], found.xy_a_px[row]),
                (second, found.b_idx[row], found.xy_b_px[row]),
            ):
                key = each, int(idx)
                if key not in number:
                    number[key] = len(kf)
                    kf.append(each)
                    xy.append(place)
                ends.append(number[key])
            links.append((ends[0], ends[1]))
    return np.array(kf, dtype=int), np.array(xy).reshape(-1, 2), np.array(links, dtype=int).reshape(-1, 2)
