"""Frames of one clip, each seen once, in; every score of the pictures out, by the columns they have in the table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from worldline.filters.content import ContentConfig, ContentScores
from worldline.filters.fingerprint import Fingerprint, FingerprintConfig
from worldline.filters.image import ImageConfig, ImageScores
from worldline.filters.motion import MotionConfig, MotionScores
from worldline.filters.overlay import OverlayConfig, OverlayScores
from worldline.filters.vmaf_motion import VmafMotionConfig, VmafMotionScores


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoresConfig:
    """Settings of the scores of one clip (docs/scores.md)."""

    image: ImageConfig = field(default_factory=ImageConfig)
    motion: MotionConfig = field(default_factory=MotionConfig)
    vmaf_motion: VmafMotionConfig = field(default_factory=VmafMotionConfig)
    overlay: OverlayConfig = field(default_factory=OverlayConfig)
    content: ContentConfig = field(default_factory=ContentConfig)
    fingerprint: FingerprintConfig = field(default_factory=FingerprintConfig)


class ClipScores:
    """Gathers all scores of one clip's frames, added in order of time at the working size."""

    def __init__(
        self, config: ScoresConfig | None = None, *, coded_size: tuple[int, int] | None = None
    ) -> None:
        """coded_size: (width, height) of the coded frames. Raises MissingBackend where one is asked for that is
        not installed."""
        config = config or ScoresConfig()
        self._vmaf_motion = VmafMotionScores(config.vmaf_motion)
        self._families = (
            ImageScores(config.image, coded_size=coded_size),
            MotionScores(config.motion),
            OverlayScores(config.overlay),
            ContentScores(config.content),
            Fingerprint(config.fingerprint),
        )

    def add(self, image: np.ndarray, timestamp_s: float) -> None:
        """Takes the next frame, [H, W, 3] uint8 RGB; all of one size."""
        luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        self._vmaf_motion.add(luma)
        for family in self._families:
            family.add(image, timestamp_s, luma)

    def result(self) -> dict[str, Any]:
        """Score columns of `datasets/schema.py`; None where a score is unknown."""
        found: dict[str, Any] = self._vmaf_motion.result()
        for family in self._families:
            found |= family.result()
        return found
