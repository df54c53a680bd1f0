"""Sharper and longer tracks: a keyframe map and its images in, sub-pixel observations of every visible point
out.

Lucas-Kanade from frame to frame drifts and knows nothing of scale or slant. Once poses and depths are known,
each point's patch in a reference keyframe can be warped into any other keyframe, on the plane through the
points around it (annotate/slant.py), and aligned there directly: inverse-compositional alignment (Baker & Matthews 2004) on
patches normalised for gain and bias. The same search, at the predicted place, finds points again that their
track had lost: this closes loops inside the clip without descriptors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from worldline.annotate.camera import invert, project, transform, unproject
from worldline.annotate.keyframe_map import KeyframeMap, shutter_px
from worldline.annotate.patch_alignment import align_patches, sample_patches
from worldline.annotate.shutter import velocity_nearby
from worldline.annotate.slant import SlantConfig, inverse_depth_slope
from worldline.annotate.threads import in_threads

_STEP_PX = 2.0
"""Distance over which a patch's affine warp is measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefineConfig:
    """Settings of the alignment."""

    half_px: int = 5
    """Patches have 2 half_px + 1 pixels a side."""
    num_iterations: int = 6
    min_correlation: float = 0.8
    """Patches that correlate less (zero-mean, normalised) are not the same place."""
    max_shift_px: float = 3.0
    """An alignment that ends further from where it began is not trusted."""
    max_turn_deg: float = 30.0
    """Largest angle between the rays under which a point is looked for again."""
    max_new: int = 300
    """Points looked for again per keyframe."""
    num_rounds: int = 2
    """Times points are looked for again, each after an adjustment: drift shrinks from one to the next."""
    num_reference_gap: int = 3
    """Keyframes this close to a point's own observations are not searched: tracking has just lost it
    there."""
    slant: SlantConfig = field(default_factory=SlantConfig)


@dataclass(frozen=True, slots=True)
class _References:
    """One reference observation per point."""

    row: np.ndarray
    """[N] observation that is the reference; -1 where the point has none."""
    in_world: np.ndarray
    """[N, 3, 3] the point and, `_STEP_PX` to its right and below in the reference, its neighbours on the surface."""


@dataclass(frozen=True, slots=True)
class _Patches:
    """The references' patches."""

    patch: np.ndarray
    """[N, S] normalised grey values."""
    gradient: np.ndarray
    """[N, S, 2]"""
    hessian_inverse: np.ndarray
    """[N, 2, 2]; NaN where the patch has no corner in it."""


def refine_observations(
    greys: Sequence[np.ndarray], keyframe_map: KeyframeMap, config: RefineConfig
) -> KeyframeMap:
    """Re-aligns all inlier observations to one reference patch per point.

    greys: one [H, W] uint8 image per keyframe. Observations that cannot be aligned keep their place. The
    map's poses and points are not changed: adjust them after.
    """
    references = _references(keyframe_map, config)
    patches = _patches(greys, keyframe_map, references, config)
    xy = keyframe_map.xy_px.copy()

    def refine(kf: int) -> None:
        rows = np.flatnonzero((keyframe_map.kf_idx == kf) & keyframe_map.is_inlier)
        track = keyframe_map.track_idx[rows]
        rows = rows[(references.row[track] >= 0) & (references.row[track] != rows)]
        if len(rows) == 0:
            return
        track = keyframe_map.track_idx[rows]
        warp, _ = _warps(keyframe_map, references, track, kf)
        found, score = _align(greys[kf], patches, track, warp, xy[rows], config)
        shift = np.linalg.norm(found - xy[rows], axis=1)
        good = (score > config.min_correlation) & (shift < config.max_shift_px)
        xy[rows[good]] = found[good]

    in_threads(refine, np.flatnonzero(keyframe_map.is_posed).tolist())
    return replace(keyframe_map, xy_px=xy)


def find_again(greys: Sequence[np.ndarray], keyframe_map: KeyframeMap, config: RefineConfig) -> KeyframeMap:
    """Adds observations of points in keyframes that should see them but whose tracks do not reach there."""
    references = _references(keyframe_map, config)
    patches = _patches(greys, keyframe_map, references, config)
    halves = [cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for grey in greys]
    half_patches = _patches(halves, keyframe_map, references, config, scale=0.5)
    observed_by = [keyframe_map.track_idx[keyframe_map.kf_idx == k] for k in range(len(greys))]

    def find(kf: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
        """(kf_idx, track_idx, xy_px, velocity_px) of what is found."""
        track = _candidates(keyframe_map, references, patches, observed_by, kf, config)
        if len(track) == 0:
            return None
        warp, ideal = _warps(keyframe_map, references, track, kf)
        predicted, velocity = _as_read(keyframe_map, kf, ideal)
        rough, score = _align(halves[kf], half_patches, track, warp, predicted / 2, config)
        ok = score > 0.7 * config.min_correlation
        if not ok.any():
            return None
        found, score = _align(greys[kf], patches, track[ok], warp[ok], rough[ok] * 2, config)
        good = score > config.min_correlation
        good &= _agrees(found - predicted[ok], found, good)
        if good.sum() < 8:
            return None
        return np.full(int(good.sum()), kf), track[ok][good], found[good], velocity[ok][good]

    found = in_threads(find, np.flatnonzero(keyframe_map.is_posed).tolist())
    added = [each for each in found if each is not None]
    if not added:
        return keyframe_map
    kf_idx, track_idx, xy_px, velocity_px = (np.concatenate(each) for each in zip(*added, strict=True))
    old = keyframe_map.velocity_px
    return replace(
        keyframe_map,
        kf_idx=np.concatenate([keyframe_map.kf_idx, kf_idx]),
        track_idx=np.concatenate([keyframe_map.track_idx, track_idx]),
        xy_px=np.concatenate([keyframe_map.xy_px, xy_px]),
        is_inlier=np.concatenate([keyframe_map.is_inlier, np.ones(len(kf_idx), dtype=bool)]),
        velocity_px=None if old is None else np.concatenate([old, velocity_px]),
    )


def _as_read(keyframe_map: KeyframeMap, kf: int, ideal_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where pixels of a global shutter show in a keyframe, and their velocities: those of the tracks nearby."""
    if keyframe_map.velocity_px is None:
        return ideal_px, np.zeros_like(ideal_px)
    rows = (keyframe_map.kf_idx == kf) & keyframe_map.is_inlier
    velocity = velocity_nearby(keyframe_map.xy_px[rows], keyframe_map.velocity_px[rows], ideal_px)
    size = (keyframe_map.width, keyframe_map.height)
    return ideal_px + keyframe_map.readout * shutter_px(
        ideal_px, velocity, size, keyframe_map.scan_axis
    ), velocity


def _agrees(offset: np.ndarray, xy: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Whether a found point is off its prediction as its neighbours in the image are: drift is smooth,
    mistakes are not."""
    result = np.zeros(len(offset), dtype=bool)
    rows = np.flatnonzero(valid)
    if len(rows) < 8:
        return result
    distance = np.linalg.norm(xy[rows, None] - xy[None, rows], axis=2)
    nearest = np.argsort(distance, axis=1)[:, 1:8]
    local = np.median(offset[rows][nearest], axis=1)
    result[rows] = np.linalg.norm(offset[rows] - local, axis=1) < 1.5
    return result


def _candidates(
    keyframe_map: KeyframeMap,
    references: _References,
    patches: _Patches,
    observed_by: list[np.ndarray],
    kf: int,
    config: RefineConfig,
) -> np.ndarray:
    """Tracks whose point should show in keyframe `kf`, near in view and scale to its reference, and has no
    observation there."""
    near = range(
        max(0, kf - config.num_reference_gap), min(len(observed_by), kf + config.num_reference_gap + 1)
    )
    free = np.isfinite(keyframe_map.points[:, 0]) & (references.row >= 0)
    free &= np.isfinite(patches.hessian_inverse[:, 0, 0])
    for other in near:
        free[observed_by[other]] = False
    track = np.flatnonzero(free)
    cam_from_world = keyframe_map.cam_from_world[kf]
    in_cam = transform(cam_from_world, keyframe_map.points[track])
    pixels = project(in_cam, keyframe_map.intrinsics())
    size = np.array([keyframe_map.width, keyframe_map.height])
    margin = 12.0
    inside = np.isfinite(pixels[:, 0]) & np.all((pixels > margin) & (pixels < size - margin), axis=1)
    reference_kf = keyframe_map.kf_idx[references.row[track]]
    reference_cam = keyframe_map.cam_from_world[reference_kf]
    depth = _depths(keyframe_map, references.row[track])
    ratio = in_cam[:, 2] / np.maximum(depth, 1e-9)
    to_point = keyframe_map.points[track] - invert(cam_from_world)[:, 3]
    to_point_reference = keyframe_map.points[track] - invert(reference_cam)[:, :, 3]
    cosine = np.einsum("ni,ni->n", to_point, to_point_reference)
    cosine /= np.linalg.norm(to_point, axis=1) * np.linalg.norm(to_point_reference, axis=1)
    roll = np.einsum("j,nj->n", cam_from_world[0, :3], reference_cam[:, 0, :3])
    ok = (
        inside
        & (ratio > 0.6)
        & (ratio < 1.7)
        & (cosine > np.cos(np.radians(config.max_turn_deg)))
        & (roll > 0.7)
    )
    track = track[ok]
    if len(track) > config.max_new:
        length = np.bincount(
            keyframe_map.track_idx, keyframe_map.is_inlier, minlength=len(keyframe_map.points)
        )
        track = track[np.argsort(-length[track], kind="stable")[: config.max_new]]
    return track


def _references(keyframe_map: KeyframeMap, config: RefineConfig) -> _References:
    """The middle inlier observation of each point, and the surface there."""
    usable = keyframe_map.is_inlier & keyframe_map.is_posed[keyframe_map.kf_idx]
    usable &= np.isfinite(keyframe_map.points[keyframe_map.track_idx, 0])
    rows = np.flatnonzero(usable)
    rows = rows[np.lexsort((keyframe_map.kf_idx[rows], keyframe_map.track_idx[rows]))]
    begins = np.flatnonzero(np.diff(keyframe_map.track_idx[rows], prepend=-1))
    counts = np.diff(np.append(begins, len(rows)))
    middle = rows[begins + counts // 2]
    track = keyframe_map.track_idx[middle]
    reference, in_world = np.full(len(keyframe_map.points), -1), np.zeros((len(keyframe_map.points), 3, 3))
    reference[track] = middle
    in_world[track] = _neighbours(keyframe_map, middle, usable, config.slant)
    return _References(reference, in_world)


def _patches(
    greys: Sequence[np.ndarray],
    keyframe_map: KeyframeMap,
    references: _References,
    config: RefineConfig,
    *,
    scale: float = 1.0,
) -> _Patches:
    """Normalised patches around the references, in images of `scale` times the size, and what the alignment needs of
    them."""
    num_tracks = len(keyframe_map.points)
    side = 2 * config.half_px + 1
    patch = np.zeros((num_tracks, side * side), dtype=np.float32)
    gradient = np.zeros((num_tracks, side * side, 2), dtype=np.float32)
    hessian = np.zeros((num_tracks, 2, 2), dtype=np.float32)
    row = references.row[references.row >= 0]

    def cut_out(kf: int) -> None:
        at = row[keyframe_map.kf_idx[row] == kf]
        values = sample_patches(greys[kf], keyframe_map.xy_px[at] * scale, config.half_px + 1)
        track = keyframe_map.track_idx[at]
        inner = values[:, 1:-1, 1:-1].reshape(len(at), -1)
        spread = np.maximum(inner.std(axis=1), 1.0)
        patch[track] = (inner - inner.mean(axis=1)[:, None]) / spread[:, None]
        by_x = (values[:, 1:-1, 2:] - values[:, 1:-1, :-2]).reshape(len(at), -1) / 2
        by_y = (values[:, 2:, 1:-1] - values[:, :-2, 1:-1]).reshape(len(at), -1) / 2
        slopes = np.stack([by_x, by_y], axis=2) / spread[:, None, None]
        gradient[track], hessian[track] = slopes, slopes.swapaxes(1, 2) @ slopes

    in_threads(cut_out, np.unique(keyframe_map.kf_idx[row]).tolist())
    determinant = hessian[:, 0, 0] * hessian[:, 1, 1] - hessian[:, 0, 1] ** 2
    good = determinant > 1.0
    inverse = np.full((num_tracks, 2, 2), np.nan)
    inverse[good] = np.linalg.inv(hessian[good])
    return _Patches(patch, gradient, inverse)


def _neighbours(
    keyframe_map: KeyframeMap, row: np.ndarray, usable: np.ndarray, config: SlantConfig
) -> np.ndarray:
    """World points [n, 3, 3] of observations: what shows at the pixel, right of it and below, on the surface there.
    usable [M] bool: observations that tell of surfaces."""
    depth = _depths(keyframe_map, np.arange(len(keyframe_map.kf_idx)))
    ideal_px = keyframe_map.ideal_px(np.arange(len(keyframe_map.kf_idx)))
    slope = np.zeros((len(row), 2))
    for kf in np.unique(keyframe_map.kf_idx[row]):
        mine = np.flatnonzero(keyframe_map.kf_idx[row] == kf)
        seen = np.flatnonzero(usable & (keyframe_map.kf_idx == kf) & (depth > 0))
        front = mine[np.isin(row[mine], seen)]
        slope[front] = inverse_depth_slope(
            ideal_px[seen], depth[seen], np.searchsorted(seen, row[front]), config
        )
    offsets = np.array([[0.0, 0.0], [_STEP_PX, 0.0], [0.0, _STEP_PX]])
    rays = unproject(ideal_px[row][:, None] + offsets, keyframe_map.intrinsics())
    depths = depth[row][:, None] / (1 + slope @ offsets.T)
    in_cam = rays / rays[:, :, 2:] * depths[:, :, None]
    return transform(invert(keyframe_map.cam_from_world[keyframe_map.kf_idx[row]]), in_cam)


def _depths(keyframe_map: KeyframeMap, row: np.ndarray) -> np.ndarray:
    """Depth [n] of observed points along the optical axis; NaN where pose or point is missing."""
    cam_from_world = keyframe_map.cam_from_world[keyframe_map.kf_idx[row]]
    point = keyframe_map.points[keyframe_map.track_idx[row]]
    return np.einsum("nj,nj->n", cam_from_world[:, 2, :3], point) + cam_from_world[:, 2, 3]


def _warps(
    keyframe_map: KeyframeMap, references: _References, track: np.ndarray, kf: int
) -> tuple[np.ndarray, np.ndarray]:
    """Affine warps [n, 2, 2] from reference patch to keyframe, and the predicted pixels [n, 2]."""
    intrinsics = keyframe_map.intrinsics()
    pixels = project(transform(keyframe_map.cam_from_world[kf], references.in_world[track]), intrinsics)
    warp = np.stack([pixels[:, 1] - pixels[:, 0], pixels[:, 2] - pixels[:, 0]], axis=2) / _STEP_PX
    predicted = project(transform(keyframe_map.cam_from_world[kf], keyframe_map.points[track]), intrinsics)
    return np.nan_to_num(warp), np.nan_to_num(predicted, nan=-100.0)


def _align(
    grey: np.ndarray,
    patches: _Patches,
    track: np.ndarray,
    warp: np.ndarray,
    start: np.ndarray,
    config: RefineConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Aligned pixels [n, 2] and their normalised correlation [n], from the given start."""
    return align_patches(
        grey,
        patches.patch[track],
        patches.gradient[track],
        patches.hessian_inverse[track],
        np.ascontiguousarray(warp),
        np.ascontiguousarray(start),
        config.num_iterations,
    )
