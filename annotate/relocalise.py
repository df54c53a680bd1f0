"""Re-localisation: a map that ends where tracking was lost in, the map with a keyframe beyond the gap posed out.

No track leads over a covered lens or a whip pan, but what is seen after it is often what was seen before. The ORB
descriptors of an unposed keyframe, or a learned matcher's (annotate/features.py), are matched with those of posed ones,
and the pose is the one that enough of the matched points agree on (RANSAC). The matches become observations of the old
points, which ties both sides together. A learned matcher finds points of its own: a tracked point goes over with the
matches around it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from worldline.annotate.features import FeatureMatcher, Matches, View
from worldline.annotate.mapper import Mapper
from worldline.annotate.tracks import Keyframe, Tracks

_NEAREST = 6
_AGREE_PX = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RelocaliseConfig:
    """When a place counts as seen again."""

    min_inliers: int = 20
    """Matched points that must agree on the pose."""
    min_share: float = 0.3
    """Share of the matched points that must."""
    num_references: int = 24
    """Posed keyframes, spread over the clip, that an unposed one is held against."""
    num_learned_references: int = 6
    """The same for a learned matcher, which takes up to a second a pair and is content with the first that agrees."""
    carry_px: float = 12.0
    """Distance at 640 pixels within which a learned match moves a tracked point along."""


@dataclass(frozen=True, slots=True)
class _Match:
    cam_from_world: np.ndarray
    track_idx: np.ndarray
    xy_px: np.ndarray


def relocalise(mapper: Mapper, tracks: Tracks, config: RelocaliseConfig, matcher: FeatureMatcher) -> bool:
    """Poses keyframes that no track connects with the map by what they look like, and grows the map from each;
    whether there was one."""
    is_any = False
    views = _Views(tracks, matcher)
    while (found := _find(mapper, tracks, config, views)) is not None:
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


def _find(
    mapper: Mapper, tracks: Tracks, config: RelocaliseConfig, views: _Views
) -> tuple[int, _Match] | None:
    """The unposed keyframe that agrees best with the map, and how."""
    posed = np.flatnonzero(mapper.map.is_posed)
    is_learned = not views.matcher.is_on_tracks
    limit = config.num_learned_references if is_learned else config.num_references
    spread = np.linspace(0, len(posed) - 1, min(len(posed), limit)).round().astype(int)
    best: tuple[int, _Match] | None = None
    for kf in np.flatnonzero(~mapper.map.is_posed).tolist():
        for reference in posed[np.unique(spread)].tolist():
            match = _match(mapper, tracks, kf, reference, config, views)
            if match is not None and (best is None or len(match.track_idx) > len(best[1].track_idx)):
                best = kf, match
        if is_learned and best is not None:
            break
    return best


def _match(
    mapper: Mapper, tracks: Tracks, kf: int, reference: int, config: RelocaliseConfig, views: _Views
) -> _Match | None:
    """The pose of one keyframe from its likeness to a posed one."""
    new, old = tracks.keyframes[kf], tracks.keyframes[reference]
    placed = np.flatnonzero(np.isfinite(mapper.map.points[old.track_idx, 0]))
    if len(placed) < config.min_inliers:
        return None
    if views.matcher.is_on_tracks:
        if len(new.track_idx) < config.min_inliers:
            return None
        matches = views.on_tracks(kf, reference, placed)
        at, xy = placed[matches.b_idx], matches.xy_a_px
    else:
        matches = views.own(kf, reference)
        reach = config.carry_px * max(tracks.width, tracks.height) / 640
        carried, xy = carry(matches, tracked_xy(tracks, old)[placed], reach)
        at = placed[carried]
    if len(at) < config.min_inliers:
        return None
    track_idx = old.track_idx[at]
    pose, is_inlier = mapper.pose_from_points(mapper.map.points[track_idx], xy)
    if pose is None or is_inlier.sum() < max(config.min_inliers, config.min_share * len(at)):
        return None
    return _Match(pose, track_idx[is_inlier], xy[is_inlier])


class _Views:
    """Keyframes as the matcher sees them; a learned one describes each once and matches each pair once."""

    def __init__(self, tracks: Tracks, matcher: FeatureMatcher) -> None:
        self.tracks, self.matcher = tracks, matcher
        self.described: dict[int, Any] = {}
        self.matches: dict[tuple[int, int], Matches] = {}

    def on_tracks(self, kf: int, reference: int, placed: np.ndarray) -> Matches:
        """b_idx counts the placed points."""
        new, old = view_of(self.tracks, kf), view_of(self.tracks, reference)
        old = replace(old, xy_px=old.xy_px[placed], descriptors=old.descriptors[placed])
        return self.matcher.match(self.matcher.describe(new), self.matcher.describe(old))

    def own(self, kf: int, reference: int) -> Matches:
        for each in (kf, reference):
            if each not in self.described:
                self.described[each] = self.matcher.describe(view_of(self.tracks, each))
        if (kf, reference) not in self.matches:
            pair = self.matcher.match(self.described[kf], self.described[reference])
            self.matches[kf, reference] = pair
        return self.matches[kf, reference]


def view_of(tracks: Tracks, kf: int) -> View:
    keyframe = tracks.keyframes[kf]
    return View(grey=keyframe.grey, xy_px=tracked_xy(tracks, keyframe), descriptors=keyframe.descriptors)


def tracked_xy(tracks: Tracks, keyframe: Keyframe) -> np.ndarray:
    """[K, 2] float64: where a keyframe's described tracks are in it."""
    begin, end = np.searchsorted(tracks.frame_idx, [keyframe.frame_idx, keyframe.frame_idx + 1])
    order = np.argsort(tracks.track_idx[begin:end])
    rows = begin + order[np.searchsorted(tracks.track_idx[begin:end][order], keyframe.track_idx)]
    return tracks.xy_px[rows].astype(np.float64)


def carry(matches: Matches, xy_b_px: np.ndarray, reach_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Points of the second view [K, 2] moved into the first by the affine map of their six nearest matches;
    (which of them [n], where [n, 2]). Points without a match within `reach_px`, or whose six do not agree, stay out."""
    none = np.zeros(0, dtype=int), np.zeros((0, 2))
    if len(matches.xy_b_px) < _NEAREST:
        return none
    distance, near = cKDTree(matches.xy_b_px).query(xy_b_px, k=_NEAREST)
    kept = np.flatnonzero(distance[:, 0] <= reach_px)
    if len(kept) == 0:
        return none
    near, weight = near[kept], np.exp(-0.5 * (distance[kept] / reach_px) ** 2)[:, :, None]
    offset = matches.xy_b_px[near] - xy_b_px[kept][:, None]  # [n, 6, 2]
    design = np.concatenate([np.ones_like(weight), offset], axis=2)
    goal = matches.xy_a_px[near]
    # A pixel of doubt about the linear part keeps points in a line from a wild one.
    normal = np.swapaxes(design, 1, 2) @ (weight * design) + np.diag([0.0, 1.0, 1.0])
    linear = np.swapaxes(design, 1, 2) @ (weight * (goal - offset))
    found = np.linalg.solve(normal, linear)  # [n, 3, 2] of goal - offset
    misfit = np.linalg.norm(design @ found + offset - goal, axis=2)
    agrees = np.median(misfit, axis=1) < _AGREE_PX
    return kept[agrees], found[agrees, 0]
