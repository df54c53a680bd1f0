"""Frames of one clip in, what tells its copies out: a digest of the pixels and perceptual hashes over time.

The digest is equal for copies whose pixels are (another container, another name), as long as the same decoder reads
them: decord and PyAV scale a little differently, and then the hashes alone tell. Those (Zauner 2010: the
signs of a picture's lowest frequencies) change by a few bits under another codec, size or frame rate; each look has
one of the whole picture and two of its middle, so that a cropped copy meets the hash of the part it kept. Black bars
are cut off first.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

CROPS = (1.0, 0.9, 0.8)
"""Shares of the sides, about the middle, that are hashed: one hash each, in this order."""

FLAT = 0
"""Hash of a picture with nothing in it: equal to no other."""

_SIDE_PX = 32
_MIN_DEVIATION = 4.0
_BAR_LUMA = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FingerprintConfig:
    """How often a clip is looked at."""

    look_gap_s: float = 0.5
    """Time between looks in seconds, counted from the clip's first frame: 1.4 kB for a minute."""

    def __post_init__(self) -> None:
        if self.look_gap_s <= 0:
            raise ValueError(f"look_gap_s {self.look_gap_s} must be positive")


class Fingerprint:
    """Gathers the fingerprint of one clip's frames, added in order of time."""

    def __init__(self, config: FingerprintConfig | None = None) -> None:
        self._config = config or FingerprintConfig()
        self._next_s = -math.inf
        self._digest = hashlib.blake2b(digest_size=16)
        self._hashes: list[int] = []

    def add(self, image: np.ndarray, timestamp_s: float, luma: np.ndarray | None = None) -> None:
        """Takes the next frame, [H, W, 3] uint8 RGB; luma [H, W] where the caller has it."""
        # Half a frame of 60 Hz of slack: the nearest frame to the grid of times, whatever the rate.
        if timestamp_s < self._next_s - 8e-3:
            return
        # On a grid, not from the last look on: rounding must not add up, or copies of another rate drift apart.
        if self._next_s == -math.inf:
            self._next_s = timestamp_s
        while self._next_s <= timestamp_s + 8e-3:
            self._next_s += self._config.look_gap_s
        if luma is None:
            luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        self._digest.update(np.ascontiguousarray(luma).data)
        self._hashes += picture_hashes(luma)

    def result(self) -> dict[str, Any]:
        """The columns pixels_hash and fingerprint; None without a frame."""
        if not self._hashes:
            return {"pixels_hash": None, "fingerprint": None}
        return {"pixels_hash": self._digest.hexdigest(), "fingerprint": list(self._hashes)}


def picture_hashes(luma: np.ndarray) -> list[int]:
    """One signed 64-bit hash for each of CROPS of a picture [H, W] uint8; FLAT where it is too plain to tell."""
    luma = _without_bars(luma)
    height, width = luma.shape
    found = []
    for share in CROPS:
        dx, dy = round(width * (1 - share) / 2), round(height * (1 - share) / 2)
        found.append(_hash(luma[dy : height - dy, dx : width - dx]))
    return found


def _hash(luma: np.ndarray) -> int:
    small = cv2.resize(luma, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    if small.std() < _MIN_DEVIATION:
        return FLAT
    low = cv2.dct(small)[:9, :9]
    # 64 of the 80 frequencies without the mean: the lowest, whose signs noise changes least.
    values = low.ravel()[_ORDER]
    bits = np.packbits(values > np.median(values))
    return int(bits.view(">i8")[0])


_GRID = np.add.outer(np.arange(9), np.arange(9)).ravel()
_ORDER = np.argsort(_GRID, kind="stable")[1:65]


def _without_bars(luma: np.ndarray) -> np.ndarray:
    """The picture inside its black bars; all of it where little would be left."""
    bounds = []
    for axis in (1, 0):
        mean = cv2.reduce(luma, axis, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel()
        is_bright, length = np.flatnonzero(mean > _BAR_LUMA), len(mean)
        bounds += [int(is_bright[0]), int(is_bright[-1]) + 1] if len(is_bright) else [0, length]
    top, bottom, left, right = bounds
    if bottom - top < 0.4 * luma.shape[0] or right - left < 0.4 * luma.shape[1]:
        return luma
    return luma[top:bottom, left:right]
