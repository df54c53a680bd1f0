"""Two windows of one shot in, the similarity that brings the later one into the earlier one's frame out, with
its error bars.

Neighbours share frames. Their cameras there give the turn and the shift; the scale comes from the depth of
scene points that both windows see at the same pixel of a shared frame, since a camera that hardly moved for two
seconds says little about it. Windows far apart in time share nothing but places: points are known again by
their descriptors, and a similarity that carries enough of them onto each other closes the loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from scipy.spatial import cKDTree

from worldline.annotate.camera import Sim3, invert, project, rotvec_from_rotation, transform, umeyama
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.scale_cues import median_error

_SAME_PIXEL = 1.0 / 640
"""Points of two windows within this share of the image's width in a shared frame are one corner."""
_INDEPENDENT = 4.0
"""Errors of frames of one overlap are alike: they count as no more than this many."""

_MIN_START = 8
"""Matches that a similarity must carry before it is worth a closer look."""
_ALIKE_BITS = 80
"""ORB descriptors of 256 bits of one place differ in fewer; those of two places in about 128."""
_LOOP_SCALE_SIGMA = 0.01
"""The unit of a path without a metre drifts by about a percent within a window."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JointConfig:
    """When two windows may be joined."""

    num_frames: int = 12
    """Shared frames whose pixels are compared."""
    min_frames: int = 5
    """With fewer shared posed frames there is no joint."""
    min_points: int = 20
    """With fewer points seen by both, scale must come from the cameras' own motion."""
    max_scale_spread: float = 0.25
    """Spread (robust, of the logarithm) of the points' depth ratios above which the windows contradict each
    other."""
    max_misfit: float = 0.05
    """Distance of the joined cameras over the scene's median depth above which the windows contradict each
    other."""
    loop_points: int = 20
    """Fewest points known again that close a loop."""
    loop_share: float = 0.25
    """Smallest share of the points that a loop brings together which must also look alike."""
    loop_misfit: float = 0.04
    """How far a point may lie from its twin, over its distance from the cameras that see it."""
    max_loop_points: int = 3000
    """Points of a window that are matched: the most observed ones."""

    def __post_init__(self) -> None:
        if (
            self.min_frames < 2
            or self.num_frames < self.min_frames
            or self.min_points < 3
            or self.loop_points < 4
        ):
            raise ValueError("need num_frames >= min_frames >= 2, min_points >= 3 and loop_points >= 4")
        if min(self.max_scale_spread, self.max_misfit, self.loop_misfit, self.loop_share) <= 0:
            raise ValueError("limits must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """One annotated stretch of a shot."""

    clip_id: str
    timestamps_s: np.ndarray
    """[T]"""
    world_from_cam: np.ndarray
    """[T, 3, 4], NaN where the frame has no pose; in metres where `is_metric`."""
    is_metric: bool
    scale_sigma: float | None
    """Relative 1-sigma of the metre; None where unknown or given."""
    sigma_translation: np.ndarray | None
    """[T] in the window's unit."""
    sigma_rotation_rad: np.ndarray | None
    """[T]"""
    structure: Callable[[], Reconstruction | None]
    """Loads the window's points in its unit: one is in memory at a time for each end of a joint."""

    @property
    def is_registered(self) -> np.ndarray:
        """[T] bool"""
        return np.isfinite(self.world_from_cam).all(axis=(1, 2))


@dataclass(frozen=True, kw_only=True, slots=True)
class Joint:
    """a_from_b between the worlds of two windows of a shot, a before b."""

    a_from_b: Sim3
    centre_in_b: np.ndarray
    """[3] where the joint was measured: its shift and turn are least correlated there."""
    log_scale_sigma: float
    rotation_sigma_rad: float
    shift_sigma: float
    """1-sigma per axis of where `centre_in_b` comes to lie in a, in a's unit."""
    num_frames: int
    num_points: int
    is_loop: bool = False


def join_neighbours(a: Window, b: Window, config: JointConfig) -> Joint | str:
    """The joint of two windows that share frames, or why there is none."""
    in_a, in_b = shared_frames(a, b)
    both = a.is_registered[in_a] & b.is_registered[in_b]
    in_a, in_b = in_a[both], in_b[both]
    if len(in_a) < config.min_frames:
        return f"{len(in_a)} shared frames with a pose in both"
    poses_a, poses_b = a.world_from_cam[in_a], b.world_from_cam[in_b]
    turns = poses_a[:, :, :3] @ poses_b[:, :, :3].mT
    rotation = _mean_rotation(turns)
    off_rad = np.linalg.norm(rotvec_from_rotation(turns @ rotation.T), axis=1)
    log_ratio, depth = _depth_ratios(a, b, in_a, in_b, config)
    if len(log_ratio) >= config.min_points:
        middle = float(np.median(log_ratio))
        spread = 1.4826 * float(np.median(np.abs(log_ratio - middle)))
        if spread > config.max_scale_spread:
            return f"depths of common points differ by {100 * spread:.0f} % from one another"
        log_scale, log_sigma = middle, 1.25 * spread / math.sqrt(min(len(log_ratio), 25 * _INDEPENDENT))
    else:
        by_path = _scale_of_paths(poses_a[:, :, 3], poses_b[:, :, 3])
        if by_path is None:
            return f"{len(log_ratio)} common points and no motion to tell the scale from"
        log_scale, log_sigma, extent = by_path
        depth = 2 * extent  # stands in for the scene's: cameras apart by a tenth of their motion are refused
    scale = math.exp(log_scale)
    offsets = poses_a[:, :, 3] - scale * poses_b[:, :, 3] @ rotation.T
    shift = np.median(offsets, axis=0)
    misfit = float(np.sqrt(np.mean(np.sum((offsets - shift) ** 2, axis=1))))
    if misfit > config.max_misfit * depth:
        return (
            f"cameras of shared frames lie {100 * misfit / depth:.1f} % of the scene's depth from each other"
        )
    # An error of a frame's place is one of the depth of all its points at once.
    log_sigma = math.hypot(log_sigma, misfit / depth / math.sqrt(3 * _INDEPENDENT))
    # Each window's own error at the overlap is relative to its first frame; what the joint sees of it is the
    # change within the overlap, which the misfit measures.
    return Joint(
        a_from_b=Sim3(scale=scale, rotation=rotation, translation=shift),
        centre_in_b=np.median(poses_b[:, :, 3], axis=0),
        log_scale_sigma=max(log_sigma, 1e-4),
        rotation_sigma_rad=max(float(np.sqrt(np.mean(off_rad**2))) / math.sqrt(_INDEPENDENT), 1e-5),
        shift_sigma=max(misfit / math.sqrt(3 * _INDEPENDENT), 1e-6 * scale),
        num_frames=len(in_a),
        num_points=len(log_ratio),
    )


def shared_frames(a: Window, b: Window) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the frames that both windows hold, by their container time."""
    if len(a.timestamps_s) == 0 or len(b.timestamps_s) == 0:
        return np.zeros(0, dtype=int), np.zeros(0, dtype=int)
    at = np.clip(np.searchsorted(a.timestamps_s, b.timestamps_s - 1e-5), 0, len(a.timestamps_s) - 1)
    in_b = np.flatnonzero(np.abs(a.timestamps_s[at] - b.timestamps_s) < 1e-5)
    return at[in_b], in_b


def _mean_rotation(rotations: np.ndarray) -> np.ndarray:
    """The chordal mean [3, 3] of rotations [N, 3, 3], once more without those farthest from it."""
    kept = rotations
    for _ in range(2):
        u, _, vt = np.linalg.svd(kept.sum(axis=0))
        mean = u @ np.diag([1, 1, np.linalg.det(u) * np.linalg.det(vt)]) @ vt
        off = np.linalg.norm(rotvec_from_rotation(rotations @ mean.T), axis=1)
        kept = rotations[off <= 2 * np.median(off) + 1e-9]
    return mean


def _depth_ratios(
    a: Window, b: Window, in_a: np.ndarray, in_b: np.ndarray, config: JointConfig
) -> tuple[np.ndarray, float]:
    """Log of (depth in a / depth in b) of points that both see at one pixel of a shared frame, one value a
    point of a; and their median depth in a."""
    structure_a, structure_b = a.structure(), b.structure()
    if structure_a is None or structure_b is None:
        return np.zeros(0), math.nan
    chosen = np.unique(np.linspace(0, len(in_a) - 1, config.num_frames).round().astype(int))
    found: dict[int, list[float]] = {}
    depths = []
    for k in chosen:
        seen_a = _seen(structure_a, int(in_a[k]), a.world_from_cam[in_a[k]])
        seen_b = _seen(structure_b, int(in_b[k]), b.world_from_cam[in_b[k]])
        if seen_a is None or seen_b is None:
            continue
        size_b = np.array([structure_b.intrinsics.width, structure_b.intrinsics.height])
        size_a = np.array([structure_a.intrinsics.width, structure_a.intrinsics.height])
        (idx_a, xy_a, z_a), (_, xy_b, z_b) = seen_a, seen_b
        limit = _SAME_PIXEL * size_a[0]
        xy_b = xy_b * (size_a / size_b)
        near, at = cKDTree(xy_b).query(xy_a, distance_upper_bound=limit)
        back, at_back = cKDTree(xy_a).query(xy_b, distance_upper_bound=limit)
        del back
        mutual = np.isfinite(near)
        mutual[mutual] = at_back[at[mutual]] == np.flatnonzero(mutual)
        for point, ratio in zip(idx_a[mutual], np.log(z_a[mutual] / z_b[at[mutual]]), strict=True):
            found.setdefault(int(point), []).append(float(ratio))
        depths.append(z_a[mutual])
    values = np.array([float(np.median(ratios)) for _, ratios in sorted(found.items())])
    return values, float(np.median(np.concatenate(depths))) if depths and len(values) else math.nan


def _seen(
    structure: Reconstruction, frame: int, world_from_cam: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(point indices, pixels [N, 2], depths [N]) of points that a frame sees, judged by the frames with
    observations next to it."""
    observed = np.unique(structure.frame_idx)
    if len(observed) == 0:
        return None
    after = int(np.searchsorted(observed, frame))
    beside = observed[max(after - 1, 0) : after + 1]
    point = np.unique(structure.point_idx[np.isin(structure.frame_idx, beside)])
    in_cam = transform(invert(world_from_cam), structure.points_in_world[point].astype(np.float64))
    every = structure.intrinsics
    pixels = project(in_cam, replace(every, fxfycxcy_px=np.asarray(every.fxfycxcy_px[frame])))
    inside = np.isfinite(pixels).all(axis=1) & (pixels > 0).all(axis=1)
    inside &= (pixels < np.array([every.width, every.height])).all(axis=1)
    return None if not inside.any() else (point[inside], pixels[inside], in_cam[inside, 2])


def _scale_of_paths(centres_a: np.ndarray, centres_b: np.ndarray) -> tuple[float, float, float] | None:
    """(log scale, its sigma, extent in a) of the shared stretch of path; None where it has hardly any."""
    try:
        fit = umeyama(centres_a, centres_b)
    except ValueError:
        return None
    residual = float(np.sqrt(np.mean(np.sum((fit.points(centres_b) - centres_a) ** 2, axis=1))))
    extent = float(np.sqrt(np.mean(np.sum((centres_a - centres_a.mean(axis=0)) ** 2, axis=1))))
    if not fit.scale > 0 or not extent > 0 or residual > 0.1 * extent:
        return None
    return math.log(fit.scale), residual / extent / math.sqrt(_INDEPENDENT), extent


def find_loop(a: Window, b: Window, config: JointConfig) -> Joint | None:
    """A joint of two windows that see the same place at different times, through the points' descriptors;
    None where they do not.

    A similarity through a few matches is pycolmap's LO-RANSAC estimate; it then must bring points together
    that look alike, and few that do not.
    """
    import pycolmap

    known_a, known_b = _describe(a.structure(), config), _describe(b.structure(), config)
    if known_a is None or known_b is None:
        return None
    matches = _match(known_a.descriptor, known_b.descriptor)
    if len(matches) < _MIN_START:
        return None
    points_a, points_b = known_a.point[matches[:, 0]], known_b.point[matches[:, 1]]
    limit = config.loop_misfit * float(np.median(known_a.distance))
    options = pycolmap.RANSACOptions(max_error=limit, max_num_trials=5000, confidence=0.999, random_seed=0)
    # Its stubs promise the transform alone; it comes with the inliers.
    found: Any = pycolmap.estimate_sim3d_robust(points_b, points_a, options)
    if found is None or found["num_inliers"] < _MIN_START:
        return None
    matrix = np.asarray(found["tgt_from_src"].matrix())
    scale = float(found["tgt_from_src"].scale)
    a_from_b = Sim3(scale=scale, rotation=matrix[:, :3] / scale, translation=matrix[:, 3])
    pairs = matches[:0]
    for _ in range(3):
        pairs = _agreeing(known_a, known_b, a_from_b, config)
        if len(pairs) < config.loop_points:
            return None
        weights = 1 / known_a.distance[pairs[:, 0]] ** 2
        a_from_b = umeyama(known_a.point[pairs[:, 0]], known_b.point[pairs[:, 1]], weights=weights)
    return _loop_joint(a, b, a_from_b, known_a.point[pairs[:, 0]], known_b.point[pairs[:, 1]])


def _agreeing(known_a: _Known, known_b: _Known, a_from_b: Sim3, config: JointConfig) -> np.ndarray:
    """Pairs [M, 2] of points that the similarity brings together and that look alike; none where too few of
    those brought together look alike, which is what a wrong similarity does."""
    moved = a_from_b.points(known_b.point)
    reach, nearest = cKDTree(known_a.point).query(moved)
    is_near = reach < config.loop_misfit * known_a.distance[nearest]
    near_b = np.flatnonzero(is_near)
    pairs = np.stack([nearest[near_b], near_b], axis=1)
    differing = np.bitwise_xor(known_a.descriptor[pairs[:, 0]], known_b.descriptor[pairs[:, 1]])
    alike = np.bitwise_count(differing).sum(axis=1) < _ALIKE_BITS
    return pairs[alike] if alike.sum() >= config.loop_share * max(len(pairs), 1) else pairs[:0]


def _loop_joint(a: Window, b: Window, a_from_b: Sim3, points_a: np.ndarray, points_b: np.ndarray) -> Joint:
    """The joint with its error bars: the points' scatter, and what each window's path is bent by, which a
    window that moves as one cannot follow."""
    residual = a_from_b.points(points_b) - points_a
    extent = float(np.sqrt(np.mean(np.sum((points_a - points_a.mean(axis=0)) ** 2, axis=1))))
    independent = min(len(points_a), 25 * _INDEPENDENT)
    error = max(median_error(residual.reshape(-1)), float(np.std(residual)) / math.sqrt(independent))
    shift = math.hypot(_typical(a.sigma_translation), a_from_b.scale * _typical(b.sigma_translation))
    turn = math.hypot(_typical(a.sigma_rotation_rad), _typical(b.sigma_rotation_rad))
    return Joint(
        a_from_b=a_from_b,
        centre_in_b=points_b.mean(axis=0),
        log_scale_sigma=math.hypot(error / extent, _LOOP_SCALE_SIGMA),
        rotation_sigma_rad=max(math.hypot(error / extent, turn), 1e-5),
        shift_sigma=max(math.hypot(error, shift), 1e-6 * extent),
        num_frames=0,
        num_points=len(points_a),
        is_loop=True,
    )


def _typical(sigma: np.ndarray | None) -> float:
    """The median of a window's error bars; 0 where it states none."""
    return 0.0 if sigma is None or not np.isfinite(sigma).any() else float(np.nanmedian(sigma))


@dataclass(frozen=True, slots=True)
class _Known:
    """Points [N, 3] of a window with their descriptors [N, 32] and distance [N] from the first camera that
    sees each."""

    point: np.ndarray
    descriptor: np.ndarray
    distance: np.ndarray


def _describe(structure: Reconstruction | None, config: JointConfig) -> _Known | None:
    """The points observed most often; None where there are none, or none with descriptors."""
    if structure is None or structure.point_descriptor is None or len(structure.points_in_world) == 0:
        return None
    count = np.bincount(structure.point_idx, minlength=len(structure.points_in_world))
    chosen = np.sort(np.argsort(-count, kind="stable")[: config.max_loop_points])
    first = np.zeros(len(count), dtype=np.int64)
    first[structure.point_idx[::-1]] = structure.frame_idx[::-1]
    centre = invert(structure.cam_from_world[first[chosen]])[:, :, 3]
    points = structure.points_in_world[chosen].astype(np.float64)
    distance = np.linalg.norm(points - centre, axis=1)
    return _Known(points, structure.point_descriptor[chosen], distance)


def _match(descriptors_a: np.ndarray, descriptors_b: np.ndarray) -> np.ndarray:
    """Pairs [M, 2] of mutually nearest descriptors that are a little nearer than the second: a place seen again
    from elsewhere looks only somewhat alike, and the similarity sorts out the rest."""
    matcher = cv2.BFMatcher(cv2.NORM_HAMMING)
    pairs = []
    for query, train in ((descriptors_a, descriptors_b), (descriptors_b, descriptors_a)):
        best = {}
        for two in matcher.knnMatch(query, train, k=2):
            if len(two) == 2 and two[0].distance < min(0.95 * two[1].distance, _ALIKE_BITS):
                best[two[0].queryIdx] = two[0].trainIdx
        pairs.append(best)
    mutual = [(i, j) for i, j in pairs[0].items() if pairs[1].get(j) == i]
    return np.array(mutual, dtype=np.int64).reshape(-1, 2)
