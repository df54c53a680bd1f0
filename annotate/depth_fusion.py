"""Consistent depth of one network and metric depth of another in, the consistent depth in metres out.

SANA-WM (arXiv 2605.15178) Sec. 4: per frame the scale that fits best in the least-squares sense with weights
1/d, then an exponential moving average along the clip. A network that sees many frames gives depth that does
not flicker, one that sees a single frame gives metres that do; the average keeps the good half of both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOMENTUM = 0.99
"""Share of the running scale kept from frame to frame, as in the paper."""


def frame_scale(consistent_z: np.ndarray, metric_z: np.ndarray) -> float:
    """argmin_s sum w (s consistent - metric)^2 with w = 1 / consistent, which is sum metric / sum consistent.

    Over the pixels where both are known (finite and positive), any shape; NaN where there is none.
    """
    both = np.isfinite(consistent_z) & np.isfinite(metric_z) & (consistent_z > 0) & (metric_z > 0)
    if not both.any():
        return float("nan")
    return float(metric_z[both].sum(dtype=np.float64) / consistent_z[both].sum(dtype=np.float64))


@dataclass(slots=True)
class RunningScale:
    """Exponential moving average of a clip's per-frame scales, in frame order; a frame without a scale leaves
    it alone."""

    momentum: float = MOMENTUM
    value: float = float("nan")
    """NaN until the first frame with a scale, which sets it."""

    def update(self, scale: float) -> float:
        """The average after this frame."""
        if np.isnan(self.value):
            self.value = scale
        elif not np.isnan(scale):
            self.value = self.momentum * self.value + (1 - self.momentum) * scale
        return self.value


def smoothed_scales(scales: np.ndarray, momentum: float = MOMENTUM) -> np.ndarray:
    """[T] running averages of per-frame scales [T]; NaN before the first known one."""
    running = RunningScale(momentum=momentum)
    return np.array([running.update(float(scale)) for scale in scales])
