"""Frames of one clip in, how much the picture moves out: dense optical flow of pairs half a second apart, and the
shake between neighbouring frames.

The published filter ranges (3-80 px) are means over such pairs by a learned estimator (UniMatch), in the public
scorer the mean size of a flow component at 576x320. DIS flow (Kroeger et al. 2016) needs no weights; unlike
Farneback's it follows the tens of pixels that a walking camera moves in half a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d


@dataclass(frozen=True, kw_only=True, slots=True)
class MotionConfig:
    """Which pairs are compared, and how finely."""

    pair_gap_s: float = 0.5
    """Time between the two frames of a pair in seconds; the published ranges refer to it."""
    flow_pixels: int = 240 * 180
    """Flow is computed at this size at most and scaled back to the frames': about 11 ms a pair."""
    static_px: float = 0.1
    """A pair whose median flow, at the frames' size, is under this is static."""
    off_share: float = 0.008
    """Distance from what one rigid scene explains, over the picture's width, from which a point moves by itself:
    2 px of 240."""
    known_levels: float = 1.0
    """Gradient along the weaker direction, in grey levels a pixel, rms over 9 x 9 pixels, from which a point's flow is
    known: along an edge, or on a plain roof, it is a guess."""
    least_known: float = 0.2
    """Share of the picture whose flow must be known to say what moves by itself. A plain bus on a plain road has 0.1,
    a motorway a third."""
    shake_width_px: int = 160
    """Width at which neighbouring frames are compared for shake: 0.3 ms a frame."""
    shake_period_s: float = 0.25
    """Motion slower than about this is the camera's path, faster is shake. A walker's bob takes 0.5 s."""

    def __post_init__(self) -> None:
        if self.pair_gap_s <= 0 or self.flow_pixels < 1024:
            raise ValueError("pair_gap_s must be positive and flow_pixels at least 1024")
        if self.shake_width_px < 32 or self.shake_period_s <= 0:
            raise ValueError("shake_width_px must be at least 32 and shake_period_s positive")


_PUBLISHED_SIZE = (576, 320)
"""(width, height) at which the public UniMatch scorer computes flow; the other way round for upright pictures."""

_COLUMNS = ("flow_px", "flow_std_px", "flow_spread_px", "flow_576x320_px", "static_share", "moving_share")


class MotionScores:
    """Gathers motion scores of one clip's frames, added in order of time at the working size; holds two small
    frames.
    """

    def __init__(self, config: MotionConfig | None = None) -> None:
        self._config = config or MotionConfig()
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._previous: np.ndarray | None = None
        self._next_s = -math.inf
        self._pairs: list[tuple[float, ...]] = []
        self._moving: list[float] = []
        self._shake = _Shake(self._config)

    def add(self, image: np.ndarray, timestamp_s: float, luma: np.ndarray | None = None) -> None:
        """Takes the next frame, [H, W, 3] uint8 RGB; all of one size. luma [H, W] where the caller has it."""
        if luma is None:
            luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        self._shake.add(luma, timestamp_s)
        if timestamp_s < self._next_s:
            return
        # Half a millisecond of slack, so that rounded container times do not stretch the gap by a frame.
        self._next_s = timestamp_s + self._config.pair_gap_s - 5e-4
        height, width = image.shape[:2]
        scale = min(1.0, math.sqrt(self._config.flow_pixels / (width * height)))
        if scale < 1:
            luma = cv2.resize(luma, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        if self._previous is not None:
            flow = self._flow.calc(self._previous, luma, None)  # type: ignore[call-overload]
            self._add_pair(flow, scale, self._previous)
        self._previous = luma

    def _add_pair(self, flow: np.ndarray, scale: float, luma: np.ndarray) -> None:
        """flow [h, w, 2] in pixels of the small picture, luma [h, w] the earlier of the two."""
        flow_px = flow / scale
        length_px = cv2.magnitude(flow_px[..., 0], flow_px[..., 1])
        published = _PUBLISHED_SIZE if flow.shape[1] >= flow.shape[0] else _PUBLISHED_SIZE[::-1]
        components = [float(np.abs(flow[..., k]).mean()) * published[k] / flow.shape[1 - k] for k in range(2)]
        self._pairs.append(
            (
                float(length_px.mean()),
                float(flow_px.reshape(-1, 2).std(axis=0).mean()),
                float(np.mean(components)),
                float(np.median(length_px) < self._config.static_px),
            )
        )
        is_known = weaker_gradient(luma) > self._config.known_levels
        moving = None
        if is_known.mean() > self._config.least_known:
            moving = moving_share(flow, self._config.off_share * flow.shape[1], is_known)
        if moving is not None:
            self._moving.append(moving)

    def result(self) -> dict[str, float | None]:
        """The motion columns of `datasets/schema.py`; None without a pair."""
        jitter = self._shake.result()
        if not self._pairs:
            return dict.fromkeys(_COLUMNS) | {"jitter": jitter}
        mean, spread, published, static = np.array(self._pairs).T
        return {
            "flow_px": float(mean.mean()),
            "flow_std_px": float(mean.std()),
            "flow_spread_px": float(spread.mean()),
            "flow_576x320_px": float(published.mean()),
            "static_share": float(static.mean()),
            "moving_share": float(np.mean(self._moving)) if self._moving else None,
            "jitter": jitter,
        }


class _Shake:
    """The picture's path from frame to frame, and how far it is from its own smoothing."""

    def __init__(self, config: MotionConfig) -> None:
        self._config = config
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._previous: np.ndarray | None = None
        self._steps: list[tuple[float, float]] = []
        self._times_s: list[float] = []

    def add(self, luma: np.ndarray, timestamp_s: float) -> None:
        height, width = luma.shape
        # OpenCV's fast DIS crashes on pictures under some 30 pixels high.
        scale = min(1.0, max(self._config.shake_width_px / width, 48 / min(height, width)))
        if scale < 1:
            size = (round(width * scale), round(height * scale))
            luma = cv2.resize(luma, size, interpolation=cv2.INTER_AREA)
        if self._previous is not None:
            flow = self._flow.calc(self._previous, luma, None)  # type: ignore[call-overload]
            sparse = flow[4::4, 4::4].reshape(-1, 2)
            self._steps.append(tuple(np.median(sparse, axis=0) / luma.shape[1]))
        self._previous = luma
        self._times_s.append(timestamp_s)

    def result(self) -> float | None:
        """Rms over the picture's width; None under a second."""
        duration_s = self._times_s[-1] - self._times_s[0] if self._times_s else 0.0
        if duration_s < 1.0 or len(self._steps) < 8:
            return None
        path = np.concatenate([np.zeros((1, 2)), np.cumsum(self._steps, axis=0)])
        # At equal times, so that a variable rate counts no more than a fixed one.
        even_s = np.linspace(self._times_s[0], self._times_s[-1], len(path))
        path = np.stack([np.interp(even_s, self._times_s, path[:, k]) for k in range(2)], axis=1)
        sigma = self._config.shake_period_s / 2 / (duration_s / (len(path) - 1))
        rest = path - gaussian_filter1d(path, sigma, axis=0, mode="nearest")
        # The ends have no neighbours on one side and would count as shake on any moving shot.
        cut = min(len(rest) // 4, math.ceil(2 * sigma))
        return float(np.sqrt(np.mean(np.sum(rest[cut : len(rest) - cut] ** 2, axis=1))))


def weaker_gradient(luma: np.ndarray) -> np.ndarray:
    """Rms of the gradient along the direction in which it is least, over 9 x 9 pixels, in grey levels a pixel: luma
    [H, W] uint8 -> [H, W] float32. None of a plain face or along a straight edge, whose motion cannot be seen."""
    along_x, along_y = (cv2.Sobel(luma, cv2.CV_32F, *order, scale=1 / 8) for order in ((1, 0), (0, 1)))
    xx, yy, xy = (
        cv2.blur(a * b, (9, 9)) for a, b in ((along_x, along_x), (along_y, along_y), (along_x, along_y))
    )
    least = (xx + yy) / 2 - cv2.magnitude((xx - yy) / 2, xy)
    return np.sqrt(np.maximum(least, 0))


def moving_share(flow: np.ndarray, off_px: float, is_known: np.ndarray | None = None) -> float | None:
    """Share of the points is_known [h, w] (all by default) whose flow [h, w, 2] no one rigid scene explains; None
    where nothing can be fitted.

    Against one homography (a turning or still camera, a flat scene) where that fits most of the picture closely, else
    against the epipolar lines of the best fundamental matrix: what moves along its own line is not seen.
    """
    height, width = flow.shape[:2]
    step = max(2, round(math.sqrt(width * height / 1500)))
    y, x = np.mgrid[step // 2 : height : step, step // 2 : width : step]
    start = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)  # [n, 2]
    end = start + flow[y.ravel(), x.ravel()]
    is_used = ((end >= 0) & (end < (width, height))).all(axis=1)
    if is_known is not None:
        is_used &= is_known[y.ravel(), x.ravel()]
    start, end = start[is_used], end[is_used]
    if len(start) < 100:
        return None
    try:
        plane, _ = cv2.findHomography(start, end, cv2.USAC_MAGSAC, off_px / 2, maxIters=300)
        if plane is None:
            return None
        error_px = np.linalg.norm(cv2.perspectiveTransform(start[None], plane)[0] - end, axis=1)
        is_on = error_px < off_px
        # One plane it is only where the points lie on it and not just near it.
        if is_on.mean() > 0.6 and np.mean(error_px[is_on] < off_px / 3) > 0.75:
            return float(1 - is_on.mean())
        matrix, _ = cv2.findFundamentalMat(start, end, cv2.USAC_MAGSAC, off_px / 2, 0.99, 500)
    except cv2.error:  # No sample gave a model.
        return None
    if matrix is None or matrix.shape != (3, 3):
        return None
    return float(np.mean(_sampson(start, end, matrix) > off_px))


def _sampson(start: np.ndarray, end: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    ones = np.ones((len(start), 1))
    line_in_end, line_in_start = np.hstack([start, ones]) @ matrix.T, np.hstack([end, ones]) @ matrix
    product = np.sum(np.hstack([end, ones]) * line_in_end, axis=1)
    slope = np.sum(line_in_end[:, :2] ** 2, axis=1) + np.sum(line_in_start[:, :2] ** 2, axis=1)
    return np.abs(product) / np.sqrt(np.maximum(slope, 1e-12))
