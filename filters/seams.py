"""Mean steps between neighbouring pixels in, how much lines cut the picture into parts out.

A seam is a line of pixels with a step that its neighbourhood does not have; over a whole clip a scene's own edges
move across it and leave none.
"""

from __future__ import annotations

import cv2
import numpy as np

STEP_PX = 2
"""Distance of the pixels compared: scaling pictures down spreads a seam over two."""

_LEAST_LEVELS = 2.0
_RATIO = 1.6
_DEVIATIONS = 3.0
_LEAST_OVER_TEXTURE = 0.5
_ASIDE_PX = 4
"""A seam's steps are the highest so far to either side, give or take a pixel, in every row: a scene's own long edges,
of a bus or a wall, lean and leave their column."""
_LEAST_INSET = 0.16
"""Height of the smallest inset, as a share of the picture's: shorter lines are common in any scene."""


def steps(luma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[H, W] float32 -> |difference| to the pixel STEP_PX further right and further down, [H, W]; 0 at the rim."""
    along_x, along_y = np.zeros_like(luma), np.zeros_like(luma)
    cv2.absdiff(luma[:, STEP_PX:], luma[:, :-STEP_PX], dst=along_x[:, :-STEP_PX])
    cv2.absdiff(luma[STEP_PX:], luma[:-STEP_PX], dst=along_y[:-STEP_PX])
    return along_x, along_y


def seam_masks(step_x: np.ndarray, step_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over time of `steps` -> [H, W] bool where an upright seam, and where a level one, may be."""
    return _mask(step_x), np.ascontiguousarray(_mask(np.ascontiguousarray(step_y.T)).T)


def _mask(step: np.ndarray) -> np.ndarray:
    """Steps along x far above those 5 to 12 pixels to either side: several times as large or, where those are all
    alike, as in grass, larger than nearly all of them."""
    # Smoothed along the seam: one row's own texture is no seam.
    step = cv2.blur(step, (1, 11))
    is_large = step > _RATIO * _beside(step, 1) + _LEAST_LEVELS
    mean, square = _beside(step, 21), _beside(step * step, 21)
    deviation = np.sqrt(np.maximum(square - mean * mean, 0))
    is_seam = is_large | (step > mean + _DEVIATIONS * deviation + _LEAST_OVER_TEXTURE)
    return is_seam & (_highest(step, 1) >= _highest(step, _ASIDE_PX))


def _highest(values: np.ndarray, aside: int) -> np.ndarray:
    """Highest of the values up to `aside` pixels to either side."""
    return cv2.dilate(values, np.ones((1, 2 * aside + 1), np.uint8))


def _beside(values: np.ndarray, height: int) -> np.ndarray:
    """Mean of the values 5 to 12 pixels to either side, over `height` rows."""
    wide, narrow = (
        cv2.blur(values, (size, height), borderType=cv2.BORDER_REFLECT) * size for size in (25, 9)
    )
    return (wide - narrow) / 16


def split_score(upright: np.ndarray, level: np.ndarray) -> float:
    """Share of its length over which the strongest seam from edge to edge is one; those near the rim do not count."""
    best = 0.0
    for mask, axis in ((upright, 0), (level, 1)):
        share = mask.mean(axis=axis)
        rim = round(0.12 * len(share))
        best = max(best, float(share[rim : len(share) - rim].max(initial=0.0)))
    return best


def inset_score(upright: np.ndarray, level: np.ndarray) -> float:
    """Share of the outline of the best rectangle that is a seam, mean of the best three of its sides.

    Sides on the picture's own rim count as found; a rectangle as wide or as high as the picture is a split.
    """
    height, width = upright.shape
    sides = _runs(upright)
    tolerance = max(6, round(0.02 * height))  # smoothing lengthens a seam by some 5 pixels
    level_sum = np.concatenate(
        [np.zeros((height, 1)), np.cumsum(cv2.dilate(level.astype(np.uint8), np.ones((3, 1))), axis=1)],
        axis=1,
    )
    best = 0.0
    rim = [(0, 0, height, 1.0), (width - 1, 0, height, 1.0)]
    for first in [*sides, rim[0]]:
        for second in [*sides, rim[1]]:
            if (first in rim and second in rim) or not 0.1 * width < second[0] - first[0] < 0.9 * width:
                continue
            own = first if second in rim else second
            other = own if second in rim or first in rim else first
            if abs(own[1] - other[1]) > tolerance or abs(own[2] - other[2]) > tolerance:
                continue
            top, bottom = own[1], own[2]
            if bottom - top > 0.9 * height:
                continue
            shares = [own[3], other[3]]
            for row in (top, bottom):
                if tolerance < row < height - tolerance:
                    rows = slice(max(0, row - tolerance), row + tolerance + 1)
                    shares.append(_level_side(level_sum[rows], first[0], second[0]))
            # Where inside and outside are alike, as sky and sky, one of four sides may not show.
            best = max(best, min(1.0, float(np.mean(sorted(shares)[-3:]))))
    return best


def _level_side(level_sum: np.ndarray, left: int, right: int) -> float:
    """Share of the columns left..right that is a seam in the best of some rows, less that of the columns beside them
    in theirs: a rectangle's side ends at its corners, a wall's edge goes on. level_sum: [rows, W + 1] counts up to each
    column."""
    reach = (right - left) // 2
    before, after = max(0, left - reach), min(level_sum.shape[1] - 1, right + reach)
    inside = (level_sum[:, right] - level_sum[:, left]) / (right - left)
    beside = (level_sum[:, after] - level_sum[:, right]) + (level_sum[:, left] - level_sum[:, before])
    beside = beside / max(after - right + left - before, 1)
    return float(inside.max() - beside.max())


def _runs(mask: np.ndarray) -> list[tuple[int, int, int, float]]:
    """(column, top, bottom, share filled) of the longest upright seam of every column that has one of some length;
    at most 40, the longest."""
    height = mask.shape[0]
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((9, 1)))
    found = []
    for column in np.flatnonzero(closed.sum(axis=0) > _LEAST_INSET * height):
        ends = np.flatnonzero(np.diff(closed[:, column], prepend=0, append=0))
        starts, stops = ends[::2], ends[1::2]
        k = int(np.argmax(stops - starts))
        top, bottom = int(starts[k]), int(stops[k])
        if bottom - top > _LEAST_INSET * height:
            found.append((int(column), top, bottom, float(mask[top:bottom, column].mean())))
    return sorted(found, key=lambda run: run[1] - run[2])[:40]
