"""ORB (Rublee et al., 2011) at the tracked points: mutually nearest descriptors within a distance. No weights."""

from __future__ import annotations

import cv2
import numpy as np

from worldline.annotate.features import FeaturesConfig, Matches, View


class OrbFeatures:
    """`orb` of annotate/features.py."""

    is_on_tracks = True

    def __init__(self, config: FeaturesConfig) -> None:
        self.max_distance = config.max_distance
        self.matcher = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True)

    def describe(self, view: View) -> View:
        return view

    def match(self, a: View, b: View) -> Matches:
        pairs = self.matcher.match(a.descriptors, b.descriptors) if len(a.xy_px) and len(b.xy_px) else ()
        pairs = [pair for pair in pairs if pair.distance <= self.max_distance]
        a_idx = np.array([pair.queryIdx for pair in pairs], dtype=int)
        b_idx = np.array([pair.trainIdx for pair in pairs], dtype=int)
        distance = np.array([pair.distance for pair in pairs], dtype=np.float64)
        return Matches(
            a_idx=a_idx,
            b_idx=b_idx,
            xy_a_px=a.xy_px[a_idx],
            xy_b_px=b.xy_px[b_idx],
            confidence=np.clip(1 - distance / 128, 0, 1),
        )
