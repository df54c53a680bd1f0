"""Alignment of the ground itself: posed grey frames of some places in, a plane for each place out.

Pixels of one frame are carried through a trial plane into another frame with the known relative pose; a sweep
over heights finds the start, Gauss-Newton on the image values the plane. `annotate/ground.py` says why.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from worldline.annotate.camera import Intrinsics, invert, project, unproject
from worldline.annotate.reconstruction import Reconstruction


@dataclass(frozen=True, kw_only=True, slots=True)
class GroundConfig:
    """Settings of the ground fit. Lengths are in camera heights, so they hold for any scale."""

    num_windows: int = 8
    """Places along the path at which the plane is fitted; each gives one height, their scatter gives the
    error."""
    half_width: float = 0.4
    """Half width of the strip of ground looked at, in camera heights: about 0.6 m. A walker or a car needs
    that much level ground; beside a footpath it ends."""
    reach: float = 8.0
    """How far ahead the strip goes, in camera heights; farther ground fills less than a few pixel rows."""
    max_tilt_deg: float = 20.0
    """Largest angle between the ground's normal and the upward direction."""
    min_correlation: float = 0.5
    """Places whose aligned ground correlates less do not count: something stands on it, or it is not a plane.
    Noise on bare asphalt alone brings the correlation down to 0.6."""
    min_windows: int = 3
    """Fewer good places, or fewer than half of those looked at, give no ground."""
    max_scatter: float = 0.15
    """Standard deviation of log height over the places above which there is no common ground: it is not flat,
    or not the ground."""
    seed: int = 0
    """Seed of the RANSAC on sparse points."""

    def __post_init__(self) -> None:
        if self.num_windows < self.min_windows or self.min_windows < 2:
            raise ValueError(
                f"need num_windows >= min_windows >= 2, got {self.num_windows}, {self.min_windows}"
            )
        if not self.half_width > 0 or not self.reach > 1:
            raise ValueError(f"need half_width > 0 and reach > 1, got {self.half_width}, {self.reach}")


def high_passed(grey: np.ndarray) -> np.ndarray:
    """Float image without slow shading, which would correlate under any plane, nor single-pixel noise."""
    image = grey.astype(np.float32)
    size = max(5, max(image.shape) // 45)
    smooth = cv2.GaussianBlur(image, (0, 0), 0.8)
    return smooth - cv2.blur(image, (size, size))


def _intrinsics_at(reconstruction: Reconstruction, frame: int) -> Intrinsics:
    fxfycxcy_px = np.asarray(reconstruction.intrinsics.fxfycxcy_px, dtype=np.float64)
    return replace(
        reconstruction.intrinsics, fxfycxcy_px=fxfycxcy_px[frame] if fxfycxcy_px.ndim == 2 else fxfycxcy_px
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class GroundFit:
    """The ground at one place."""

    plane: np.ndarray
    """[3] vector q with q . (X - origin) = 1 for points X of the plane; origin: the first camera of the
    window."""
    support: float
    """Correlation of the aligned pixels, or the share of sparse points that are inliers."""
    bend: float
    """ln(height from the farther half of the ground / from the nearer half): 0 on a plane; NaN unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pair:
    """Ground pixels of a first frame, ready to be carried into a second one through any plane.

    Planes are vectors q with q . (X - origin) = 1, so the camera height over them is 1 / |q| at the origin
    and q points down.
    """

    baseline: float
    rays_in_world: np.ndarray  # [N, 3] of the first frame's pixels
    centre: np.ndarray  # [3] first camera minus origin
    rays_in_cam1: np.ndarray  # [N, 3] the same directions in the second camera
    centre_in_cam1: np.ndarray  # [3] first camera's centre in the second camera
    intrinsics1: Intrinsics
    values0: np.ndarray  # [N] image values of the first frame
    image1: np.ndarray

    def thinned(self, count: int) -> _Pair:
        """The same pair with about `count` of its pixels."""
        keep = slice(None, None, max(1, len(self.values0) // count))
        return replace(
            self,
            rays_in_world=self.rays_in_world[keep],
            rays_in_cam1=self.rays_in_cam1[keep],
            values0=self.values0[keep],
        )

    def half(self, plane: np.ndarray, *, far: bool) -> _Pair:
        """The same pair with the nearer or the farther half of the pixels that the second frame sees too."""
        inverse_distance = self.rays_in_world @ plane / (1 - plane @ self.centre)
        is_seen = _is_inside(project(self.points_in_cam1(plane)[0], self.intrinsics1), self.image1)
        middle = np.median(inverse_distance[is_seen]) if is_seen.any() else 0.0
        keep = is_seen & ((inverse_distance < middle) if far else (inverse_distance >= middle))
        return replace(
            self,
            rays_in_world=self.rays_in_world[keep],
            rays_in_cam1=self.rays_in_cam1[keep],
            values0=self.values0[keep],
        )

    def points_in_cam1(self, plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ground points, each up to a positive factor, [N, 3], and their inverse distances' derivative
        [N, 3]."""
        span = 1 - plane @ self.centre
        inverse_distance = self.rays_in_world @ plane / span  # [N]
        by_plane = self.rays_in_world / span + (inverse_distance / span)[:, None] * self.centre
        return self.rays_in_cam1 + inverse_distance[:, None] * self.centre_in_cam1, by_plane

    def correlation(self, plane: np.ndarray) -> float:
        """Correlation of the ground seen in both frames; -1 where too little of it is seen twice."""
        pixels = project(self.points_in_cam1(plane)[0], self.intrinsics1)
        is_inside = _is_inside(pixels, self.image1)
        if is_inside.sum() < max(50, 0.25 * len(is_inside)):
            return -1.0
        a, b = self.values0[is_inside], _values_at(self.image1, pixels[is_inside])
        a, b = a - a.mean(), b - b.mean()
        return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-9))

    def linearised(self, plane: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Differences [n] of standardised values, second minus first frame, and their derivative by the plane
        [n, 3]."""
        points, by_plane = self.points_in_cam1(plane)
        pixels = project(points, self.intrinsics1)
        is_inside = _is_inside(pixels, self.image1)
        if is_inside.sum() < 50:
            return None
        points, by_plane, pixels = points[is_inside], by_plane[is_inside], pixels[is_inside]
        size = 1e-5 / self.baseline
        slope = (project(points + size * self.centre_in_cam1, self.intrinsics1) - pixels) / size  # [n, 2]
        right, below = np.array([1.0, 0.0]), np.array([0.0, 1.0])
        gradient = (
            np.stack(
                [
                    _values_at(self.image1, pixels + axis) - _values_at(self.image1, pixels - axis)
                    for axis in (right, below)
                ],
                axis=-1,
            )
            / 2
        )  # [n, 2]
        a, b = self.values0[is_inside], _values_at(self.image1, pixels)
        scale_a, scale_b = float(a.std()) + 1e-6, float(b.std()) + 1e-6
        residual = (b - b.mean()) / scale_b - (a - a.mean()) / scale_a
        return residual, ((gradient * slope).sum(axis=1) / scale_b)[:, None] * by_plane


def _is_inside(pixels: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Which pixels [N, 2] lie inside the image with room for a gradient; NaN does not."""
    height, width = image.shape
    with np.errstate(invalid="ignore"):
        return (pixels > 3).all(axis=1) & (pixels[:, 0] < width - 3) & (pixels[:, 1] < height - 3)


def _values_at(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Image values [N] at pixels [N, 2]; OpenCV counts from the first pixel's centre."""
    x, y = (pixels - 0.5).astype(np.float32).T
    return cv2.remap(image, x[:, None], y[:, None], cv2.INTER_LINEAR)[:, 0]


_BASELINES = (0.3, 2.5)
"""Distance of a pair's cameras over their height: enough parallax on the ground, enough ground seen twice."""
_FIRSTS = 4
"""Frames of a window whose ground is cut out, at most."""
_SWEEP_PIXELS, _ALIGN_PIXELS = 500, 3000
"""Pixels of a pair looked at: the sweep tries many planes roughly, the alignment one plane finely."""


def align_ground(
    reconstruction: Reconstruction,
    windows: list[np.ndarray],
    ups: list[np.ndarray],
    greys: dict[int, np.ndarray],
    config: GroundConfig,
) -> list[GroundFit | None]:
    """The plane of each window; None where no plane aligns well.

    One height for all windows starts them all: a chance match of repeated texture does not repeat along the
    path. Then each window's plane is aligned freely, and once more with the direction that it and its
    neighbours agree on: in a short window tilt and height are hard to tell apart, and roads bend slowly.
    """
    pairs = [_make_pairs(reconstruction, w, greys, up, config) for w, up in zip(windows, ups, strict=True)]
    baselines = np.array([pair.baseline for of_window in pairs for pair in of_window])
    if len(baselines) == 0:
        return [None] * len(windows)
    heights = _common_height_range(pairs, ups, baselines)
    free: list[np.ndarray | None] = []
    for of_window, up in zip(pairs, ups, strict=True):
        thin = [pair.thinned(_SWEEP_PIXELS) for pair in of_window]
        start = -up / max(heights, key=lambda height: _score(thin, -up / height))
        plane = _align(_usable(of_window, start), start, np.eye(3))
        free.append(plane if plane is not None and _is_good(of_window, plane, up, config) else None)
    fits: list[GroundFit | None] = []
    for i, plane in enumerate(free):
        beside = [p / np.linalg.norm(p) for p in free[max(0, i - 2) : i + 3] if p is not None]
        if plane is None:
            fits.append(None)
            continue
        down = np.median(beside, axis=0)
        start = down / np.linalg.norm(down) * np.linalg.norm(plane)
        level = _align_height(_usable(pairs[i], start), start)
        if level is None or not _is_good(pairs[i], level, ups[i], config):
            fits.append(None)
            continue
        near, far = (
            _align_height([p.half(level, far=far) for p in _usable(pairs[i], level)], level)
            for far in (False, True)
        )
        bend = (
            float("nan")
            if near is None or far is None
            else float(np.log(np.linalg.norm(near) / np.linalg.norm(far)))
        )
        fits.append(GroundFit(plane=level, support=_score(pairs[i], level), bend=bend))
    return fits


def _align_height(pairs: list[_Pair], plane: np.ndarray) -> np.ndarray | None:
    """The parallel plane that aligns best."""
    return _align(pairs, plane, (plane / np.linalg.norm(plane))[:, None])


def _common_height_range(
    pairs: list[list[_Pair]], ups: list[np.ndarray], baselines: np.ndarray
) -> np.ndarray:
    """Heights to try [K] around the one at which the ground of all windows together correlates best."""
    low, high = np.log(baselines.min() / _BASELINES[1]), np.log(baselines.max() / _BASELINES[0])
    heights = np.exp(np.arange(low, high, 0.06))
    thin = [[pair.thinned(_SWEEP_PIXELS) for pair in of_window] for of_window in pairs]
    scores = np.array(
        [[_score(of_window, -up / h) for h in heights] for of_window, up in zip(thin, ups, strict=True)]
    )
    common = float(heights[np.argmax(np.clip(scores, 0, None).mean(axis=0))])
    return common * np.exp(np.arange(-0.25, 0.26, 0.05))


def _usable(pairs: list[_Pair], plane: np.ndarray) -> list[_Pair]:
    """The (at most four) pairs whose baseline suits the plane's height best."""
    height = 1 / float(np.linalg.norm(plane))
    inside = [pair for pair in pairs if _BASELINES[0] * height <= pair.baseline <= _BASELINES[1] * height]
    return sorted(inside, key=lambda pair: abs(np.log(pair.baseline / height)))[:4]


def _score(pairs: list[_Pair], plane: np.ndarray) -> float:
    """Mean correlation of the usable pairs; -1 without one."""
    return float(np.mean([pair.correlation(plane) for pair in _usable(pairs, plane)] or [-1.0]))


def _is_good(pairs: list[_Pair], plane: np.ndarray, up: np.ndarray, config: GroundConfig) -> bool:
    cos_tilt = -(plane @ up) / np.linalg.norm(plane)
    return _score(pairs, plane) > config.min_correlation and cos_tilt > np.cos(
        np.radians(config.max_tilt_deg)
    )


def _align(pairs: list[_Pair], plane: np.ndarray, basis: np.ndarray) -> np.ndarray | None:
    """Gauss-Newton on the plane [3] along the columns of `basis` [3, K], Huber weights; None where it runs
    away."""
    pairs = [pair.thinned(_ALIGN_PIXELS) for pair in pairs]
    start_size = float(np.linalg.norm(plane))
    for _ in range(15):
        normal_matrix, right_side = np.zeros((basis.shape[1],) * 2), np.zeros(basis.shape[1])
        for pair in pairs:
            linear = pair.linearised(plane)
            if linear is None:
                continue
            residual, jacobian = linear[0], linear[1] @ basis
            weight = 1 / np.maximum(1, np.abs(residual) / 0.7)
            normal_matrix += (jacobian * weight[:, None]).T @ jacobian
            right_side -= jacobian.T @ (weight * residual)
        if not normal_matrix.any():
            return None
        step = basis @ np.linalg.lstsq(normal_matrix, right_side, rcond=1e-9)[0]
        size = float(np.linalg.norm(plane))
        plane = plane + step * min(1.0, 0.1 * size / max(float(np.linalg.norm(step)), 1e-15))
        if np.linalg.norm(step) < 1e-5 * size:
            break
    return plane if 0.5 < float(np.linalg.norm(plane)) / start_size < 2.0 else None


def _make_pairs(
    reconstruction: Reconstruction,
    window: np.ndarray,
    greys: dict[int, np.ndarray],
    up: np.ndarray,
    config: GroundConfig,
) -> list[_Pair]:
    """Each frame of the window against each later one; none from a frame that shows too little ground."""
    origin = invert(reconstruction.cam_from_world[window[0]])[:, 3]
    pairs = []
    for position, first in enumerate(window[:_FIRSTS]):
        strip = _ground_strip(reconstruction, int(first), greys, up, config)
        if strip is None:
            continue
        rays, values, centre = strip
        for second in window[position + 1 :]:
            cam1_from_world = reconstruction.cam_from_world[second]
            centre_in_cam1 = cam1_from_world[:, :3] @ centre + cam1_from_world[:, 3]
            pairs.append(
                _Pair(
                    baseline=max(float(np.linalg.norm(centre_in_cam1)), 1e-12),
                    rays_in_world=rays,
                    centre=centre - origin,
                    rays_in_cam1=rays @ cam1_from_world[:, :3].T,
                    centre_in_cam1=centre_in_cam1,
                    intrinsics1=_intrinsics_at(reconstruction, int(second)),
                    values0=values,
                    image1=greys[int(second)],
                )
            )
    return pairs


def _ground_strip(
    reconstruction: Reconstruction,
    frame: int,
    greys: dict[int, np.ndarray],
    up: np.ndarray,
    config: GroundConfig,
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Rays in world [N, 3] and values [N] of the pixels of the strip of ground ahead, and the camera's centre
    [3]."""
    world_from_cam = invert(reconstruction.cam_from_world[frame])
    height, width = greys[frame].shape
    stride = max(1, round(np.sqrt(height * width / 50_000)))
    x, y = np.meshgrid(np.arange(4, width - 4, stride), np.arange(4, height - 4, stride))
    pixels = np.stack([x.ravel(), y.ravel()], axis=-1) + 0.5
    rays = unproject(pixels, _intrinsics_at(reconstruction, frame)) @ world_from_cam[:, :3].T
    forward = world_from_cam[:, 2] - (world_from_cam[:, 2] @ up) * up
    forward /= max(float(np.linalg.norm(forward)), 1e-9)
    right = np.cross(forward, up)
    with np.errstate(divide="ignore", invalid="ignore"):
        down = -(rays @ up)
        ahead, aside = rays @ forward / down, rays @ right / down  # in camera heights
        is_ground = (down > 0) & (ahead > 0) & (ahead < config.reach) & (np.abs(aside) < config.half_width)
    if is_ground.sum() < 150:
        return None
    values = greys[frame][y.ravel()[is_ground], x.ravel()[is_ground]]
    return rays[is_ground], values, world_from_cam[:, 3]
