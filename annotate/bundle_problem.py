"""Bundle adjustment, the problem: cameras, points and observations, their residuals and the derivatives of
these.

annotate/bundle.py solves it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np


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
    centre_sigma_px: float = 0.0
    """1-sigma of a prior that holds the principal point near its start; 0: the principal point is held."""
    focal_prior_sigma: float = 0.0
    """1-sigma of a prior on the shared log focal length around its start; 0: no prior."""

    @property
    def num_shared(self) -> int:
        """Unknowns that all cameras share: log focal length, principal point, distortion."""
        return int(self.free_focal) + 2 * int(self.centre_sigma_px > 0) + 2 * int(self.free_distortion)

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
    """Projections of all observations: pixels [M, 2] and depth along the optical axis [M]; NaN pixels behind
    the camera."""
    terms = linearise(bundle, BundleConfig(free_poses=False, free_points=False))
    return bundle.xy_px + terms["residual"], terms["z"]


def reprojection_errors(bundle: Bundle) -> np.ndarray:
    """[M] reprojection error in pixels; inf behind the camera."""
    residual = linearise(bundle, BundleConfig(free_poses=False, free_points=False))["residual"]
    error = np.linalg.norm(residual, axis=1)
    return np.where(np.isfinite(error), error, np.inf)


def check_bundle(bundle: Bundle) -> None:
    m = len(bundle.xy_px)
    if bundle.cam_idx.shape != (m,) or bundle.point_idx.shape != (m,) or bundle.xy_px.shape != (m, 2):
        raise ValueError("adjust: cam_idx, point_idx and xy_px must have one row per observation")
    if bundle.focal_px.shape != (len(bundle.cam_from_world),):
        raise ValueError("adjust: focal_px must have one value per camera")


def linearise(bundle: Bundle, config: BundleConfig) -> dict[str, np.ndarray]:
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
        shared = np.zeros((len(z), 2, config.num_shared))
        if config.free_focal:
            shared[:, :, 0] = by_log_focal
        if config.centre_sigma_px > 0:
            shared[:, 0, int(config.free_focal)] = 1.0
            shared[:, 1, int(config.free_focal) + 1] = 1.0
        if config.free_distortion:
            for i in range(2):
                shared[:, 0, shared.shape[2] - 2 + i] = f * x * by_k[i]
                shared[:, 1, shared.shape[2] - 2 + i] = f * y * by_k[i]
        terms |= {"cam": cam, "shared": shared}
    if config.free_points:
        terms["point"] = by_point_in_cam @ rotation
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
    assert depth is not None
    assert bundle.log_depth_scale is not None
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


def robust_cost(
    bundle: Bundle, config: BundleConfig, terms: dict[str, np.ndarray]
) -> tuple[float, np.ndarray]:
    """Robust cost and weights [M] (rho'), residuals measured in sigma_px."""
    squared = np.sum((terms["residual"] / bundle.sigma_px) ** 2, axis=1)
    behind = ~np.isfinite(squared)
    squared = np.where(behind, 1e6, squared)
    cost, weight = rho(squared, config)
    weight = np.where(behind, 0.0, weight)
    total = float(np.sum(cost))
    if "depth_residual" in terms:
        depth_cost, _ = rho(terms["depth_residual"] ** 2, config)
        total += float(np.sum(depth_cost))
        assert bundle.depth is not None
        assert bundle.log_depth_scale is not None
        spread = bundle.log_depth_scale - bundle.log_depth_scale.mean()
        total += float(np.sum((spread / bundle.depth.scale_step_sigma) ** 2))
    return total, weight


def rho(squared: np.ndarray, config: BundleConfig) -> tuple[np.ndarray, np.ndarray]:
    c2 = config.loss_scale**2
    if config.loss == "cauchy":
        return c2 * np.log1p(squared / c2), 1 / (1 + squared / c2)
    if config.loss == "huber":
        root = np.sqrt(np.maximum(squared, c2))
        return np.where(squared <= c2, squared, 2 * config.loss_scale * root - c2), config.loss_scale / root
    return squared, np.ones_like(squared)


def prior_cost(bundle: Bundle, config: BundleConfig, start: Bundle) -> float:
    change = np.log(bundle.focal_px) - np.log(start.focal_px)
    cost = 0.0
    if config.free_camera_focal:
        cost += float(np.sum((np.diff(np.log(bundle.focal_px)) / config.focal_step_sigma) ** 2))
    elif config.free_focal and config.focal_prior_sigma > 0:
        cost += float((change[0] / config.focal_prior_sigma) ** 2)
    if config.centre_sigma_px > 0:
        cost += float(np.sum(((bundle.centre_px - start.centre_px) / config.centre_sigma_px) ** 2))
    return cost


def initial_depth_scale(bundle: Bundle) -> np.ndarray:
    """Per camera the median log (measured / current depth); the clip's median where a camera has no
    measurement."""
    assert bundle.depth is not None
    _, z = project_all(replace(bundle, depth=None))
    log_z = np.log(np.maximum(z[bundle.depth.obs_idx], 1e-6))
    ratio = bundle.depth.log_depth - log_z
    cams = bundle.cam_idx[bundle.depth.obs_idx]
    scale = np.full(len(bundle.cam_from_world), np.median(ratio))
    for cam in np.unique(cams):
        scale[cam] = np.median(ratio[cams == cam])
    return scale
