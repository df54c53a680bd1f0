"""Depth maps and a reconstruction in, depth at each of its observations with a sigma out: what a bundle
adjustment can use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from worldline.annotate.depth import DepthMap
from worldline.annotate.reconstruction import Reconstruction


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthSamplesConfig:
    """How depth is read off and how far it is trusted."""

    sigma_log: float = 0.1
    """1-sigma of the log depth of a fully confident pixel once its frame's common scale is taken out;
    networks err by about 5-10 % within a frame."""
    edge_ratio: float = 1.08
    """Unknown where the depths around the pixel differ by more than this factor: the observation may lie on
    either side."""

    def __post_init__(self) -> None:
        if self.sigma_log <= 0 or self.edge_ratio <= 1:
            raise ValueError(
                f"need sigma_log > 0 and edge_ratio > 1, got {self.sigma_log}, {self.edge_ratio}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthSamples:
    """Depth at a reconstruction's M observations, in its order."""

    z: np.ndarray
    """[M] along the camera's z axis, in the maps' unit; NaN where unknown, without a map or at a depth
    edge."""
    sigma_log: np.ndarray
    """[M] 1-sigma of log z; NaN where z is."""


def sample_depth(
    maps: Iterable[DepthMap], reconstruction: Reconstruction, config: DepthSamplesConfig | None = None
) -> DepthSamples:
    """Reads each map, bilinear in inverse depth, at the pixels of its frame's observations.

    Inverse depth is what a plane interpolates linearly in an image. The sigma grows as confidence falls (by
    its square root) and with the spread of depth around the pixel.
    """
    config = config or DepthSamplesConfig()
    z = np.full(len(reconstruction.frame_idx), np.nan)
    sigma_log = np.full_like(z, np.nan)
    for one in maps:
        rows = np.nonzero(reconstruction.frame_idx == one.frame_idx)[0]
        size = np.array([reconstruction.intrinsics.width, reconstruction.intrinsics.height])
        pixels = reconstruction.xy_px[rows].astype(np.float64) * (np.array(one.z.shape[::-1]) / size)
        z[rows], sigma_log[rows] = _read(one, pixels, config)
    return DepthSamples(z=z, sigma_log=sigma_log)


def _read(one: DepthMap, pixels: np.ndarray, config: DepthSamplesConfig) -> tuple[np.ndarray, np.ndarray]:
    """(z [N], sigma of log z [N]) at pixels [N, 2] of the map."""
    height, width = one.z.shape
    is_inside = np.all((pixels >= 0) & (pixels <= [width, height]), axis=1)
    # A pixel's value stands at its centre, half a pixel in from its corner.
    at = np.clip(np.where(is_inside[:, None], pixels, 0.5) - 0.5, 0, [width - 1, height - 1])
    left_top = np.minimum(at.astype(np.int64), [max(0, width - 2), max(0, height - 2)])
    share = at - left_top
    column = left_top[:, :1] + np.minimum([0, 1, 0, 1], width - 1)  # [N, 4]
    row = left_top[:, 1:] + np.minimum([0, 0, 1, 1], height - 1)
    weight = np.stack([1 - share[:, 0], share[:, 0]], axis=1)[:, [0, 1, 0, 1]]
    weight = weight * np.stack([1 - share[:, 1], share[:, 1]], axis=1)[:, [0, 0, 1, 1]]
    around = one.z[row, column].astype(np.float64)
    confidence = (one.confidence[row, column] * weight).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        z = 1 / (weight / around).sum(axis=1)
        log_range = np.log(around.max(axis=1) / around.min(axis=1))
        is_good = is_inside & np.isfinite(z) & (log_range < np.log(config.edge_ratio)) & (confidence > 0)
        sigma = np.hypot(config.sigma_log / np.sqrt(np.maximum(confidence, 1e-6)), 0.5 * log_range)
    return np.where(is_good, z, np.nan), np.where(is_good, sigma, np.nan)
