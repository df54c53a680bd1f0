"""Bundle adjustment, the linear algebra: normal equations, their Schur complement, and the step.

Used by annotate/bundle.py alone. The unknowns are C blocks of `per_cam`, then the shared ones; points are
eliminated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg

from worldline.annotate.bundle_problem import Bundle, BundleConfig, rho
from worldline.annotate.camera import rotation_from_rotvec

_CHUNK = 80
"""Points eliminated at once: enough for a matrix product, few enough to be seen by the same few cameras."""


@dataclass(frozen=True, slots=True)
class Layout:
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
    def of(bundle: Bundle, config: BundleConfig) -> Layout:
        num_cams, num_points = len(bundle.cam_from_world), len(bundle.points_in_world)
        per_cam = 6 + int(config.free_camera_focal) + int(bundle.depth is not None)
        shared = config.num_shared
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
        return Layout(per_cam, num_cams * per_cam, shared, by_cam, cam_starts, by_point, point_starts, chunks)


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
        _add_priors(a, b, bundle, config, layout, start)
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


def _hold(a: np.ndarray, bundle: Bundle, config: BundleConfig, layout: Layout) -> None:
    """Holds what may not move by a diagonal so large that its step vanishes."""
    held = np.zeros((len(bundle.cam_from_world), layout.per_cam), dtype=bool)
    if bundle.is_fixed is not None:
        held[bundle.is_fixed] = True
    if not config.free_translation:
        held[:, 3:6] = True
    at = np.flatnonzero(held.reshape(-1))
    a[at, at] += 1e14


def _add_priors(
    a: np.ndarray,
    b: np.ndarray,
    bundle: Bundle,
    config: BundleConfig,
    layout: Layout,
    start: Bundle,
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
        b[layout.num_cam] += information * (log_focal[0] - np.log(start.focal_px[0]))
    if config.centre_sigma_px > 0:
        centre = layout.num_cam + int(config.free_focal) + np.arange(2)
        information = config.centre_sigma_px**-2
        a[centre, centre] += information
        b[centre] += information * (bundle.centre_px - start.centre_px)


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
            system["w"][rows, : layout.per_cam] += cam[:, :, None] * point[:, None, :]


def reduce(system: dict[str, Any], damping: float, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Schur complement on cameras and shared unknowns, and its right-hand side; keeps V^-1 in `system` for
    the points."""
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
        half = v_inv[points] @ coupling
        flat = coupling.reshape(len(points) * 3, -1)
        block = flat.T @ half.reshape(len(points) * 3, -1)
        rows = (cams[:, None] * per_cam + np.arange(per_cam)).reshape(-1)
        rows = np.concatenate([rows, layout.num_cam + np.arange(shared)])
        a[np.ix_(rows, rows)] -= block
        b[rows] -= half.reshape(len(points) * 3, -1).T @ system["g"][points].reshape(-1)
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
        if config.free_distortion:
            changes["distortion"] = bundle.distortion + step["shared"][-2:]
        if bundle.depth is not None:
            changes["log_depth_scale"] = bundle.log_depth_scale + cam[:, -1]
    if "point" in step:
        changes["points_in_world"] = bundle.points_in_world + step["point"]
    return replace(bundle, **changes)
