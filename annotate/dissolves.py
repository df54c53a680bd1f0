"""Frames in, dissolves out: gradual changes from one shot to the next, told apart from camera motion.

In a dissolve the frames between two instants are mixtures of the frames at both ends, with weights that
grow evenly from 0 to 1, everywhere in the picture at one pace. Between the ends of a camera movement they are
not: they are displaced copies, and optical flow explains them better than mixing does. Where something passes a
still camera, what it leaves has changed before what it reaches. All this is measured on small, smoothed pictures.
Thresholds were set on cross-fades between, and raw footage of, hand-held, walking and driving cameras
(benchmarks/scenes.py measures them again).
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np

from worldline.annotate.video import Frame

WINDOWS_S = (0.3, 0.6, 1.1, 1.8)
"""Lengths between the two ends that are compared; dissolves of half to nearly thrice a length are seen by
it.
"""

_LOOK_EVERY_S = 0.06
_MIN_STEPS = 4
"""Frames after the first that a comparison needs, however slow the video."""

_MIN_CHANGE = 15.0
_MAX_LIKENESS = 0.6
_MAX_BLEND_RESIDUAL = 0.18
_MIN_FLOW_OVER_BLEND = 1.6
_MAX_PACE_SPREAD = 0.28
"""Spread of the weights that parts of the picture have at one time: up to 0.21 was seen in cross-fades between
real shots, 0.31 and more where somebody walks past a still camera.
"""
_PARTS = (3, 6)
"""Rows and columns of parts whose weights are compared."""
_EDGE_SHARE = 0.15
_BLACK = 24.0
_SAME_PLACE_LIKENESS = 0.8
"""Across cuts between footage of all kinds at most 0.71 was seen, between neighbouring frames at least
0.92.
"""

_HOPELESS_LIKENESS = 0.5

_THUMB_SIZE = (48, 27)


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Transition:
    """A shot change: frames from `first_idx` up to, not including, `next_idx` belong to neither shot.

    A hard cut has both equal to the new shot's first frame.
    """

    first_idx: int
    next_idx: int


def is_same_place(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether a picture is the other moved by optical flow, whatever its brightness; RGB [H, W, 3] uint8."""
    for source, target in ((before, after), (after, before)):
        likeness = _likeness(_flow_warp(source, target), _thumb(target))
        if likeness > _SAME_PLACE_LIKENESS:
            return True
        if likeness < _HOPELESS_LIKENESS:
            return False  # the way back differs by little
    return False


def likeness_of_place(before: np.ndarray, after: np.ndarray) -> float:
    """The better correlation of the two pictures with each other moved by optical flow; RGB [H, W, 3] uint8."""
    return max(_likeness(_flow_warp(a, b), _thumb(b)) for a, b in ((before, after), (after, before)))


def _thumb(image: np.ndarray) -> np.ndarray:
    small = cv2.resize(image, _THUMB_SIZE, interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(small, (0, 0), 1.0).astype(np.float32)


def _likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two thumbs after each channel's mean is removed; 0 for pictures without structure.

    What is black in both does not count: bars around the picture are the same in every shot.
    """
    brightest = np.maximum(a, b)
    brightest = np.maximum(np.maximum(brightest[..., 0], brightest[..., 1]), brightest[..., 2])
    # Smoothing carried the picture over the bars' edges, which are alike too.
    is_lit = cv2.erode((brightest > _BLACK).astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    num_lit = np.count_nonzero(is_lit)
    if num_lit < 0.05 * is_lit.size:
        return 0.0
    a, b = (x.reshape(-1, 3) if num_lit == is_lit.size else x[is_lit] for x in (a, b))  # [K, 3]
    a, b = (x - np.ones(len(x), x.dtype) @ x / len(x) for x in (a, b))
    norm = float(np.sqrt(np.vdot(a, a) * np.vdot(b, b)))
    return float(np.vdot(a, b)) / norm if norm > 1e-3 * a.size else 0.0


def _flow_warp(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Thumb of `source` moved onto `target` by dense optical flow."""
    height, width = target.shape[:2]
    luma_target, luma_source = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (target, source))
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flow = estimator.calc(luma_target, luma_source, None)  # type: ignore[call-overload]
    xy = _pixel_grid(width, height) + flow
    moved = cv2.remap(source, xy[..., 0], xy[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return _thumb(moved)


@functools.cache
def _pixel_grid(width: int, height: int) -> np.ndarray:
    """[height, width, 2] float32: x and y of each pixel."""
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)


def _pace_spread(step: np.ndarray, change: np.ndarray, weight: float) -> float:
    """Deviation of the weights of the picture's parts from `weight`, each by its share of the change."""
    rows, columns = _PARTS
    height, width = change.shape[:2]

    def by_part(product: np.ndarray) -> np.ndarray:
        parts = product.reshape(rows, height // rows, columns, width // columns, 3)
        return parts.sum((1, 3, 4))  # [rows, columns]

    energies = by_part(change * change)
    deviations = by_part(step * change) - weight * energies
    spread = (deviations**2 / np.maximum(energies, 1e-6)).sum() / energies.sum()
    return math.sqrt(float(spread))


def _nearest(times_s: list[float], time_s: float) -> int:
    """Position of the time closest to `time_s`; the earlier one of two equally close."""
    after = bisect.bisect_left(times_s, time_s)
    if after in (0, len(times_s)):
        return min(after, len(times_s) - 1)
    return after - (time_s - times_s[after - 1] < times_s[after] - time_s + 1e-6)


class DissolveFinder:
    """Finds dissolves in frames that follow one another; remembers two seconds of small pictures."""

    def __init__(self) -> None:
        self._recent: deque[tuple[Frame, np.ndarray]] = deque()
        self._next_look_s = -math.inf
        self._found: list[Transition] = []

    def push(self, frame: Frame) -> None:
        """Takes the next frame, at 160x90 or so."""
        self._recent.append((frame, _thumb(frame.image)))
        now_s = frame.timestamp_s
        while len(self._recent) > _MIN_STEPS + 1 and self._recent[1][0].timestamp_s < now_s - WINDOWS_S[-1]:
            self._recent.popleft()
        if now_s < self._next_look_s:
            return
        self._next_look_s = now_s + _LOOK_EVERY_S
        times_s = [seen.timestamp_s for seen, _ in self._recent]
        for first_at in sorted({_nearest(times_s, now_s - w) for w in WINDOWS_S}, reverse=True):
            first_at = min(first_at, len(times_s) - 1 - _MIN_STEPS)
            if first_at >= 0 and (extent := self._extent(first_at, times_s)):
                self._add(extent)

    def finish(self) -> list[Transition]:
        """All dissolves seen so far, disjoint and in order."""
        return self._found

    def _extent(self, first_at: int, times_s: list[float]) -> Transition | None:
        """The dissolve from the frame `first_at` of the recent ones to the last, if they are one."""
        (first, thumb0), (last, thumb1) = self._recent[first_at], self._recent[-1]
        change = thumb1 - thumb0
        energy = float(np.vdot(change, change))
        if energy < _MIN_CHANGE**2 * change.size:
            return None
        steps, weights, residuals = [], [], []
        length_s = times_s[-1] - times_s[first_at]
        for quarter in (0.25, 0.5, 0.75):
            step = self._recent[_nearest(times_s, times_s[first_at] + quarter * length_s)][1] - thumb0
            weight = float(np.vdot(step, change)) / energy
            weights.append(weight)
            # Of the part that is no mixture: its energy by Pythagoras.
            residuals.append(float(np.vdot(step, step)) / energy - weight**2)
            steps.append(step)
        is_even = 0.05 < weights[0] < 0.5 and 0.3 < weights[1] < 0.7 and 0.5 < weights[2] < 0.95
        if not is_even or max(residuals) > _MAX_BLEND_RESIDUAL or _likeness(thumb0, thumb1) > _MAX_LIKENESS:
            return None
        spreads = (_pace_spread(step, change, weight) for step, weight in zip(steps, weights, strict=True))
        if max(spreads) > _MAX_PACE_SPREAD:
            return None
        middle_frame, middle = self._recent[_nearest(times_s, times_s[first_at] + 0.5 * length_s)]
        for end in (first, last):
            rest = _flow_warp(end.image, middle_frame.image) - middle
            if float((rest**2).sum()) / energy < _MIN_FLOW_OVER_BLEND * max(residuals):
                return None
        return self._ends_of_mixture(first_at, thumb0, change)

    def _ends_of_mixture(self, first_at: int, thumb0: np.ndarray, change: np.ndarray) -> Transition:
        """Frames with more than _EDGE_SHARE of both shots."""
        window = list(itertools.islice(self._recent, first_at, None))
        steps = np.stack([thumb for _, thumb in window]) - thumb0
        weights = np.tensordot(steps, change, axes=3) / np.vdot(change, change)  # [length + 1]
        middle = int(np.argmax(weights >= 0.5))
        begin = middle - int(np.argmax(weights[middle::-1] < _EDGE_SHARE)) + 1
        end = middle + int(np.argmax(weights[middle:] > 1 - _EDGE_SHARE))
        return Transition(first_idx=window[begin][0].index, next_idx=window[end][0].index)

    def _add(self, new: Transition) -> None:
        """Joins overlapping extents: each window sees its share of one dissolve."""
        while self._found and new.first_idx <= self._found[-1].next_idx:
            old = self._found.pop()
            first_idx, next_idx = min(old.first_idx, new.first_idx), max(old.next_idx, new.next_idx)
            new = Transition(first_idx=first_idx, next_idx=next_idx)
        self._found.append(new)
