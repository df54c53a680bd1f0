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
BLOCK = 16
"""Side of the blocks that `camera_blocks` fills: the unknowns of a camera and the shared ones are 14 at most."""


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


@numba.njit(cache=True, nogil=True)
def residuals(
    cam_from_world, points, cam_idx, point_idx, xy, focal, centre, model, k, residual, depth, first, last
):
    """Fills residual [M, 2] (NaN behind the camera) and depth [M] of the observations first to last - 1."""
    for m in range(first, last):
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


@numba.njit(cache=True, nogil=True)
def jacobians(
    cam_from_world, points, cam_idx, point_idx, focal, model, k, free, cam, shared, point, first, last
):
    """Fills cam [M, 2, per_cam], shared [M, 2, S] and point [M, 2, 3] of the observations first to last - 1; zero rows
    behind the camera.

    free: (focal per camera, shared focal, shared principal point, readout, shared distortion). The readout's column
    is left alone: it does not depend on the projection.
    """
    by_camera_focal, by_focal, by_centre, by_readout, by_distortion = free
    for m in range(first, last):
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


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def camera_blocks(cam, shared, residual, root, cam_idx, blocks, first, last):
    """Adds the observations first to last - 1 to the cameras' and the shared part of J^T J and of J^T r.

    blocks [C + 1, BLOCK, BLOCK]: in the rows and columns of a camera's unknowns and, behind them, the shared ones J^T J,
    in the column behind all of these J^T r; the last block is the sum over all cameras.
    """
    per_cam, num_shared, tail = cam.shape[2], shared.shape[2], len(blocks) - 1
    # Rows as wide as vector registers; a constant width would be unrolled into single operations.
    num, width = per_cam + num_shared, blocks.shape[2]
    of_x, of_y = np.zeros(width), np.zeros(width)
    for m in range(first, last):
        w = root[m] * root[m]
        if w == 0.0:
            continue
        block = blocks[cam_idx[m]]
        for i in range(per_cam):
            of_x[i], of_y[i] = cam[m, 0, i], cam[m, 1, i]
        for i in range(num_shared):
            of_x[per_cam + i], of_y[per_cam + i] = shared[m, 0, i], shared[m, 1, i]
        of_x[num], of_y[num] = residual[m, 0], residual[m, 1]
        for i in range(num):
            x_i, y_i, row = of_x[i] * w, of_y[i] * w, block[i]
            for j in range(width):
                row[j] += x_i * of_x[j] + y_i * of_y[j]
    for c in range(tail):
        for i in range(num):
            for j in range(width):
                blocks[tail, i, j] += blocks[c, i, j]


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def point_blocks(cam, shared, point, residual, root, by_point, point_starts, v, g, w, first, last):
    """Fills the points first to last - 1 of v [P, 3, 3] in J^T J and g [P, 3] in J^T r, and of their observations w
    [M, 3, per_cam + S]: the part of J^T J between an observation's point and its camera (and shared)."""
    per_cam, num_shared = cam.shape[2], shared.shape[2]
    for p in range(first, last):
        v[p], g[p] = 0.0, 0.0
        for m in by_point[point_starts[p] : point_starts[p + 1]]:
            square = root[m] * root[m]
            for j in range(3):
                p0, p1 = point[m, 0, j] * square, point[m, 1, j] * square
                g[p, j] += p0 * residual[m, 0] + p1 * residual[m, 1]
                for i in range(3):
                    v[p, i, j] += p0 * point[m, 0, i] + p1 * point[m, 1, i]
                for i in range(per_cam):
                    w[m, j, i] = cam[m, 0, i] * p0 + cam[m, 1, i] * p1
                for i in range(num_shared):
                    w[m, j, per_cam + i] = shared[m, 0, i] * p0 + shared[m, 1, i] * p1


@numba.njit(cache=True, nogil=True)
def damped_inverse(v, damping):
    """[P, 3, 3] inverses of the symmetric v, their diagonals raised by the damping."""
    inverse = np.empty_like(v)
    for p in range(len(v)):
        d0 = v[p, 0, 0] * (1.0 + damping) + 1e-9
        d1 = v[p, 1, 1] * (1.0 + damping) + 1e-9
        d2 = v[p, 2, 2] * (1.0 + damping) + 1e-9
        c00, c01, c02, c11, c12, c22, determinant = _cofactors(d0, v[p, 1, 0], d1, v[p, 2, 0], v[p, 2, 1], d2)
        over = 1.0 / determinant
        inverse[p, 0, 0], inverse[p, 1, 1], inverse[p, 2, 2] = c00 * over, c11 * over, c22 * over
        inverse[p, 0, 1] = inverse[p, 1, 0] = c01 * over
        inverse[p, 0, 2] = inverse[p, 2, 0] = c02 * over
        inverse[p, 1, 2] = inverse[p, 2, 1] = c12 * over
    return inverse


@numba.njit(cache=True)
def _cofactors(d0, e0, d1, e1, e2, d2):
    """Cofactors 00, 01, 02, 11, 12, 22 and determinant of a symmetric 3x3 matrix, of its lower triangle by rows."""
    c00, c01, c02 = d1 * d2 - e2 * e2, e1 * e2 - e0 * d2, e0 * e2 - e1 * d1
    c11, c12, c22 = d0 * d2 - e1 * e1, e0 * e1 - d0 * e2, d0 * d1 - e0 * e0
    return c00, c01, c02, c11, c12, c22, d0 * c00 + e0 * c01 + e1 * c02


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def eliminate_points(a, b, w, v_inv, g, cam_idx, by_point, point_starts, per_cam, num_cam, first, last):
    """Subtracts W V^-1 W^T from the lower triangle of a [n, n] and W V^-1 g from b [n]: the Schur complement, of points
    first to last - 1.

    Observations of a point are in the order of their cameras: where these follow each other, so do their columns in a,
    and the innermost loop runs over all of them.
    """
    num_shared, most = w.shape[2] - per_cam, 1
    for p in range(first, last):
        most = max(most, point_starts[p + 1] - point_starts[p])
    packed, end_of_run = np.empty((3, most * per_cam)), np.empty(most, np.int64)
    half, total = np.empty((per_cam, 3)), np.empty((3, num_shared))
    for p in range(first, last):
        seen = by_point[point_starts[p] : point_starts[p + 1]]
        inverse, num = v_inv[p], len(seen)
        total[:] = 0.0
        for k in range(num):
            of_k = w[seen[k]]
            for j in range(3):
                for i in range(per_cam):
                    packed[j, k * per_cam + i] = of_k[j, i]
                for s in range(num_shared):
                    total[j, s] += of_k[j, per_cam + s]
        for k in range(num - 1, -1, -1):
            goes_on = k + 1 < num and cam_idx[seen[k + 1]] == cam_idx[seen[k]] + 1
            end_of_run[k] = end_of_run[k + 1] if goes_on else k + 1
        for k in range(num):
            own = cam_idx[seen[k]]
            stop = k + 1
            while stop < num and cam_idx[seen[stop]] == own:
                stop += 1
            for i in range(per_cam):
                for j in range(3):
                    half[i, j] = (
                        packed[0, k * per_cam + i] * inverse[0, j]
                        + packed[1, k * per_cam + i] * inverse[1, j]
                        + packed[2, k * per_cam + i] * inverse[2, j]
                    )
                h0, h1, h2 = half[i, 0], half[i, 1], half[i, 2]
                b[own * per_cam + i] -= h0 * g[p, 0] + h1 * g[p, 1] + h2 * g[p, 2]
                for s in range(num_shared):
                    a[num_cam + s, own * per_cam + i] -= (
                        h0 * total[0, s] + h1 * total[1, s] + h2 * total[2, s]
                    )
            other = 0
            while other < stop:
                end, at = min(end_of_run[other], stop), cam_idx[seen[other]] * per_cam
                columns = slice(other * per_cam, end * per_cam)
                w0, w1, w2 = packed[0, columns], packed[1, columns], packed[2, columns]
                # Two rows at once share what is read of W; where their number is odd the last goes alone.
                for i in range(0, per_cam, 2):
                    then = min(i + 1, per_cam - 1)
                    row = a[own * per_cam + i, at : at + len(w0)]
                    next_row = a[own * per_cam + then, at : at + len(w0)]
                    h0, h1, h2 = half[i, 0], half[i, 1], half[i, 2]
                    n0, n1, n2 = half[then, 0], half[then, 1], half[then, 2]
                    if then == i:
                        n0 = n1 = n2 = 0.0
                    for j in range(len(w0)):
                        row[j] -= h0 * w0[j] + h1 * w1[j] + h2 * w2[j]
                        next_row[j] -= n0 * w0[j] + n1 * w1[j] + n2 * w2[j]
                other = end
        for s in range(num_shared):
            for j in range(3):
                weighted = (
                    total[0, s] * inverse[0, j] + total[1, s] * inverse[1, j] + total[2, s] * inverse[2, j]
                )
                b[num_cam + s] -= weighted * g[p, j]
                for q in range(num_shared):
                    a[num_cam + s, num_cam + q] -= weighted * total[j, q]


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def point_steps(
    w, cam_step, shared_step, cam_idx, by_point, point_starts, per_cam, v_inv, g, out, first, last
):
    """Fills out [P, 3], points first to last - 1: the steps -V^-1 (g + W^T times the cameras' and shared step)."""
    pull = np.empty(3)
    for p in range(first, last):
        pull[:] = g[p]
        for m in by_point[point_starts[p] : point_starts[p + 1]]:
            c = cam_idx[m]
            for j in range(3):
                for i in range(per_cam):
                    pull[j] += w[m, j, i] * cam_step[c, i]
                for i in range(len(shared_step)):
                    pull[j] += w[m, j, per_cam + i] * shared_step[i]
        for j in range(3):
            out[p, j] = -(v_inv[p, j, 0] * pull[0] + v_inv[p, j, 1] * pull[1] + v_inv[p, j, 2] * pull[2])


@numba.njit(cache=True)
def rho(squared, loss, scale):
    """Robust cost and weight of a squared residual in sigmas."""
    c2 = scale * scale
    if loss == 2:
        return c2 * np.log1p(squared / c2), 1.0 / (1.0 + squared / c2)
    if loss == 1 and squared > c2:
        return 2.0 * scale * np.sqrt(squared) - c2, scale / np.sqrt(squared)
    return squared, 1.0


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
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
    kept, c2, information = np.zeros(3), scale * scale, 1.0 / (sigma * sigma)
    for p in range(first, last):
        point, cost = points[p], np.inf
        if starts[p + 1] - starts[p] < 2:
            continue
        for iteration in range(3):
            # The sum of logarithms is that of their product.
            new, product = 0.0, 1.0
            n00, n10, n11, n20, n21, n22, g0, g1, g2 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for m in by_point[starts[p] : starts[p + 1]]:
                t, f = cam_from_world[cam_idx[m]], focal[cam_idx[m]]
                z = t[2, 0] * point[0] + t[2, 1] * point[1] + t[2, 2] * point[2] + t[2, 3]
                if not z > 1e-6:
                    new += rho(1e6, loss, scale)[0]
                    continue
                inv_z = 1.0 / z
                x = (t[0, 0] * point[0] + t[0, 1] * point[1] + t[0, 2] * point[2] + t[0, 3]) * inv_z
                y = (t[1, 0] * point[0] + t[1, 1] * point[1] + t[1, 2] * point[2] + t[1, 3]) * inv_z
                factor, slope, _, _ = _distort(x * x + y * y, model, k[0], k[1])
                off_x, off_y = f * factor * x + centre[0] - xy[m, 0], f * factor * y + centre[1] - xy[m, 1]
                squared = (off_x * off_x + off_y * off_y) * information
                if loss == 2:
                    product *= 1.0 + squared / c2
                    weight = 1.0 / (1.0 + squared / c2)
                    if product > 1e100:
                        new += c2 * np.log(product)
                        product = 1.0
                else:
                    value, weight = rho(squared, loss, scale)
                    new += value
                if iteration == 2:
                    continue
                a, b = f * (factor + 2 * x * x * slope) * inv_z, f * 2 * x * y * slope * inv_z
                c = f * (factor + 2 * y * y * slope) * inv_z
                a_z, c_z = a * x + b * y, b * x + c * y
                u0 = a * t[0, 0] + b * t[1, 0] - a_z * t[2, 0]
                u1 = a * t[0, 1] + b * t[1, 1] - a_z * t[2, 1]
                u2 = a * t[0, 2] + b * t[1, 2] - a_z * t[2, 2]
                v0 = b * t[0, 0] + c * t[1, 0] - c_z * t[2, 0]
                v1 = b * t[0, 1] + c * t[1, 1] - c_z * t[2, 1]
                v2 = b * t[0, 2] + c * t[1, 2] - c_z * t[2, 2]
                g0 += weight * (u0 * off_x + v0 * off_y)
                g1 += weight * (u1 * off_x + v1 * off_y)
                g2 += weight * (u2 * off_x + v2 * off_y)
                n00 += weight * (u0 * u0 + v0 * v0)
                n10 += weight * (u1 * u0 + v1 * v0)
                n11 += weight * (u1 * u1 + v1 * v1)
                n20 += weight * (u2 * u0 + v2 * v0)
                n21 += weight * (u2 * u1 + v2 * v1)
                n22 += weight * (u2 * u2 + v2 * v2)
            new += c2 * np.log(product)
            if new >= cost:
                point[:] = kept
                break
            cost, kept[:] = new, point
            if iteration == 2 or not _step_down((n00, n10, n11, n20, n21, n22), (g0, g1, g2), point):
                break


@numba.njit(cache=True)
def _step_down(normal, gradient, point):
    """Takes the Gauss-Newton step of one point (normal: lower triangle by rows); False where it is not determined."""
    n00, e0, n11, e1, e2, n22 = normal
    c00, c01, c02, c11, c12, c22, determinant = _cofactors(
        n00 * (1 + 1e-6), e0, n11 * (1 + 1e-6), e1, e2, n22 * (1 + 1e-6)
    )
    if not determinant > 0.0:
        return False
    g0, g1, g2 = gradient
    point[0] -= (c00 * g0 + c01 * g1 + c02 * g2) / determinant
    point[1] -= (c01 * g0 + c11 * g1 + c12 * g2) / determinant
    point[2] -= (c02 * g0 + c12 * g1 + c22 * g2) / determinant
    return True
