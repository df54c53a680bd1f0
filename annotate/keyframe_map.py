"""The state of a map between the steps that grow, sharpen and read it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldline.annotate.camera import Intrinsics


@dataclass
class KeyframeMap:
    """The state of a map over K keyframes and N tracks; filled by the mapper."""

    cam_from_world: np.ndarray
    """[K, 3, 4], NaN where not posed."""
    points: np.ndarray
    """[N, 3], NaN where not triangulated."""
    width: int
    height: int
    focal_px: float
    centre_px: np.ndarray
    model: str
    distortion: np.ndarray
    kf_idx: np.ndarray
    """[M] keyframe of each observation."""
    track_idx: np.ndarray
    """[M]"""
    xy_px: np.ndarray
    """[M, 2]"""
    is_inlier: np.ndarray
    """[M] bool"""

    @property
    def is_posed(self) -> np.ndarray:
        """[K] bool"""
        return np.isfinite(self.cam_from_world[:, 0, 0])

    def intrinsics(self) -> Intrinsics:
        """The shared camera."""
        return Intrinsics(
            fxfycxcy_px=np.array([self.focal_px, self.focal_px, *self.centre_px]),
            width=self.width,
            height=self.height,
            model=self.model,
            distortion=tuple(float(k) for k in self.distortion) if self.model != "pinhole" else (),
        )
