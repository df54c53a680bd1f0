"""Frames of one clip in, VMAF motion out, as FFmpeg's `vmafmotion` filter has it; and frames that repeat.

Mean absolute difference of the luma of neighbouring frames after a 5x5 Gaussian, in grey levels; the first
frame counts as 0. FFmpeg's filter is not run: it sees every frame once more and states its scores to two digits.
The tests hold this one to it.

The score depends on size and frame rate: it is that of the working size and of the clip's own rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

_KERNEL = np.array([3571, 16004, 26386, 16004, 3571], dtype=np.float32) / 65536
"""FFmpeg's FILTER_5 at its own precision."""

_VIDEO_RANGE = 219 / 255
"""FFmpeg sees luma as it is coded, 16-235; frames here are of full range."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VmafMotionConfig:
    """When a frame repeats the one before."""

    frozen_levels: float = 0.02
    """Score under which it does, in grey levels. Encoded repeats measured 0.000-0.015; the quietest fixed camera
    0.05."""

    def __post_init__(self) -> None:
        if self.frozen_levels < 0:
            raise ValueError(f"frozen_levels {self.frozen_levels} must be at least 0")


class VmafMotionScores:
    """Gathers the motion of one clip's frames, added in order of time; holds one blurred frame."""

    def __init__(self, config: VmafMotionConfig | None = None) -> None:
        self._config = config or VmafMotionConfig()
        self._previous: np.ndarray | None = None
        self._levels: list[float] = []

    def add(self, luma: np.ndarray) -> None:
        """Takes the next frame's luma, [H, W] uint8 of full range."""
        blurred = cv2.sepFilter2D(luma, cv2.CV_32F, _KERNEL, _KERNEL, borderType=cv2.BORDER_REFLECT_101)
        if self._previous is not None:
            difference = cv2.norm(blurred, self._previous, cv2.NORM_L1) / luma.size
            self._levels.append(difference * _VIDEO_RANGE)
        self._previous = blurred

    @property
    def levels(self) -> list[float]:
        """Score of every frame but the first, in grey levels of video range."""
        return self._levels

    def result(self) -> dict[str, float | None]:
        """The columns vmaf_motion and frozen_share (`datasets/schema.py`); None under two frames."""
        if not self._levels:
            return {"vmaf_motion": None, "frozen_share": None}
        levels = np.array(self._levels)
        return {
            "vmaf_motion": float(levels.sum() / (len(levels) + 1)),
            "frozen_share": float(np.mean(levels < self._config.frozen_levels)),
        }
