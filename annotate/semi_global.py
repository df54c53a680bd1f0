"""A matching cost volume in, a smoothed one out: semi-global aggregation along eight directions.

Hirschmueller, "Stereo Processing by Semiglobal Matching and Mutual Information", PAMI 2008, Eq. 13-14.
OpenCV's own version is welded to rectified pairs and its own cost; this one takes any cost volume, so that
planes at any depth and any number of views can stand behind it. Integer arithmetic on whole image rows keeps
it quick in numpy.
"""

from __future__ import annotations

import numpy as np


def aggregate_cost(cost: np.ndarray, image: np.ndarray, *, small_step: int, large_step: int) -> np.ndarray:
    """Sum over eight directions of the cheapest paths through `cost` [H, D, W] int16 -> [H, D, W] int16.

    A path pays `small_step` for moving by one label and up to `large_step` for more; a strong edge of `image`
    [H, W] uint8 lowers the latter towards the former. Raises ValueError where eight paths could overflow
    int16.
    """
    if not 0 < small_step <= large_step:
        raise ValueError(f"need 0 < small_step <= large_step, got {small_step} and {large_step}")
    if cost.dtype != np.int16 or 8 * (int(cost.max(initial=0)) + large_step) > np.iinfo(np.int16).max:
        raise ValueError("cost must be int16 with 8 * (largest cost + large_step) within int16")
    total = np.zeros_like(cost)
    gray = image.astype(np.int16)
    _march(cost, gray, total, (-1, 0, 1), small_step, large_step)
    _march(cost[::-1], gray[::-1], total[::-1], (-1, 0, 1), small_step, large_step)
    across = np.ascontiguousarray(cost.transpose(2, 1, 0))  # [W, D, H]
    total_across = np.zeros_like(across)
    _march(across, gray.T, total_across, (0,), small_step, large_step)
    _march(across[::-1], gray.T[::-1], total_across[::-1], (0,), small_step, large_step)
    total += total_across.transpose(2, 1, 0)
    return total


def _march(
    cost: np.ndarray,
    gray: np.ndarray,
    total: np.ndarray,
    shifts: tuple[int, ...],
    small_step: int,
    large_step: int,
) -> None:
    """Adds to `total` the paths that go down the rows of `cost` [R, D, C], moving `shifts` columns a row."""
    num_rows, num_labels, num_columns = cost.shape
    path = np.empty((len(shifts), num_labels, num_columns), np.int16)
    path[:] = cost[0]
    total[0] += np.int16(len(shifts)) * cost[0]
    before = np.empty_like(path)
    step = np.empty_like(path)
    for row in range(1, num_rows):
        jump = np.empty((len(shifts), 1, num_columns), np.int16)
        for k, shift in enumerate(shifts):
            _shifted(path[k], shift, before[k])
            contrast = np.abs(gray[row] - _shifted(gray[row - 1], shift, np.empty_like(gray[row])))
            # Halved at a contrast of 16 grey levels.
            jump[k, 0] = np.maximum(small_step, large_step * 16 // (16 + contrast))
        lowest = before.min(axis=1, keepdims=True)
        np.minimum(before, lowest + jump, out=path)
        np.add(before[:, :-1], np.int16(small_step), out=step[:, 1:])
        np.minimum(path[:, 1:], step[:, 1:], out=path[:, 1:])
        np.add(before[:, 1:], np.int16(small_step), out=step[:, :-1])
        np.minimum(path[:, :-1], step[:, :-1], out=path[:, :-1])
        path -= lowest
        path += cost[row]
        for one in path:
            total[row] += one


def _shifted(values: np.ndarray, shift: int, out: np.ndarray) -> np.ndarray:
    """out[..., c] = values[..., c - shift]; columns without a predecessor take the nearest one's."""
    if shift == 0:
        out[...] = values
    elif shift > 0:
        out[..., shift:] = values[..., :-shift]
        out[..., :shift] = values[..., :1]
    else:
        out[..., :shift] = values[..., -shift:]
        out[..., shift:] = values[..., -1:]
    return out
