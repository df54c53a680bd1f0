"""Any lens in, the pinhole camera that sees the same out, with what is needed to go between their pixels."""

from __future__ import annotations

import numpy as np

from worldline.annotate.camera import Intrinsics, pixel_centres, project, unproject

_MAX_HALF_ANGLE_RAD = np.deg2rad(60)
"""Wide lenses are flattened up to this angle from the axis; beyond it a flat image wastes its pixels on the
rim."""

_SMOOTH_RATIO = 1.08
"""Depths of neighbouring pixels that differ by more than this factor belong to two surfaces."""


def flattened(camera: Intrinsics) -> Intrinsics:
    """The pinhole camera of the same image size that just holds the view of `camera`; a pinhole camera is
    returned as it is."""
    if camera.model == "pinhole":
        return camera
    limit = float(np.tan(_MAX_HALF_ANGLE_RAD))
    rays = unproject(pixel_centres(np, camera.width, camera.height), camera).reshape(-1, 3)
    rays = rays[np.isfinite(rays).all(axis=1) & (rays[:, 2] > np.cos(_MAX_HALF_ANGLE_RAD) / 2)]
    extent = np.clip(rays[:, :2] / rays[:, 2:], -limit, limit)
    low, high = extent.min(axis=0), extent.max(axis=0)
    focal = np.array([camera.width, camera.height]) / (high - low)
    return Intrinsics(
        fxfycxcy_px=np.concatenate([focal, -low * focal]), width=camera.width, height=camera.height
    )


def pixels_seen_by(target: Intrinsics, source: Intrinsics) -> np.ndarray:
    """[H, W, 2]: for each pixel of `target`, where `source` (same place and axes) sees it; NaN where it does
    not."""
    rays = unproject(pixel_centres(np, target.width, target.height), target).reshape(-1, 3)
    return project(rays, source).reshape(target.height, target.width, 2)


def sample_nearest(values: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Value of `values` [H, W] nearest to pixels [..., 2]; NaN outside and at NaN pixels."""
    height, width = values.shape
    is_finite = np.isfinite(pixels).all(axis=-1)
    index = np.floor(np.where(is_finite[..., None], np.clip(pixels, -1, 1e6), -1)).astype(np.int64)
    column, row = index[..., 0], index[..., 1]
    is_inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    sampled = values[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
    return np.where(is_inside, sampled, np.nan)


def sample_inverse_depth(inverse_depth: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """`inverse_depth` [H, W] at pixels [..., 2]: linear on a surface, nearest at its edges; NaN outside and
    at NaN.

    Inverse depth of a plane is linear in the image; across an edge the mean would hang a point in the air.
    """
    nearest = sample_nearest(inverse_depth, pixels)
    height, width = inverse_depth.shape
    at = np.clip(np.nan_to_num(pixels, nan=0.0) - 0.5, 0, [width - 1, height - 1])
    left_top = np.minimum(at.astype(np.int64), [max(0, width - 2), max(0, height - 2)])
    share_x, share_y = np.moveaxis(at - left_top, -1, 0)
    x, y = np.moveaxis(left_top, -1, 0)
    next_x, next_y = np.minimum(x + 1, width - 1), np.minimum(y + 1, height - 1)
    corners = np.stack([inverse_depth[b, a] for b in (y, next_y) for a in (x, next_x)])
    above = (1 - share_x) * corners[0] + share_x * corners[1]
    below = (1 - share_x) * corners[2] + share_x * corners[3]
    linear = (1 - share_y) * above + share_y * below
    is_smooth = corners.max(axis=0) < _SMOOTH_RATIO * corners.min(axis=0)
    return np.where(np.isfinite(nearest) & is_smooth, linear, nearest).astype(inverse_depth.dtype)
