"""Bundle adjustment: cameras, points and observations in, their least-squares optimum out.

Levenberg-Marquardt on reprojection errors with the points eliminated (Schur complement; Triggs et al. 2000,
Sec. 6) in compiled loops, so that a one-minute clip takes hundredths of a second an iteration. Unlike a
general solver it knows what this product needs: per-camera focal lengths tied by a smoothness prior and depth
measurements with a free scale per camera. Residual weights are robust (Huber or Cauchy, re-weighted each
iteration).

Parameters: camera i has `cam_from_world` perturbed as R <- exp(w) R, t <- t + d; optionally log focal length
and log depth scale. All cameras share log focal length and (k1, k2) where those are free. The principal point
is given. Gauge: the optimiser leaves it to the damping; annotate/bundle_covariance.py states its own.
"""

from __future__ import annotations

from dataclasses import replace

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
from worldline.annotate.bundle_system import MIN_ELIMINATED, Layout, apply_step, normal_equations, solve
from worldline.annotate.threads import in_threads


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
    return settle(bundle, config, layout)


def settle(bundle: Bundle, config: BundleConfig, layout: Layout | None = None) -> Bundle:
    """The bundle with each point moved to where the cameras as they are see it, by the loss of `config`; points that
    fewer than two observations show stay."""
    order = layout or Layout.of(bundle, config)
    packed = pack(bundle)
    points = packed.points.copy()

    def settle_part(part: tuple[int, int]) -> None:
        kernels.settle_points(
            packed.cams,
            points,
            packed.cam_idx,
            order.by_point,
            order.point_starts,
            packed.xy,
            packed.focal,
            packed.centre,
            packed.model,
            packed.distortion,
            float(bundle.sigma_px),
            kernels.LOSSES[config.loss],
            float(config.loss_scale),
            *part,
        )

    in_threads(settle_part, order.parts(MIN_ELIMINATED))
    return replace(bundle, points_in_world=points)
