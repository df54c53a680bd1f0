"""Bundle adjustment, the problem: cameras, points and observations, their residuals and the derivatives of
these.

annotate/bundle.py solves it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from worldline.annotate import bundle_kernels as kernels
from worldline.annotate.threads import even_parts, in_threads

MIN_SHARED = 15_000
"""Fewest observations that threads share one pass over: waking a thread takes as long as a few thousand do."""


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
    """1-sigma of a prior that holds the principal point near `centre_prior_px`; 0: the principal point is held."""
    centre_prior_px: tuple[float, float] | None = None
    """None: where the adjustment begins."""
    distortion_sigma: tuple[float, float] = (0.0, 0.0)
    """1-sigma of priors that hold k1 and k2 near zero; 0: none. A tiny one for k2 leaves a one-parameter lens."""
    focal_prior_sigma: float = 0.0
    """1-sigma of a prior on the shared log focal length around that of `focal_prior_px`; 0: no prior."""
    focal_prior_px: float | None = None
    """None: where the adjustment begins."""
    free_readout: bool = False
    """The readout of a rolling shutter, one for all cameras."""

    @property
    def readout_at(self) -> int:
        """Place of the readout among the shared unknowns: log focal length, principal point, readout, distortion."""
        return int(self.free_focal) + 2 * int(self.centre_sigma_px > 0)

    @property
    def num_shared(self) -> int:
        """Unknowns that all cameras share."""
        return self.readout_at + int(self.free_readout) + 2 * int(self.free_distortion)

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
    shutter_px: np.ndarray | None = None
    """[M, 2] how far each observation lies from where the whole frame, taken at the time of its middle, would show
    it, for a readout of 1 (annotate/shutter.py); None: a global shutter."""
    readout: float = 0.0
    """Time from the first to the last line of a frame, as a share of the frame interval."""
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
    return ideal_pixels(bundle) + terms["residual"], terms["z"]


def ideal_pixels(bundle: Bundle) -> np.ndarray:
    """[M, 2] the observations as a global shutter would show them."""
    if bundle.shutter_px is None or bundle.readout == 0:
        return bundle.xy_px
    return bundle.xy_px - bundle.readout * bundle.shutter_px


def reprojection_errors(bundle: Bundle) -> np.ndarray:
    """[M] reprojection error in pixels; inf behind the camera."""
    residual = linearise(bundle, BundleConfig(free_poses=False, free_points=False))["residual"]
    error = np.linalg.norm(residual, axis=1)
    return np.where(np.isfinite(error), error, np.inf)


def scatter(bundle: Bundle) -> float:
    """Robust 1-sigma of an observation's coordinate in pixels: the median length of a normal 2-vector is 1.18 sigma."""
    return max(float(np.median(reprojection_errors(bundle))) / 1.18, 1e-3)


def part_of_image(xy_px: np.ndarray, size_px: tuple[float, float], parts: tuple[int, int]) -> np.ndarray:
    """[M] number of the part (across x down of them) of an image of `size_px` that each pixel [M, 2] lies in."""
    at = np.clip((xy_px / size_px * parts).astype(int), 0, np.array(parts) - 1)
    return at[:, 0] * parts[1] + at[:, 1]


def check_bundle(bundle: Bundle) -> None:
    m = len(bundle.xy_px)
    if bundle.cam_idx.shape != (m,) or bundle.point_idx.shape != (m,) or bundle.xy_px.shape != (m, 2):
        raise ValueError("adjust: cam_idx, point_idx and xy_px must have one row per observation")
    if bundle.shutter_px is not None and bundle.shutter_px.shape != (m, 2):
        raise ValueError("adjust: shutter_px must have one row per observation")
    if bundle.focal_px.shape != (len(bundle.cam_from_world),):
        raise ValueError("adjust: focal_px must have one value per camera")


def row_parts(num: int) -> list[tuple[int, int]]:
    """Runs of `num` observations, first and last + 1, one for each thread that they are enough for."""
    return even_parts(np.arange(1, num + 1), min_size=MIN_SHARED)


class Packed(NamedTuple):
    """A bundle's arrays as compiled code takes them: one layout and type each, so that every kernel is compiled
    once. Views where the bundle has them so already."""

    cams: np.ndarray
    points: np.ndarray
    cam_idx: np.ndarray
    point_idx: np.ndarray
    xy: np.ndarray
    focal: np.ndarray
    centre: np.ndarray
    model: int
    distortion: np.ndarray


def pack(bundle: Bundle) -> Packed:
    """The bundle for compiled code."""
    cams, points, xy, focal, centre, distortion = (
        np.ascontiguousarray(each, np.float64)
        for each in (
            bundle.cam_from_world,
            bundle.points_in_world,
            ideal_pixels(bundle),
            bundle.focal_px,
            bundle.centre_px,
            bundle.distortion,
        )
    )
    cam_idx, point_idx = (np.ascontiguousarray(x, np.int64) for x in (bundle.cam_idx, bundle.point_idx))
    model = kernels.MODELS[bundle.model]
    return Packed(cams, points, cam_idx, point_idx, xy, focal, centre, model, distortion)


def linearise(bundle: Bundle, config: BundleConfig) -> dict[str, np.ndarray]:
    """Residuals [M, 2] in pixels (NaN behind the camera), depths "z" [M] and Jacobians: cam [M, 2, per_cam],
    shared [M, 2, S], point [M, 2, 3] (zero behind the camera)."""
    packed = pack(bundle)
    num = len(packed.xy)
    with_slopes = config.free_poses or config.free_points
    terms: dict[str, np.ndarray] = {"residual": np.empty((num, 2)), "z": np.empty(num)}
    if with_slopes:
        per_cam = 6 + int(config.free_camera_focal) + int(bundle.depth is not None)
        terms |= {
            "cam": np.zeros((num, 2, per_cam)),
            "shared": np.zeros((num, 2, config.num_shared)),
            "point": np.zeros((num, 2, 3)),
        }
    free = (
        config.free_camera_focal,
        config.free_focal,
        config.centre_sigma_px > 0,
        config.free_readout,
        config.free_distortion,
    )

    def fill(part: tuple[int, int]) -> None:
        kernels.residuals(*packed, terms["residual"], terms["z"], *part)
        if with_slopes:
            kernels.jacobians(
                packed.cams,
                packed.points,
                packed.cam_idx,
                packed.point_idx,
                packed.focal,
                packed.model,
                packed.distortion,
                free,
                terms["cam"],
                terms["shared"],
                terms["point"],
                *part,
            )

    in_threads(fill, row_parts(num))
    if not with_slopes:
        return terms
    residual, z = terms["residual"], terms["z"]
    if config.free_readout:
        if bundle.shutter_px is None:
            raise ValueError("adjust: a free readout needs shutter_px")
        terms["shared"][:, :, config.readout_at] = np.where(np.isfinite(residual), bundle.shutter_px, 0.0)
    if bundle.depth is not None:
        terms |= _linearise_depth(bundle, z)
    return terms


def _linearise_depth(bundle: Bundle, z: np.ndarray) -> dict[str, np.ndarray]:
    """Depth residual log z + log scale - log measured, in sigmas, one row per depth measurement."""
    depth = bundle.depth
    assert depth is not None
    assert bundle.log_depth_scale is not None
    rows = depth.obs_idx
    cams = bundle.cam_idx[rows]
    rotation = bundle.cam_from_world[cams, :, :3]
    rotated = np.einsum("mij,mj->mi", rotation, bundle.points_in_world[bundle.point_idx[rows]])
    valid = z[rows] > 1e-6
    log_z = np.log(np.where(valid, z[rows], 1.0))
    residual = (log_z + bundle.log_depth_scale[cams] - depth.log_depth) / depth.sigma
    weight = np.where(valid, 1.0 / depth.sigma, 0.0)
    by_z = weight / np.where(valid, z[rows], 1.0)
    return {
        "depth_residual": np.where(valid, residual, 0.0),
        "depth_rotation": np.stack([by_z * rotated[:, 1], -by_z * rotated[:, 0], 0 * by_z], axis=1),
        "depth_z": by_z,
        "depth_point": by_z[:, None] * rotation[:, 2, :],
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


def focal_shift(bundle: Bundle, config: BundleConfig, start: Bundle) -> float:
    """The shared log focal length from where its prior has it."""
    prior_px = start.focal_px[0] if config.focal_prior_px is None else config.focal_prior_px
    return float(np.log(bundle.focal_px[0] / prior_px))


def centre_shift(bundle: Bundle, config: BundleConfig, start: Bundle) -> np.ndarray:
    """[2] the principal point from where its prior has it."""
    prior = start.centre_px if config.centre_prior_px is None else np.array(config.centre_prior_px)
    return bundle.centre_px - prior


def prior_cost(bundle: Bundle, config: BundleConfig, start: Bundle) -> float:
    cost = 0.0
    if config.free_camera_focal:
        cost += float(np.sum((np.diff(np.log(bundle.focal_px)) / config.focal_step_sigma) ** 2))
    elif config.free_focal and config.focal_prior_sigma > 0:
        cost += (focal_shift(bundle, config, start) / config.focal_prior_sigma) ** 2
    if config.centre_sigma_px > 0:
        cost += float(np.sum((centre_shift(bundle, config, start) / config.centre_sigma_px) ** 2))
    if config.free_distortion:
        for k, sigma in zip(bundle.distortion, config.distortion_sigma, strict=True):
            cost += float((k / sigma) ** 2) if sigma > 0 else 0.0
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
