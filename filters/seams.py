"""Mean steps between neighbouring pixels in, how much lines cut the picture into parts out.

A seam is a line of pixels with a step that its neighbourhood does not have; over a whole clip a scene's own edges
move across it and leave none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np

STEP_PX = 2
"""Distance of the pixels compared: scaling pictures down spreads a seam over two."""

_LEAST_LEVELS = 3.0
_RATIO = 1.6
_DEVIATIONS = 3.0
_LEAST_OVER_TEXTURE = 0.5
_ASIDE_PX = 3
"""A seam's steps are the highest so far to either side, give or take a pixel, in every row: a scene's own long edges,
of a bus or a wall, lean and leave their column."""
_LEAST_INSET = 0.16
"""Side of the smallest inset, as a share of the picture's: shorter lines are common in any scene."""
_ENDS_PX = 6
"""How far a side may end from its corner: smoothing lengthens a seam by some 5 pixels."""


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
    """How much of the outline of the best rectangle is a seam: the least share of its sides, of four the least but one.

    Sides on the picture's own rim are no evidence and do not count; a rectangle as wide or as high as the picture is
    a split.
    """
    turned = (np.ascontiguousarray(mask.T) for mask in (level, upright))
    return max(_best_inset(upright, level), _best_inset(*turned))


def _best_inset(along: np.ndarray, across: np.ndarray) -> float:
    """`inset_score` of the rectangles that have one or two long seams of `along`, which run along the columns; those
    of `across` [H, W] run along the rows."""
    height, width = along.shape
    counts_along, counts_across = _counts(along.T), _counts(across)
    best = 0.0
    for left, right, run in _rectangles(_runs(along), width):
        if not 0.1 * width < right - left < 0.9 * width or run.stop - run.start > 0.9 * height:
            continue
        shares = [
            _side(counts_along[column - 1 : column + 2], run.start, run.stop)
            for column in (left, right)
            if 0 < column < width - 1
        ]
        for row in (run.start, run.stop):
            if _ENDS_PX < row < height - _ENDS_PX:
                shares.append(_side(counts_across[row - _ENDS_PX : row + _ENDS_PX + 1], left, right))
        # Where inside and outside are alike, as sky and sky, one of four sides may not show.
        found = sorted(shares)[len(shares) == 4 :]
        if len(found) > 1:
            best = max(best, found[0])
    return best


def _counts(mask: np.ndarray) -> np.ndarray:
    """[H, W] -> [H, W + 1] seams of each row up to each column, those of the rows above and below with them."""
    wide = cv2.dilate(np.ascontiguousarray(mask, dtype=np.uint8), np.ones((3, 1)))
    return np.pad(np.cumsum(wide, axis=1, dtype=np.float32), ((0, 0), (1, 0)))


class _Run(NamedTuple):
    """A long seam: its column, and the rows it starts and stops at."""

    column: int
    start: int
    stop: int


def _rectangles(runs: Sequence[_Run], width: int) -> Iterator[tuple[int, int, _Run]]:
    """left, right and a run that is one of these sides; the other is such a run too, or the rim."""
    for run in runs:
        yield 0, run.column, run
        yield run.column, width - 1, run
        for other in runs:
            if abs(run.start - other.start) <= _ENDS_PX and abs(run.stop - other.stop) <= _ENDS_PX:
                yield run.column, other.column, run


def _side(counts: np.ndarray, left: int, right: int) -> float:
    """Share of the columns left..right that is a seam in the best of some rows, less that of the columns beside them
    in theirs: a rectangle's side ends at its corners, a wall's edge goes on. counts: [rows, W + 1] of `_counts`."""
    reach = (right - left) // 2
    inside = _mean_share(counts, left, right)
    beside = np.maximum(
        _mean_share(counts, left - reach, left - _ENDS_PX),
        _mean_share(counts, right + _ENDS_PX, right + reach),
    )
    return float(inside.max() - beside.max())


def _mean_share(counts: np.ndarray, left: int, right: int) -> np.ndarray:
    """[rows] share of the columns left..right that is a seam; 0 where none of them is in the picture."""
    left, right = max(0, left), min(counts.shape[1] - 1, right)
    return (counts[:, right] - counts[:, left]) / (right - left) if right > left else np.zeros(len(counts))


def _runs(mask: np.ndarray) -> list[_Run]:
    """The longest seam of every column that has one of some length; at most 40, the longest."""
    height = mask.shape[0]
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((9, 1)))
    found = []
    for column in np.flatnonzero(closed.sum(axis=0) > _LEAST_INSET * height):
        ends = np.flatnonzero(np.diff(closed[:, column], prepend=0, append=0))
        starts, stops = ends[::2], ends[1::2]
        k = int(np.argmax(stops - starts))
        start, stop = int(starts[k]), int(stops[k])
        if stop - start > _LEAST_INSET * height:
            found.append(_Run(int(column), start, stop))
    return sorted(found, key=lambda run: run.start - run.stop)[:40]
