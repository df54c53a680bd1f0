"""A clip's cameras and sparse points in, for one frame the other frames worth matching and its range of depth
out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from worldline.annotate.camera import Intrinsics, project, transform
from worldline.annotate.reconstruction import Reconstruction

_MAX_POINTS, _MAX_CANDIDATES = 400, 60
"""Evenly spread samples are enough to rank views."""
_MIN_POINTS = 8
"""Fewer sparse points in view say too little about range and overlap."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewSelection:
    """What to match a reference frame against."""

    sources: tuple[int, ...]
    """Frame indices, best first."""
    near: float
    far: float
    """Range of z that holds the scene, in units of the trajectory."""


def frame_camera(reconstruction: Reconstruction, frame_idx: int) -> Intrinsics:
    """Intrinsics of one frame, fxfycxcy_px [4], at the working size."""
    every = reconstruction.intrinsics
    return replace(every, fxfycxcy_px=np.asarray(every.fxfycxcy_px[frame_idx], dtype=np.float64))


def select_views(
    reconstruction: Reconstruction, reference: int, *, num_sources: int, parallax: float, max_gap: int
) -> ViewSelection | None:
    """Sources on both sides of `reference` whose sparse points move by about `parallax` beyond rotation.

    `parallax` is a share of the image width. Half of the sources aim at half of it: the short baselines
    settle which match is right, the long ones how deep it is. None where the frame has no pose, too few
    points are in view, or no view moves at least a tenth of `parallax`: then depth cannot be had from motion.
    """
    if not reconstruction.is_registered[reference]:
        return None
    points_in_ref = _points_in_view(reconstruction, reference, max_gap)
    points_in_ref = points_in_ref[:: 1 + len(points_in_ref) // _MAX_POINTS]
    if len(points_in_ref) < _MIN_POINTS:
        return None
    is_registered = reconstruction.is_registered
    first, last = max(0, reference - max_gap), min(len(is_registered), reference + max_gap + 1)
    candidates = [i for i in range(first, last) if i != reference and is_registered[i]]
    candidates = candidates[:: 1 + len(candidates) // _MAX_CANDIDATES]
    measured = [(i, *_parallax_and_overlap(reconstruction, reference, i, points_in_ref)) for i in candidates]
    usable = {i: (p, o) for i, p, o in measured if p > 0.1 * parallax and o > 0.4}
    sources = _pick(usable, reference, num_sources, parallax)
    if not sources:
        return None
    z = points_in_ref[:, 2]
    near, far = np.percentile(z, [1, 99])
    # Sparse points are the textured part of the scene only: surfaces between them and the camera or behind
    # them exist.
    return ViewSelection(sources=tuple(sources), near=float(near / 1.4), far=float(far * 1.6))


def _points_in_view(reconstruction: Reconstruction, reference: int, max_gap: int) -> np.ndarray:
    """[N, 3] in the reference camera: points observed within `max_gap` frames of it that project into its
    image."""
    is_near = np.abs(reconstruction.frame_idx - reference) <= max_gap
    point_idx = np.unique(reconstruction.point_idx[is_near])
    points = transform(reconstruction.cam_from_world[reference], reconstruction.points_in_world[point_idx])
    pixels = project(points, frame_camera(reconstruction, reference))
    return points[_is_inside(pixels, reconstruction.intrinsics)]


def _parallax_and_overlap(
    reconstruction: Reconstruction, reference: int, source: int, points_in_ref: np.ndarray
) -> tuple[float, float]:
    """Median shift between the points and their infinitely far twins, over image width; share of points in
    view."""
    rotation_ref = reconstruction.cam_from_world[reference][:, :3]
    source_from_world = reconstruction.cam_from_world[source]
    rotation = source_from_world[:, :3] @ rotation_ref.T
    translation = source_from_world[:, 3] - rotation @ reconstruction.cam_from_world[reference][:, 3]
    camera = frame_camera(reconstruction, source)
    turned = points_in_ref @ rotation.T
    moved_px = project(turned + translation, camera)
    is_seen = _is_inside(moved_px, camera)
    shift = np.linalg.norm(moved_px - project(turned, camera), axis=-1)
    shift = shift[np.isfinite(shift)]
    median = float(np.median(shift)) if shift.size else 0.0
    return median / camera.width, float(is_seen.mean())


def _pick(
    usable: dict[int, tuple[float, float]], reference: int, num_sources: int, parallax: float
) -> list[int]:
    """Frames whose parallax comes nearest to the target and its half, from both sides in turn, then from
    either."""
    picked: list[int] = []

    def take(target: float, frames: list[int]) -> None:
        rest = [i for i in frames if i not in picked]
        if rest and len(picked) < num_sources:
            picked.append(
                max(rest, key=lambda i: usable[i][1] * min(usable[i][0] / target, target / usable[i][0]))
            )

    before, after = [i for i in usable if i < reference], [i for i in usable if i > reference]
    for target in (parallax, 0.5 * parallax):
        take(target, before)
        take(target, after)
    for factor in (0.75, 1.5, 0.3, 2.0, 1.0, 0.5):
        take(factor * parallax, list(usable))
    return picked


def _is_inside(pixels: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
    """[N] bool; NaN is outside."""
    x, y = pixels[..., 0], pixels[..., 1]
    return (x > 0) & (x < intrinsics.width) & (y > 0) & (y < intrinsics.height)
