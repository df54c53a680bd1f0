"""Error bars of a bundle adjustment: an adjusted bundle in, the covariance of its poses out.

The posterior covariance takes residuals as independent. They are not: a compressed video moves whole regions of a
frame by a rounded motion vector, and that error, alike in thousands of observations, bends the path while each
residual stays small. A lens that no model quite describes does the same in one part of all frames. How much residuals go
together shows in the residuals themselves: the covariance that is robust to correlation within clusters (Liang & Zeger
1986; Cameron & Miller 2015, eq. 10), with a part of one frame as a cluster, or that part of all frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
import scipy.linalg

from worldline.annotate.bundle_problem import Bundle, BundleConfig, linearise, part_of_image, robust_cost
from worldline.annotate.bundle_system import Layout, add_priors, normal_equations, reduce

_CELLS = (4, 3)
"""Parts of a frame, across and down, within which residuals may share their errors. Finer parts tell less of it on
rendered truth, coarser ones leave too little of what the poses have not taken up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoseCovariance:
    """Posterior covariance of the cameras."""

    camera: np.ndarray
    """[C, 6, 6] covariance of (rotation vector in camera axes, camera centre in world axes); zero for the
    gauge camera."""
    log_focal_sigma: float
    """1-sigma of the shared log focal length, of the cameras' own (rms) where each has its own; NaN where none was free."""
    togetherness: float
    """1-sigma of the centres that is robust to residuals of one part of a frame sharing their errors, over that of
    `camera` (rms over cameras): 1 where they are independent and as large as sigma_px. NaN without a second camera."""
    standing: float
    """The same with residuals of one part of the image, over all frames, sharing theirs: what stands in the image, as the
    misfit of a lens does."""
    held_lens: np.ndarray
    """[C, 6, 6] what a focal length and a principal point add that were held and may be off; zero where they were free."""


def covariance(
    bundle: Bundle,
    config: BundleConfig,
    *,
    gauge_cam: int = 0,
    is_centre_held: bool = False,
    is_focal_held: bool = False,
) -> PoseCovariance:
    """Covariance of all poses with the points marginalised, at an adjusted bundle, in units of `sigma_px`.

    Gauge: camera `gauge_cam` is held, and the rms distance of the camera centres from it is held, which fixes
    the one scale a monocular clip leaves free. `is_centre_held`, `is_focal_held`: the adjustment kept the principal
    point or the shared focal length at the prior of `config`, whose spread it did not weigh against the images
    ("consider" parameters, Tapley et al. 2004, sec. 6).
    Raises numpy.linalg.LinAlgError where the poses are not determined.
    """
    layout = Layout.of(bundle, config)
    terms = linearise(bundle, config)
    _, weight = robust_cost(bundle, config, terms)
    system = normal_equations(bundle, config, terms, weight, layout, bundle)
    reduced, _ = reduce(system, 0.0, layout)
    reduced = np.tril(reduced) + np.tril(reduced, -1).T
    size, num_cams = layout.size, len(bundle.cam_from_world)
    rotation, translation = bundle.cam_from_world[:, :, :3], bundle.cam_from_world[:, :, 3]
    centre = -np.einsum("cji,cj->ci", rotation, translation)
    change = _by_centre(rotation, translation, layout.per_cam)
    reduced = _changed(_changed(reduced, change, layout).T, change, layout)
    offset = centre - centre[gauge_cam]
    scale_direction = np.zeros(size)
    scale_direction[: layout.num_cam].reshape(num_cams, layout.per_cam)[:, 3:6] = offset
    norm = np.linalg.norm(scale_direction)
    if norm > 0:
        scale_direction /= norm
        reduced += np.outer(scale_direction, scale_direction) * np.trace(reduced) * 10
    keep = np.ones(size, dtype=bool)
    keep[gauge_cam * layout.per_cam : gauge_cam * layout.per_cam + 6] = False
    spread = np.zeros(size)  # of what was held
    if is_focal_held and config.free_focal:
        spread[layout.num_cam] = config.focal_prior_sigma
    if is_centre_held and config.centre_sigma_px > 0:
        spread[layout.num_cam + int(config.free_focal) + np.arange(2)] = config.centre_sigma_px
    is_considered = spread > 0
    keep &= ~is_considered
    factor = scipy.linalg.cho_factor(reduced[np.ix_(keep, keep)], lower=True, check_finite=False)
    full = np.zeros((size, size))
    full[np.ix_(keep, keep)] = scipy.linalg.cho_solve(factor, np.eye(int(keep.sum())), check_finite=False)
    considered = np.zeros((size, size))
    if is_considered.any():
        sensitivity = full @ reduced[:, is_considered] * spread[is_considered]
        considered = sensitivity @ sensitivity.T
    focal_sigma = float("nan")
    of_focal = np.array([layout.num_cam])
    if config.free_camera_focal:
        of_focal = np.arange(num_cams) * layout.per_cam + 6
    if config.free_focal or config.free_camera_focal:
        focal_sigma = float(np.sqrt(np.mean(np.diag(full + considered)[of_focal])))
    root = np.sqrt(weight) / bundle.sigma_px
    camera = _blocks(full, num_cams, layout)
    posterior = np.einsum("cii->ci", camera)[:, 3:6].sum(axis=1)
    others = posterior > 0
    over_posterior = []
    in_image = part_of_image(bundle.xy_px, tuple(2 * bundle.centre_px), _CELLS)
    in_frame = bundle.cam_idx * math.prod(_CELLS) + in_image
    for part in (in_frame, in_image):
        cluster = np.unique(part, return_inverse=True)[1]
        scores = _scores(bundle, terms, root, system, layout, cluster)
        robust = _centre_variance(bundle, config, layout, full, _changed(scores, change, layout))
        share = robust[others] / posterior[others]
        over_posterior.append(float(np.sqrt(np.mean(share))) if others.any() else np.nan)
    togetherness, standing = over_posterior
    return PoseCovariance(
        camera=camera,
        log_focal_sigma=focal_sigma,
        togetherness=togetherness,
        standing=standing,
        held_lens=_blocks(considered, num_cams, layout),
    )


def _by_centre(rotation: np.ndarray, translation: np.ndarray, per_cam: int) -> np.ndarray:
    """[C, per_cam, per_cam] change of variables from the translation t to the centre C = -R^T t: dt = -R dC + hat(t) w."""
    num_cams = len(rotation)
    change = np.zeros((num_cams, per_cam, per_cam))
    change[:, range(per_cam), range(per_cam)] = 1.0
    x, y, z = translation.T
    zero = np.zeros_like(x)
    change[:, 3:6, 0:3] = -np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(-1, 3, 3)
    change[:, 3:6, 3:6] = -rotation
    return change


def _changed(rows: np.ndarray, change: np.ndarray, layout: Layout) -> np.ndarray:
    """Rows [k, n] in the changed variables of the cameras."""
    cams = rows[:, : layout.num_cam].reshape(len(rows), -1, layout.per_cam)
    cams = np.einsum("kcj,cji->kci", cams, change).reshape(len(rows), layout.num_cam)
    return np.concatenate([cams, rows[:, layout.num_cam :]], axis=1)


def _blocks(matrix: np.ndarray, num_cams: int, layout: Layout) -> np.ndarray:
    """[C, 6, 6] the cameras' own blocks of a matrix [n, n]."""
    cams = matrix[: layout.num_cam, : layout.num_cam]
    cams = cams.reshape(num_cams, layout.per_cam, num_cams, layout.per_cam)
    return cams[np.arange(num_cams), :, np.arange(num_cams), :][:, :6, :6]


def _scores(
    bundle: Bundle,
    terms: dict[str, np.ndarray],
    root: np.ndarray,
    system: dict[str, np.ndarray],
    layout: Layout,
    cluster: np.ndarray,
) -> np.ndarray:
    """[K, n] gradient of each cluster of observations."""
    return cluster_scores(
        terms["cam"],
        terms["shared"],
        terms["point"],
        np.nan_to_num(terms["residual"]),
        root,
        system["w"],
        system["v_inv"],
        cluster,
        int(cluster.max()) + 1,
        system["cam_idx"],
        layout.by_point,
        layout.point_starts,
        layout.num_cam,
    )


def _centre_variance(
    bundle: Bundle, config: BundleConfig, layout: Layout, full: np.ndarray, scores: np.ndarray
) -> np.ndarray:
    """[C] variance of each centre (sum of the three axes) that follows from the scores [K, n] and the priors."""
    prior = np.zeros((layout.size, layout.size))
    add_priors(prior, np.zeros(layout.size), bundle, config, layout, bundle)
    num_cams = len(bundle.cam_from_world)
    at = (np.arange(num_cams)[:, None] * layout.per_cam + np.arange(3, 6)).reshape(-1)
    variance = np.sum((full[at] @ scores.T) ** 2, axis=1) + np.sum((full[at] @ prior) * full[at], axis=1)
    return variance.reshape(num_cams, 3).sum(axis=1)


@numba.njit(cache=True)
def cluster_scores(
    cam,
    shared,
    point,
    residual,
    root,
    w,
    v_inv,
    cluster,
    num_clusters,
    cam_idx,
    by_point,
    point_starts,
    num_cam,
):
    """[K, n]: each cluster's part of the gradient J^T W r, its points eliminated."""
    per_cam, num_shared = cam.shape[2], shared.shape[2]
    scores = np.zeros((num_clusters, num_cam + num_shared))
    pull, moved = np.empty(3), np.empty(3)
    for p in range(len(v_inv)):
        seen = by_point[point_starts[p] : point_starts[p + 1]]
        for m in seen:
            score, first = scores[cluster[m]], cam_idx[m] * per_cam
            r0, r1 = residual[m, 0] * root[m] * root[m], residual[m, 1] * root[m] * root[m]
            for i in range(per_cam):
                score[first + i] += cam[m, 0, i] * r0 + cam[m, 1, i] * r1
            for s in range(num_shared):
                score[num_cam + s] += shared[m, 0, s] * r0 + shared[m, 1, s] * r1
            for j in range(3):
                pull[j] = point[m, 0, j] * r0 + point[m, 1, j] * r1
            for j in range(3):
                moved[j] = v_inv[p, j, 0] * pull[0] + v_inv[p, j, 1] * pull[1] + v_inv[p, j, 2] * pull[2]
            for other in seen:
                first = cam_idx[other] * per_cam
                for i in range(per_cam + num_shared):
                    at = first + i if i < per_cam else num_cam + i - per_cam
                    score[at] -= (
                        w[other, 0, i] * moved[0] + w[other, 1, i] * moved[1] + w[other, 2, i] * moved[2]
                    )
    return scores
