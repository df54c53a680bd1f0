"""Lens model: a pinhole keyframe map in, the map under the lens that its residuals demand out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from worldline.annotate.bundle import adjust
from worldline.annotate.bundle_problem import Bundle, BundleConfig, reprojection_errors
from worldline.annotate.lens_shift import corner_shift
from worldline.annotate.mapper import CameraFreedom, Mapper

_HELD = 1e-4
"""1-sigma of a distortion parameter that is as good as held at zero."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LensConfig:
    """When a distorted lens is believed."""

    num_tracks: int = 800
    """Longest tracks from which the lens model is chosen."""
    strong_share: float = 0.03
    """Shift of the corners, over the half diagonal, from which a clip is mapped again with its lens."""
    min_gain: float = 0.03
    """A stronger lens must lower the robust cost by this share. What rolling shutters, parked cars and soft patches
    gain by bending the lens stays below."""
    min_centre_gain: float = 0.006
    """The same for a principal point off the centre, which shows less."""
    k1_sigma: float = 0.1
    """1-sigma of the k1 that every unknown lens is given: ordinary lenses bend a little, and held at zero the path
    takes it up."""
    centre_share: float = 0.01
    """1-sigma of a principal point that is freed, as a share of the width."""


def choose_lens(mapper: Mapper, config: LensConfig) -> bool:
    """Gives the map a slightly bent lens (one parameter under a prior) and, where the residuals demand it, a strong
    one (two parameters, radial or fisheye) or a free principal point: model comparison, not habit.

    Returns whether the distortion found is strong: more than `strong_share` of the image at its corners.
    """
    rows = mapper.longest_tracks(config.num_tracks)
    bundle, _ = mapper.bundle(rows)
    error = reprojection_errors(bundle)
    bundle = replace(bundle, sigma_px=max(float(np.median(error)) / 1.18, 1e-3))
    slight = CameraFreedom(distortion_sigma=(config.k1_sigma, _HELD))
    start = replace(bundle, model="radial", distortion=np.zeros(2))
    best, freedom = adjust(start, _settings(slight)), slight
    strong = []
    for model in ("radial", "fisheye"):
        # A fisheye with k1 = 1/3 is a pinhole to third order, so both start where the slight lens ended.
        distortion = best.distortion if model == "radial" else best.distortion + [1 / 3, 0.0]
        strong.append(adjust(replace(best, model=model, distortion=distortion), _settings(CameraFreedom())))
    bent = min((each for each in strong if _is_monotonic(each)), key=lambda each: each.cost, default=best)
    if bent.cost < best.cost * (1 - config.min_gain):
        best, freedom = bent, CameraFreedom()
    aside = replace(freedom, centre_sigma_px=config.centre_share * mapper.map.width)
    shifted = adjust(best, _settings(aside))
    if shifted.cost < best.cost * (1 - config.min_centre_gain) and _is_monotonic(shifted):
        best, freedom = shifted, aside
    mapper.freedom = freedom
    mapper.map.model, mapper.map.distortion = best.model, best.distortion
    mapper.map.focal_px, mapper.map.centre_px = float(best.focal_px[0]), best.centre_px
    mapper.adjust_all(max_iterations=4)
    mapper.drop_outliers()
    mapper.triangulate(np.flatnonzero(mapper.map.is_posed))
    return corner_shift(mapper.map.intrinsics()) > config.strong_share


def _settings(freedom: CameraFreedom) -> BundleConfig:
    return BundleConfig(
        free_focal=True,
        free_distortion=True,
        max_iterations=30,
        relative_tolerance=2e-5,
        distortion_sigma=freedom.distortion_sigma,
        centre_sigma_px=freedom.centre_sigma_px,
    )


def _is_monotonic(bundle: Bundle) -> bool:
    """Whether the lens maps larger angles to larger radii over the whole image."""
    corner = float(np.linalg.norm(bundle.centre_px)) / float(bundle.focal_px[0])
    k1, k2 = bundle.distortion
    reach = np.linspace(0, 1.6 * corner if bundle.model == "radial" else min(1.6 * corner, np.pi), 60)
    image = reach * (1 + reach**2 * (k1 + k2 * reach**2))
    rising = np.diff(image) > 0
    stop = len(rising) if rising.all() else int(np.argmin(rising))
    return bool(image[stop] >= corner)
