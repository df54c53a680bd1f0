"""Stored camera poses against what the video shows: the residual of the poses as stored, and as repaired from
each mistake.

Two kinds of evidence. Tracks: the sidecar's points, projected through the row's poses and intrinsics, must
fall on the sidecar's observations; this sees direction, axes, handedness, quaternion order, units and the
principal point. Frames: two decoded frames are matched anew (SIFT), and each match must lie on the half of
its epipolar line that is in front of both cameras; this needs nothing but the video, but is blind to the unit
and to the world's axes.

What half a pixel of the origin shows: a principal point shifted against the observations leaves all residuals
with that mean, which thousands of observations measure to a hundredth of a pixel. Observations that share the
shift with the principal point are explained by cameras turned by half a pixel, so no residual tells; there
the image has to: tracked points sit on corners, and the corner found anew at each observation must not lie
half a pixel beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import cv2
import numpy as np
from scipy.spatial import cKDTree

from worldline.annotate.camera import Intrinsics, invert, project, transform, unproject
from worldline.annotate.reconstruction import Reconstruction
from worldline.datasets.posed_clip import PosedClip
from worldline.evaluate.mistakes import MISTAKES, relative

STORED = "as stored"
CAP_PX = 20.0
"""A residual counts at most this much, and a point behind the camera exactly this much."""

UNSEEN_IN_FRAMES = ("axes: the world's axes are OpenGL's (y up, z backward)",)
"""Mistakes that leave relative poses as they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Residuals of one kind of evidence."""

    kind: str
    """tracks or frames"""
    num_measurements: int
    residual_px: dict[str, float]
    """Residual of the poses as stored and under each repair: for tracks the mean of residuals capped at
    CAP_PX, for frames the median."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Corners:
    """Where corners lie beside the stored observations."""

    num_corners: int
    offset_px: np.ndarray
    """[2] median of corner minus observation, x and y, at the working size."""
    error_px: float
    """Standard error of `offset_px`, the larger of x and y."""


def track_evidence(clip: PosedClip, structure: Reconstruction, *, max_observations: int = 20_000) -> Evidence:
    """The sidecar's observations under the row's poses; an unregistered frame's observations are left out."""
    poses, intrinsics = (
        clip.world_from_cam,
        _at_size(clip, structure.intrinsics.width, structure.intrinsics.height),
    )
    used = np.flatnonzero(clip.is_registered[structure.frame_idx])
    if len(used) > max_observations:
        used = np.sort(np.random.default_rng(0).choice(used, max_observations, replace=False))
    frame = structure.frame_idx[used]
    per_observation = replace(intrinsics, fxfycxcy_px=intrinsics.fxfycxcy_px[frame])
    points = structure.points_in_world[structure.point_idx[used]].astype(np.float64)

    def mean_residual(repaired: np.ndarray) -> float:
        in_cam = transform(invert(repaired)[frame], points[:, None])
        error = np.linalg.norm(project(in_cam, per_observation)[:, 0] - structure.xy_px[used], axis=-1)
        return _capped_mean(error)

    repairs = {STORED: poses} | {name: repair(poses) for name, repair in _repaired(poses)}
    factor = unit_factor(clip, structure)
    if factor is not None and abs(np.log(factor)) > 0.01:
        shorter = poses.copy()
        shorter[:, :, 3] /= factor
        repairs[f"unit: translations are {factor:.6g} times those the points need"] = shorter
    return Evidence(
        kind="tracks",
        num_measurements=len(used),
        residual_px={name: mean_residual(repaired) for name, repaired in repairs.items()}
        if len(used)
        else {},
    )


def unit_factor(clip: PosedClip, structure: Reconstruction) -> float | None:
    """How many times longer the row's path is than the sidecar's; None where either rests."""
    both = clip.is_registered & structure.is_registered
    if both.sum() < 2:
        return None
    row, sidecar = clip.world_from_cam[both][:, :, 3], invert(structure.cam_from_world[both])[:, :, 3]
    extent_row, extent_sidecar = (float(np.sqrt(np.mean((c - c.mean(axis=0)) ** 2))) for c in (row, sidecar))
    return extent_row / extent_sidecar if extent_sidecar > 0 and extent_row > 0 else None


def residual_bias_px(clip: PosedClip, structure: Reconstruction) -> np.ndarray | None:
    """Median of observation minus projection [2] in pixels of the row's size, poses as stored; None without
    any."""
    intrinsics = _at_size(clip, structure.intrinsics.width, structure.intrinsics.height)
    used = np.flatnonzero(clip.is_registered[structure.frame_idx])
    frame = structure.frame_idx[used]
    points = structure.points_in_world[structure.point_idx[used]].astype(np.float64)
    in_cam = transform(invert(clip.world_from_cam)[frame], points[:, None])
    seen = project(in_cam, replace(intrinsics, fxfycxcy_px=intrinsics.fxfycxcy_px[frame]))[:, 0]
    error = (structure.xy_px[used] - seen)[np.isfinite(seen).all(axis=1)]
    if len(error) == 0 or clip.intrinsics is None:
        return None
    to_row = np.array([clip.intrinsics.width / intrinsics.width, clip.intrinsics.height / intrinsics.height])
    return np.median(error, axis=0) * to_row


def corner_offsets(structure: Reconstruction, images: Mapping[int, np.ndarray]) -> Corners:
    """Corners found anew beside the observations of the given frames, frame index -> grey [H, W] uint8 of any
    size."""
    offsets = [np.zeros((0, 2))]
    size = (structure.intrinsics.width, structure.intrinsics.height)
    for frame, image in images.items():
        seen = structure.xy_px[structure.frame_idx == frame]
        grey = image if image.shape[::-1] == size else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        peaks = _corner_peaks(grey)
        if len(seen) == 0 or len(peaks) == 0:
            continue
        distance, nearest = cKDTree(peaks).query(seen)
        offsets.append((peaks[nearest] - seen)[distance < 1.5])
    every = np.concatenate(offsets)
    if len(every) < 2:
        return Corners(num_corners=len(every), offset_px=np.full(2, np.nan), error_px=float("nan"))
    # 1.25 sigma / sqrt(n) is the standard error of a median.
    error_px = 1.25 * float(np.max(every.std(axis=0))) / np.sqrt(len(every))
    return Corners(num_corners=len(every), offset_px=np.median(every, axis=0), error_px=error_px)


def _corner_peaks(grey: np.ndarray) -> np.ndarray:
    """Peaks [N, 2] of the smaller eigenvalue of the gradient's second moments, in pixels (our origin)."""
    response = cv2.cornerMinEigenVal(grey, 5)
    inner = response[1:-1, 1:-1]
    is_peak = (inner >= cv2.dilate(response, np.ones((3, 3)))[1:-1, 1:-1]) & (inner > 1e-3 * response.max())
    y, x = np.nonzero(is_peak)
    y, x = y + 1, x + 1
    # A parabola through the peak and its two neighbours, along each axis.
    shift = []
    for before, after in ((response[y, x - 1], response[y, x + 1]), (response[y - 1, x], response[y + 1, x])):
        curvature = 2 * response[y, x] - before - after
        shift.append(np.where(curvature > 0, 0.5 * (after - before) / np.maximum(curvature, 1e-12), 0.0))
    return np.stack([x + shift[0], y + shift[1]], axis=-1) + 0.5


def frame_evidence(
    clip: PosedClip, matches: Mapping[tuple[int, int], np.ndarray], width: int, height: int
) -> Evidence:
    """Matches of frame pairs under the row's poses: (first, second) -> [N, 2, 2] as `match_frames` gives, in
    pixels of width x height."""
    poses, intrinsics = clip.world_from_cam, _at_size(clip, width, height)
    repairs = {STORED: poses} | {name: repair(poses) for name, repair in _repaired(poses)}
    repairs = {name: repaired for name, repaired in repairs.items() if name not in UNSEEN_IN_FRAMES}
    errors: dict[str, list[np.ndarray]] = {name: [np.zeros(0)] for name in repairs}
    for (first, second), matched in matches.items():
        cameras = [
            replace(intrinsics, fxfycxcy_px=intrinsics.fxfycxcy_px[frame]) for frame in (first, second)
        ]
        rays = [unproject(matched[:, side], camera) for side, camera in enumerate(cameras)]
        focal_px = float(cameras[1].fxfycxcy_px[0])
        for name, repaired in repairs.items():
            second_from_first = relative(repaired, np.array([first]), np.array([second]))[0]
            errors[name].append(focal_px * angle_off_epipolar_arc(rays[0], rays[1], second_from_first))
    joined = {name: np.concatenate(found) for name, found in errors.items()}
    num = len(joined[STORED])
    # The median, since other cars and passers-by can make up a large minority of the matches.
    residual = {name: float(np.median(error)) for name, error in joined.items()} if num else {}
    return Evidence(kind="frames", num_measurements=num, residual_px=residual)


def angle_off_epipolar_arc(
    rays_first: np.ndarray, rays_second: np.ndarray, second_from_first: np.ndarray
) -> np.ndarray:
    """Angle [N] in radians between rays of the second camera and where the first camera's rays can appear in
    it.

    A point on the first ray, from the camera (depth 0) out to infinity, appears on the arc from the epipole
    to the ray turned into the second camera. Points behind a camera are off that arc, so the direction of
    travel counts; without travel the arc is one point. All rays [N, 3] are of unit length.
    """
    far = rays_first @ second_from_first[:, :3].T  # [N, 3]
    off_far = _angle(rays_second, far)
    length = np.linalg.norm(second_from_first[:, 3])
    if length == 0:
        return off_far
    near = np.broadcast_to(second_from_first[:, 3] / length, far.shape)
    normal = np.cross(near, far)
    size = np.linalg.norm(normal, axis=-1, keepdims=True)
    normal = normal / np.maximum(size, 1e-12)
    height = np.sum(rays_second * normal, axis=-1)
    foot = rays_second - height[:, None] * normal
    # The foot is on the arc when it is past the near end and before the far end, seen along the turning
    # direction.
    is_on = (np.sum(np.cross(near, foot) * normal, axis=-1) >= 0) & (
        np.sum(np.cross(foot, far) * normal, axis=-1) >= 0
    )
    off_plane = np.arcsin(np.clip(np.abs(height), 0, 1))
    off_ends = np.minimum(off_far, _angle(rays_second, near))
    return np.where(is_on & (size[:, 0] > 1e-12), off_plane, off_ends)


def match_frames(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Matched points [N, 2 frames, 2] in pixels (our origin) of two grey images that agree with one epipolar
    geometry."""
    sift = cv2.SIFT.create(nfeatures=1500)
    (points_a, described_a), (points_b, described_b) = (
        sift.detectAndCompute(image, None) for image in (first, second)
    )
    if described_a is None or described_b is None or len(points_a) < 8 or len(points_b) < 2:
        return np.zeros((0, 2, 2))
    nearest = cv2.BFMatcher(cv2.NORM_L2).knnMatch(described_a, described_b, k=2)
    good = [pair[0] for pair in nearest if len(pair) == 2 and pair[0].distance < 0.75 * pair[1].distance]
    if len(good) < 15:
        return np.zeros((0, 2, 2))
    matched = np.array([(points_a[m.queryIdx].pt, points_b[m.trainIdx].pt) for m in good])
    cv2.setRNGSeed(0)
    _, inlier = cv2.findFundamentalMat(matched[:, 0], matched[:, 1], cv2.FM_RANSAC, 1.0, 0.999, 2000)
    if inlier is None or inlier.sum() < 30:
        return np.zeros((0, 2, 2))
    return matched[inlier[:, 0] > 0] + 0.5  # OpenCV counts from the first pixel's centre.


def _repaired(poses: np.ndarray) -> list:
    """The repairs that apply; most fail where rotation matrices are not finite, so they see registered frames
    only."""
    registered = np.isfinite(poses).all(axis=(1, 2))

    def on_registered(repair):
        def run(stored: np.ndarray) -> np.ndarray:
            out = np.full_like(stored, np.nan)
            out[registered] = repair(stored[registered])
            return out

        return run

    return [(name, on_registered(repair)) for name, repair in MISTAKES.items()]


def _at_size(clip: PosedClip, width: int, height: int) -> Intrinsics:
    if clip.intrinsics is None:
        raise ValueError(f"clip {clip.clip_id} has no intrinsics")
    return clip.intrinsics.resized(width, height)


def _angle(rays_a: np.ndarray, rays_b: np.ndarray) -> np.ndarray:
    """Angle [N] between unit vectors, exact for small angles."""
    return 2 * np.arcsin(np.clip(np.linalg.norm(rays_a - rays_b, axis=-1) / 2, 0, 1))


def _capped_mean(error_px: np.ndarray) -> float:
    return float(np.mean(np.minimum(np.where(np.isfinite(error_px), error_px, CAP_PX), CAP_PX)))
