"""Frames of one clip in, how the pictures look out: light, colour, sharpness, bars, blocks, quality.

Fed frame by frame beside tracking, so a clip is decoded once; a frame every quarter of a second is looked at, and
every second one of those for the dearer scores. docs/scores.md has every formula.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from worldline.filters.impairment import impairment, noise_level
from worldline.filters.piqe import piqe


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageConfig:
    """How often pictures are scored, and what counts as a bar or as clipped."""

    sample_gap_s: float = 0.25
    """Least time between scored frames in seconds: the scores of a clip hardly change within it. 0 scores
    all."""
    detail_gap_s: float = 1.0
    """The same for blur, blockiness, noise and PIQE, which cost some 12 ms a frame."""
    bar_luma: float = 24.0
    """A bar's row or column is darker than this on average: black of video range that was coded with noise."""
    bar_deviation: float = 6.0
    """... and spreads less than this: a night sky has a rim, a bar has none."""
    bar_share: float = 0.9
    """Share of the frames in which a row must look like a bar; those that are black all over do not count."""

    def __post_init__(self) -> None:
        if self.sample_gap_s < 0 or self.detail_gap_s < 0:
            raise ValueError(f"sample_gap_s {self.sample_gap_s} and detail_gap_s must be at least 0")
        if not 0 < self.bar_share <= 1:
            raise ValueError(f"bar_share {self.bar_share} must be in (0, 1]")


_LIGHT = ("luminance", "contrast", "saturation", "sharpness")
_CLIPPED = ("clipped_dark_share", "clipped_bright_share")
_BARS = ("letterbox_share", "pillarbox_share", "border_share")
_DETAIL = ("blur", "blockiness", "noise", "piqe")


class ImageScores:
    """Gathers picture scores of one clip's frames, added in order of time at the working size."""

    def __init__(
        self, config: ImageConfig | None = None, *, coded_size: tuple[int, int] | None = None
    ) -> None:
        """coded_size: (width, height) at which the frames were coded, whose 8-pixel grid blockiness looks for;
        None: as they come."""
        self._config, self._coded_size = config or ImageConfig(), coded_size
        self._next_s = self._next_detail_s = -np.inf
        self._rows: list[tuple[float, ...]] = []
        self._details: list[tuple[float, ...]] = []
        self._dark_rows: list[np.ndarray] = []
        self._dark_columns: list[np.ndarray] = []

    def add(self, image: np.ndarray, timestamp_s: float, luma: np.ndarray | None = None) -> None:
        """Takes the next frame, [H, W, 3] uint8 RGB; luma [H, W] where the caller has it."""
        if timestamp_s < self._next_s:
            return
        # Half a millisecond of slack, so that rounded container times do not skip every other sample.
        self._next_s = timestamp_s + self._config.sample_gap_s - 5e-4
        if luma is None:
            luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        mean, deviation = cv2.meanStdDev(luma)
        saturation = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))[1]
        _, edge_deviation = cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S))
        inside = self._without_bars(luma)
        histogram = cv2.calcHist([inside], [0], None, [256], [0, 256]).ravel()
        self._rows.append(
            (
                float(mean[0, 0]),
                float(deviation[0, 0]),
                saturation,
                float(edge_deviation[0, 0]) ** 2,
                float(histogram[:3].sum()) / inside.size,
                float(histogram[253:].sum()) / inside.size,
            )
        )
        if timestamp_s >= self._next_detail_s:
            self._next_detail_s = timestamp_s + self._config.detail_gap_s - 5e-4
            inside = np.ascontiguousarray(inside)
            blocks = blockiness(luma, self._coded_size)
            self._details.append((blur_effect(inside), blocks, noise_level(inside), piqe(inside)))

    def result(self) -> dict[str, float | None]:
        """The image columns of `datasets/schema.py`; None without a frame."""
        if not self._rows:
            return dict.fromkeys((*_LIGHT, *_CLIPPED, "clipped_share", *_BARS, *_DETAIL, "impairment"))
        columns = np.array(self._rows).T
        # One blurred or sharp frame in many says little: the median.
        light = (*columns[:3].mean(axis=1), np.median(columns[3]))
        scores = dict(zip(_LIGHT, map(float, light), strict=True))
        clipped = columns[4:].mean(axis=1)
        scores |= dict(zip(_CLIPPED, map(float, clipped), strict=True)) | {
            "clipped_share": float(clipped.sum())
        }
        found: dict[str, float | None] = {**scores, **self._bars()}
        for name, values in zip(_DETAIL, np.array(self._details).T, strict=True):
            known = values[np.isfinite(values)]
            found[name] = float(np.median(known)) if len(known) else None
        found["impairment"] = impairment(found["blur"], found["blockiness"], found["noise"])
        return found

    def _without_bars(self, luma: np.ndarray) -> np.ndarray:
        """The picture inside this frame's bars, which are noted; all of it where it is black all over."""
        dark_rows = _is_bar(luma, 1, self._config)
        if dark_rows.all():
            return luma
        top, bottom = _bar_ends(dark_rows)
        # Side bars are looked for between the upper and lower ones, which would hide nothing but widen nothing.
        dark_columns = _is_bar(luma[top : len(luma) - bottom], 0, self._config)
        self._dark_rows.append(dark_rows)
        self._dark_columns.append(dark_columns)
        left, right = _bar_ends(dark_columns)
        inside = luma[top : luma.shape[0] - bottom, left : luma.shape[1] - right]
        return inside if min(inside.shape) >= 32 else luma

    def _bars(self) -> dict[str, float | None]:
        if not self._dark_rows:
            return dict.fromkeys(_BARS)
        shares = []
        for seen in (self._dark_rows, self._dark_columns):
            stays = np.mean(seen, axis=0) >= self._config.bar_share
            shares.append(sum(_bar_ends(stays)) / len(stays))
        vertical, horizontal = shares
        border = 1 - (1 - vertical) * (1 - horizontal)
        return dict(zip(_BARS, (vertical, horizontal, border), strict=True))


def _is_bar(luma: np.ndarray, axis: int, config: ImageConfig) -> np.ndarray:
    """Rows (axis 1) or columns (axis 0) that are black and plain."""
    count = luma.shape[axis]
    total, squares = (
        cv2.reduce(values, axis, cv2.REDUCE_SUM, dtype=cv2.CV_64F).ravel()
        for values in (luma, np.square(luma, dtype=np.float32))
    )
    mean = total / count
    variance = np.maximum(squares / count - mean**2, 0)
    return (mean < config.bar_luma) & (variance < config.bar_deviation**2)


def _bar_ends(is_bar: np.ndarray) -> tuple[int, int]:
    """Lengths of the runs at both ends; (0, 0) where all of it is one run."""
    inside = np.flatnonzero(~is_bar)
    return (int(inside[0]), int(len(is_bar) - 1 - inside[-1])) if len(inside) else (0, 0)


def blur_effect(luma: np.ndarray) -> float:
    """Crete et al., "The blur effect", 2007: how little is lost when a picture [H, W] is blurred once more.

    0 sharp to 1 blurred, the larger of both directions; NaN for a plain picture, which has nothing to lose.
    """
    image = luma.astype(np.float32)
    worst = -np.inf
    for size, step in (((9, 1), (1, 0)), ((1, 9), (0, 1))):
        blurred = cv2.blur(image, size, borderType=cv2.BORDER_REFLECT)
        own = _steps(image, step)
        lost = np.maximum(own - _steps(blurred, step), 0)
        total = float(own.sum())
        if total > 0:
            worst = max(worst, (total - float(lost.sum())) / total)
    return worst if np.isfinite(worst) else float("nan")


def _steps(image: np.ndarray, step: tuple[int, int]) -> np.ndarray:
    """Absolute differences of neighbours along x (1, 0) or y (0, 1)."""
    dx, dy = step
    return cv2.absdiff(image[dy:, dx:], image[: len(image) - dy, : image.shape[1] - dx])


def blockiness(luma: np.ndarray, coded_size: tuple[int, int] | None = None) -> float:
    """Steps across the lines of the codec's 8-pixel grid over steps elsewhere; about 1 without blocks.

    Of the second difference along each direction, which a smooth slope leaves at 0. NaN where the picture was scaled
    down so far that grid lines are under 4 pixels apart, or where it is plain.
    """
    ratios = []
    for axis in (1, 0):
        length = luma.shape[axis]
        coded = coded_size[1 - axis] if coded_size else length
        period = 8 * length / coded
        if period < 4 or length < 4 * period:
            return float("nan")
        profile = _step_profile(luma, axis)  # [length - 1]: between pixels k and k + 1
        lines = np.arange(period, length - 2, period)
        on = np.interp(lines - 1, np.arange(len(profile)), profile)
        # Midway between lines, and a quarter to both sides of it.
        off = np.interp(
            np.concatenate([lines - 1 - period * share for share in (0.375, 0.5, 0.625)]),
            np.arange(len(profile)),
            profile,
        )
        if off.mean() <= 0:
            return float("nan") if on.mean() <= 0 else float("inf")
        ratios.append(on.mean() / off.mean())
    return float(np.mean(ratios))


def _step_profile(luma: np.ndarray, axis: int) -> np.ndarray:
    """Mean over the other axis of how much a step differs from the mean of its two neighbours."""
    image = luma.astype(np.int16)
    steps = np.diff(image, axis=axis)
    before, here, after = (
        np.take(steps, np.arange(first, steps.shape[axis] - 2 + first), axis=axis) for first in (0, 1, 2)
    )
    excess = np.abs(2 * here - before - after)
    profile = excess.mean(axis=1 - axis) / 2
    return np.concatenate([profile[:1], profile, profile[-1:]])
