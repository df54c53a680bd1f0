"""Bundle adjustment, the inner loops: compiled by numba, called by the other bundle modules alone.

Every loop runs over observations or over the observations of one point. Compiled code is cached beside this
file (or in numba's user cache where that folder cannot be written), so only the first run on a machine compiles.
"""

from __future__ import annotations

import numba
import numpy as np

MODELS = {"pinhole": 0, "radial": 1, "fisheye": 2}
"""Numbers of the lens models in compiled code."""
LOSSES = {"none": 0, "huber": 1, "cauchy": 2}
"""Numbers of the robust losses in compiled code."""


@numba.njit(cache=True)
def _distort(r2, model, k1, k2):
    """Radial factor d(r^2), its slope by r^2, and its derivatives by k1 and k2."""
    if model == 0:
        return 1.0, 0.0, 0.0, 0.0
    if model == 1:
        return 1.0 + r2 * (k1 + k2 * r2), k1 + 2.0 * k2 * r2, r2, r2 * r2
    r = np.sqrt(max(r2, 1e-12))
    theta = np.arctan(r)
    t2 = theta * theta
    theta_d = theta * (1.0 + t2 * (k1 + k2 * t2))
    by_r = (1.0 + t2 * (3.0 * k1 + 5.0 * k2 * t2)) / (1.0 + r2)
    slope = (by_r - theta_d / r) / (2.0 * max(r2, 1e-12)) if r2 >= 1e-8 else k1 - 1.0 / 3.0
    return theta_d / r, slope, theta * t2 / r, theta * t2 * t2 / r


@numba.njit(cache=True)
def residuals(cam_from_world, points, cam_idx, point_idx, xy, focal, centre, model, k):
    """Residual [M, 2] (NaN behind the camera) and depth [M] of each observation."""
    num = len(xy)
    residual, depth = np.empty((num, 2)), np.empty(num)
    for m in range(num):
        t, p = cam_from_world[cam_idx[m]], points[point_idx[m]]
        z = t[2, 0] * p[0] + t[2, 1] * p[1] + t[2, 2] * p[2] + t[2, 3]
        depth[m] = z
        if not z > 1e-6:
            residual[m] = np.nan
            continue
        x = (t[0, 0] * p[0] + t[0, 1] * p[1] + t[0, 2] * p[2] + t[0, 3]) / z
        y = (t[1, 0] * p[0] + t[1, 1] * p[1] + t[1, 2] * p[2] + t[1, 3]) / z
        factor = focal[cam_idx[m]] * _distort(x * x + y * y, model, k[0], k[1])[0]
        residual[m, 0] = factor * x + centre[0] - xy[m, 0]
        residual[m, 1] = factor * y + centre[1] - xy[m, 1]
    return residual, depth


@numba.njit(cache=True)
def jacobians(cam_from_world, points, cam_idx, point_idx, focal, model, k, free, cam, shared, point):
    """Fills cam [M, 2, per_cam], shared [M, 2, S] and point [M, 2, 3]; zero rows behind the camera.

    free: (focal per camera, shared focal, shared principal point, readout, shared distortion). The readout's column
    is left alone: it does not depend on the projection.
    """
    by_camera_focal, by_focal, by_centre, by_readout, by_distortion = free
    for m in range(len(cam_idx)):
        t, p = cam_from_world[cam_idx[m]], points[point_idx[m]]
        px = t[0, 0] * p[0] + t[0, 1] * p[1] + t[0, 2] * p[2]
        py = t[1, 0] * p[0] + t[1, 1] * p[1] + t[1, 2] * p[2]
        pz = t[2, 0] * p[0] + t[2, 1] * p[1] + t[2, 2] * p[2]
        z = pz + t[2, 3]
        if not z > 1e-6:
            cam[m], shared[m], point[m] = 0.0, 0.0, 0.0
            continue
        inv_z = 1.0 / z
        x, y = (px + t[0, 3]) * inv_z, (py + t[1, 3]) * inv_z
        factor, slope, by_k1, by_k2 = _distort(x * x + y * y, model, k[0], k[1])
        f = focal[cam_idx[m]]
        # d(u, v) / d(x, y), then d(x, y) / d(point in camera).
        a, b = f * (factor + 2 * x * x * slope), f * (2 * x * y * slope)
        c = f * (factor + 2 * y * y * slope)
        for row in range(2):
            if row == 0:
                jx, jy, jz = a * inv_z, b * inv_z, -(a * x + b * y) * inv_z
            else:
                jx, jy, jz = b * inv_z, c * inv_z, -(b * x + c * y) * inv_z
            # d(R X)/dw = -hat(R X): the row j times -hat(p) is p x j.
            cam[m, row, 0] = py * jz - pz * jy
            cam[m, row, 1] = pz * jx - px * jz
            cam[m, row, 2] = px * jy - py * jx
            cam[m, row, 3], cam[m, row, 4], cam[m, row, 5] = jx, jy, jz
            for i in range(3):
                point[m, row, i] = jx * t[0, i] + jy * t[1, i] + jz * t[2, i]
            at = x if row == 0 else y
            if by_camera_focal:
                cam[m, row, 6] = f * factor * at
            s = 0
            if by_focal:
                shared[m, row, s] = f * factor * at
                s += 1
            if by_centre:
                shared[m, row, s], shared[m, row, s + 1] = 1.0 - row, 0.0 + row
                s += 2
            if by_readout:
                s += 1
            if by_distortion:
                shared[m, row, s], shared[m, row, s + 1] = f * at * by_k1, f * at * by_k2


@numba.njit(cache=True)
def camera_blocks(cam, shared, residual, root, cam_idx, num_cams, a, b):
    """Adds the cameras' and shared part of J^T J to the full a [n, n] and of J^T r to b [n]; root: [M]."""
    per_cam, num_shared = cam.shape[2], shared.shape[2]
    tail = num_cams * per_cam
    for m in range(len(cam_idx)):
        first, w = cam_idx[m] * per_cam, root[m] * root[m]
        if w == 0.0:
            continue
        for row in range(2):
            r = residual[m, row] * w
            for i in range(per_cam):
                j_i = cam[m, row, i] * w
                b[first + i] += cam[m, row, i] * r
                for j in range(i + 1):
                    a[first + i, first + j] += j_i * cam[m, row, j]
                for j in range(num_shared):
                    a[tail + j, first + i] += j_i * shared[m, row, j]
            for i in range(num_shared):
                b[tail + i] += shared[m, row, i] * r
                for j in range(i + 1):
                    a[tail + i, tail + j] += shared[m, row, i] * w * shared[m, row, j]
    for c in range(num_cams):
        for i in range(per_cam):
            for j in range(i):
                a[c * per_cam + j, c * per_cam + i] = a[c * per_cam + i, c * per_cam + j]
    for i in range(num_shared):
        for j in range(tail + i):
            a[j, tail + i] = a[tail + i, j]


@numba.njit(cache=True)
def point_blocks(point, residual, root, point_idx, num_points):
    """The points' part: v [P, 3, 3] of J^T J and g [P, 3] of J^T r."""
    v, g = np.zeros((num_points, 3, 3)), np.zeros((num_points, 3))
    for m in range(len(point_idx)):
        p, w = point_idx[m], root[m] * root[m]
        if w == 0.0:
            continue
        for row in range(2):
            for i in range(3):
                j_i = point[m, row, i] * w
                g[p, i] += j_i * residual[m, row]
                for j in range(3):
                    v[p, i, j] += j_i * point[m, row, j]
    return v, g


@numba.njit(cache=True)
def coupling_blocks(cam, shared, point, root):
    """w [M, 3, per_cam + S]: the part of J^T J between an observation's point and its camera (and shared)."""
    num, per_cam, num_shared = len(root), cam.shape[2], shared.shape[2]
    w = np.empty((num, 3, per_cam + num_shared))
    for m in range(num):
        square = root[m] * root[m]
        for j in range(3):
            p0, p1 = point[m, 0, j] * square, point[m, 1, j] * square
            for i in range(per_cam):
                w[m, j, i] = cam[m, 0, i] * p0 + cam[m, 1, i] * p1
            for i in range(num_shared):
                w[m, j, per_cam + i] = shared[m, 0, i] * p0 + shared[m, 1, i] * p1
    return w


@numba.njit(cache=True, inline="always")
def _subtract_6x6(a, first, second, half, w):
    """The inner loop of `eliminate_points` at the usual size: known in advance, it becomes vector instructions."""
    for i in range(6):
        for j in range(6):
            a[first + i, second + j] -= half[i, 0] * w[0, j] + half[i, 1] * w[1, j] + half[i, 2] * w[2, j]


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def eliminate_points(a, b, w, v_inv, g, cam_idx, by_point, point_starts, per_cam, num_cam, first, last):
    """Subtracts W V^-1 W^T from a [n, n] and W V^-1 g from b [n]: the Schur complement, of points first to last - 1."""
    num_shared = w.shape[2] - per_cam
    half, total = np.empty((per_cam, 3)), np.empty((3, num_shared))
    for p in range(first, last):
        begin, end = point_starts[p], point_starts[p + 1]
        inverse = v_inv[p]
        total[:] = 0.0
        for m in by_point[begin:end]:
            for j in range(3):
                for s in range(num_shared):
                    total[j, s] += w[m, j, per_cam + s]
        for m in by_point[begin:end]:
            row_of_m = cam_idx[m] * per_cam
            for i in range(per_cam):
                for j in range(3):
                    half[i, j] = (
                        w[m, 0, i] * inverse[0, j] + w[m, 1, i] * inverse[1, j] + w[m, 2, i] * inverse[2, j]
                    )
                b[row_of_m + i] -= half[i, 0] * g[p, 0] + half[i, 1] * g[p, 1] + half[i, 2] * g[p, 2]
                for s in range(num_shared):
                    a[num_cam + s, row_of_m + i] -= (
                        half[i, 0] * total[0, s] + half[i, 1] * total[1, s] + half[i, 2] * total[2, s]
                    )
            for other in by_point[begin:end]:
                second = cam_idx[other] * per_cam
                if second > row_of_m:
                    continue
                if per_cam == 6:
                    _subtract_6x6(a, row_of_m, second, half, w[other])
                    continue
                w0, w1, w2 = w[other, 0], w[other, 1], w[other, 2]
                for i in range(per_cam):
                    h0, h1, h2 = half[i, 0], half[i, 1], half[i, 2]
                    row = a[row_of_m + i, second : second + per_cam]
                    for j in range(per_cam):
                        row[j] -= h0 * w0[j] + h1 * w1[j] + h2 * w2[j]
        for s in range(num_shared):
            for j in range(3):
                weighted = (
                    total[0, s] * inverse[0, j] + total[1, s] * inverse[1, j] + total[2, s] * inverse[2, j]
                )
                b[num_cam + s] -= weighted * g[p, j]
                for q in range(num_shared):
                    a[num_cam + s, num_cam + q] -= weighted * total[j, q]
    for i in range(len(a)):
        for j in range(i):
            a[j, i] = a[i, j]


@numba.njit(cache=True)
def coupled_steps(w, cam_step, shared_step, cam_idx, point_idx, per_cam, out):
    """Adds W^T times the cameras' step to out [P, 3]."""
    for m in range(len(cam_idx)):
        c, p = cam_idx[m], point_idx[m]
        for j in range(3):
            value = 0.0
            for i in range(per_cam):
                value += w[m, j, i] * cam_step[c, i]
            for i in range(len(shared_step)):
                value += w[m, j, per_cam + i] * shared_step[i]
            out[p, j] += value


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


@numba.njit(cache=True)
def rho(squared, loss, scale):
    """Robust cost and weight of a squared residual in sigmas."""
    c2 = scale * scale
    if loss == 2:
        return c2 * np.log1p(squared / c2), 1.0 / (1.0 + squared / c2)
    if loss == 1 and squared > c2:
        return 2.0 * scale * np.sqrt(squared) - c2, scale / np.sqrt(squared)
    return squared, 1.0


@numba.njit(cache=True, nogil=True)
def settle_points(
    cam_from_world,
    points,
    cam_idx,
    by_point,
    starts,
    xy,
    focal,
    centre,
    model,
    k,
    sigma,
    loss,
    scale,
    first,
    last,
):
    """Moves points first to last - 1 of [P, 3] (in place), each by two Gauss-Newton steps, to where the given cameras
    see it; a step that raises the point's own cost is taken back."""
    normal, gradient, kept = np.zeros((3, 3)), np.zeros(3), np.zeros(3)
    for p in range(first, last):
        point, cost = points[p], np.inf
        if starts[p + 1] - starts[p] < 2:
            continue
        for iteration in range(3):
            normal[:], gradient[:], new = 0.0, 0.0, 0.0
            for m in by_point[starts[p] : starts[p + 1]]:
                t, f = cam_from_world[cam_idx[m]], focal[cam_idx[m]]
                z = t[2, 0] * point[0] + t[2, 1] * point[1] + t[2, 2] * point[2] + t[2, 3]
                if not z > 1e-6:
                    new += rho(1e6, loss, scale)[0]
                    continue
                x = (t[0, 0] * point[0] + t[0, 1] * point[1] + t[0, 2] * point[2] + t[0, 3]) / z
                y = (t[1, 0] * point[0] + t[1, 1] * point[1] + t[1, 2] * point[2] + t[1, 3]) / z
                factor, slope, _, _ = _distort(x * x + y * y, model, k[0], k[1])
                off_x, off_y = f * factor * x + centre[0] - xy[m, 0], f * factor * y + centre[1] - xy[m, 1]
                value, weight = rho((off_x * off_x + off_y * off_y) / (sigma * sigma), loss, scale)
                new += value
                a, b = f * (factor + 2 * x * x * slope), f * 2 * x * y * slope
                c = f * (factor + 2 * y * y * slope)
                for row in range(2):
                    if row == 0:
                        jx, jy, jz, off = a / z, b / z, -(a * x + b * y) / z, off_x
                    else:
                        jx, jy, jz, off = b / z, c / z, -(b * x + c * y) / z, off_y
                    for i in range(3):
                        by_i = jx * t[0, i] + jy * t[1, i] + jz * t[2, i]
                        gradient[i] += weight * by_i * off
                        for j in range(i + 1):
                            by_j = jx * t[0, j] + jy * t[1, j] + jz * t[2, j]
                            normal[i, j] += weight * by_i * by_j
            if new >= cost:
                point[:] = kept
                break
            cost, kept[:] = new, point
            if iteration == 2 or not _step_down(normal, gradient, point):
                break


@numba.njit(cache=True)
def _step_down(normal, gradient, point):
    """Takes the Gauss-Newton step of one point (lower triangle given); False where it is not determined."""
    d0, d1, d2 = normal[0, 0] * (1 + 1e-6), normal[1, 1] * (1 + 1e-6), normal[2, 2] * (1 + 1e-6)
    e0, e1, e2 = normal[1, 0], normal[2, 0], normal[2, 1]
    c00, c01, c02 = d1 * d2 - e2 * e2, e1 * e2 - e0 * d2, e0 * e2 - e1 * d1
    c11, c12, c22 = d0 * d2 - e1 * e1, e0 * e1 - d0 * e2, d0 * d1 - e0 * e0
    determinant = d0 * c00 + e0 * c01 + e1 * c02
    if not determinant > 0.0:
        return False
    g0, g1, g2 = gradient
    point[0] -= (c00 * g0 + c01 * g1 + c02 * g2) / determinant
    point[1] -= (c01 * g0 + c11 * g1 + c12 * g2) / determinant
    point[2] -= (c02 * g0 + c12 * g1 + c22 * g2) / determinant
    return True
