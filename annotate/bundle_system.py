"""Bundle adjustment, the linear algebra: normal equations, their Schur complement, and the step.

Used by annotate/bundle.py and annotate/bundle_covariance.py alone.
The unknowns are C blocks of `per_cam`, then the shared ones; points are
eliminated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg

from worldline.annotate import bundle_kernels as kernels
from worldline.annotate.bundle_problem import (
    MIN_SHARED,
    Bundle,
    BundleConfig,
    centre_shift,
    focal_shift,
    rho,
    row_parts,
)
from worldline.annotate.camera import rotation_from_rotvec
from worldline.annotate.threads import even_parts, in_threads

MIN_ELIMINATED = 4000
"""Fewest observations whose points threads share where each observation meets all others of its point."""


@dataclass(frozen=True, slots=True)
class Layout:
    per_cam: int
    num_cam: int
    shared: int
    by_point: np.ndarray
    """Observation order sorted by point, and by camera within it."""
    point_starts: np.ndarray

    @property
    def size(self) -> int:
        return self.num_cam + self.shared

    def parts(self, min_size: int = MIN_SHARED) -> list[tuple[int, int]]:
        """Runs of points, first and last + 1, one for each thread where there are `min_size` observations."""
        return even_parts(self.point_starts[1:], min_size=min_size)

    @staticmethod
    def of(bundle: Bundle, config: BundleConfig) -> Layout:
        num_cams, num_points = len(bundle.cam_from_world), len(bundle.points_in_world)
        per_cam = 6 + int(config.free_camera_focal) + int(bundle.depth is not None)
        shared = config.num_shared
        by_point = np.lexsort((bundle.cam_idx, bundle.point_idx))
        point_starts = np.searchsorted(bundle.point_idx[by_point], np.arange(num_points + 1))
        return Layout(per_cam, num_cams * per_cam, shared, by_point, point_starts)


def normal_equations(
    bundle: Bundle,
    config: BundleConfig,
    terms: dict[str, np.ndarray],
    weight: np.ndarray,
    layout: Layout,
    start: Bundle,
) -> dict[str, Any]:
    """Blocks of J^T W J and J^T W r: cameras and shared ("a"), points ("v"), and the coupling of each
    observation."""
    root = np.sqrt(weight) / bundle.sigma_px
    residual = np.nan_to_num(terms["residual"])
    system: dict[str, Any] = {"cam_idx": np.ascontiguousarray(bundle.cam_idx, np.int64)}
    per_cam, num_cams, num_points = layout.per_cam, len(bundle.cam_from_world), len(bundle.points_in_world)
    if config.free_points:
        system |= {
            "v": np.empty((num_points, 3, 3)),
            "g": np.empty((num_points, 3)),
            "w": np.empty((len(residual), 3, per_cam + layout.shared)),
        }

    def sum_part(parts: tuple[tuple[int, int], tuple[int, int]]) -> np.ndarray:
        of_rows, of_points = parts
        blocks = np.zeros((num_cams + 1, kernels.BLOCK, kernels.BLOCK))
        cam, shared = terms["cam"], terms["shared"]
        if config.free_poses:
            kernels.camera_blocks(cam, shared, residual, root, system["cam_idx"], blocks, *of_rows)
        if config.free_points:
            kernels.point_blocks(
                cam,
                shared,
                terms["point"],
                residual,
                root,
                layout.by_point,
                layout.point_starts,
                system["v"],
                system["g"],
                system["w"],
                *of_points,
            )
        return blocks

    sums = in_threads(sum_part, zip(row_parts(len(residual)), layout.parts(), strict=True))
    if config.free_poses:
        a, b = _spread(np.sum(sums, axis=0), layout)
        _hold(a, bundle, config, layout)
        add_priors(a, b, bundle, config, layout, start)
        system |= {"a": a, "b": b}
    if "depth_residual" in terms:
        _add_depth(system, bundle, config, terms, layout)
    return system


def _spread(blocks: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """J^T J [n, n] and J^T r [n] of the cameras and the shared unknowns, from what `kernels.camera_blocks` sums."""
    per_cam, num_cams = layout.per_cam, layout.num_cam // layout.per_cam
    num = per_cam + layout.shared
    gradient = blocks[:, :num, num]
    a, at = np.zeros((layout.size, layout.size)), np.arange(num_cams)
    cams = a[: layout.num_cam, : layout.num_cam].reshape(num_cams, per_cam, num_cams, per_cam)
    cams[at, :, at, :] = blocks[:-1, :per_cam, :per_cam]
    between = blocks[:-1, per_cam:num, :per_cam].swapaxes(0, 1).reshape(layout.shared, layout.num_cam)
    a[layout.num_cam :, : layout.num_cam] = between
    a[: layout.num_cam, layout.num_cam :] = between.T
    a[layout.num_cam :, layout.num_cam :] = blocks[-1, per_cam:num, per_cam:num]
    return a, np.concatenate([gradient[:-1, :per_cam].reshape(-1), gradient[-1, per_cam:]])


def _hold(a: np.ndarray, bundle: Bundle, config: BundleConfig, layout: Layout) -> None:
    """Holds what may not move by a diagonal so large that its step vanishes."""
    held = np.zeros((len(bundle.cam_from_world), layout.per_cam), dtype=bool)
    if bundle.is_fixed is not None:
        held[bundle.is_fixed] = True
    if not config.free_translation:
        held[:, 3:6] = True
    at = np.flatnonzero(held.reshape(-1))
    a[at, at] += 1e14


def add_priors(
    a: np.ndarray,
    b: np.ndarray,
    bundle: Bundle,
    config: BundleConfig,
    layout: Layout,
    start: Bundle,
) -> None:
    """Adds what the priors on the cameras know to a [n, n] and b [n]."""
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
        b[layout.num_cam] += information * focal_shift(bundle, config, start)
    if config.centre_sigma_px > 0:
        centre = layout.num_cam + int(config.free_focal) + np.arange(2)
        information = config.centre_sigma_px**-2
        a[centre, centre] += information
        b[centre] += information * centre_shift(bundle, config, start)
    if config.free_distortion:
        for last, k, sigma in zip((-2, -1), bundle.distortion, config.distortion_sigma, strict=True):
            if sigma > 0:
                a[last, last] += sigma**-2
                b[last] += k * sigma**-2


def _add_depth(
    system: dict[str, Any],
    bundle: Bundle,
    config: BundleConfig,
    terms: dict[str, np.ndarray],
    layout: Layout,
) -> None:
    """Adds the depth residuals, each a row over one camera (rotation, t_z, log scale) and one point."""
    assert bundle.depth is not None
    assert bundle.log_depth_scale is not None
    _, weight = rho(terms["depth_residual"] ** 2, config)
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
            system["w"][rows, :, : layout.per_cam] += point[:, :, None] * cam[:, None, :]


def reduce(system: dict[str, Any], damping: float, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Schur complement on cameras and shared unknowns, its lower triangle, and its right-hand side; keeps V^-1 in `system` for
    the points."""
    a, b = system["a"].copy(), system["b"].copy()
    diagonal = np.einsum("ii->i", a)
    diagonal += damping * diagonal + 1e-12
    if "v" not in system:
        return a, b
    system["v_inv"] = v_inv = kernels.damped_inverse(system["v"], damping)
    parts = layout.parts(MIN_ELIMINATED)
    sums = [(a, b), *((np.zeros_like(a), np.zeros_like(b)) for _ in parts[1:])]

    def eliminate(part: int) -> None:
        kernels.eliminate_points(
            *sums[part],
            system["w"],
            v_inv,
            system["g"],
            system["cam_idx"],
            layout.by_point,
            layout.point_starts,
            layout.per_cam,
            layout.num_cam,
            *parts[part],
        )

    in_threads(eliminate, range(len(parts)))
    for of_part in sums[1:]:
        a += of_part[0]
        b += of_part[1]
    return a, b


def solve(system: dict[str, Any], damping: float, layout: Layout) -> dict[str, np.ndarray] | None:
    """The damped Gauss-Newton step; None where the system is not positive definite."""
    step: dict[str, np.ndarray] = {}
    if "a" in system:
        reduced, right = reduce(system, damping, layout)
        try:
            factor = scipy.linalg.cho_factor(reduced, lower=True, overwrite_a=True, check_finite=False)
        except np.linalg.LinAlgError:
            return None
        step["a"] = -scipy.linalg.cho_solve(factor, right, check_finite=False)
        step["cam"] = step["a"][: layout.num_cam].reshape(-1, layout.per_cam)
        step["shared"] = step["a"][layout.num_cam :]
    if "v" in system:
        num_cams = layout.num_cam // layout.per_cam
        v_inv = system["v_inv"] if "a" in system else kernels.damped_inverse(system["v"], damping)
        cam_step = step.get("cam", np.zeros((num_cams, layout.per_cam)))
        shared_step = step.get("shared", np.zeros(layout.shared))
        step["point"] = np.empty_like(system["g"])

        def fill(part: tuple[int, int]) -> None:
            kernels.point_steps(
                system["w"],
                cam_step,
                shared_step,
                system["cam_idx"],
                layout.by_point,
                layout.point_starts,
                layout.per_cam,
                v_inv,
                system["g"],
                step["point"],
                *part,
            )

        in_threads(fill, layout.parts())
    return step


def apply_step(bundle: Bundle, config: BundleConfig, step: dict[str, np.ndarray]) -> Bundle | None:
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
        if config.centre_sigma_px > 0:
            first = int(config.free_focal)
            changes["centre_px"] = bundle.centre_px + step["shared"][first : first + 2]
        if config.free_readout:
            changes["readout"] = bundle.readout + float(step["shared"][config.readout_at])
        if config.free_distortion:
            changes["distortion"] = bundle.distortion + step["shared"][-2:]
        if bundle.depth is not None:
            changes["log_depth_scale"] = bundle.log_depth_scale + cam[:, -1]
    if "point" in step:
        changes["points_in_world"] = bundle.points_in_world + step["point"]
    return replace(bundle, **changes)
