"""Frames in, hard cuts by their content out: PySceneDetect's content score and its adaptive and content rules.

Scores and cuts are PySceneDetect's to the last bit (tests/annotate/test_content_cuts.py has its own detectors beside
these), at a third of the time: differences are summed without 32-bit copies, and frames are counted by number.
"""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np

_NEIGHBOURS = 2
"""Frames on either side that the adaptive rule compares a frame with (PySceneDetect's default)."""


class ContentCuts:
    """Scores each frame against the one before and says which are cuts, some of them two frames late."""

    def __init__(
        self, *, adaptive_ratio: float, adaptive_min_content: float, content_threshold: float
    ) -> None:
        """Thresholds as in `CutConfig`; infinity turns a rule off."""
        self._ratio, self._min_content = adaptive_ratio, adaptive_min_content
        self._threshold = content_threshold
        self._last: list[np.ndarray] | None = None  # hue, saturation, value
        self._scores: deque[float] = deque(maxlen=2 * _NEIGHBOURS + 1)
        self._count = 0

    def push(self, rgb: np.ndarray) -> tuple[float, list[int]]:
        """Takes the next frame, [H, W, 3] uint8: its content score, 0-255, and the positions found to be cuts.

        A position may come twice, once by each rule.
        """
        planes = list(cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)))
        score = 0.0
        if self._last is not None:
            pairs = zip(planes, self._last, strict=True)
            score = sum(cv2.norm(now, before, cv2.NORM_L1) / now.size for now, before in pairs) / 3.0
        self._last = planes
        self._scores.append(score)
        position, self._count = self._count, self._count + 1
        cuts = [position] if score >= self._threshold else []
        if len(self._scores) == self._scores.maxlen and self._stands_out():
            cuts.append(position - _NEIGHBOURS)
        return score, cuts

    def _stands_out(self) -> bool:
        score = self._scores[_NEIGHBOURS]
        around = [each for k, each in enumerate(self._scores) if k != _NEIGHBOURS]
        mean = sum(around) / len(around)
        if score < self._min_content:
            return False
        # PySceneDetect's limits: beside pictures that stand still any ratio is 255, and none is more.
        ratio = min(score / mean, 255.0) if mean >= 1e-5 else 255.0
        return ratio >= self._ratio
