"""The ground below a moving camera: posed grey frames (or sparse points) in, the camera's height over the
ground out.

A road is smooth: corner trackers find a handful of points on it, too few for a plane. So the plane itself is
aligned: all ground pixels of one frame are carried through a trial plane into a second frame with the known
relative pose, and the plane's three numbers are moved until both agree (the plane-induced homography H = R -
t n^T / d, Hartley & Zisserman Sec. 13.1, in a form that also holds for lenses that bend lines). A sweep over
heights gives the start, so no sparse point is needed. Without frames the plane is fitted to the sparse points
by RANSAC. Open3D's `segment_plane` is not used for it: it takes the largest plane of any direction, which on
a street is a house front; here only planes across the upward direction compete.

Heights are in the reconstruction's unit; nothing here knows a metre.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from worldline.annotate.camera import Intrinsics, invert, project, unproject
from worldline.annotate.reconstruction import Reconstruction

GreyFrames = Callable[[Sequence[int]], Iterable[tuple[int, np.ndarray]]]
"""Ascending frame indices -> (index, grey [H, W] uint8 at the reconstruction's working size), in the same
order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroundConfig:
    """Settings of the ground fit. Lengths are in camera heights, so they hold for any scale."""

    num_windows: int = 8
    """Places along the path at which the plane is fitted; each gives one height, their scatter gives the
    error."""
    half_width: float = 0.6
    """Half width of the strip of ground looked at, in camera heights: about 1 m, the strip a walker or a car
    needs free."""
    reach: float = 8.0
    """How far ahead the strip goes, in camera heights; farther ground fills less than a few pixel rows."""
    max_tilt_deg: float = 20.0
    """Largest angle between the ground's normal and the upward direction."""
    min_correlation: float = 0.6
    """Pairs of frames whose aligned ground correlates less do not count: something stands on it, or it is not
    a plane."""
    min_windows: int = 3
    """Fewer good windows give no ground."""
    seed: int = 0
    """Seed of the RANSAC on sparse points."""

    def __post_init__(self) -> None:
        if self.num_windows < self.min_windows or self.min_windows < 2:
            raise ValueError(
                f"need num_windows >= min_windows >= 2, got {self.num_windows}, {self.min_windows}"
            )
        if not self.half_width > 0 or not self.reach > 1:
            raise ValueError(f"need half_width > 0 and reach > 1, got {self.half_width}, {self.reach}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """The ground plane at W places of the path."""

    frame_idx: np.ndarray
    """[W] frame at the middle of each place."""
    up_in_world: np.ndarray
    """[W, 3] unit normal of the ground, pointing to the camera's side."""
    height: np.ndarray
    """[W] height of the camera over the ground, in units of the reconstruction."""
    support: np.ndarray
    """[W] correlation of the aligned ground pixels, or share of sparse points of the lower half that are
    inliers."""
    method: str
    """'photometric' or 'sparse'."""

    @property
    def median_height(self) -> float:
        return float(np.median(self.height))

    @property
    def log_height_sigma(self) -> float:
        """Standard error of log(median_height), from the scatter of the heights of the single places."""
        log_height = np.log(self.height)
        scatter = 1.4826 * float(np.median(np.abs(log_height - np.median(log_height))))
        # The median's standard error is 1.25 sigma / sqrt(n); a small sample's own scatter is itself
        # uncertain, for which Student's t widens the 68 % interval by about 1 + 1 / n.
        n = len(log_height)
        return 1.25 * scatter / np.sqrt(n) * (1 + 1 / n)


def fit_ground(
    reconstruction: Reconstruction,
    config: GroundConfig,
    *,
    grey_frames: GreyFrames | None = None,
    up_in_world: np.ndarray | None = None,
) -> Ground | None:
    """Finds the ground under the path; None where there is none to be found.

    up_in_world: [3] known upward direction (minus gravity); by default the cameras' mean up axis across the
    direction of motion is taken.
    """
    windows = _windows(reconstruction, config)
    if len(windows) < config.min_windows:
        return None
    ups = [_up_hint(reconstruction, window, up_in_world) for window in windows]
    if grey_frames is None:
        fits = [_fit_sparse(reconstruction, w, up, config) for w, up in zip(windows, ups, strict=True)]
    else:
        wanted = sorted({int(i) for window in windows for i in window})
        greys = {i: _high_passed(grey) for i, grey in grey_frames(wanted)}
        fits = _fit_photometric(reconstruction, windows, ups, greys, config)
    found = [(window, *fit) for window, fit in zip(windows, fits, strict=True) if fit is not None]
    if len(found) < config.min_windows:
        return None
    return Ground(
        frame_idx=np.array([window[0] for window, *_ in found]),
        up_in_world=np.stack([-plane / np.linalg.norm(plane) for _, plane, _ in found]),
        height=np.array([1 / np.linalg.norm(plane) for _, plane, _ in found]),
        support=np.array([support for *_, support in found]),
        method="sparse" if grey_frames is None else "photometric",
    )


# Where to look


_OFFSETS = (0, 1, 2, 4, 8, 16, 32)
"""Frames of a window after its first: any height between a few frame steps and many finds a pair of useful
baseline."""


def _windows(reconstruction: Reconstruction, config: GroundConfig) -> list[np.ndarray]:
    """Frame indices of each window; the windows start at equal steps of path length, in which slow frames do
    not repeat."""
    posed = np.flatnonzero(reconstruction.is_registered)
    if len(posed) < 4:
        return []
    centres = invert(reconstruction.cam_from_world[posed])[:, :, 3]
    travelled = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(centres, axis=0), axis=1))])
    if not travelled[-1] > 0:
        return []
    wanted = np.linspace(0, 0.9 * travelled[-1], config.num_windows)
    starts = sorted({int(i) for i in np.searchsorted(travelled, wanted)})
    windows = [posed[[s + o for o in _OFFSETS if s + o < len(posed)]] for s in starts]
    return [window for window in windows if len(window) >= 3]


def _up_hint(
    reconstruction: Reconstruction, window: np.ndarray, up_in_world: np.ndarray | None
) -> np.ndarray:
    """Unit vector [3] roughly across the ground: given, or the mean camera-up axis made perpendicular to the
    motion.

    Ground is parallel to the way one moves over it, also uphill, whatever the camera's pitch.
    """
    if up_in_world is not None:
        return np.asarray(up_in_world, dtype=np.float64) / np.linalg.norm(up_in_world)
    world_from_cam = invert(reconstruction.cam_from_world[window])
    up = -world_from_cam[:, :, 1].mean(axis=0)
    motion = world_from_cam[-1, :, 3] - world_from_cam[0, :, 3]
    motion /= max(float(np.linalg.norm(motion)), 1e-12)
    across = up - (up @ motion) * motion
    if np.linalg.norm(across) < 0.5 * np.linalg.norm(
        up
    ):  # the camera moves up or down its own axis: no ground motion
        across = up
    return across / np.linalg.norm(across)


# Dense: align the plane itself


def _high_passed(grey: np.ndarray) -> np.ndarray:
    """Float image without slow shading, which would correlate under any plane, nor single-pixel noise."""
    image = grey.astype(np.float32)
    size = max(image.shape) // 20
    smooth = cv2.GaussianBlur(image, (0, 0), 1.0)
    return smooth - cv2.blur(image, (size, size))


def _intrinsics_at(reconstruction: Reconstruction, frame: int) -> Intrinsics:
    fxfycxcy_px = np.asarray(reconstruction.intrinsics.fxfycxcy_px, dtype=np.float64)
    return replace(
        reconstruction.intrinsics, fxfycxcy_px=fxfycxcy_px[frame] if fxfycxcy_px.ndim == 2 else fxfycxcy_px
    )


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
    map_xy = (pixels - 0.5).astype(np.float32)[:, None]
    return cv2.remap(image, map_xy, None, cv2.INTER_LINEAR)[:, 0]


_BASELINES = (0.3, 2.5)
"""Distance of a pair's cameras over their height: enough parallax on the ground, enough ground seen twice."""
_FIRSTS = 4
"""Frames of a window whose ground is cut out, at most."""
_SWEEP_PIXELS, _ALIGN_PIXELS = 500, 3000
"""Pixels of a pair looked at: the sweep tries many planes roughly, the alignment one plane finely."""


def _fit_photometric(
    reconstruction: Reconstruction,
    windows: list[np.ndarray],
    ups: list[np.ndarray],
    greys: dict[int, np.ndarray],
    config: GroundConfig,
) -> list[tuple[np.ndarray, float] | None]:
    """(plane vector, correlation) of each window; None where no plane aligns well.

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
    fits: list[tuple[np.ndarray, float] | None] = []
    for i, plane in enumerate(free):
        near = [p / np.linalg.norm(p) for p in free[max(0, i - 2) : i + 3] if p is not None]
        if plane is None:
            fits.append(None)
            continue
        down = np.median(near, axis=0)
        start = down / np.linalg.norm(down) * np.linalg.norm(plane)
        level = _align(_usable(pairs[i], start), start, (start / np.linalg.norm(start))[:, None])
        is_good = level is not None and _is_good(pairs[i], level, ups[i], config)
        fits.append((level, _score(pairs[i], level)) if level is not None and is_good else None)
    return fits


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


# Sparse: points only


def _fit_sparse(
    reconstruction: Reconstruction, window: np.ndarray, up: np.ndarray, config: GroundConfig
) -> tuple[np.ndarray, float] | None:
    """(plane vector, inlier share) of the points seen in the window; None where no plane lies below the
    camera."""
    is_seen = np.isin(reconstruction.frame_idx, np.arange(window[0], window[-1] + 1))
    seen = np.unique(reconstruction.point_idx[is_seen])
    world_from_cam = invert(reconstruction.cam_from_world[window])
    origin = world_from_cam[0, :, 3]
    points = reconstruction.points_in_world[seen] - origin
    points = points[np.isfinite(points).all(axis=1)]
    points = points[points @ up < 0]
    if len(points) < 12:
        return None
    rng = np.random.default_rng(config.seed)
    triples = points[
        np.array([rng.choice(len(points), 3, replace=False) for _ in range(500)])
    ]  # [K, 3 points, 3]
    normals = np.cross(triples[:, 1] - triples[:, 0], triples[:, 2] - triples[:, 0])
    sizes = np.linalg.norm(normals, axis=1)
    triples, normals = triples[sizes > 0], normals[sizes > 0] / sizes[sizes > 0, None]
    normals *= np.where(normals @ up < 0, -1.0, 1.0)[:, None]
    heights = -np.einsum("ki,ki->k", normals, triples[:, 0])
    is_level = (normals @ up > np.cos(np.radians(config.max_tilt_deg))) & (heights > 0)
    if not is_level.any():
        return None
    normals, heights = normals[is_level], heights[is_level]
    distance = np.abs(normals @ points.T + heights[:, None])  # [K, N]
    count = (distance < 0.03 * heights[:, None]).sum(axis=1)
    best = int(np.argmax(count))
    inliers = points[distance[best] < 0.03 * heights[best]]
    if len(inliers) < 10:
        return None
    plane = np.linalg.lstsq(inliers, np.ones(len(inliers)), rcond=None)[0]
    return plane, len(inliers) / len(points)
