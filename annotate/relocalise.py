"""Re-localisation: a map that ends where tracking was lost in, the map with a keyframe beyond the gap posed out.

No track leads over a covered lens or a whip pan, but what is seen after it is often what was seen before. The ORB
descriptors of an unposed keyframe are matched with those of posed ones, and the pose is the one that enough of the
matched points agree on (RANSAC). The matches become observations of the old points, which ties both sides together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from worldline.annotate.mapper import Mapper
from worldline.annotate.tracks import Tracks


@dataclass(frozen=True, kw_only=True, slots=True)
class RelocaliseConfig:
    """When a place counts as seen again."""

    max_distance: int = 64
    """Bits of 256 in which the descriptors of one place may differ; those of two places differ in about 128."""
    min_inliers: int = 20
    """Matched points that must agree on the pose."""
    min_share: float = 0.3
    """Share of the matched points that must."""
    num_references: int = 24
    """Posed keyframes, spread over the clip, that an unposed one is held against."""


@dataclass(frozen=True, slots=True)
class _Match:
    cam_from_world: np.ndarray
    track_idx: np.ndarray
    xy_px: np.ndarray


def relocalise(mapper: Mapper, tracks: Tracks, config: RelocaliseConfig) -> bool:
    """Poses keyframes that no track connects with the map by what they look like, and grows the map from each;
    whether there was one."""
    is_any = False
    while (found := _find(mapper, tracks, config)) is not None:
        kf, match = found
        keyframe_map = mapper.map
        num = len(match.track_idx)
        mapper.map = replace(
            keyframe_map,
            kf_idx=np.concatenate([keyframe_map.kf_idx, np.full(num, kf)]),
            track_idx=np.concatenate([keyframe_map.track_idx, match.track_idx]),
            xy_px=np.concatenate([keyframe_map.xy_px, match.xy_px]),
            is_inlier=np.concatenate([keyframe_map.is_inlier, np.ones(num, dtype=bool)]),
        )
        mapper.map.cam_from_world[kf] = match.cam_from_world
        mapper.index()
        mapper.grow()
        if not mapper.map.is_posed[kf]:
            break
        is_any = True
    return is_any


def _find(mapper: Mapper, tracks: Tracks, config: RelocaliseConfig) -> tuple[int, _Match] | None:
    """The unposed keyframe that agrees best with the map, and how."""
    posed = np.flatnonzero(mapper.map.is_posed)
    spread = np.linspace(0, len(posed) - 1, min(len(posed), config.num_references)).round().astype(int)
    best: tuple[int, _Match] | None = None
    for kf in np.flatnonzero(~mapper.map.is_posed).tolist():
        for reference in posed[np.unique(spread)].tolist():
            match = _match(mapper, tracks, kf, reference, config)
            if match is not None and (best is None or len(match.track_idx) > len(best[1].track_idx)):
                best = kf, match
    return best


def _match(
    mapper: Mapper, tracks: Tracks, kf: int, reference: int, config: RelocaliseConfig
) -> _Match | None:
    """The pose of one keyframe from its likeness to a posed one."""
    new, old = tracks.keyframes[kf], tracks.keyframes[reference]
    placed = np.flatnonzero(np.isfinite(mapper.map.points[old.track_idx, 0]))
    if min(len(new.track_idx), len(placed)) < config.min_inliers:
        return None
    pairs = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(new.descriptors, old.descriptors[placed])
    pairs = [pair for pair in pairs if pair.distance <= config.max_distance]
    if len(pairs) < config.min_inliers:
        return None
    track_idx = old.track_idx[placed[[pair.trainIdx for pair in pairs]]]
    begin, end = np.searchsorted(tracks.frame_idx, [new.frame_idx, new.frame_idx + 1])
    order = np.argsort(tracks.track_idx[begin:end])
    own = new.track_idx[[pair.queryIdx for pair in pairs]]
    rows = begin + order[np.searchsorted(tracks.track_idx[begin:end][order], own)]
    xy = tracks.xy_px[rows].astype(np.float64)
    pose, is_inlier = mapper.pose_from_points(mapper.map.points[track_idx], xy)
    if pose is None or is_inlier.sum() < max(config.min_inliers, config.min_share * len(pairs)):
        return None
    return _Match(pose, track_idx[is_inlier], xy[is_inlier])
