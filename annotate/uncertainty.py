"""Error bars: an adjusted keyframe map in, 1-sigma of every frame's position and rotation out.

Keyframes carry the posterior covariance of the bundle adjustment; frames between them that of their
neighbours plus what their own observations leave. Gauge: first keyframe held, scale held by the rms distance
of the centres from it. Observations share errors (compression moves whole regions of a frame, a lens bends as no
model does), so the formal covariance is too small. How far they do shows in each clip's residuals
(annotate/bundle_covariance.py); how much more of it the poses have taken up was measured on rendered truth
(benchmarks/calibration.py draws the reliability plot).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldline.annotate.all_frames import FramePoses
from worldline.annotate.bundle_covariance import covariance
from worldline.annotate.mapper import Mapper
from worldline.annotate.tracks import Tracks


@dataclass(frozen=True, kw_only=True, slots=True)
class SigmaConfig:
    """Calibration of the error bars."""

    inflation: float = 1.18
    """True over formal standard deviation of a camera's position where residuals are independent."""
    independent: float = 0.6
    """Togetherness of residuals that are independent: below 1, since the fit has taken up a part of them."""
    independent_in_image: float = 0.65
    """The same of residuals whose place in the image tells nothing of them. Rendered clips, whose lens is the model's,
    have a median of 0.76 where togetherness has 0.75; real ones 0.95 to 1.6, at 0.6 to 0.9."""
    power: float = 2.0
    """Of the togetherness in the inflation: what is shared over more than a part of a frame is taken up by the poses
    and seen only in its finer parts."""

    def factor(self, togetherness: float, standing: float) -> float:
        """By which the formal sigmas of a clip are multiplied (annotate/bundle_covariance.py)."""
        shared = max(togetherness / self.independent, standing / self.independent_in_image, 1.0)
        return self.inflation * shared**self.power


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSigma:
    """1-sigma per frame and axis (rms of the three), NaN where the frame has no pose."""

    translation: np.ndarray
    """[T] of the camera centre, in the unit of the reconstruction."""
    rotation_rad: np.ndarray
    """[T]"""
    focal_px: float
    """Of the shared focal length; 0 where it was given."""


def frame_sigmas(tracks: Tracks, mapper: Mapper, poses: FramePoses, config: SigmaConfig) -> FrameSigma:
    """Error bars of all frames; all NaN where the adjustment leaves the poses undetermined."""
    bundle, keyframes = mapper.adjusted_bundle()
    num_frames = tracks.num_frames
    unknown = np.full(num_frames, np.nan)
    try:
        result = covariance(
            bundle,
            mapper.error_config(),
            is_centre_held=mapper.is_centre_held,
            is_focal_held=mapper.known_focal,
        )
    except np.linalg.LinAlgError:
        return FrameSigma(translation=unknown, rotation_rad=unknown.copy(), focal_px=float("nan"))
    kf_frames = np.array([kf.frame_idx for kf in tracks.keyframes])[keyframes]
    is_keyframe = np.isin(np.arange(num_frames), kf_frames)
    variance = _between(result.camera, kf_frames, num_frames)
    variance += np.where(is_keyframe[:, None], 0.0, poses.own_variance)
    factor = config.factor(result.togetherness, result.standing)
    sigma = np.sqrt(factor**2 * variance + _between(result.held_lens, kf_frames, num_frames))
    sigma[~np.isfinite(poses.cam_from_world[:, 0, 0])] = np.nan
    return FrameSigma(
        translation=sigma[:, 0],
        rotation_rad=sigma[:, 1],
        focal_px=0.0 if mapper.known_focal else result.log_focal_sigma * mapper.map.focal_px * factor,
    )


def _between(covariance: np.ndarray, kf_frames: np.ndarray, num_frames: int) -> np.ndarray:
    """[T, 2] variance per axis of (centre, rotation) from the keyframes' [K, 6, 6]."""
    diagonal = np.einsum("cii->ci", covariance)
    frames = np.arange(num_frames)
    return np.stack(
        [
            np.interp(frames, kf_frames, diagonal[:, 3:6].mean(axis=1)),
            np.interp(frames, kf_frames, diagonal[:, 0:3].mean(axis=1)),
        ],
        axis=1,
    )
