"""Stated error bars and true errors of one camera path in, coverage out: how often the error bars hold.

Which errors belong to `sigma_translation`? It is the spread of a camera centre in the gauge of the bundle
adjustment: the first registered camera is held, and so is the one scale a video does not know (the rms
distance of the centres from the first). Errors are therefore taken in that gauge: the first camera is laid on
its true pose, rotation included, and the scale is fitted, which to first order holds the same rms distance.
An alignment over all frames (Umeyama) would spread the error over the path, make it smaller than the sigma
that is tested, and let error bars that are too small pass; a test shows it.

There is a catch: a true path often belongs to another camera frame than the video's, one turned by a constant
small angle (a depth camera beside the colour camera, a principal point ten pixels off the assumed centre).
Held to the first camera, that angle times the distance travelled counts as error, though no frame moved
wrongly. So the rotation about the first centre can be fitted as well. The sigmas do not speak of that gauge:
it takes away error that they contain, so true sigmas cover more than they claim there. It is an upper bound:
sigmas that fall short even so are too small, whatever camera the truth belongs to.

A frame is covered at k sigma when the length of its error is under q_k sigma, where q_1 = 1.878 and q_2 =
2.833 are the lengths that hold 68.27 % and 95.45 % of an isotropic Gaussian in space whose sigma per axis is
1. Of a Gaussian on a line with the same rms these lengths hold 72 % and 90 %, in a plane 69 % and 93 %.
Frames of one clip drift together, so the coverage of one clip is one throw of the dice, whatever its number
of frames: pool many clips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldline.annotate.camera import compose, invert
from worldline.evaluate.trajectory import mean_rotation

LENGTH_OF_1_SIGMA, LENGTH_OF_2_SIGMA = 1.87796, 2.83282
"""Lengths of a standard Gaussian vector of three components that hold 68.27 % and 95.45 % of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """How often a path's error bars hold; shares are NaN where no frame has an error bar."""

    num_frames: int
    """Frames that count: paired with the truth, sigma known and above zero."""
    share_1_sigma: float
    """Share of frames within 1 sigma; 0.683 when the error bars are true."""
    share_2_sigma: float
    """Share within 2 sigma; 0.954 when true."""
    scale_ratio: float
    """Estimated over true length that was taken out; 1 where the stated scale was kept."""
    error: np.ndarray
    """[num_frames] length of the error in the gauge of the first frame, in true units."""
    sigma: np.ndarray
    """[num_frames] sigma per axis it was held against, in true units."""


def coverage(
    world_from_cam: np.ndarray,
    true_world_from_cam: np.ndarray,
    sigma_translation: np.ndarray,
    *,
    scale_sigma: float | None = None,
    fit_rotation: bool = False,
) -> Coverage:
    """Coverage of N paired poses [N, 3, 4], the first being the gauge frame, by sigma_translation [N].

    `fit_rotation` fits the rotation about the first centre instead of taking the first camera's. Without
    `scale_sigma` the scale is fitted and the shape alone is tested. With it (relative 1-sigma) the stated
    scale is kept, and its uncertainty, which acts along the line to the first camera, joins the sigma. NaN
    sigmas are left out. Raises ValueError for unequal lengths.
    """
    counts = len(world_from_cam), len(true_world_from_cam), len(sigma_translation)
    if not counts[0] == counts[1] == counts[2] > 0:
        raise ValueError(f"coverage: {counts[0]} poses, {counts[1]} true ones, {counts[2]} sigmas")
    position = compose(invert(world_from_cam[:1]), world_from_cam)[:, :, 3]
    true_position = compose(invert(true_world_from_cam[:1]), true_world_from_cam)[:, :, 3]
    if fit_rotation:
        position = position @ mean_rotation((true_position.T @ position)[None]).T
    sigma, scale = np.asarray(sigma_translation, dtype=np.float64), 1.0
    if scale_sigma is not None:
        along = scale_sigma * np.linalg.norm(position, axis=-1)
        sigma = np.sqrt(sigma**2 + along**2 / 3)
    elif np.any(position):
        scale = float(np.sum(position * true_position) / np.sum(position * position))
        sigma = abs(scale) * sigma
    has_bar = np.isfinite(sigma) & (sigma > 0)
    error = np.linalg.norm(scale * position - true_position, axis=-1)[has_bar]
    sigma = sigma[has_bar]
    return Coverage(
        num_frames=len(error),
        share_1_sigma=float(np.mean(error < LENGTH_OF_1_SIGMA * sigma)) if len(error) else float("nan"),
        share_2_sigma=float(np.mean(error < LENGTH_OF_2_SIGMA * sigma)) if len(error) else float("nan"),
        scale_ratio=1 / scale if scale else float("nan"),
        error=error,
        sigma=sigma,
    )
