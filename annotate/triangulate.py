"""Triangulation: rays of many points in, their meeting points and the angles they span out."""

from __future__ import annotations

import numpy as np


def meet_rays(
    direction: np.ndarray, origin: np.ndarray, group: np.ndarray, num_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Points [G, 3] nearest to the rays of each group, and the angle [G] in radians that the rays span.

    direction (unit), origin: [m, 3]; group: [m]. NaN where the rays are parallel or the point lies behind one
    of them.
    """
    projector = np.eye(3) - direction[:, :, None] * direction[:, None, :]
    a, b = np.zeros((num_groups, 3, 3)), np.zeros((num_groups, 3))
    np.add.at(a, group, projector)
    np.add.at(b, group, np.einsum("mij,mj->mi", projector, origin))
    good = np.linalg.det(a) > 1e-12
    points = np.full((num_groups, 3), np.nan)
    points[good] = np.linalg.solve(a[good], b[good][:, :, None])[:, :, 0]
    depth = np.einsum("mi,mi->m", direction, points[group] - origin)
    behind = np.bincount(group, ~(depth > 0), minlength=num_groups) > 0
    points[behind] = np.nan
    return points, ray_spread(direction, group, num_groups)


def ray_spread(direction: np.ndarray, group: np.ndarray, num_groups: int) -> np.ndarray:
    """Largest angle [G] in radians between the first ray of a group and its others (at least half of the full
    span)."""
    first = np.zeros((num_groups, 3))
    first[group[::-1]] = direction[::-1]
    chord = np.linalg.norm(direction - first[group], axis=1)
    widest = np.zeros(num_groups)
    np.maximum.at(widest, group, chord)
    return 2 * np.arcsin(np.minimum(widest / 2, 1.0))
