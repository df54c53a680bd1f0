"""Blur, blockiness and noise of pictures in, one number for how spoilt they are out: no reference, no weights.

PIQE (`filters/piqe.py`) looks for flat rims of its own 16-pixel blocks; a second encode smooths those of a coarser
first one away, so that it hardly tells blocks (docs/results/filters.md). Here each way in which camera and codec spoil a
picture has its own published measure, each on a scale of its own, and the worst counts: a sharp picture without
blocks is no better for it where noise covers it.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

_BLUR = (0.30, 0.55)
_BLOCKINESS = (1.15, 2.3)
_NOISE_LEVELS = (0.0, 20.0)
"""(0, 1) of each part: near the medians of clean and of spoilt stretches (`filters/defects.py`) of a walk, a motorway
and a street, rounded; benchmarks/filters.py lists what comes out on other videos."""

_BLOCK = 16
_QUIET_PERCENT = 25
_LAPLACIANS = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], dtype=np.float32)


def impairment(blur: float | None, blockiness: float | None, noise: float | None) -> float | None:
    """The worst of the known parts: 0 as clean footage, 1 as plainly spoilt; None where none is known."""
    parts = []
    if blur is not None:
        parts.append((blur - _BLUR[0]) / (_BLUR[1] - _BLUR[0]))
    if blockiness is not None:
        # A ratio of steps: its logarithm; under 1 there are no blocks.
        parts.append(
            math.log(max(1.0, blockiness) / _BLOCKINESS[0]) / math.log(_BLOCKINESS[1] / _BLOCKINESS[0])
        )
    if noise is not None:
        parts.append((noise - _NOISE_LEVELS[0]) / (_NOISE_LEVELS[1] - _NOISE_LEVELS[0]))
    return min(1.0, max(0.0, *parts)) if parts else None


def noise_level(luma: np.ndarray) -> float:
    """[H, W] uint8 -> standard deviation of the noise in grey levels, NaN where a side is under 18 pixels.

    Immerkaer, "Fast noise variance estimation", 1996: the mean size of a difference of two Laplacians, which leaves
    plain slopes and straight edges at 0. Departure: of the quietest quarter of the 16-pixel blocks and not of the
    picture, since foliage is no noise.
    """
    height, width = ((side - 2) // _BLOCK for side in luma.shape)
    if min(height, width) < 1:
        return math.nan
    residual = np.abs(cv2.filter2D(luma, cv2.CV_16S, _LAPLACIANS))[1:-1, 1:-1]
    blocks = residual[: height * _BLOCK, : width * _BLOCK].reshape(height, _BLOCK, width, _BLOCK)
    levels = blocks.mean(axis=(1, 3)) * math.sqrt(math.pi / 2) / 6
    return float(np.percentile(levels, _QUIET_PERCENT))
