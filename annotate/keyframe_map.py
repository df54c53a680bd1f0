"""The state of a map between the steps that grow, sharpen and read it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldline.annotate.camera import Intrinsics


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraFreedom:
    """How far an unknown camera may leave the plain one (annotate/lens.py decides)."""

    centre_sigma_px: float = 0.0
    """1-sigma of the principal point around `centre_prior_px`; 0: held where it is."""
    centre_prior_px: tuple[float, float] | None = None
    is_centre_held: bool = False
    """Adjustments keep the principal point at its prior; the error bars know that it may be off all the same."""
    distortion_sigma: tuple[float, float] = (0.0, 0.0)
    """1-sigma of k1 and k2 around zero; 0: no prior."""
    free_readout: bool = False
    """The shutter rolls; also where the intrinsics were given."""
    zoom_step_sigma: float = 0.0
    """1-sigma of the change of log focal length between keyframes of a lens that zooms, of which the error bars know;
    0: a fixed lens."""


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
    velocity_px: np.ndarray | None = None
    """[M, 2] velocity of each observation, pixels a frame, where the shutter rolls (annotate/shutter.py)."""
    scan_axis: int = 1
    """Image axis along which the lines of a rolling shutter follow each other: 0 is x, 1 is y."""
    readout: float = 0.0
    """Time from the first to the last line, as a share of the frame interval; 0: a global shutter."""

    def shutter_px(self, rows: np.ndarray) -> np.ndarray | None:
        """[n, 2] displacement of some observations by a readout of 1; None: a global shutter."""
        if self.velocity_px is None:
            return None
        size_px = (self.width, self.height)
        return shutter_px(self.xy_px[rows], self.velocity_px[rows], size_px, self.scan_axis)

    def ideal_px(self, rows: np.ndarray) -> np.ndarray:
        """[n, 2] some observations as a global shutter would show them: where the map's points project to."""
        offset = self.shutter_px(rows)
        return self.xy_px[rows] if offset is None else self.xy_px[rows] - self.readout * offset

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


def shutter_px(xy_px: np.ndarray, velocity_px: np.ndarray, size_px: tuple[int, int], axis: int) -> np.ndarray:
    """Displacement [n, 2] of pixels xy_px [n, 2] with the given velocities under a rolling shutter whose readout takes
    one frame interval; lines follow each other along `axis` (0: x, 1: y)."""
    return (xy_px[:, axis] / size_px[axis] - 0.5)[:, None] * velocity_px
