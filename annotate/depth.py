"""Frames of one clip in, depth along the camera's z axis out, from any of several estimators.

The embedded default (`plane_sweep`) needs no weights: it matches the clip's own posed frames, so its unit is
the trajectory's unit, metres exactly when the trajectory is metric. The networks guess metres from the look
of single frames; each stands in a file of its own and is imported when asked for. docs/depth.md compares
them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

import numpy as np

from worldline.annotate.backends import load_backend
from worldline.annotate.camera import Intrinsics
from worldline.annotate.plane_sweep import PlaneSweepConfig
from worldline.annotate.reconstruction import Reconstruction

BACKENDS = {
    "plane_sweep": "worldline.annotate.backends.plane_sweep_depth:PlaneSweepDepth",
    "depth_pro": "worldline.annotate.backends.depth_pro_depth:DepthProDepth",
    "depth_anything_v2_metric": "worldline.annotate.backends.depth_anything_v2_depth:DepthAnythingV2Depth",
    "zoedepth": "worldline.annotate.backends.zoedepth_depth:ZoeDepthDepth",
    "moge2": "worldline.annotate.backends.moge2_depth:Moge2Depth",
    "pi3x_moge2": "worldline.annotate.backends.pi3x_moge2_depth:Pi3xMoge2Depth",
    "depth_anything_3": "worldline.annotate.backends.depth_anything_3_depth:DepthAnything3Depth",
    "vipe": "worldline.annotate.backends.vipe_depth:VipeDepth",
}

HOW_TO_INSTALL = {
    "depth_pro": "pip install 'worldline[depth]'",
    "depth_anything_v2_metric": "pip install 'worldline[depth]'",
    "zoedepth": "pip install 'worldline[depth]'",
    "moge2": "pip install 'worldline[depth]' git+https://github.com/microsoft/MoGe (not on PyPI)",
    "pi3x_moge2": "pip install 'worldline[depth]' git+https://github.com/microsoft/MoGe and put a clone of "
    "https://github.com/yyfz/Pi3 on PYTHONPATH (neither is on PyPI)",
    "depth_anything_3": "pip install 'worldline[depth]' and pip install --no-deps depth-anything-3 "
    "(it asks for numpy<2, see docs/depth.md)",
    "vipe": "pip install 'worldline[vipe]'",
}

NO_DEPTH = "none"
"""The name of no estimator at all."""


class DepthKind(StrEnum):
    """What the numbers of a depth map mean."""

    METRIC = "metric"
    """Metres, as the estimator believes."""
    TRAJECTORY = "trajectory"
    """The unit of the clip's camera trajectory: metres exactly when that is metric."""
    UP_TO_SCALE = "up_to_scale"
    """Correct up to one positive factor per frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthMap:
    """Depth of one frame, at a size of the estimator's choice, covering the whole frame."""

    frame_idx: int
    z: np.ndarray
    """[H, W] float32, distance along the camera's z axis in the unit of `kind`; NaN where unknown."""
    confidence: np.ndarray
    """[H, W] float32 in [0, 1], 0 exactly where z is NaN; comparable within one backend only."""
    kind: DepthKind
    intrinsics: Intrinsics | None
    """fxfycxcy_px [4] at the map's size: as given, else as the estimator found; None: it does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Depth:
    """Depth of several frames of one clip, stacked."""

    frame_idx: np.ndarray
    """[T] int32, increasing."""
    z: np.ndarray
    """[T, H, W] float32, NaN where unknown."""
    confidence: np.ndarray
    """[T, H, W] float32 in [0, 1], 0 exactly where z is NaN."""
    kind: DepthKind
    intrinsics: Intrinsics | None
    """fxfycxcy_px [T, 4] at the maps' size, or None."""

    def maps(self) -> Iterator[DepthMap]:
        """The stack map by map."""
        for k, index in enumerate(self.frame_idx):
            camera = self.intrinsics
            yield DepthMap(
                frame_idx=int(index),
                z=self.z[k],
                confidence=self.confidence[k],
                kind=self.kind,
                intrinsics=None if camera is None else replace(camera, fxfycxcy_px=camera.fxfycxcy_px[k]),
            )


class FrameSource(Protocol):
    """Frames of a clip by index: an array [T, H, W, 3], a list, or a reader that decodes on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, frame_idx: int, /) -> np.ndarray:
        """[H, W, 3] uint8 RGB."""
        ...


class DepthBackend(Protocol):
    """An estimator, built from a DepthConfig; it may keep weights but no state from clip to clip."""

    def __call__(
        self, frames: FrameSource, frame_idx: Sequence[int], reconstruction: Reconstruction | None
    ) -> Iterator[DepthMap]:
        """One map per requested frame, in the order asked. Raises ValueError where it needs what is not
        given."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthConfig:
    """Which estimator, and its settings."""

    backend: str = "plane_sweep"
    """none, plane_sweep (no weights, no GPU), depth_pro, depth_anything_v2_metric, zoedepth, moge2,
    pi3x_moge2, depth_anything_3 or vipe."""
    stride: int = 1
    """Every how many frames a map is made; the maps for a bundle adjustment or a fused cloud need not be
    dense in time."""
    weights: str | None = None
    """Folder or hub name of a network's weights; None: the published ones, named in the backend's file."""
    device: str | None = None
    """Torch device of a network; None: cuda where torch finds one, else cpu."""
    batch_size: int = 4
    """Frames a network sees at once; bounded by GPU memory."""
    plane_sweep: PlaneSweepConfig = field(default_factory=PlaneSweepConfig)
    """Settings of the default estimator."""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS and self.backend != NO_DEPTH:
            known = ", ".join([NO_DEPTH, *sorted(BACKENDS)])
            raise ValueError(f"unknown depth backend {self.backend!r}: known are {known}")
        if self.stride < 1 or self.batch_size < 1:
            raise ValueError(
                f"stride and batch_size must be at least 1, got {self.stride}, {self.batch_size}"
            )


def estimate_depth(
    frames: FrameSource,
    config: DepthConfig,
    *,
    reconstruction: Reconstruction | None = None,
    frame_idx: Sequence[int] | None = None,
) -> Depth:
    """Depth of every `config.stride`-th frame, or of the frames named (increasing), in one stack.

    A stack of long clips is large: `iterate_depth` gives map by map. Raises as `iterate_depth` does, and
    ValueError when there is no frame.
    """
    return stack_depth(iterate_depth(frames, config, reconstruction=reconstruction, frame_idx=frame_idx))


def iterate_depth(
    frames: FrameSource,
    config: DepthConfig,
    *,
    reconstruction: Reconstruction | None = None,
    frame_idx: Sequence[int] | None = None,
) -> Iterator[DepthMap]:
    """The maps of `estimate_depth` one by one, in bounded memory.

    `reconstruction`: the clip's cameras, on the same frames. `plane_sweep` and `depth_anything_3` cannot do
    without; the others take the focal length from it where they can. Raises ValueError for frames out of
    range or out of order, MissingBackend where the estimator's package is absent.
    """
    if reconstruction is not None and len(reconstruction.cam_from_world) != len(frames):
        raise ValueError(f"{len(frames)} frames but {len(reconstruction.cam_from_world)} cameras")
    wanted = list(range(0, len(frames), config.stride)) if frame_idx is None else [int(i) for i in frame_idx]
    if any(b <= a for a, b in itertools.pairwise(wanted)):
        raise ValueError("frame_idx must increase")
    if wanted and not 0 <= wanted[0] <= wanted[-1] < len(frames):
        raise ValueError(f"frame_idx {wanted[0]}..{wanted[-1]} is outside the clip's {len(frames)} frames")
    backend: DepthBackend = load_backend(config.backend, BACKENDS, HOW_TO_INSTALL)(config)
    return backend(frames, wanted, reconstruction)


def stack_depth(maps: Iterator[DepthMap]) -> Depth:
    """One Depth of maps of equal size and kind. Raises ValueError where there is none."""
    listed = list(maps)
    if not listed:
        raise ValueError("no frame to estimate depth for")
    height, width = listed[0].z.shape
    cameras = [m.intrinsics for m in listed]
    intrinsics = None
    if cameras[0] is not None:
        stacked = np.stack([c.fxfycxcy_px for c in cameras if c is not None])
        intrinsics = Intrinsics(
            fxfycxcy_px=stacked,
            width=width,
            height=height,
            model=cameras[0].model,
            distortion=cameras[0].distortion,
        )
    return Depth(
        frame_idx=np.array([m.frame_idx for m in listed], np.int32),
        z=np.stack([m.z for m in listed]),
        confidence=np.stack([m.confidence for m in listed]),
        kind=listed[0].kind,
        intrinsics=intrinsics,
    )
