"""Keyframe mapping: tracks in, poses of the keyframes, points and the focal length out.

Sequential structure-from-motion in the manner of COLMAP's incremental mapper (Schoenberger & Frahm 2016), cut
to video: the order of the images is known, tracks bring the correspondences, so a keyframe costs a few
milliseconds instead of a match against many. Two-view starts are tried under several focal lengths and the
one whose small bundle adjustment fits best wins, since one fixed prior fails on narrow and on wide lenses
alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import cv2
import numpy as np

from worldline.annotate.bundle_problem import reprojection_errors
from worldline.annotate.camera import Intrinsics
from worldline.annotate.keyframe_map import CameraFreedom, KeyframeMap
from worldline.annotate.mapper import Mapper, MappingConfig, keyframe_observations
from worldline.annotate.threads import in_threads
from worldline.annotate.tracks import Tracks
from worldline.datasets.schema import ClipRejected

_WIDE_GAIN = 0.1
"""Share by which a wide lens must fit better than any pinhole: over a narrow view the two hardly differ."""
_BESIDE = 2
"""Keyframes by which both ends of two pairs may differ that count as neighbours."""
_GUESSED_LENS_SIGMA = (0.1, 1e-4)
"""1-sigma of the distortion of a lens that a start only guesses."""
_MAX_PAIRS = 12
"""Pairs of keyframes that are tried for a start."""


def map_keyframes(
    tracks: Tracks, config: MappingConfig, start: Intrinsics | None = None, *, is_known: bool = False
) -> KeyframeMap:
    """Maps a clip's keyframes. `start`: intrinsics to begin with, which are held where `is_known`.

    Raises ClipRejected("mapping", ...) where no pair of keyframes gives a start.
    """
    kf_idx, track_idx, xy = keyframe_observations(tracks)
    num_kf = len(tracks.keyframes)
    longer = max(tracks.width, tracks.height)
    guesses = [("pinhole", share * longer) for share in config.focal_guesses]
    guesses += [("fisheye", share * longer) for share in config.fisheye_guesses]
    centre, distortion = np.array([tracks.width / 2, tracks.height / 2]), np.zeros(2)
    if start is not None:
        held = start.resized(tracks.width, tracks.height)
        guesses, centre = [(held.model, float(held.fxfycxcy_px[0]))], held.fxfycxcy_px[2:].copy()
        distortion = np.array(held.distortion or (0.0, 0.0))
    empty = KeyframeMap(
        cam_from_world=np.full((num_kf, 3, 4), np.nan),
        points=np.full((tracks.num_tracks, 3), np.nan),
        width=tracks.width,
        height=tracks.height,
        focal_px=guesses[0][1],
        centre_px=centre,
        model=guesses[0][0],
        distortion=distortion,
        kf_idx=kf_idx,
        track_idx=track_idx,
        xy_px=xy,
        is_inlier=np.ones(len(xy), dtype=bool),
    )
    mapper = Mapper.of(empty, config, tracks, known_focal=is_known)
    if start is None:
        mapper.freedom = CameraFreedom(distortion_sigma=_GUESSED_LENS_SIGMA)
    is_used = _longest_of_each(empty, config.points_per_keyframe)
    failure = ClipRejected("mapping", "no_start", "no two keyframes have enough common points and parallax")
    best: tuple[float, KeyframeMap] | None = None
    for begun in itertools.islice(find_starts(mapper, is_used, guesses), config.max_starts):
        try:
            grown = _grown(mapper, begun, is_used)
        except ClipRejected as rejection:
            failure = rejection
            continue
        is_judged = grown.is_posed[grown.kf_idx]
        share = float(grown.is_inlier[is_judged].mean() * grown.is_posed.mean())
        if best is None or share > best[0]:
            best = share, grown
        if share >= config.min_inlier_share:
            break
    if best is None:
        raise failure
    return best[1]


def _grown(mapper: Mapper, begun: KeyframeMap, is_used: np.ndarray) -> KeyframeMap:
    """The whole map that grows from a start: first on the tracks in `is_used`, then on all."""
    mapper.map, mapper.is_used = begun, is_used
    mapper.index()
    mapper.grow()
    mapper.is_used = None
    mapper.index()
    mapper.triangulate(np.flatnonzero(mapper.map.is_posed))
    mapper.adjust_all(max_iterations=4)
    mapper.drop_outliers()
    if not mapper.map.is_posed.all():
        mapper.grow()
    return mapper.map


def _longest_of_each(keyframe_map: KeyframeMap, count: int) -> np.ndarray:
    """[N] bool: tracks among the `count` longest of at least one keyframe."""
    length = np.bincount(keyframe_map.track_idx, minlength=len(keyframe_map.points))
    is_used = np.zeros(len(length), dtype=bool)
    order = np.lexsort((-length[keyframe_map.track_idx], keyframe_map.kf_idx))
    kf = keyframe_map.kf_idx[order]
    rank = np.arange(len(kf)) - np.searchsorted(kf, kf)
    is_used[keyframe_map.track_idx[order[rank < count]]] = True
    return is_used


def find_starts(
    mapper: Mapper, is_used: np.ndarray, guesses: list[tuple[str, float]]
) -> Iterator[KeyframeMap]:
    """Small maps to grow from, of the most promising pair of keyframes first, each under the lens (model and focal
    length) with which it fits best. The mapper holds the empty map, before and after each."""
    empty = mapper.map
    mapper.is_used = is_used
    mapper.index()
    for first, second in _start_pairs(mapper):
        best: tuple[float, KeyframeMap] | None = None
        candidates = in_threads(partial(_try_start, mapper, first, second), guesses)
        for lens, candidate in zip(guesses, candidates, strict=True):
            needed = 1 + _WIDE_GAIN if lens[0] == "fisheye" else 1.0
            if candidate is not None and (best is None or candidate[0] > needed * best[0]):
                best = candidate
        if best is not None:
            yield best[1]
            mapper.map, mapper.is_used = empty, is_used
            mapper.index()


def _start_pairs(mapper: Mapper) -> list[tuple[int, int]]:
    """Pairs of keyframes, best first: many common tracks whose motion no homography explains."""
    scored = []
    num_kf = len(mapper.rows_of_kf)
    firsts = range(0, num_kf - 1, max(1, num_kf // 24))
    for first in firsts:
        for gap in (1, 2, 3, 5, 8, 12):
            second = first + gap
            if second >= num_kf:
                second = num_kf - 1
            a, b = mapper.common(first, second)
            if len(a) < 60:
                continue
            xy_a, xy_b = mapper.map.xy_px[a], mapper.map.xy_px[b]
            homography, mask = cv2.findHomography(
                xy_a, xy_b, cv2.USAC_FAST, 1.5 * mapper.max_error_px / 3, maxIters=200
            )
            if homography is None:
                continue
            off_plane = 1 - float(mask.mean())
            moved = float(np.median(np.linalg.norm(xy_b - xy_a, axis=1))) / (40 * mapper.max_error_px / 3)
            scored.append((min(moved, 1.0) * (0.05 + off_plane) * np.sqrt(len(a)), first, second))
            if second == num_kf - 1:
                break
    scored.sort(reverse=True)
    # What keeps one pair from giving a start keeps its neighbours too: they come last.
    apart: list[tuple[int, int]] = []
    beside: list[tuple[int, int]] = []
    for _, first, second in scored:
        is_beside = any(max(abs(first - a), abs(second - b)) <= _BESIDE for a, b in apart)
        (beside if is_beside else apart).append((first, second))
    return (apart + beside)[:_MAX_PAIRS]


def _try_start(
    whole: Mapper, first: int, second: int, lens: tuple[str, float]
) -> tuple[float, KeyframeMap] | None:
    """A small adjusted map over the keyframes first..second; (inliers at 1 px-like error, map), None
    where it fails."""
    mapper = Mapper(
        _blank(whole, lens), whole.config, max_error_px=whole.max_error_px, known_focal=whole.known_focal
    )
    mapper.is_used, mapper.freedom = whole.is_used, whole.freedom
    mapper.index()
    a, b = mapper.common(first, second)
    rays_a, rays_b = mapper.normalised(a), mapper.normalised(b)
    threshold = whole.max_error_px / 2 / lens[1]
    essential, mask = cv2.findEssentialMat(rays_a, rays_b, np.eye(3), cv2.USAC_MAGSAC, 0.999, threshold)
    if essential is None or essential.shape != (3, 3):
        return None
    _, rotation, translation, mask = cv2.recoverPose(essential, rays_a, rays_b, np.eye(3), mask=mask)
    if int((mask > 0).sum()) < whole.config.min_points:
        return None
    mapper.map.cam_from_world[first] = np.eye(3, 4)
    mapper.map.cam_from_world[second] = np.concatenate([rotation, translation], axis=1)
    mapper.triangulate(np.array([first, second]))
    for kf in range(first + 1, second):
        mapper.pose(kf)
    if len(mapper.rows()) < 2 * whole.config.min_points:
        return None
    mapper.adjust_all(max_iterations=8, free_focal=False)
    mapper.triangulate(np.arange(first, second + 1))
    mapper.adjust_all(max_iterations=15)
    mapper.drop_outliers()
    angle = mapper.median_angle_deg()
    if not mapper.map.is_posed[first : second + 1].all() or angle < whole.config.min_start_angle_deg:
        return None
    longer = max(whole.map.width, whole.map.height)
    if not 0.3 < mapper.map.focal_px / longer < 4.0:
        return None
    rows = mapper.rows()
    errors = reprojection_errors(mapper.bundle(rows)[0])
    score = float(np.sum(np.exp(-((errors / (whole.max_error_px / 4)) ** 2))))
    return score, mapper.map


def _blank(mapper: Mapper, lens: tuple[str, float]) -> KeyframeMap:
    model, focal = lens
    return replace(
        mapper.map,
        model=model,
        cam_from_world=np.full_like(mapper.map.cam_from_world, np.nan),
        points=np.full_like(mapper.map.points, np.nan),
        focal_px=focal,
        is_inlier=np.ones(len(mapper.map.xy_px), dtype=bool),
    )
