"""Frames of one clip in, brightness, contrast, saturation and sharpness out.

Fed frame by frame beside tracking, so a clip is decoded once; a frame every quarter of a second is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageConfig:
    """How often pictures are scored."""

    sample_gap_s: float = 0.25
    """Least time between scored frames in seconds: the scores of a clip hardly change within it. 0 scores
    all.
    """

    def __post_init__(self) -> None:
        if self.sample_gap_s < 0:
            raise ValueError(f"sample_gap_s {self.sample_gap_s} must be at least 0")


class ImageScores:
    """Gathers picture scores of one clip's frames, added in order of time at the working size."""

    def __init__(self, config: ImageConfig | None = None) -> None:
        self._config = config or ImageConfig()
        self._next_s = -np.inf
        self._rows: list[tuple[float, float, float, float]] = []

    def add(self, image: np.ndarray, timestamp_s: float) -> None:
        """Takes the next frame, [H, W, 3] uint8 RGB."""
        if timestamp_s < self._next_s:
            return
        # Half a millisecond of slack, so that rounded container times do not skip every other sample.
        self._next_s = timestamp_s + self._config.sample_gap_s - 5e-4
        luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        mean, deviation = cv2.meanStdDev(luma)
        saturation = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))[1]
        _, edge_deviation = cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S))
        self._rows.append(
            (float(mean[0, 0]), float(deviation[0, 0]), saturation, float(edge_deviation[0, 0]) ** 2)
        )

    def result(self) -> dict[str, float | None]:
        """The columns luminance, contrast, saturation, sharpness (`datasets/schema.py`); None without a
        frame.
        """
        names = ("luminance", "contrast", "saturation", "sharpness")
        if not self._rows:
            return dict.fromkeys(names)
        columns = np.array(self._rows).T
        # One blurred or sharp frame in many says little: the median.
        scores = (*columns[:3].mean(axis=1), np.median(columns[3]))
        return {name: float(score) for name, score in zip(names, scores, strict=True)}
