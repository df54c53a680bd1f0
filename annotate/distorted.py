"""Distorted: a finished map in, whether its images contradict the lens that it was made with.

Unknown lenses are modelled (annotate/lens.py); what is left is a given lens that is not the video's, and pictures so
strongly warped that no lens of ours describes them. Both bend the path, so the clip is labelled. Pictures stretched by
a tenth pass: structure takes most of it up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from worldline.annotate.bundle import adjust
from worldline.annotate.bundle_problem import Bundle, BundleConfig, linearise, part_of_image, scatter
from worldline.annotate.mapper import Mapper

_CELLS = (8, 6)
"""Parts of the image, across and down, whose mean residuals are looked at."""
_MIN_OBSERVATIONS = 40
"""Fewest observations of a part that counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistortedConfig:
    """When images contradict a lens."""

    num_tracks: int = 400
    """Longest tracks that are asked about a given lens."""
    min_gain: float = 0.03
    """A free distortion must lower the robust cost under given intrinsics by this share: true ones gain under 0.1 %,
    pinholes given for lenses that bend 24 % to 80 %."""
    min_pattern: float = 0.35
    """Residuals that depend on the place in the image (rms over its parts), over their scatter: 0.06 to 0.2 on real and
    rendered clips, 0.6 where the picture was stretched by a fifth."""


def is_distorted(mapper: Mapper, config: DistortedConfig) -> bool:
    """Whether a lens that was given gains from bending, or the residuals show a pattern that stands in the image."""
    if pattern(mapper.bundle(mapper.rows())[0], (mapper.map.width, mapper.map.height)) > config.min_pattern:
        return True
    return mapper.known_focal and gain_from_bending(mapper, config) > config.min_gain


def pattern(bundle: Bundle, size_px: tuple[int, int]) -> float:
    """The robust mean residual of each part of the image, rms over the parts, over the residuals' scatter."""
    residual = linearise(bundle, BundleConfig(free_poses=False, free_points=False))["residual"]
    valid = np.isfinite(residual[:, 0])
    sigma_px = scatter(bundle)
    weight = 1 / (1 + np.sum((residual[valid] / (2 * sigma_px)) ** 2, axis=1))
    at = part_of_image(bundle.xy_px[valid], size_px, _CELLS)
    num_cells = _CELLS[0] * _CELLS[1]
    total = np.maximum(np.bincount(at, weight, minlength=num_cells), 1e-9)
    of_axis = [np.bincount(at, weight * residual[valid, k], minlength=num_cells) / total for k in (0, 1)]
    is_seen = np.bincount(at, minlength=num_cells) >= _MIN_OBSERVATIONS
    if not is_seen.any():
        return 0.0
    return float(np.sqrt(np.mean(np.sum(np.square(of_axis), axis=0)[is_seen]))) / sigma_px


def gain_from_bending(mapper: Mapper, config: DistortedConfig) -> float:
    """The share by which the robust cost falls when a given lens may bend as it likes."""
    bundle, _ = mapper.bundle(mapper.longest_tracks(config.num_tracks))
    settings = mapper.camera_config(max_iterations=20, relative_tolerance=1e-4)
    held = adjust(replace(bundle, sigma_px=scatter(bundle)), settings)
    model = "radial" if held.model == "pinhole" else held.model
    bent = adjust(replace(held, model=model), replace(settings, free_distortion=True))
    return 1 - bent.cost / held.cost
