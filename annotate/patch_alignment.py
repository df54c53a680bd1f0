"""Patch alignment: reference patches and where they should show in an image in, sub-pixel places out.

Inverse-compositional alignment (Baker & Matthews 2004) of patches normalised for gain and bias, warped affinely.
"""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True)
def sample(image, x, y):
    """Bilinear value of a uint8 [H, W] image at a pixel counted from the first pixel's corner; the border goes
    on for ever."""
    height, width = image.shape
    return _bilinear(image, min(max(x - 0.5, 0.0), width - 1.001), min(max(y - 0.5, 0.0), height - 1.001))


@numba.njit(cache=True, inline="always")
def _bilinear(image, x, y):
    """The same at a place inside the image, counted from the first pixel's centre."""
    column, row = int(x), int(y)
    u, v = x - column, y - row
    top = image[row, column] * (1.0 - u) + image[row, column + 1] * u
    bottom = image[row + 1, column] * (1.0 - u) + image[row + 1, column + 1] * u
    return top * (1.0 - v) + bottom * v


@numba.njit(cache=True, nogil=True)
def sample_patches(image, xy, half):
    """Values [N, 2 half + 1, 2 half + 1] float32 around pixels xy [N, 2]."""
    side = 2 * half + 1
    values = np.empty((len(xy), side, side), dtype=np.float32)
    for n in range(len(xy)):
        for i in range(side):
            for j in range(side):
                values[n, i, j] = sample(image, xy[n, 0] + j - half, xy[n, 1] + i - half)
    return values


@numba.njit(cache=True, nogil=True)
def align_patches(image, patch, gradient, hessian_inverse, warp, start, num_iterations):
    """Aligns N square patches with the image.

    patch [N, S] and gradient [N, S, 2]: normalised grey values and their slopes in the reference;
    hessian_inverse [N, 2, 2]; warp [N, 2, 2]: image offset by reference offset; start [N, 2] pixels. Returns the
    pixels [N, 2] and the normalised correlation [N] there; -1 where a patch has no corner (NaN inverse).
    """
    (num, size), (height, width) = patch.shape, image.shape
    side = int(np.sqrt(size) + 0.5)
    half = side // 2
    xy, score = start.copy(), np.full(num, -1.0)
    values = np.empty(size)
    for n in range(num):
        if not np.isfinite(hessian_inverse[n, 0, 0]):
            continue
        w, h = warp[n], hessian_inverse[n]
        reach_x, reach_y = half * (abs(w[0, 0]) + abs(w[0, 1])), half * (abs(w[1, 0]) + abs(w[1, 1]))
        for iteration in range(num_iterations + 1):
            total, squares, s = 0.0, 0.0, 0
            is_inside = (
                reach_x + 0.5 <= xy[n, 0] < width - 1 - reach_x
                and reach_y + 0.5 <= xy[n, 1] < height - 1 - reach_y
            )
            for dy in range(-half, half + 1):
                for dx in range(-half, half + 1):
                    x, y = xy[n, 0] + w[0, 0] * dx + w[0, 1] * dy, xy[n, 1] + w[1, 0] * dx + w[1, 1] * dy
                    value = _bilinear(image, x - 0.5, y - 0.5) if is_inside else sample(image, x, y)
                    values[s] = value
                    total += value
                    squares += value * value
                    s += 1
            mean = total / size
            spread = max(np.sqrt(max(squares / size - mean * mean, 0.0)), 1.0)
            correlation, slope_x, slope_y = 0.0, 0.0, 0.0
            for s in range(size):
                normalised = (values[s] - mean) / spread
                correlation += normalised * patch[n, s]
                off = normalised - patch[n, s]
                slope_x += gradient[n, s, 0] * off
                slope_y += gradient[n, s, 1] * off
            score[n] = correlation / size
            if iteration == num_iterations:
                break
            step_x = min(max(h[0, 0] * slope_x + h[0, 1] * slope_y, -1.5), 1.5)
            step_y = min(max(h[1, 0] * slope_x + h[1, 1] * slope_y, -1.5), 1.5)
            if abs(step_x) + abs(step_y) < 2e-3:
                break
            xy[n, 0] -= w[0, 0] * step_x + w[0, 1] * step_y
            xy[n, 1] -= w[1, 0] * step_x + w[1, 1] * step_y
    return xy, score
