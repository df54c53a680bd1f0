"""Frames in, how good they look out, without a truth: backends behind a table, each with a column of its own.

`piqe` needs no weights; `vbench` is VBench's imaging quality. Their scales have nothing to do with each other, so a table
names the backend in its column and never fills one from two.
"""

from __future__ import annotations

from typing import Literal, Protocol

import cv2
import numpy as np

from worldline.annotate.backends import load_backend
from worldline.filters.piqe import piqe

BACKENDS = {
    "piqe": "worldline.evaluate.image_quality:PiqeQuality",
    "vbench": "worldline.evaluate.vbench_quality:VBenchQuality",
}
HOW_TO_INSTALL = {
    "vbench": "pip install pyiqa, then pip install --no-deps vbench, which asks for numpy below 2"
}
QualityName = Literal["piqe", "vbench"]


class ImageQuality(Protocol):
    """A backend; built without arguments."""

    name: str
    """Of its column."""
    higher_is_better: bool

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Scores [F] of frames [F, H, W, 3] uint8 RGB."""
        ...


class PiqeQuality:
    """PIQE: 0 best, 100 worst."""

    name = "PIQE"
    higher_is_better = False

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """See `ImageQuality`."""
        return np.array([piqe(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)) for frame in frames])


def image_quality(name: str) -> ImageQuality:
    """The backend of this name. Raises ValueError for another, MissingBackend naming what to install or to fetch."""
    made: ImageQuality = load_backend(name, BACKENDS, HOW_TO_INSTALL)()
    return made


def drift(quality: ImageQuality, first: np.ndarray, last: np.ndarray) -> float:
    """How much worse the last frames [F, H, W, 3] are than the first, at most four of each; above 0 is worse."""
    early, late = (float(np.mean(quality(frames[:: max(1, len(frames) // 4)]))) for frames in (first, last))
    return early - late if quality.higher_is_better else late - early
