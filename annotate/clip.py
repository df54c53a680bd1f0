"""One scene of one video in, its camera trajectory and scores out: the road through the annotator.

No Ray here: `annotate_clip` runs the whole CPU geometry of a clip inside one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldline.datasets.schema import ClipRejected

if TYPE_CHECKING:
    from worldline.annotate.scenes import Scene
    from worldline.annotate.video import VideoInfo


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig:
    """Geometry settings of one clip."""

    max_pixels: int = 500_000
    """Frames are scaled down to at most this many pixels before tracking; 640x480 and 960x540 stay as they are."""
    num_threads: int = 1
    """Threads of OpenCV and of linear algebra inside the call."""


def annotate_clip(info: VideoInfo, scene: Scene, config: ClipConfig, *, sidecar_path: Path | None = None) -> dict[str, Any]:
    """Annotates one scene.

    Returns the geometry and score columns of `datasets.schema.TRAJECTORIES` (no identity, outcome or version columns, which
    the caller knows); per-frame arrays as flat lists. Writes the sparse structure to `sidecar_path` where given. Equal
    inputs give equal results. Raises ClipRejected where the input cannot be annotated.
    """
    raise ClipRejected("geometry", "not built yet")
