"""Frames of one clip in, how much the picture moves out: dense optical flow of pairs half a second apart.

The published filter ranges (3-80 px) are means over such pairs by a learned estimator. DIS flow (Kroeger et
al. 2016) needs no weights; unlike Farneback's it follows the tens of pixels that a walking camera moves in
half a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class MotionConfig:
    """Which pairs are compared, and how finely."""

    pair_gap_s: float = 0.5
    """Time between the two frames of a pair in seconds; the published ranges refer to it."""
    flow_pixels: int = 240 * 180
    """Flow is computed at this size at most and scaled back to the frames': about 11 ms a pair."""
    static_px: float = 0.1
    """A pair whose median flow, at the frames' size, is under this is static."""

    def __post_init__(self) -> None:
        if self.pair_gap_s <= 0 or self.flow_pixels < 1024:
            raise ValueError("pair_gap_s must be positive and flow_pixels at least 1024")


class MotionScores:
    """Gathers motion scores of one clip's frames, added in order of time at the working size; holds one
    small frame.
    """

    def __init__(self, config: MotionConfig | None = None) -> None:
        self._config = config or MotionConfig()
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._previous: np.ndarray | None = None
        self._next_s = -math.inf
        self._means_px: list[float] = []
        self._num_static = 0

    def add(self, image: np.ndarray, timestamp_s: float) -> None:
        """Takes the next frame, [H, W, 3] uint8 RGB; all of one size."""
        if timestamp_s < self._next_s:
            return
        # Half a millisecond of slack, so that rounded container times do not stretch the gap by a frame.
        self._next_s = timestamp_s + self._config.pair_gap_s - 5e-4
        height, width = image.shape[:2]
        scale = min(1.0, math.sqrt(self._config.flow_pixels / (width * height)))
        luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        if scale < 1:
            luma = cv2.resize(luma, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        if self._previous is not None:
            flow = self._flow.calc(self._previous, luma, None)  # type: ignore[call-overload]
            flow_px = flow / scale  # [h, w, 2]
            length_px = cv2.magnitude(flow_px[..., 0], flow_px[..., 1])
            self._means_px.append(float(length_px.mean()))
            self._num_static += bool(np.median(length_px) < self._config.static_px)
        self._previous = luma

    def result(self) -> dict[str, float | None]:
        """The columns flow_px and static_share (`datasets/schema.py`); None without a pair."""
        if not self._means_px:
            return {"flow_px": None, "static_share": None}
        flow_px, static_share = float(np.mean(self._means_px)), self._num_static / len(self._means_px)
        return {"flow_px": flow_px, "static_share": static_share}
