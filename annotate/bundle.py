"""Bundle adjustment: cameras, points and observations in, their least-squares optimum and its covariance out.

Levenberg-Marquardt on reprojection errors with the points eliminated (Schur complement; Triggs et al. 2000, Sec. 6), written
with dense blocks so that a one-minute clip takes tenths of a second an iteration. Unlike a general solver it knows what this
product needs: per-camera focal lengths tied by a smoothness prior, depth measurements with a free scale per camera, and the
covariance of all poses. Residual weights are robust (Huber or Cauchy, re-weighted each iteration).

Parameters: camera i has `cam_from_world` perturbed as R <- exp(w) R, t <- t + d; optionally log focal length and log depth
scale. All cameras share log focal length and (k1, k2) where those are free. The principal point is given.
Gauge: the optimiser leaves it to the damping; `covariance` states its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.linalg

from worldline.annotate.camera import rotation_from_rotvec


_CHUNK = 80
"""Points eliminated at once: enough for a matrix product, few enough to be seen by the same few cameras."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleConfig:
    """What is free and how hard to try."""

    max_iterations: int = 20
    """Accepted steps at most; clips settle in 5 to 15."""
    relative_tolerance: float = 1e-5
    """Stop when a step lowers the cost by less than this share."""
    loss: str = "cauchy"
    """`cauchy` (outliers among tracks are common), `huber` or `none`."""
    loss_scale: float = 1.5
    """Residual, in units of sigma_px, where the loss turns from quadratic."""
    free_poses: bool = True
    free_translation: bool = True
    """False: cameras only turn about the origin, for the test against pure rotation."""
    free_points: bool = True
    free_focal: bool = False
    """One log focal length for all cameras."""
    free_distortion: bool = False
    """One (k1, k2) for all cameras."""
    free_camera_focal: bool = False
    """A log focal length per camera on top of the shared one, for clips that zoom."""
    focal_step_sigma: float = 0.01
    """Prior 1-sigma of the change of log focal length between consecutive cameras."""
    focal_prior_sigma: float = 0.0
    """1-sigma of a prior on the shared log focal length around its start; 0: no prior."""

    def __post_init__(self) -> None:
        if self.loss not in ("cauchy", "huber", "none"):
            raise ValueError(f"loss {self.loss!r}: known are cauchy, huber, none")


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthObservations:
    """Measured depths along the optical axis; camera i sees them times exp(its own free log scale)."""

    obs_idx: np.ndarray
    """[D] the observation (row of Bundle.xy_px) each belongs to."""
    log_depth: np.ndarray
    """[D] log of the measured depth."""
    sigma: np.ndarray
    """[D] 1-sigma of the log depth."""
    scale_step_sigma: float = 0.05
    """Prior 1-sigma of each camera's log scale around the clip's common one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A bundle-adjustment problem and, after `adjust`, its solution. C cameras, P points, M observations."""

    cam_from_world: np.ndarray
    """[C, 3, 4]"""
    points_in_world: np.ndarray
    """[P, 3]"""
    cam_idx: np.ndarray
    """[M] int"""
    point_idx: np.ndarray
    """[M] int"""
    xy_px: np.ndarray
    """[M, 2]"""
    focal_px: np.ndarray
    """[C] fx = fy per camera."""
    centre_px: np.ndarray
    """[2] principal point."""
    model: str = "pinhole"
    """pinhole, radial or fisheye (annotate/camera.py)."""
    distortion: np.ndarray = field(default_factory=lambda: np.zeros(2))
    """[2] k1, k2; zero for a pinhole."""
    sigma_px: float = 1.0
    """1-sigma of an observation's coordinate."""
    depth: DepthObservations | None = None
    is_fixed: np.ndarray | None = None
    """[C] cameras that must not move; None: all may."""
    log_depth_scale: np.ndarray | None = None
    """[C] log of (measured depth / depth) per camera, solved where `depth` is given."""
    weight: np.ndarray | None = None
    """[M] robust weights of the last iteration, in [0, 1]."""
    cost: float = float("nan")
    """Robust cost at the solution."""


def project_all(bundle: Bundle) -> tuple[np.ndarray, np.ndarray]:
    """Projections of all observations: pixels [M, 2] and depth along the optical axis [M]; NaN pixels behind the camera."""
    terms = _linearise(bundle, BundleConfig(free_poses=False, free_points=False))
    return bundle.xy_px + terms["residual"], terms["z"]


def reprojection_errors(bundle: Bundle) -> np.ndarray:
    """[M] reprojection error in pixels; inf behind the camera."""
    residual = _linearise(bundle, BundleConfig(free_poses=False, free_points=False))["residual"]
    error = np.linalg.norm(residual, axis=1)
    return np.where(np.isfinite(error), error, np.inf)


def adjust(bundle: Bundle, config: BundleConfig) -> Bundle:
    """Minimises the robust reprojection (and depth) cost from the given start.

    Returns the solution with `weight` and `cost` filled. Observations behind their camera get weight 0. Raises ValueError on
    inconsistent shapes.
    """
    _check(bundle)
    if bundle.depth is not None and bundle.log_depth_scale is None:
        bundle = replace(bundle, log_depth_scale=_initial_depth_scale(bundle))
    layout = _Layout.of(bundle, config)
    terms = _linearise(bundle, config)
    start_log_focal = np.log(bundle.focal_px)
    cost, weight = _robust_cost(bundle, config, terms)
    cost += _prior_cost(bundle, config, start_log_focal)
    damping = 1e-4
    for _ in range(config.max_iterations):
        system = _normal_equations(bundle, config, terms, weight, layout, start_log_focal)
        improved = False
        for _ in range(6):
            step = _solve(system, damping, layout)
            candidate = _apply(bundle, config, step) if step is not None else None
            if candidate is not None:
                new_terms = _linearise(candidate, config)
                new_cost, new_weight = _robust_cost(candidate, config, new_terms)
                new_cost += _prior_cost(candidate, config, start_log_focal)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class PoseCovariance:
    """Posterior covariance of the cameras."""

    camera: np.ndarray
    """[C, 6, 6] covariance of (rotation vector in camera axes, camera centre in world axes); zero for the gauge camera."""
    log_focal_sigma: float
    """1-sigma of the shared log focal length; NaN where it was not free."""


def covariance(bundle: Bundle, config: BundleConfig, *, gauge_cam: int = 0) -> PoseCovariance:
    """Covariance of all poses with the points marginalised, at an adjusted bundle, in units of `sigma_px`.

    Gauge: camera `gauge_cam` is held, and the rms distance of the camera centres from it is held, which fixes the one scale a
    monocular clip leaves free. Raises numpy.linalg.LinAlgError where the poses are not determined.
    """
    layout = _Layout.of(bundle, config)
    terms = _linearise(bundle, config)
    _, weight = _robust_cost(bundle, config, terms)
    system = _normal_equations(bundle, config, terms, weight, layout, np.log(bundle.focal_px))
    reduced, _ = _reduce(system, 0.0, layout)
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


# Layout of the unknowns: C blocks of `per_cam`, then the shared ones; the points are eliminated.


@dataclass(frozen=True, slots=True)
class _Layout:
    per_cam: int
    num_cam: int
    shared: int
    by_cam: np.ndarray
    """Observation order sorted by camera."""
    cam_starts: np.ndarray
    by_point: np.ndarray
    point_starts: np.ndarray
    chunks: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    """(points, observations, cameras) whose part of the Schur complement is formed at once."""

    @property
    def size(self) -> int:
        return self.num_cam + self.shared

    @staticmethod
    def of(bundle: Bundle, config: BundleConfig) -> _Layout:
        num_cams, num_points = len(bundle.cam_from_world), len(bundle.points_in_world)
        per_cam = 6 + int(config.free_camera_focal) + int(bundle.depth is not None)
        shared = int(config.free_focal) + 2 * int(config.free_distortion)
        by_cam = np.argsort(bundle.cam_idx, kind="stable")
        by_point = np.argsort(bundle.point_idx, kind="stable")
        cam_starts = np.searchsorted(bundle.cam_idx[by_cam], np.arange(num_cams + 1))
        point_starts = np.searchsorted(bundle.point_idx[by_point], np.arange(num_points + 1))
        chunks = []
        if config.free_points:
            # Points that begin together are seen by the same few cameras, so their dense block is small.
            first = np.full(num_points, num_cams)
            np.minimum.at(first, bundle.point_idx, bundle.cam_idx)
            last = np.zeros(num_points, dtype=first.dtype)
            np.maximum.at(last, bundle.point_idx, bundle.cam_idx)
            order = np.lexsort((last, first))
            for begin in range(0, num_points, _CHUNK):
                points = order[begin : begin + _CHUNK]
                pieces = [by_point[point_starts[p] : point_starts[p + 1]] for p in points]
                observations = np.concatenate(pieces) if pieces else np.zeros(0, dtype=int)
                chunks.append((points, observations, np.unique(bundle.cam_idx[observations])))
        return _Layout(
            per_cam, num_cams * per_cam, shared, by_cam, cam_starts, by_point, point_starts, chunks
        )


def _check(bundle: Bundle) -> None:
    m = len(bundle.xy_px)
    if bundle.cam_idx.shape != (m,) or bundle.point_idx.shape != (m,) or bundle.xy_px.shape != (m, 2):
        raise ValueError("adjust: cam_idx, point_idx and xy_px must have one row per observation")
    if bundle.focal_px.shape != (len(bundle.cam_from_world),):
        raise ValueError("adjust: focal_px must have one value per camera")


def _linearise(bundle: Bundle, config: BundleConfig) -> dict[str, np.ndarray]:
    """Residuals [M, 2] in pixels and Jacobians: cam [M, 2, per_cam], shared [M, 2, S], point [M, 2, 3]."""
    rotation = bundle.cam_from_world[bundle.cam_idx, :, :3]
    rotated = np.einsum("mij,mj->mi", rotation, bundle.points_in_world[bundle.point_idx])
    in_cam = rotated + bundle.cam_from_world[bundle.cam_idx, :, 3]
    z = in_cam[:, 2]
    valid = z > 1e-6
    inv_z = 1.0 / np.where(valid, z, 1.0)
    x, y = in_cam[:, 0] * inv_z, in_cam[:, 1] * inv_z
    r2 = x * x + y * y
    factor, slope, by_k = _distortion(r2, bundle)
    f = bundle.focal_px[bundle.cam_idx]
    residual = np.stack([f * factor * x, f * factor * y], axis=1) + bundle.centre_px - bundle.xy_px
    residual[~valid] = np.nan
    terms: dict[str, np.ndarray] = {"residual": residual, "z": z}
    if not (config.free_poses or config.free_points):
        return terms
    # d(u, v) / d(x, y), then d(x, y) / d(point in camera).
    a = f * (factor + 2 * x * x * slope)
    b = f * (2 * x * y * slope)
    c = f * (factor + 2 * y * y * slope)
    by_point_in_cam = np.empty((len(z), 2, 3))
    by_point_in_cam[:, 0, 0] = a * inv_z
    by_point_in_cam[:, 0, 1] = b * inv_z
    by_point_in_cam[:, 0, 2] = -(a * x + b * y) * inv_z
    by_point_in_cam[:, 1, 0] = b * inv_z
    by_point_in_cam[:, 1, 1] = c * inv_z
    by_point_in_cam[:, 1, 2] = -(b * x + c * y) * inv_z
    if config.free_poses:
        per_cam = 6 + int(config.free_camera_focal) + int(bundle.depth is not None)
        cam = np.zeros((len(z), 2, per_cam))
        # d(R X)/dw = -hat(R X): the row j times -hat(p) is p x j.
        px, py, pz = rotated.T[:, :, None]
        jx, jy, jz = by_point_in_cam[:, :, 0], by_point_in_cam[:, :, 1], by_point_in_cam[:, :, 2]
        cam[:, :, 0] = py * jz - pz * jy
        cam[:, :, 1] = pz * jx - px * jz
        cam[:, :, 2] = px * jy - py * jx
        cam[:, :, 3:6] = by_point_in_cam
        by_log_focal = residual + bundle.xy_px - bundle.centre_px
        if config.free_camera_focal:
            cam[:, :, 6] = by_log_focal
        shared = np.zeros((len(z), 2, int(config.free_focal) + 2 * int(config.free_distortion)))
        if config.free_focal:
            shared[:, :, 0] = by_log_focal
        if config.free_distortion:
            for i in range(2):
                shared[:, 0, shared.shape[2] - 2 + i] = f * x * by_k[i]
                shared[:, 1, shared.shape[2] - 2 + i] = f * y * by_k[i]
        terms |= {"cam": cam, "shared": shared}
    terms["point"] = np.einsum("mij,mjk->mik", by_point_in_cam, rotation)
    if bundle.depth is not None:
        terms |= _linearise_depth(bundle, rotated, rotation, inv_z, z)
    return terms


def _distortion(
    r2: np.ndarray, bundle: Bundle
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Radial factor d(r^2), its slope by r^2, and its derivatives by k1 and k2."""
    k1, k2 = bundle.distortion
    if bundle.model == "pinhole":
        return np.ones_like(r2), np.zeros_like(r2), (np.zeros_like(r2), np.zeros_like(r2))
    if bundle.model == "radial":
        return 1 + r2 * (k1 + k2 * r2), k1 + 2 * k2 * r2, (r2, r2 * r2)
    r = np.sqrt(np.maximum(r2, 1e-12))
    theta = np.arctan(r)
    t2 = theta * theta
    theta_d = theta * (1 + t2 * (k1 + k2 * t2))
    by_r = (1 + t2 * (3 * k1 + 5 * k2 * t2)) / (1 + r2)
    slope = (by_r - theta_d / r) / (2 * np.maximum(r2, 1e-12))
    slope = np.where(r2 < 1e-8, k1 - 1 / 3, slope)
    return theta_d / r, slope, (theta * t2 / r, theta * t2 * t2 / r)


def _linearise_depth(
    bundle: Bundle, rotated: np.ndarray, rotation: np.ndarray, inv_z: np.ndarray, z: np.ndarray
) -> dict[str, np.ndarray]:
    """Depth residual log z + log scale - log measured, in sigmas, one row per depth measurement."""
    depth = bundle.depth
    assert depth is not None and bundle.log_depth_scale is not None
    rows = depth.obs_idx
    cams = bundle.cam_idx[rows]
    valid = z[rows] > 1e-6
    log_z = np.log(np.where(valid, z[rows], 1.0))
    residual = (log_z + bundle.log_depth_scale[cams] - depth.log_depth) / depth.sigma
    weight = np.where(valid, 1.0 / depth.sigma, 0.0)
    by_z = weight * inv_z[rows]
    return {
        "depth_residual": np.where(valid, residual, 0.0),
        "depth_rotation": np.stack([by_z * rotated[rows, 1], -by_z * rotated[rows, 0], 0 * by_z], axis=1),
        "depth_z": by_z,
        "depth_point": by_z[:, None] * rotation[rows, 2, :],
        "depth_scale": weight,
    }


def _robust_cost(
    bundle: Bundle, config: BundleConfig, terms: dict[str, np.ndarray]
) -> tuple[float, np.ndarray]:
    """Robust cost and weights [M] (rho'), residuals measured in sigma_px."""
    squared = np.sum((terms["residual"] / bundle.sigma_px) ** 2, axis=1)
    behind = ~np.isfinite(squared)
    squared = np.where(behind, 1e6, squared)
    cost, weight = _rho(squared, config)
    weight = np.where(behind, 0.0, weight)
    total = float(np.sum(cost))
    if "depth_residual" in terms:
        depth_cost, _ = _rho(terms["depth_residual"] ** 2, config)
        total += float(np.sum(depth_cost))
        assert bundle.depth is not None and bundle.log_depth_scale is not None
        spread = bundle.log_depth_scale - bundle.log_depth_scale.mean()
        total += float(np.sum((spread / bundle.depth.scale_step_sigma) ** 2))
    return total, weight


def _rho(squared: np.ndarray, config: BundleConfig) -> tuple[np.ndarray, np.ndarray]:
    c2 = config.loss_scale**2
    if config.loss == "cauchy":
        return c2 * np.log1p(squared / c2), 1 / (1 + squared / c2)
    if config.loss == "huber":
        root = np.sqrt(np.maximum(squared, c2))
        return np.where(squared <= c2, squared, 2 * config.loss_scale * root - c2), config.loss_scale / root
    return squared, np.ones_like(squared)


def _prior_cost(bundle: Bundle, config: BundleConfig, start_log_focal: np.ndarray) -> float:
    change = np.log(bundle.focal_px) - start_log_focal
    cost = 0.0
    if config.free_camera_focal:
        cost += float(np.sum((np.diff(np.log(bundle.focal_px)) / config.focal_step_sigma) ** 2))
    elif config.free_focal and config.focal_prior_sigma > 0:
        cost += float((change[0] / config.focal_prior_sigma) ** 2)
    return cost


def _initial_depth_scale(bundle: Bundle) -> np.ndarray:
    """Per camera the median log (measured / current depth); the clip's median where a camera has no measurement."""
    assert bundle.depth is not None
    _, z = project_all(replace(bundle, depth=None))
    log_z = np.log(np.maximum(z[bundle.depth.obs_idx], 1e-6))
    ratio = bundle.depth.log_depth - log_z
    cams = bundle.cam_idx[bundle.depth.obs_idx]
    scale = np.full(len(bundle.cam_from_world), np.median(ratio))
    for cam in np.unique(cams):
        scale[cam] = np.median(ratio[cams == cam])
    return scale


def _normal_equations(
    bundle: Bundle,
    config: BundleConfig,
    terms: dict[str, np.ndarray],
    weight: np.ndarray,
    layout: _Layout,
    start_log_focal: np.ndarray,
) -> dict[str, Any]:
    """Blocks of J^T W J and J^T W r: cameras and shared ("a"), points ("v"), and the coupling of each observation."""
    root = np.sqrt(weight)[:, None] / bundle.sigma_px
    residual = np.nan_to_num(terms["residual"]) * root
    per_cam, size = layout.per_cam, layout.size
    system: dict[str, Any] = {"cam_idx": bundle.cam_idx, "point_idx": bundle.point_idx}
    if config.free_poses:
        scaled = np.nan_to_num(np.concatenate([terms["cam"], terms["shared"]], axis=2)) * root[:, :, None]
        a, b = np.zeros((size, size)), np.zeros(size)
        tail = slice(layout.num_cam, size)
        ordered, ordered_residual = scaled[layout.by_cam], residual[layout.by_cam]
        for cam in range(len(bundle.cam_from_world)):
            rows = slice(layout.cam_starts[cam], layout.cam_starts[cam + 1])
            jacobian = ordered[rows].reshape(-1, scaled.shape[2])
            block = jacobian.T @ jacobian
            gradient = jacobian.T @ ordered_residual[rows].reshape(-1)
            at = slice(cam * per_cam, (cam + 1) * per_cam)
            a[at, at] += block[:per_cam, :per_cam]
            a[at, tail] += block[:per_cam, per_cam:]
            a[tail, tail] += block[per_cam:, per_cam:]
            b[at] += gradient[:per_cam]
            b[tail] += gradient[per_cam:]
        a[tail, : layout.num_cam] = a[: layout.num_cam, tail].T
        _hold(a, bundle, config, layout)
        _add_focal_priors(a, b, bundle, config, layout, start_log_focal)
        system |= {"a": a, "b": b}
    if config.free_points:
        point = np.nan_to_num(terms["point"]) * root[:, :, None]
        by = layout.by_point
        products = np.einsum("mij,mik->mjk", point, point)[by]
        starts = np.minimum(layout.point_starts[:-1], max(len(by) - 1, 0))
        occupied = np.diff(layout.point_starts) > 0
        v = np.where(occupied[:, None, None], np.add.reduceat(products, starts, axis=0), 0.0)
        gradient = np.einsum("mij,mi->mj", point, residual)[by]
        g = np.where(occupied[:, None], np.add.reduceat(gradient, starts, axis=0), 0.0)
        system |= {"v": v, "g": g}
        if config.free_poses:
            system["w"] = np.einsum("mia,mij->maj", scaled, point)
    if "depth_residual" in terms:
        _add_depth(system, bundle, config, terms, layout)
    return system


def _hold(a: np.ndarray, bundle: Bundle, config: BundleConfig, layout: _Layout) -> None:
    """Holds what may not move by a diagonal so large that its step vanishes."""
    held = np.zeros((len(bundle.cam_from_world), layout.per_cam), dtype=bool)
    if bundle.is_fixed is not None:
        held[bundle.is_fixed] = True
    if not config.free_translation:
        held[:, 3:6] = True
    at = np.flatnonzero(held.reshape(-1))
    a[at, at] += 1e14


def _add_focal_priors(
    a: np.ndarray,
    b: np.ndarray,
    bundle: Bundle,
    config: BundleConfig,
    layout: _Layout,
    start_log_focal: np.ndarray,
) -> None:
    log_focal = np.log(bundle.focal_px)
    if config.free_camera_focal:
        at = np.arange(len(log_focal)) * layout.per_cam + 6
        information = config.focal_step_sigma**-2
        step = np.diff(log_focal) * information
        a[at[1:], at[1:]] += information
        a[at[:-1], at[:-1]] += information
        a[at[1:], at[:-1]] -= information
        a[at[:-1], at[1:]] -= information
        b[at[1:]] += step
        b[at[:-1]] -= step
    elif config.free_focal and config.focal_prior_sigma > 0:
        information = config.focal_prior_sigma**-2
        a[layout.num_cam, layout.num_cam] += information
        b[layout.num_cam] += information * (log_focal[0] - start_log_focal[0])


def _add_depth(
    system: dict[str, Any],
    bundle: Bundle,
    config: BundleConfig,
    terms: dict[str, np.ndarray],
    layout: _Layout,
) -> None:
    """Adds the depth residuals, each a row over one camera (rotation, t_z, log scale) and one point."""
    assert bundle.depth is not None and bundle.log_depth_scale is not None
    _, weight = _rho(terms["depth_residual"] ** 2, config)
    root = np.sqrt(weight)
    residual = root * terms["depth_residual"]
    rows = bundle.depth.obs_idx
    point = terms["depth_point"] * root[:, None]
    cam = np.zeros((len(rows), layout.per_cam))
    cam[:, 0:3] = terms["depth_rotation"] * root[:, None]
    cam[:, 5] = terms["depth_z"] * root
    cam[:, -1] = terms["depth_scale"] * root
    cams = bundle.cam_idx[rows]
    if config.free_poses:
        num_cams = len(bundle.cam_from_world)
        blocks, gradient = (
            np.zeros((num_cams, layout.per_cam, layout.per_cam)),
            np.zeros((num_cams, layout.per_cam)),
        )
        np.add.at(blocks, cams, cam[:, :, None] * cam[:, None, :])
        np.add.at(gradient, cams, cam * residual[:, None])
        at = np.arange(num_cams)
        cams_view = system["a"][: layout.num_cam, : layout.num_cam].reshape(
            num_cams, layout.per_cam, num_cams, layout.per_cam
        )
        cams_view[at, :, at, :] += blocks
        system["b"][: layout.num_cam] += gradient.reshape(-1)
        scale_at = at * layout.per_cam + layout.per_cam - 1
        information = bundle.depth.scale_step_sigma**-2
        spread = bundle.log_depth_scale - bundle.log_depth_scale.mean()
        system["a"][np.ix_(scale_at, scale_at)] += information * (np.eye(num_cams) - 1.0 / num_cams)
        system["b"][scale_at] += information * spread
    if config.free_points:
        np.add.at(system["v"], bundle.point_idx[rows], point[:, :, None] * point[:, None, :])
        np.add.at(system["g"], bundle.point_idx[rows], point * residual[:, None])
        if config.free_poses:
            system["w"][rows, : layout.per_cam] += cam[:, :, None] * point[:, None, :]


def _reduce(system: dict[str, Any], damping: float, layout: _Layout) -> tuple[np.ndarray, np.ndarray]:
    """Schur complement on cameras and shared unknowns, and its right-hand side; keeps V^-1 in `system` for the points."""
    a, b = system["a"].copy(), system["b"].copy()
    diagonal = np.einsum("ii->i", a)
    diagonal += damping * diagonal + 1e-12
    if "v" not in system:
        return a, b
    v = system["v"].copy()
    v_diagonal = np.einsum("pii->pi", v)
    v_diagonal += damping * v_diagonal + 1e-9
    v_inv = np.linalg.inv(v)
    system["v_inv"] = v_inv
    per_cam, shared = layout.per_cam, layout.shared
    for points, observations, cams in layout.chunks:
        if len(observations) == 0:
            continue
        local_point = np.empty(len(v), dtype=np.int64)
        local_point[points] = np.arange(len(points))
        p = local_point[system["point_idx"][observations]]
        c = np.searchsorted(cams, system["cam_idx"][observations])
        w = system["w"][observations]
        coupling = np.zeros((len(points), 3, len(cams) * per_cam + shared))
        view = coupling[:, :, : len(cams) * per_cam].reshape(len(points), 3, len(cams), per_cam)
        view[p, :, c, :] += w[:, :per_cam, :].transpose(0, 2, 1)
        for s in range(shared):
            for j in range(3):
                coupling[:, j, len(cams) * per_cam + s] = np.bincount(p, w[:, per_cam + s, j], len(points))
        half = np.einsum("pij,pjn->pin", v_inv[points], coupling)
        flat = coupling.reshape(len(points) * 3, -1)
        block = flat.T @ half.reshape(len(points) * 3, -1)
        rows = (cams[:, None] * per_cam + np.arange(per_cam)).reshape(-1)
        rows = np.concatenate([rows, layout.num_cam + np.arange(shared)])
        a[np.ix_(rows, rows)] -= block
        b[rows] -= half.reshape(len(points) * 3, -1).T @ system["g"][points].reshape(-1)
    return a, b


def _solve(system: dict[str, Any], damping: float, layout: _Layout) -> dict[str, np.ndarray] | None:
    """The damped Gauss-Newton step; None where the system is not positive definite."""
    step: dict[str, np.ndarray] = {}
    if "a" in system:
        reduced, right = _reduce(system, damping, layout)
        try:
            factor = scipy.linalg.cho_factor(reduced, lower=True, overwrite_a=True, check_finite=False)
        except np.linalg.LinAlgError:
            return None
        step["a"] = -scipy.linalg.cho_solve(factor, right, check_finite=False)
        step["cam"] = step["a"][: layout.num_cam].reshape(-1, layout.per_cam)
        step["shared"] = step["a"][layout.num_cam :]
    if "v" in system:
        gradient = system["g"].copy()
        if "a" in system:
            full = np.concatenate(
                [
                    step["cam"][system["cam_idx"]],
                    np.broadcast_to(step["shared"], (len(system["cam_idx"]), layout.shared)),
                ],
                axis=1,
            )
            coupled = np.einsum("maj,ma->mj", system["w"], full)
            for j in range(3):
                gradient[:, j] += np.bincount(system["point_idx"], coupled[:, j], len(gradient))
            v_inv = system["v_inv"]
        else:
            v = system["v"].copy()
            v_diagonal = np.einsum("pii->pi", v)
            v_diagonal += damping * v_diagonal + 1e-9
            v_inv = np.linalg.inv(v)
        step["point"] = -np.einsum("pij,pj->pi", v_inv, gradient)
    return step


def _apply(bundle: Bundle, config: BundleConfig, step: dict[str, np.ndarray]) -> Bundle | None:
    """The bundle moved by a step; None where the step leaves the domain."""
    changes: dict[str, Any] = {}
    if "cam" in step:
        cam = step["cam"]
        rotation = rotation_from_rotvec(cam[:, :3]) @ bundle.cam_from_world[:, :, :3]
        translation = bundle.cam_from_world[:, :, 3] + cam[:, 3:6]
        changes["cam_from_world"] = np.concatenate([rotation, translation[:, :, None]], axis=2)
        log_change = np.zeros(len(cam))
        if config.free_focal:
            log_change += step["shared"][0]
        if config.free_camera_focal:
            log_change += cam[:, 6]
        if np.max(np.abs(log_change), initial=0.0) > 2:
            return None
        changes["focal_px"] = bundle.focal_px * np.exp(log_change)
        if config.free_distortion:
            changes["distortion"] = bundle.distortion + step["shared"][-2:]
        if bundle.depth is not None:
            changes["log_depth_scale"] = bundle.log_depth_scale + cam[:, -1]
    if "point" in step:
        changes["points_in_world"] = bundle.points_in_world + step["point"]
    return replace(bundle, **changes)
