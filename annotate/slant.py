"""Slant of surfaces: a keyframe's points in, how steeply the depth changes across the image at each out.

The inverse depth of a plane is an affine function of the pixel, so a plane through a point and its neighbours in
the image is a linear fit. It is made robustly (Cauchy weights), since neighbours may lie on another surface, and
held near zero where they are too close together to tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree


@dataclass(frozen=True, kw_only=True, slots=True)
class SlantConfig:
    """Settings of the fit."""

    num_neighbours: int = 8
    """Nearest points in the image that the plane is laid through."""
    prior_px: float = 10.0
    """Neighbours (rms, per axis) closer than this say less than the prior, a surface that faces the camera."""
    scatter: float = 0.02
    """Relative depth by which neighbours on the same surface leave the plane; further off they lose weight."""
    max_off: float = 0.05
    """Neighbours further off the plane, relative to depth, speak against it."""
    min_agreeing: float = 0.6
    """Smallest share of the neighbours' weight on the plane; with less there is none to be seen."""
    max_slope: float = 0.03
    """Largest slope per pixel: surfaces seen more edge-on are not tracked."""
    num_rounds: int = 4


def inverse_depth_slope(
    xy_px: np.ndarray, depth: np.ndarray, at: np.ndarray, config: SlantConfig
) -> np.ndarray:
    """Slope [n, 2] of the inverse depth per pixel, relative to the inverse depth of the point itself.

    xy_px [m, 2], depth [m] > 0: all points of one image; at [n]: those asked for. Zero where no plane is to be seen.
    """
    if len(xy_px) < 4:
        return np.zeros((len(at), 2))
    count = min(config.num_neighbours + 1, len(xy_px))
    distance, near = cKDTree(xy_px).query(xy_px[at], k=count)
    offset = xy_px[near] - xy_px[at][:, None]
    change = depth[at][:, None] / depth[near] - 1
    typical = np.maximum(np.median(distance[:, 1:], axis=1), 1.0)[:, None]
    nearness = (distance > 0) / (1 + (distance / (2 * typical)) ** 2)
    weight, slope = nearness, np.zeros((len(at), 2))
    for _ in range(config.num_rounds):
        normal = np.einsum("nk,nki,nkj->nij", weight, offset, offset) + config.prior_px**2 * np.eye(2)
        right = np.einsum("nk,nki,nk->ni", weight, offset, change)
        slope = np.linalg.solve(normal, right[:, :, None])[:, :, 0]
        off = np.abs(change - np.einsum("nki,ni->nk", offset, slope))
        weight = nearness / (1 + (off / config.scatter) ** 2)
    agreeing = np.sum(nearness * (off < config.max_off), axis=1) / np.maximum(nearness.sum(axis=1), 1e-9)
    slope[agreeing < config.min_agreeing] = 0.0
    steepness = np.linalg.norm(slope, axis=1, keepdims=True)
    return slope * np.minimum(1.0, config.max_slope / np.maximum(steepness, 1e-12))
