"""Camera model: a pinhole keyframe map in, the map under the lens and the shutter that its residuals demand out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from worldline.annotate.bundle import adjust
from worldline.annotate.bundle_problem import Bundle, BundleConfig, scatter
from worldline.annotate.camera import rotation_from_rotvec
from worldline.annotate.keyframe_map import CameraFreedom
from worldline.annotate.lens_shift import corner_shift
from worldline.annotate.mapper import Mapper
from worldline.annotate.shutter import ShutterConfig, choose_readout, is_rolling
from worldline.annotate.threads import in_threads

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
    k1_sigma: float = 0.1
    """1-sigma of the k1 that every unknown lens is given: ordinary lenses bend a little, and held at zero the path
    takes it up."""
    k2_sigma: float = 0.05
    """The same of k2, where a finished map demands one."""
    min_k2_gain: float = 0.0015
    """Share of the robust cost by which a k2 must lower it: 0.2 % to 0.9 % on real clips whose lens has one, under 0.06 %
    on most rendered ones, which have none. docs/camera.md has a clip that shows the difference."""
    min_centre_gain: float = 0.0002
    """The same for a principal point off the image's centre, judged on the finished map. Rendered clips whose principal
    point is some px off gain 0.02 % to 40 %; on drives straight ahead and on real clips with it near the centre the cost rises
    by 0.1 % to 1 %."""
    centre_share: float = 0.006
    """1-sigma of the principal point around the image's centre, as a share of the width: real lenses and crops put it
    1 % off, and residuals that share their errors count for more than they know."""


def choose_camera(
    mapper: Mapper, velocity_px: np.ndarray, config: LensConfig, shutter: ShutterConfig
) -> bool:
    """Gives the map the camera that its residuals demand: model comparison, not habit. Unless the intrinsics are given
    that is a slightly bent lens (one parameter and the principal point, each under a prior) or, at a gain, a strong one
    (two parameters, radial or fisheye); in any case, at a gain, a rolling shutter.

    velocity_px: [M, 2] of the map's observations. Returns whether the distortion found is strong: more than
    `strong_share` of the image at its corners.
    """
    rows = mapper.longest_tracks(config.num_tracks)
    bundle, _ = mapper.bundle(rows)
    best = replace(bundle, sigma_px=scatter(bundle))
    size_px = (mapper.map.width, mapper.map.height)
    freedom = CameraFreedom(
        distortion_sigma=(config.k1_sigma, _HELD),
        centre_sigma_px=config.centre_share * size_px[0],
        centre_prior_px=(size_px[0] / 2, size_px[1] / 2),
    )
    mapped = best
    if not mapper.known_focal:
        best = replace(best, model="radial", distortion=np.zeros(2))
    settings = _settings(mapper, freedom)
    best = adjust(best, settings)
    if (rolling := choose_readout(best, velocity_px[rows], settings, size_px, shutter)) is not None:
        best, mapper.map.scan_axis = rolling
        freedom = replace(freedom, free_readout=True)
    if not mapper.known_focal:
        best, freedom = _bend(best, mapped, mapper, freedom, config)
        if freedom.free_readout and not is_rolling(best, _settings(mapper, freedom), shutter):
            freedom = replace(freedom, free_readout=False)
            best = adjust(replace(best, shutter_px=None, readout=0.0), _settings(mapper, freedom))
    if freedom.free_readout:
        mapper.map.velocity_px, mapper.map.readout = velocity_px, best.readout
    if not mapper.known_focal:
        mapper.map.model, mapper.map.distortion = best.model, best.distortion
        mapper.map.focal_px, mapper.map.centre_px = float(best.focal_px[0]), best.centre_px
    mapper.freedom = freedom
    mapper.adjust_all(max_iterations=4)
    mapper.drop_outliers()
    mapper.triangulate(np.flatnonzero(mapper.map.is_posed))
    return not mapper.known_focal and corner_shift(mapper.map.intrinsics()) > config.strong_share


def settle_lens(mapper: Mapper, config: LensConfig) -> None:
    """Gives a finished map's lens what its residuals demand: a second parameter to a slightly bent one, and the principal
    point off the image's centre, else put back there: a drive straight ahead takes it for a part of its heading.

    Outliers have a say, since the inliers are those of the map under the free principal point.
    """
    freedom = mapper.freedom
    prior_px = freedom.centre_prior_px
    if mapper.known_focal or prior_px is None:
        return
    bundle, (keyframes, tracks) = mapper.bundle(mapper.longest_tracks(config.num_tracks))
    bundle = replace(bundle, sigma_px=scatter(bundle))
    settings = mapper.camera_config(max_iterations=40, relative_tolerance=1e-5)
    best = adjust(bundle, settings)
    k1_sigma, k2_sigma = settings.distortion_sigma
    if k2_sigma == _HELD:
        settings_twice = replace(settings, distortion_sigma=(k1_sigma, config.k2_sigma))
        bent_twice = adjust(best, settings_twice)
        if bent_twice.cost < best.cost * (1 - config.min_k2_gain) and _is_monotonic(bent_twice):
            best, settings = bent_twice, settings_twice
            mapper.freedom = replace(mapper.freedom, distortion_sigma=settings.distortion_sigma)
    held = adjust(_recentred(best, np.array(prior_px)), replace(settings, centre_sigma_px=0.0))
    if best.cost >= held.cost * (1 - config.min_centre_gain):
        best = held
        mapper.freedom = replace(mapper.freedom, is_centre_held=True)
    if mapper.freedom is freedom:
        return
    mapper.take(best, keyframes, tracks)
    mapper.settle_points()


def _recentred(bundle: Bundle, centre_px: np.ndarray) -> Bundle:
    """The bundle with its principal point elsewhere and its cameras turned so that the middle of the image stays."""
    x, y = (bundle.centre_px - centre_px) / bundle.focal_px[0]
    turn = rotation_from_rotvec(np.array([-y, x, 0.0]))
    return replace(bundle, cam_from_world=turn @ bundle.cam_from_world, centre_px=centre_px)


def _bend(
    best: Bundle, mapped: Bundle, mapper: Mapper, freedom: CameraFreedom, config: LensConfig
) -> tuple[Bundle, CameraFreedom]:
    """A strong lens where it gains enough over the slightly bent one given. mapped: what the map was made with."""
    free = replace(freedom, distortion_sigma=(0.0, 0.0))
    # A fisheye with k1 = 1/3 is a pinhole to third order, so both start where the slight lens ended.
    fisheye = replace(best, model="fisheye", distortion=best.distortion + [1 / 3, 0.0])
    if mapped.model == "fisheye":
        fisheye = replace(mapped, shutter_px=best.shutter_px, readout=best.readout)
    strong = in_threads(partial(adjust, config=_settings(mapper, free)), (best, fisheye))
    bent = min((each for each in strong if _is_monotonic(each)), key=lambda each: each.cost, default=best)
    if bent.cost < best.cost * (1 - config.min_gain):
        return bent, free
    return best, freedom


def _settings(mapper: Mapper, freedom: CameraFreedom) -> BundleConfig:
    return BundleConfig(
        free_focal=not mapper.known_focal,
        free_distortion=not mapper.known_focal,
        max_iterations=30,
        relative_tolerance=2e-5,
        distortion_sigma=freedom.distortion_sigma,
        centre_sigma_px=0.0 if mapper.known_focal else freedom.centre_sigma_px,
        centre_prior_px=freedom.centre_prior_px,
        free_readout=freedom.free_readout,
        focal_prior_sigma=0.0 if mapper.known_focal else mapper.config.focal_prior_sigma,
        focal_prior_px=mapper.config.focal_prior * max(mapper.map.width, mapper.map.height),
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
