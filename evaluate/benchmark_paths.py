"""The one-minute benchmark's camera paths: named templates, made to fit a scene (SANA-WM App. D).

A template is 11 to 15 waypoints of a unit shape. Positions follow a centripetal Catmull-Rom spline, rotations a squad
(Shoemake 1987); the path is read at an even pace in a length that counts both metres and turning, so that neither speed nor
turning rate exceeds its limit, and smoothed. It is then as large as its time and its scene allow.

Frame: the first camera's, OpenCV axes (x right, y down, z ahead), metres, 16 poses a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from worldline.annotate.camera import compose, invert, rotation_angle

POSES_PER_S = 16
NUM_FRAMES = 961
"""One minute."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PathLimits:
    """What a path keeps to."""

    speed_m_s: float = 0.4
    turn_deg_s: float = 12.0
    depth_share: float = 0.6
    """Of the scene's median depth: no further from the start."""
    margin_m: float = 0.3
    """To anything in the scene."""
    smooth_s: float = 0.25
    """Standard deviation of the smoothing over time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """A shape to travel."""

    name: str
    split: str
    """simple or hard."""
    waypoints: np.ndarray = field(repr=False)
    """[K, 5], K of 11 to 15: x, y, z in units of the reach, yaw (right) and pitch (up) in degrees; the first is zero."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkPath:
    """A template in a scene."""

    name: str
    split: str
    first_from_cam: np.ndarray = field(repr=False)
    """[F, 3, 4], metres."""
    reach_m: float
    """Furthest from the start."""
    revisits: tuple[tuple[int, int], ...]
    """At most five pairs of frames that see the same from nearly the same place."""


# Templates


def _shape(count: int, at: Callable[[np.ndarray], tuple[Any, ...]]) -> np.ndarray:
    """Waypoints at even shares of a curve that gives x, y, z, yaw and pitch (arrays or numbers)."""
    share = np.linspace(0, 1, count)
    columns = [np.broadcast_to(np.asarray(value, float), share.shape) for value in at(share)]
    points = np.stack(columns, axis=1)
    return points - points[0]


def _legs(corners: list[tuple[float, float, float, float, float]], count: int) -> np.ndarray:
    """Straight legs between corners, as waypoints at even shares of them."""
    at = np.linspace(0, len(corners) - 1, count)
    values = np.array(corners, float)
    return np.stack([np.interp(at, np.arange(len(corners)), values[:, k]) for k in range(5)], axis=1)


def _sine(share: np.ndarray, turns: float = 1) -> np.ndarray:
    return np.sin(2 * np.pi * turns * share)


def _rise(share: np.ndarray, turns: float = 1) -> np.ndarray:
    """0 to 1 and back, `turns` times."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * turns * share)


_SIMPLE = {
    "s_curve": _shape(13, lambda s: (0.35 * _sine(s), 0, s, 20 * _sine(s), 0)),
    "orbit_arc": _shape(11, lambda s: (_sine(s, 0.15), 0, 1 - np.cos(0.3 * np.pi * s), -54 * s, 0)),
    "look_around": _shape(13, lambda s: (0.1 * _sine(s), 0, 0.1 * s, 70 * _sine(s), 8 * _sine(s, 2))),
    "side_detour": _shape(12, lambda s: (0.6 * _rise(s), 0, s, 15 * _sine(s), 0)),
    "backtrack": _shape(13, lambda s: (0, 0, 1 - np.abs(2 * s - 1), 25 * _rise(s), 0)),
    "l_return": _legs(
        [(0, 0, 0, 0, 0), (0, 0, 0.7, 0, 0), (0.7, 0, 0.7, 30, 0), (0, 0, 0.7, 0, 0), (0, 0, 0, 0, 0)], 13
    ),
    "figure_eight": _shape(15, lambda s: (0.5 * _sine(s), 0, 0.4 * _sine(s, 2), 20 * _sine(s), 0)),
    "room_loop": _shape(15, lambda s: (0.5 * _sine(s), 0, _rise(s), 30 * _sine(s), 0)),
}
_HARD = {
    "spiral": _shape(
        15, lambda s: (s * _sine(s, 1.5), -0.3 * s, s * np.cos(3 * np.pi * s), 40 * _sine(s), -10 * s)
    ),
    "double_loop": _shape(15, lambda s: (0.5 * _sine(s, 2), 0, _rise(s, 2), 40 * _sine(s, 2), 0)),
    "zigzag": _legs([(0.4 * (k % 2), 0, k / 6, 30 * (-1) ** k * (k > 0), 0) for k in range(7)], 13),
    "staircase": _legs([(0, -0.1 * (k // 2), ((k + 1) // 2) / 3, 0, 10 * (k % 2)) for k in range(7)], 13),
    "whip_pan": _legs(
        [(0, 0, z, yaw, 0) for z, yaw in ((0, 0), (0.3, 0), (0.35, 80), (0.65, 80), (0.7, -60), (1, 0))], 11
    ),
    "elevator": _shape(13, lambda s: (0, -0.6 * _rise(s), 0.2 * s, 0, -25 * _rise(s))),
    "crane": _shape(12, lambda s: (0.5 * s, -0.5 * s, 0.6 * s, -40 * s, -30 * s)),
}
TEMPLATES = {
    name: Template(name=name, split=split, waypoints=waypoints)
    for split, shapes in (("simple", _SIMPLE), ("hard", _HARD))
    for name, waypoints in shapes.items()
}


# Splines


def catmull_rom(points: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Centripetal Catmull-Rom spline (Yuksel et al. 2011) through points [K, 3]; `at` [N] counts points from 0 to K - 1.

    Beyond its ends the polygon goes on as its mirror image, and equal neighbours are passed straight.
    """
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    first = np.clip(at.astype(int), 0, len(points) - 2)
    share = (at - first)[:, None]
    p = [padded[first + k] for k in range(4)]
    # Knots by the root of the distance; a distance of nothing counts as a little.
    gaps = [np.maximum(np.linalg.norm(b - a, axis=1, keepdims=True), 1e-9) ** 0.5 for a, b in pairwise(p)]
    knots = [np.zeros_like(gaps[0])]
    for gap in gaps:
        knots.append(knots[-1] + gap)
    t = knots[1] + share * (knots[2] - knots[1])
    # Barry and Goldman's pyramid: the k-th row blends over knots k + 1 apart, the last one over the middle gap.
    for row in range(1, 4):
        pairs = [(k, k + row) if row < 3 else (1, 2) for k in range(4 - row)]
        p = [
            ((knots[high] - t) * p[k] + (t - knots[low]) * p[k + 1]) / (knots[high] - knots[low])
            for k, (low, high) in enumerate(pairs)
        ]
    return p[0]


def squad(rotations: Rotation, at: np.ndarray) -> Rotation:
    """Spherical quadrangle spline through K rotations; `at` [N] counts them from 0 to K - 1."""
    count = len(rotations)
    before = rotations[np.maximum(np.arange(count) - 1, 0)]
    after = rotations[np.minimum(np.arange(count) + 1, count - 1)]
    bend = -((rotations.inv() * before).as_rotvec() + (rotations.inv() * after).as_rotvec()) / 4
    control = rotations * Rotation.from_rotvec(bend)
    first = np.clip(at.astype(int), 0, count - 2)
    share = (at - first)[:, None]
    outer = _slerp(rotations[first], rotations[first + 1], share)
    inner = _slerp(control[first], control[first + 1], share)
    return _slerp(outer, inner, 2 * share * (1 - share))


def _slerp(one: Rotation, other: Rotation, share: np.ndarray) -> Rotation:
    return one * Rotation.from_rotvec(share * (one.inv() * other).as_rotvec())


# Paths


def make_path(
    template: Template,
    *,
    median_depth_m: float,
    obstacles: np.ndarray | None = None,
    num_frames: int = NUM_FRAMES,
    limits: PathLimits | None = None,
) -> BenchmarkPath:
    """The template in a scene: as large as its time, its depth and its obstacles let it be.

    obstacles: [N, 3] points in the first camera's frame, metres. Raises ValueError where even a quarter of what time and depth
    allow comes too near to one.
    """
    limits = limits or PathLimits()
    if num_frames < 2 or not median_depth_m > 0:
        raise ValueError(f"a path needs two frames and a depth, got {num_frames} and {median_depth_m}")
    tree = None if obstacles is None or not len(obstacles) else cKDTree(obstacles)
    shape = np.linalg.norm(_dense(template)[0], axis=1).max()
    reach = limits.depth_share * median_depth_m
    for factor in np.geomspace(0.97, 0.25, 12):
        poses = _travel(template, factor * reach / max(shape, 1e-9), num_frames, limits)
        furthest = float(np.linalg.norm(poses[:, :, 3], axis=1).max())
        if furthest <= reach and (tree is None or tree.query(poses[:, :, 3])[0].min() >= limits.margin_m):
            return BenchmarkPath(
                name=template.name,
                split=template.split,
                first_from_cam=poses,
                reach_m=furthest,
                revisits=revisits(poses),
            )
    raise ValueError(
        f"{template.name}: no room for it, obstacles are within {limits.margin_m} m of every size"
    )


def _dense(template: Template) -> tuple[np.ndarray, Rotation]:
    points = template.waypoints
    at = np.linspace(0, len(points) - 1, 200 * len(points))
    # Yaw turns right about y, which points down; pitch looks up about x.
    turns = Rotation.from_euler("YX", points[:, 3:5], degrees=True)
    return catmull_rom(points[:, :3], at), squad(turns, at)


def _travel(template: Template, scale_m: float, num_frames: int, limits: PathLimits) -> np.ndarray:
    """[F, 3, 4] at that scale, or at the largest that can be travelled in the time; short ways are travelled slower."""
    unit, turns = _dense(template)
    duration_s = (num_frames - 1) / POSES_PER_S
    angle = np.linalg.norm((turns[:-1].inv() * turns[1:]).as_rotvec(), axis=1)
    away = np.linalg.norm(np.diff(unit, axis=0), axis=1)
    turn_s = np.degrees(angle).sum() / limits.turn_deg_s
    share = 1.0
    if turn_s > 0.6 * duration_s:
        # The turns alone take too long: less far along the shape, so that most of the time is left for going.
        done_s = np.concatenate([[0], np.cumsum(np.degrees(angle))]) / limits.turn_deg_s
        share = float(np.interp(0.6 * duration_s, done_s, np.linspace(0, 1, len(done_s))))
    end = max(2, round(share * len(unit)))
    unit, turns, away, angle = unit[:end], turns[:end], away[: end - 1], angle[: end - 1]
    # An even pace in seconds at the limits, with room for what the smoothing rounds off.
    turn_s = np.degrees(angle) / limits.turn_deg_s
    left_s = 0.97 * duration_s - turn_s.sum()
    scale = min(scale_m, left_s * limits.speed_m_s / max(away.sum(), 1e-12))
    pace = np.concatenate([[0], np.cumsum(scale * away / limits.speed_m_s + turn_s)])
    at = np.linspace(0, pace[-1], num_frames)
    index = np.interp(at, pace, np.arange(len(pace)))
    positions = np.stack(
        [np.interp(index, np.arange(len(unit)), scale * unit[:, k]) for k in range(3)], axis=1
    )
    low = np.clip(index.astype(int), 0, len(unit) - 2)
    rotations = _slerp(turns[low], turns[low + 1], (index - low)[:, None])
    sigma = limits.smooth_s * POSES_PER_S
    positions = gaussian_filter1d(positions, sigma, axis=0, mode="nearest")
    quaternions = rotations.as_quat()
    signs = np.cumprod(np.where((quaternions[1:] * quaternions[:-1]).sum(axis=1) < 0, -1.0, 1.0))
    quaternions[1:] *= signs[:, None]
    smooth = Rotation.from_quat(gaussian_filter1d(quaternions, sigma, axis=0, mode="nearest"))
    poses = np.concatenate([smooth.as_matrix(), positions[:, :, None]], axis=2)
    return compose(invert(poses[:1]), poses)


def revisits(
    first_from_cam: np.ndarray,
    *,
    max_m: float = 0.5,
    max_deg: float = 20.0,
    apart_s: float = 5.0,
    count: int = 5,
) -> tuple[tuple[int, int], ...]:
    """At most `count` closest pairs of frames under both limits, `apart_s` or more apart in time; no frame twice within a
    second."""
    step = max(1, len(first_from_cam) // 400)
    kept = np.arange(0, len(first_from_cam), step)
    poses = first_from_cam[kept]
    away = np.linalg.norm(poses[:, None, :, 3] - poses[None, :, :, 3], axis=-1)
    turned = np.degrees(rotation_angle(poses[:, None, :, :3].swapaxes(-1, -2) @ poses[None, :, :, :3]))
    one, other = np.nonzero(
        (away < max_m) & (turned < max_deg) & (kept[None] - kept[:, None] >= apart_s * POSES_PER_S)
    )
    cost = away[one, other] / max_m + turned[one, other] / max_deg
    found: list[tuple[int, int]] = []
    for k in np.argsort(cost, kind="stable"):
        pair = int(kept[one[k]]), int(kept[other[k]])
        if all(abs(a - b) > POSES_PER_S for earlier in found for a, b in zip(pair, earlier, strict=True)):
            found.append(pair)
        if len(found) == count:
            break
    return tuple(found)


def speeds(first_from_cam: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Metres and degrees a second between neighbouring poses [F, 3, 4]."""
    moved = np.linalg.norm(np.diff(first_from_cam[:, :, 3], axis=0), axis=1) * POSES_PER_S
    turned = rotation_angle(first_from_cam[:-1, :, :3].swapaxes(-1, -2) @ first_from_cam[1:, :, :3])
    return moved, np.degrees(turned) * POSES_PER_S


def splits(split: str) -> list[Template]:
    """The templates of simple, hard or both; ValueError for another word."""
    if split not in ("simple", "hard", "both"):
        raise ValueError(f"split {split!r}: known are simple, hard and both")
    return [template for template in TEMPLATES.values() if split in ("both", template.split)]
