"""Lens model: a pinhole keyframe map in, the map under the lens that its residuals demand out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from worldline.annotate.bundle import adjust
from worldline.annotate.bundle_problem import Bundle, BundleConfig, reprojection_errors
from worldline.annotate.camera import Intrinsics, unproject
from worldline.annotate.mapping import Mapper


@dataclass(frozen=True, kw_only=True, slots=True)
class LensConfig:
    """When a distorted lens is believed."""

    num_tracks: int = 800
    """Longest tracks from which the lens model is chosen."""
    strong_share: float = 0.03
    """Shift of the corners, over the half diagonal, from which a clip is mapped again with its lens."""
    min_gain: float = 0.01
    """A distorted lens must lower the robust cost by this share."""


def choose_lens(mapper: Mapper, config: LensConfig) -> bool:
    """Tries radial and fisheye distortion and keeps what the residuals demand: model comparison, not habit.

    Returns whether the distortion found is strong: more than `strong_share` of the image at its corners.
    """
    rows = mapper.longest_tracks(config.num_tracks)
    bundle, _ = mapper.bundle(rows)
    error = reprojection_errors(bundle)
    bundle = replace(bundle, sigma_px=max(float(np.median(error)) / 1.18, 1e-3))
    plain_config = BundleConfig(
        free_focal=True,
        max_iterations=15,
        relative_tolerance=1e-4,
        centre_sigma_px=mapper.centre_sigma_px,
    )
    plain = adjust(bundle, plain_config)
    best = plain
    for model in ("radial", "fisheye"):
        # A fisheye with k1 = 1/3 is a pinhole to third order, so both start where the pinhole ended.
        start = replace(plain, model=model, distortion=np.array([0.0 if model == "radial" else 1 / 3, 0.0]))
        bent_config = replace(plain_config, free_distortion=True, max_iterations=20)
        bent = adjust(start, bent_config)
        if bent.cost < best.cost * (1 - config.min_gain) and _is_monotonic(bent):
            best = bent
    mapper.map.model, mapper.map.distortion = best.model, best.distortion
    mapper.map.focal_px, mapper.map.centre_px = float(best.focal_px[0]), best.centre_px
    if best.model == "pinhole":
        return False
    mapper.adjust_all(max_iterations=4)
    mapper.drop_outliers()
    mapper.triangulate(np.flatnonzero(mapper.map.is_posed))
    return _corner_shift(mapper.map.intrinsics()) > config.strong_share


def _corner_shift(intrinsics: Intrinsics) -> float:
    """How far the lens moves a corner from where a pinhole of the same focal length has it, over the half
    diagonal; infinite where no pinhole sees that far."""
    corner = np.zeros((1, 2))
    ray = unproject(corner, intrinsics)[0]
    if not ray[2] > 0.05:
        return float("inf")
    pinhole = intrinsics.fxfycxcy_px[:2] * ray[:2] / ray[2] + intrinsics.fxfycxcy_px[2:]
    return float(np.linalg.norm(pinhole) / np.linalg.norm(intrinsics.fxfycxcy_px[2:]))


def _is_monotonic(bundle: Bundle) -> bool:
    """Whether the lens maps larger angles to larger radii over the whole image."""
    corner = float(np.linalg.norm(bundle.centre_px)) / float(bundle.focal_px[0])
    k1, k2 = bundle.distortion
    reach = np.linspace(0, 1.6 * corner if bundle.model == "radial" else min(1.6 * corner, np.pi), 60)
    image = reach * (1 + reach**2 * (k1 + k2 * reach**2))
    rising = np.diff(image) > 0
    stop = len(rising) if rising.all() else int(np.argmin(rising))
    return bool(image[stop] >= corner)
