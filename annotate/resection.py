"""Resection: known points and their observations in, the pose of each camera alone out.

Robust (Cauchy) Levenberg-Marquardt on six unknowns a camera. With the points held the cameras do not touch
each other, so thousands of frames cost what their observations cost, and one bad frame cannot hold up the rest.
"""

from __future__ import annotations

from dataclasses import replace

import numba
import numpy as np

from worldline.annotate import bundle_kernels as kernels
from worldline.annotate.bundle_problem import Bundle, pack
from worldline.annotate.threads import even_parts, in_threads

_MIN_SHARED = 2000
"""Fewest observations that threads share: each is passed over many times."""
_CAUCHY = kernels.LOSSES["cauchy"]


def resect(bundle: Bundle, *, max_iterations: int = 15, loss_scale: float = 2.0) -> Bundle:
    """Poses every camera of a bundle from its observations, starting at the poses it has.

    The minimum is that of `adjust` with the points and the lens held and a Cauchy loss of `loss_scale` sigmas.
    Cameras without a usable observation stay where they are.
    """
    packed = pack(bundle)
    order = np.argsort(packed.cam_idx, kind="stable")
    starts = np.searchsorted(packed.cam_idx[order], np.arange(len(packed.cams) + 1))
    cam_from_world = packed.cams.copy()
    point_idx, xy = packed.point_idx[order], packed.xy[order]

    def resect_part(part: tuple[int, int]) -> None:
        _resect(
            cam_from_world,
            packed.points,
            starts,
            point_idx,
            xy,
            packed.focal,
            packed.centre,
            packed.model,
            packed.distortion,
            float(bundle.sigma_px),
            float(loss_scale),
            max_iterations,
            *part,
        )

    in_threads(resect_part, even_parts(starts[1:], min_size=_MIN_SHARED))
    return replace(bundle, cam_from_world=cam_from_world)


@numba.njit(cache=True, nogil=True)
def _resect(
    cam_from_world,
    points,
    starts,
    point_idx,
    xy,
    focal,
    centre,
    model,
    k,
    sigma,
    loss_scale,
    max_iterations,
    first,
    last,
):
    """Poses the cameras first to last - 1, in place."""
    most = 1
    for c in range(first, last):
        most = max(most, starts[c + 1] - starts[c])
    cam, shared, point = np.empty((most, 2, 6)), np.empty((most, 2, 0)), np.empty((most, 2, 3))
    one, depth = np.empty((1, 3, 4)), np.empty(most)
    for c in range(first, last):
        rows = slice(starts[c], starts[c + 1])
        num = starts[c + 1] - starts[c]
        if num == 0:
            continue
        zero = np.zeros(num, dtype=np.int64)
        f = focal[c : c + 1]
        one[0] = cam_from_world[c]
        residual, new = np.empty((num, 2)), np.empty((num, 2))
        seen, at = point_idx[rows], xy[rows]
        kernels.residuals(one, points, zero, seen, at, f, centre, model, k, residual, depth, 0, num)
        cost = _cauchy(residual, sigma, loss_scale)
        damping = 1e-4
        for _ in range(max_iterations):
            kernels.jacobians(
                one,
                points,
                zero,
                seen,
                f,
                model,
                k,
                (False, False, False, False, False),
                cam,
                shared,
                point,
                0,
                num,
            )
            information, gradient = _normal(cam, residual, sigma, loss_scale)
            improved = False
            for _ in range(6):
                step = _solve_damped(information, gradient, damping)
                candidate = _moved(one, step)
                kernels.residuals(candidate, points, zero, seen, at, f, centre, model, k, new, depth, 0, num)
                new_cost = _cauchy(new, sigma, loss_scale)
                if new_cost < cost:
                    improved = True
                    break
                damping = max(damping * 8.0, 1e-6)
            if not improved:
                break
            gain = (cost - new_cost) / max(cost, 1e-12)
            one[:], residual[:], cost = candidate, new, new_cost
            damping = max(damping / 5.0, 1e-9)
            if gain < 1e-5:
                break
        cam_from_world[c] = one[0]


@numba.njit(cache=True)
def _cauchy(residual, sigma, loss_scale):
    """Robust cost; observations behind the camera count as a thousand sigmas off."""
    cost = 0.0
    for m in range(len(residual)):
        squared = (residual[m, 0] ** 2 + residual[m, 1] ** 2) / (sigma * sigma)
        cost += kernels.rho(squared if np.isfinite(squared) else 1e6, _CAUCHY, loss_scale)[0]
    return cost


@numba.njit(cache=True)
def _normal(cam, residual, sigma, loss_scale):
    information, gradient = np.zeros((6, 6)), np.zeros(6)
    for m in range(len(residual)):
        squared = (residual[m, 0] ** 2 + residual[m, 1] ** 2) / (sigma * sigma)
        if not np.isfinite(squared):
            continue
        weight = kernels.rho(squared, _CAUCHY, loss_scale)[1] / (sigma * sigma)
        for row in range(2):
            for i in range(6):
                scaled = cam[m, row, i] * weight
                gradient[i] += scaled * residual[m, row]
                for j in range(i + 1):
                    information[i, j] += scaled * cam[m, row, j]
    return information, gradient


@numba.njit(cache=True)
def _solve_damped(information, gradient, damping):
    """Minus the damped inverse times the gradient, by Cholesky decomposition of the lower triangle."""
    n = len(gradient)
    lower, step = information.copy(), -gradient
    for i in range(n):
        lower[i, i] += damping * lower[i, i] + 1e-12
    for i in range(n):
        for j in range(i + 1):
            value = lower[i, j]
            for q in range(j):
                value -= lower[i, q] * lower[j, q]
            if i == j:
                lower[i, i] = np.sqrt(max(value, 1e-300))
            else:
                lower[i, j] = value / lower[j, j]
    for i in range(n):
        for q in range(i):
            step[i] -= lower[i, q] * step[q]
        step[i] /= lower[i, i]
    for i in range(n - 1, -1, -1):
        for q in range(i + 1, n):
            step[i] -= lower[q, i] * step[q]
        step[i] /= lower[i, i]
    return step


@numba.njit(cache=True)
def _moved(one, step):
    """The pose [1, 3, 4] after R <- exp(w) R, t <- t + d."""
    moved = one.copy()
    w = step[:3]
    angle = np.sqrt(w[0] ** 2 + w[1] ** 2 + w[2] ** 2)
    first = np.sin(angle) / angle if angle > 1e-8 else 1.0
    second = (1.0 - np.cos(angle)) / (angle * angle) if angle > 1e-8 else 0.5
    for j in range(3):
        x, y, z = one[0, 0, j], one[0, 1, j], one[0, 2, j]
        cx, cy, cz = w[1] * z - w[2] * y, w[2] * x - w[0] * z, w[0] * y - w[1] * x
        moved[0, 0, j] = x + first * cx + second * (w[1] * cz - w[2] * cy)
        moved[0, 1, j] = y + first * cy + second * (w[2] * cx - w[0] * cz)
        moved[0, 2, j] = z + first * cz + second * (w[0] * cy - w[1] * cx)
    for i in range(3):
        moved[0, i, 3] = one[0, i, 3] + step[3 + i]
    return moved
