"""Grey views with known cameras in, inverse depth of one of them out: plane sweep with semi-global smoothing.

Fronto-parallel planes evenly spaced in inverse depth carry each source view onto the reference (Collins
1996), which works for any camera motion, also straight ahead with the epipole inside the image, where
rectified stereo pairs do not exist. The matching cost is one minus the zero-mean normalised correlation of
square windows, blind to brightness and contrast; at each pixel and plane the better half of the sources
counts, so that a view that is occluded does not (Kang, Szeliski & Chai 2001).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from worldline.annotate.semi_global import aggregate_cost

_COST_SCALE = 255
"""Integer cost of two windows that do not correlate at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaneSweepConfig:
    """Settings of multi-view stereo; lengths in pixels are of the reduced image."""

    max_side_px: int = 320
    """Frames are reduced to this longest side; cost grows with its cube."""
    num_sources: int = 4
    """Other views matched against the reference, half of them before it and half after where the clip
    allows."""
    parallax_px: float = 20.0
    """Wanted median shift of scene points between reference and source beyond the camera's rotation: more is
    sharper in depth, less is easier to match."""
    max_gap: int = 90
    """Sources lie within this many frames of the reference: 3 s at 30 fps, over which people and light change
    little."""
    window_px: int = 5
    """Side of the correlation window."""
    step_px: float = 1.0
    """Largest shift between neighbouring planes in the widest source; the minimum is then refined between
    planes."""
    max_planes: int = 96
    """Upper bound on the number of planes, hence on memory and time."""
    noise: float = 3.0
    """Standard deviation of image noise in grey levels; windows with less contrast count as blank."""
    small_step: int = 30
    """Smoothness price of a slanted surface (one plane from pixel to pixel), where 255 is no correlation at
    all."""
    large_step: int = 1000
    """Smoothness price of a depth edge."""

    def __post_init__(self) -> None:
        if self.window_px % 2 == 0 or self.window_px < 3:
            raise ValueError(f"window_px must be odd and at least 3, got {self.window_px}")
        if self.num_sources < 1 or self.max_side_px < 32 or self.max_planes < 8:
            raise ValueError("need num_sources >= 1, max_side_px >= 32 and max_planes >= 8")
        if self.step_px <= 0 or self.parallax_px <= 0 or self.noise <= 0:
            raise ValueError("step_px, parallax_px and noise must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """A pinhole view."""

    gray: np.ndarray
    """[H, W] uint8; 0 marks pixels without an image (outside a flattened lens)."""
    camera_matrix: np.ndarray
    """[3, 3], pixel (0, 0) at the image's corner."""
    cam_from_world: np.ndarray
    """[3, 4]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """Depth of one view before any check against other views' depth."""

    inverse_depth: np.ndarray
    """[H, W] float32, per unit of the trajectory; NaN where no source sees the pixel."""
    correlation: np.ndarray
    """[H, W] float32: correlation at the chosen plane, mean of the better half of the sources; 0 on blank
    windows."""
    sigma: np.ndarray
    """[H, W] float32: inverse depth that shifts the best source by one pixel; large near the epipole."""


def sweep(reference: View, sources: list[View], near: float, far: float, config: PlaneSweepConfig) -> Sweep:
    """Inverse depth of `reference` between the planes z = near and z = far (in units of the trajectory).

    Raises ValueError without sources or for an empty range.
    """
    if not sources or not 0 < near < far:
        raise ValueError(f"need sources and 0 < near < far, got {len(sources)} sources, {near}, {far}")
    shift_px = np.stack([_shift_per_inverse_depth(reference, s, 1 / near, 1 / far) for s in sources])
    best_shift = shift_px.max(axis=0)
    reach = (1 / near - 1 / far) * float(np.percentile(best_shift, 95))
    num_planes = int(np.clip(np.ceil(reach / config.step_px), 8, config.max_planes))
    planes = np.linspace(1 / far, 1 / near, num_planes)
    cost, is_seen = _cost_volume(reference, sources, planes, config)
    smooth = aggregate_cost(
        cost, reference.gray, small_step=config.small_step, large_step=config.large_step
    )  # [H, D, W]
    label = np.argmin(smooth, axis=1)
    offset = _parabola(smooth, label)
    spacing = planes[1] - planes[0]
    inverse_depth = (planes[0] + spacing * (label + offset)).astype(np.float32)
    inverse_depth[~is_seen] = np.nan
    chosen = np.take_along_axis(cost, label[:, None, :], axis=1)[:, 0]
    with np.errstate(divide="ignore"):
        sigma = (1 / best_shift).astype(np.float32)
    return Sweep(
        inverse_depth=inverse_depth,
        correlation=(1 - chosen.astype(np.float32) / _COST_SCALE) * is_seen,
        sigma=sigma,
    )


def _cost_volume(
    reference: View, sources: list[View], planes: np.ndarray, config: PlaneSweepConfig
) -> tuple[np.ndarray, np.ndarray]:
    """(cost [H, D, W] int16, whether any source sees the pixel at any plane [H, W])."""
    height, width = reference.gray.shape
    moments = _Window(reference.gray.astype(np.float32), config)
    images = [source.gray for source in sources]
    num_counted = max(1, len(sources) // 2)
    cost = np.empty((height, len(planes), width), np.int16)
    is_seen = np.zeros((height, width), bool)
    for plane_idx, inverse_depth in enumerate(planes):
        lowest = np.full((num_counted, height, width), 1.0, np.float32)
        for source, image in zip(sources, images, strict=True):
            warp = _homography(reference, source, inverse_depth)
            warped = cv2.warpPerspective(
                image, warp, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            )
            inside = warped > 0  # spares a second warp, of a mask
            one_minus = moments.one_minus_correlation(warped.astype(np.float32))
            one_minus[~inside] = 1
            is_seen |= inside
            for k in range(num_counted):  # insertion into the sorted list of the lowest costs
                higher = np.maximum(lowest[k], one_minus)
                np.minimum(lowest[k], one_minus, out=lowest[k])
                one_minus = higher
        cost[:, plane_idx] = (lowest.mean(axis=0) * _COST_SCALE).astype(np.int16)
    return cost, is_seen


class _Window:
    """Windowed moments of the reference, against which warped sources are correlated."""

    def __init__(self, image: np.ndarray, config: PlaneSweepConfig) -> None:
        self.size = (config.window_px, config.window_px)
        self.floor = config.noise**2
        self.image = image
        self.mean = self._box(image)
        self.deviation = np.sqrt(np.maximum(self._box(image * image) - self.mean**2, 0) + self.floor)

    def _box(self, image: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(image, cv2.CV_32F, self.size, borderType=cv2.BORDER_REFLECT_101)

    def one_minus_correlation(self, other: np.ndarray) -> np.ndarray:
        """[H, W] in [0, 1]: 0 where the windows agree, 1 where they do not correlate, oppose or are blank."""
        mean = self._box(other)
        variance = np.maximum(self._box(other * other) - mean * mean, 0)
        covariance = self._box(self.image * other) - self.mean * mean
        correlation = covariance / (self.deviation * np.sqrt(variance + self.floor))
        return np.clip(1 - correlation, 0, 1)


def _relative(reference: View, source: View) -> tuple[np.ndarray, np.ndarray]:
    """Rotation [3, 3] and translation [3] of source_from_reference."""
    rotation = source.cam_from_world[:, :3] @ reference.cam_from_world[:, :3].T
    return rotation, source.cam_from_world[:, 3] - rotation @ reference.cam_from_world[:, 3]


def _homography(reference: View, source: View, inverse_depth: float) -> np.ndarray:
    """[3, 3] source pixel from reference pixel for the plane z = 1 / inverse_depth, in OpenCV's pixels."""
    rotation, translation = _relative(reference, source)
    on_plane = rotation.copy()
    on_plane[:, 2] += translation * inverse_depth
    # OpenCV puts the first pixel's centre at 0, we at 0.5.
    to_ours = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    to_theirs = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    return to_theirs @ source.camera_matrix @ on_plane @ np.linalg.inv(reference.camera_matrix) @ to_ours


def _shift_per_inverse_depth(reference: View, source: View, near: float, far: float) -> np.ndarray:
    """[H, W]: mean shift in the source in pixels per unit of inverse depth, between the inverse depths far
    and near."""
    height, width = reference.gray.shape
    rotation, translation = _relative(reference, source)
    y, x = np.mgrid[0:height, 0:width] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(reference.camera_matrix).T
    ends = []
    for inverse_depth in (far, near):
        points = (rays @ rotation.T + translation * inverse_depth) @ source.camera_matrix.T
        ends.append(points[..., :2] / np.where(points[..., 2:] > 1e-6, points[..., 2:], np.nan))
    shift = np.linalg.norm(ends[1] - ends[0], axis=-1) / (near - far)
    return np.nan_to_num(shift, nan=0.0)


def _parabola(smooth: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Offset in [-0.5, 0.5] of the minimum of the parabola through the lowest cost and its neighbours; 0 at
    the ends."""
    num_labels = smooth.shape[1]
    inner = np.clip(label, 1, num_labels - 2)
    below, middle, above = (
        np.take_along_axis(smooth, (inner + k)[:, None, :], axis=1)[:, 0].astype(np.float32)
        for k in (-1, 0, 1)
    )
    curvature = below - 2 * middle + above
    offset = np.where(curvature > 0, 0.5 * (below - above) / np.maximum(curvature, 1e-6), 0)
    return np.where(inner == label, np.clip(offset, -0.5, 0.5), 0).astype(np.float32)
