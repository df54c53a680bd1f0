"""Bundle adjustment: cameras, points and observations in, their least-squares optimum and its covariance out.

Levenberg-Marquardt on reprojection errors with the points eliminated (Schur complement; Triggs et al. 2000,
Sec. 6) in compiled loops, so that a one-minute clip takes hundredths of a second an iteration. Unlike a
general solver it knows what this product needs: per-camera focal lengths tied by a smoothness prior, depth
measurements with a free scale per camera, and the covariance of all poses. Residual weights are robust (Huber
or Cauchy, re-weighted each iteration).

Parameters: camera i has `cam_from_world` perturbed as R <- exp(w) R, t <- t + d; optionally log focal length
and log depth scale. All cameras share log focal length and (k1, k2) where those are free. The principal point
is given. Gauge: the optimiser leaves it to the damping; `covariance` states its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg

from worldline.annotate import bundle_kernels as kernels
from worldline.annotate.bundle_problem import (
    Bundle,
    BundleConfig,
    check_bundle,
    initial_depth_scale,
    linearise,
    pack,
    prior_cost,
    robust_cost,
)
from worldline.annotate.bundle_system import Layout, apply_step, normal_equations, reduce, solve


def adjust(bundle: Bundle, config: BundleConfig) -> Bundle:
    """Minimises the robust reprojection (and depth) cost from the given start.

    Returns the solution with `weight` and `cost` filled. Observations behind their camera get weight 0.
    Raises ValueError on inconsistent shapes.
    """
    check_bundle(bundle)
    if bundle.depth is not None and bundle.log_depth_scale is None:
        bundle = replace(bundle, log_depth_scale=initial_depth_scale(bundle))
    layout = Layout.of(bundle, config)
    terms = linearise(bundle, config)
    start = bundle
    cost, weight = robust_cost(bundle, config, terms)
    cost += prior_cost(bundle, config, start)
    damping = 1e-4
    for _ in range(config.max_iterations):
        system = normal_equations(bundle, config, terms, weight, layout, start)
        improved = False
        for _ in range(6):
            step = solve(system, damping, layout)
            candidate = apply_step(bundle, config, step) if step is not None else None
            if candidate is not None:
                candidate = _settled(candidate, config, layout)
                new_terms = linearise(candidate, config)
                new_cost, new_weight = robust_cost(candidate, config, new_terms)
                new_cost += prior_cost(candidate, config, start)
                if new_cost < cost:
                    improved = True
                    break
            damping = max(damping * 8, 1e-6)
        if not improved:
            break
        assert candidate is not None
        gain = (cost - new_cost) / max(cost, 1e-12)
        bundle, terms, weight, cost = candidate, new_terms, new_weight, new_cost
        damping = max(damping / 5, 1e-9)
        if gain < config.relative_tolerance:
            break
    return replace(bundle, weight=weight, cost=cost)


def _settled(bundle: Bundle, config: BundleConfig, layout: Layout) -> Bundle:
    """The bundle with its points moved to where the moved cameras see them (embedded point iterations, Jeong et
    al. 2012): without this, steps along the valley between focal length and depth are too bent to be taken."""
    if not (config.free_points and config.free_poses) or bundle.depth is not None:
        return bundle
    packed = pack(bundle)
    points = packed.points.copy()
    kernels.settle_points(
        packed.cams,
        points,
        packed.cam_idx,
        layout.by_point,
        layout.point_starts,
        packed.xy,
        packed.focal,
        packed.centre,
        packed.model,
        packed.distortion,
        float(bundle.sigma_px),
        kernels.LOSSES[config.loss],
        float(config.loss_scale),
    )
    return replace(bundle, points_in_world=points)


@dataclass(frozen=True, kw_only=True, slots=True)
class PoseCovariance:
    """Posterior covariance of the cameras."""

    camera: np.ndarray
    """[C, 6, 6] covariance of (rotation vector in camera axes, camera centre in world axes); zero for the
    gauge camera."""
    log_focal_sigma: float
    """1-sigma of the shared log focal length; NaN where it was not free."""


def covariance(bundle: Bundle, config: BundleConfig, *, gauge_cam: int = 0) -> PoseCovariance:
    """Covariance of all poses with the points marginalised, at an adjusted bundle, in units of `sigma_px`.

    Gauge: camera `gauge_cam` is held, and the rms distance of the camera centres from it is held, which fixes
    the one scale a monocular clip leaves free. Raises numpy.linalg.LinAlgError where the poses are not determined.
    """
    layout = Layout.of(bundle, config)
    terms = linearise(bundle, config)
    _, weight = robust_cost(bundle, config, terms)
    system = normal_equations(bundle, config, terms, weight, layout, bundle)
    reduced, _ = reduce(system, 0.0, layout)
    size, num_cams = layout.size, len(bundle.cam_from_world)
    # Change of variables from the translation t to the centre C = -R^T t: dt = -R dC + hat(t) w.
    rotation, translation = bundle.cam_from_world[:, :, :3], bundle.cam_from_world[:, :, 3]
    centre = -np.einsum("cji,cj->ci", rotation, translation)
    change = np.zeros((num_cams, layout.per_cam, layout.per_cam))
    change[:, range(layout.per_cam), range(layout.per_cam)] = 1.0
    x, y, z = translation.T
    zero = np.zeros_like(x)
    change[:, 3:6, 0:3] = -np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(-1, 3, 3)
    change[:, 3:6, 3:6] = -rotation
    blocks = reduced[: layout.num_cam, :].reshape(num_cams, layout.per_cam, size)
    reduced[: layout.num_cam, :] = np.einsum("cji,cjn->cin", change, blocks).reshape(layout.num_cam, size)
    blocks = reduced[:, : layout.num_cam].reshape(size, num_cams, layout.per_cam)
    reduced[:, : layout.num_cam] = np.einsum("ncj,cji->nci", blocks, change).reshape(size, layout.num_cam)
    offset = centre - centre[gauge_cam]
    scale_direction = np.zeros(size)
    scale_direction[: layout.num_cam].reshape(num_cams, layout.per_cam)[:, 3:6] = offset
    norm = np.linalg.norm(scale_direction)
    if norm > 0:
        scale_direction /= norm
        reduced += np.outer(scale_direction, scale_direction) * np.trace(reduced) * 10
    keep = np.ones(size, dtype=bool)
    keep[gauge_cam * layout.per_cam : gauge_cam * layout.per_cam + 6] = False
    factor = scipy.linalg.cho_factor(reduced[np.ix_(keep, keep)], lower=True, check_finite=False)
    inverse = scipy.linalg.cho_solve(factor, np.eye(int(keep.sum())), check_finite=False)
    full = np.zeros((size, size))
    full[np.ix_(keep, keep)] = inverse
    cams = full[: layout.num_cam, : layout.num_cam].reshape(
        num_cams, layout.per_cam, num_cams, layout.per_cam
    )
    diagonal = cams[np.arange(num_cams), :, np.arange(num_cams), :][:, :6, :6]
    focal_sigma = float(np.sqrt(full[layout.num_cam, layout.num_cam])) if config.free_focal else float("nan")
    return PoseCovariance(camera=diagonal, log_focal_sigma=focal_sigma)
