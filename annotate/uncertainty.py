"""Error bars: an adjusted keyframe map in, 1-sigma of every frame's position and rotation out.

Keyframes carry the posterior covariance of the bundle adjustment; frames between them that of their
neighbours plus what their own observations leave. Gauge: first keyframe held, scale held by the rms distance
of the centres from it. Residuals of neighbouring frames share their errors (one template, one corner), so the
formal covariance is too small; `inflation` is the factor measured on rendered truth
(benchmarks/calibration.py draws the reliability plot).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldline.annotate.all_frames import FramePoses
from worldline.annotate.bundle import covariance
from worldline.annotate.mapper import Mapper
from worldline.annotate.tracks import Tracks


@dataclass(frozen=True, kw_only=True, slots=True)
class SigmaConfig:
    """Calibration of the error bars."""

    inflation: float = 1.7
    """True over formal standard deviation of a camera's position, measured on truth."""


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
        result = covariance(bundle, mapper.error_config())
    except np.linalg.LinAlgError:
        return FrameSigma(translation=unknown, rotation_rad=unknown.copy(), focal_px=float("nan"))
    diagonal = np.einsum("cii->ci", result.camera)
    kf_frames = np.array([kf.frame_idx for kf in tracks.keyframes])[keyframes]
    is_keyframe = np.isin(np.arange(num_frames), kf_frames)
    variance = np.stack(
        [
            np.interp(np.arange(num_frames), kf_frames, diagonal[:, 3:6].mean(axis=1)),
            np.interp(np.arange(num_frames), kf_frames, diagonal[:, 0:3].mean(axis=1)),
        ],
        axis=1,
    )
    variance += np.where(is_keyframe[:, None], 0.0, poses.own_variance)
    sigma = config.inflation * np.sqrt(variance)
    sigma[~np.isfinite(poses.cam_from_world[:, 0, 0])] = np.nan
    return FrameSigma(
        translation=sigma[:, 0],
        rotation_rad=sigma[:, 1],
        focal_px=0.0
        if mapper.known_focal
        else result.log_focal_sigma * mapper.map.focal_px * config.inflation,
    )
