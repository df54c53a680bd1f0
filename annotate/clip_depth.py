"""Depth of one clip, from its estimator or as given: into the bundle adjustment, as a scale cue, and kept as a
file."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from worldline.annotate.camera import Intrinsics
from worldline.annotate.clip_frames import ClipFrames
from worldline.annotate.depth import NO_DEPTH, DepthConfig, DepthKind, DepthMap, iterate_depth
from worldline.annotate.depth_adjustment import (
    DepthAdjustment,
    DepthAdjustmentConfig,
    adjust_with_depth,
    keyframe_reconstruction,
    keyframes_for_depth,
)
from worldline.annotate.depth_files import write_depth_file
from worldline.annotate.depth_samples import DepthSamplesConfig
from worldline.annotate.flatten import pixels_seen_by, sample_nearest
from worldline.annotate.given import GT_DEPTH, GivenConfig, GivenDepth
from worldline.annotate.mapper import Mapper
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.scale_cues import Cue, depth_cue, frame_ratio
from worldline.annotate.tracks import Tracks
from worldline.annotate.video import VideoInfo
from worldline.annotate.view_selection import frame_camera
from worldline.datasets.schema import ClipRejected

logger = logging.getLogger(__name__)

PLANE_SWEEP = "plane_sweep"


class ClipDepth:
    """The depth of one clip and what it did. `__call__` is the step that geometry calls on its finished
    keyframe map."""

    def __init__(
        self,
        info: VideoInfo,
        config: DepthConfig,
        adjustment: DepthAdjustmentConfig,
        *,
        max_pixels: int,
        num_threads: int,
        stretch: float,
        given: GivenDepth | None,
        given_config: GivenConfig,
    ) -> None:
        """given: known depth of the video, which then replaces the estimator."""
        self._info, self._config, self._adjustment = info, config, adjustment
        self._max_pixels, self._num_threads, self._stretch = max_pixels, num_threads, stretch
        self._given, self._given_config = given, given_config
        if given is not None:
            self._adjustment = _for_sensor(adjustment, given_config)
        self.timestamps_s = np.zeros(0)
        """[T] times of the clip's frames: to be set when they are known, before anything else is asked."""
        self.outcome: DepthAdjustment | None = None

    @property
    def backend(self) -> str | None:
        """Whose depth it is; None: nobody's."""
        if self._given is not None:
            return "given"
        return None if self._config.backend == NO_DEPTH else self._config.backend

    def __call__(self, mapper: Mapper, tracks: Tracks) -> bool:
        """Adjusts the map with the depth of its keyframes where the depth is not made from the map itself; whether any
        has entered."""
        if self.backend in (None, PLANE_SWEEP):
            return False
        wanted = keyframes_for_depth(mapper, tracks, self._adjustment)
        reconstruction = keyframe_reconstruction(mapper, tracks, np.zeros(0, dtype=np.int64))
        reconstruction = replace(reconstruction, timestamps_s=self.timestamps_s)
        self.outcome = adjust_with_depth(mapper, tracks, self._maps(wanted, reconstruction), self._adjustment)
        if self.outcome is None:
            logger.info("depth of %d keyframes meets too few points to enter the adjustment", len(wanted))
        return self.outcome is not None

    def cues(self, reconstruction: Reconstruction, sigma: float) -> list[Cue]:
        """The metric scale that the depth states. sigma: doubt that all maps of an estimator share."""
        if self._given is None:
            cue = None if self.outcome is None else self.outcome.cue("depth", sigma)
            return [] if cue is None else [cue]
        if not self._given_config.depth_is_metric:
            return []
        given = self._given

        def at(frame: int) -> tuple[np.ndarray, np.ndarray | None] | None:
            for one in self._given_maps(given, [frame], reconstruction, must_exist=False):
                if one.kind is DepthKind.METRIC:
                    return one.z, one.confidence
            return None

        has_depth = np.isin(self._video_idx(), given.frames())
        cue = depth_cue(reconstruction, at, sigma=self._given_config.depth_sigma, candidates=has_depth)
        return [] if cue is None else [replace(cue, name="given_depth")]

    def keep(self, path: Path, reconstruction: Reconstruction) -> int:
        """Writes the maps of every `stride`-th frame in the reconstruction's unit; how many. None are written
        (0) where no frame has depth."""
        chosen = self if self.backend is not None else self._by_plane_sweep()
        wanted = [
            i
            for i in range(0, len(self.timestamps_s), self._config.stride)
            if reconstruction.is_registered[i]
        ]
        maps = _in_unit(chosen._maps(wanted, reconstruction), reconstruction)
        first = next(maps, None)
        return 0 if first is None else write_depth_file(path, itertools.chain([first], maps))

    def _by_plane_sweep(self) -> ClipDepth:
        other = ClipDepth(
            self._info,
            replace(self._config, backend=PLANE_SWEEP),
            self._adjustment,
            max_pixels=self._max_pixels,
            num_threads=self._num_threads,
            stretch=self._stretch,
            given=None,
            given_config=self._given_config,
        )
        other.timestamps_s = self.timestamps_s
        return other

    def _maps(self, wanted: Sequence[int], reconstruction: Reconstruction) -> Iterator[DepthMap]:
        if self._given is not None:
            return self._given_maps(self._given, wanted, reconstruction)
        frames = ClipFrames(
            self._info,
            self.timestamps_s,
            max_pixels=self._decoded_pixels(),
            num_threads=self._num_threads,
            stretch=self._stretch,
        )
        return iterate_depth(frames, self._config, reconstruction=reconstruction, frame_idx=wanted)

    def _decoded_pixels(self) -> int:
        """A plane sweep works on small images, and looks at many."""
        if self.backend != PLANE_SWEEP:
            return self._max_pixels
        side = self._config.plane_sweep.max_side_px
        shape = min(self._info.width, self._info.height) / max(self._info.width, self._info.height)
        return min(self._max_pixels, round(side * side * shape) + 4 * side)

    def _given_maps(
        self, given: GivenDepth, wanted: Sequence[int], posed: Reconstruction, *, must_exist: bool = True
    ) -> Iterator[DepthMap]:
        """Given maps of those of the wanted frames that have one, numbered as in the clip and seen from its
        camera. Raises ClipRejected where the clip has none at all and one `must_exist`."""
        video_idx = self._video_idx()
        available = set(given.frames().tolist())
        if must_exist and not available & set(video_idx.tolist()):
            raise ClipRejected(
                GT_DEPTH,
                "no given depth in the clip",
                f"it has frames {video_idx[0]} to {video_idx[-1]} of the video, the depth {min(available)} to "
                f"{max(available)}",
            )
        both = [frame for frame in wanted if int(video_idx[frame]) in available]
        for frame, one in zip(both, given.maps([int(video_idx[f]) for f in both]), strict=True):
            self._check_shape(one)
            here = replace(one, frame_idx=int(frame))
            intrinsics = self._given_config.depth_fxfycxcy_px
            yield here if intrinsics is None else _seen_by(here, intrinsics, frame_camera(posed, int(frame)))

    def _check_shape(self, one: DepthMap) -> None:
        height, width = one.z.shape
        ratio = (width / height) / (self._info.width / self._info.height)
        if abs(ratio - 1) > 0.02:
            raise ClipRejected(
                GT_DEPTH,
                "given depth has another shape",
                f"frame {one.frame_idx}: {width}x{height} where the video is {self._info.width}x{self._info.height}",
            )

    def _video_idx(self) -> np.ndarray:
        """[T] the number of each of the clip's frames in the video."""
        return np.searchsorted(self._info.timestamps_s, self.timestamps_s - 1e-6)


def _for_sensor(adjustment: DepthAdjustmentConfig, given: GivenConfig) -> DepthAdjustmentConfig:
    """Known depth is trusted as its owner says, pixel by pixel."""
    samples = DepthSamplesConfig(sigma_log=given.depth_noise, edge_ratio=adjustment.samples.edge_ratio)
    return replace(adjustment, samples=samples, scale_sigma=given.depth_scale_sigma, max_frames=100_000)


def _seen_by(one: DepthMap, fxfycxcy_px: tuple[float, ...], camera: Intrinsics) -> DepthMap:
    """A map of a depth camera as the video's camera sees it, both in one place."""
    height, width = one.z.shape
    depth_camera = Intrinsics(fxfycxcy_px=np.array(fxfycxcy_px), width=width, height=height)
    pixels = pixels_seen_by(camera.resized(width, height), depth_camera)
    z = sample_nearest(one.z, pixels).astype(np.float32)
    return replace(
        one, z=z, confidence=np.nan_to_num(sample_nearest(one.confidence, pixels)) * np.isfinite(z)
    )


def _in_unit(maps: Iterable[DepthMap], reconstruction: Reconstruction) -> Iterator[DepthMap]:
    """Maps in the unit of the trajectory: those of another unit by what they say about the sparse points, so
    that kept depth and path fit each other; left out where they cannot be compared."""
    for one in maps:
        if one.kind is DepthKind.TRAJECTORY:
            yield one
            continue
        ratio = frame_ratio(reconstruction, one.frame_idx, one.z, one.confidence)
        if ratio is not None:
            yield replace(one, z=(one.z / ratio).astype(np.float32), kind=DepthKind.TRAJECTORY)
