"""Depth of one clip, from its estimator or as given: into the bundle adjustment, as a scale cue, and kept as a
file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

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
from worldline.annotate.given import GT_DEPTH, GivenConfig, GivenDepth
from worldline.annotate.mapping import Mapper
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.scale_cues import Cue, depth_cue
from worldline.annotate.tracks import Tracks
from worldline.annotate.video import VideoInfo
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

    def __call__(self, mapper: Mapper, tracks: Tracks) -> None:
        """Adjusts the map with the depth of its keyframes where the depth is not made from the map itself."""
        if self.backend in (None, PLANE_SWEEP):
            return
        wanted = keyframes_for_depth(mapper, tracks, self._adjustment)
        reconstruction = keyframe_reconstruction(mapper, tracks, np.zeros(0, dtype=np.int64))
        reconstruction = replace(reconstruction, timestamps_s=self.timestamps_s)
        self.outcome = adjust_with_depth(mapper, tracks, self._maps(wanted, reconstruction), self._adjustment)
        if self.outcome is None:
            logger.info("depth of %d keyframes meets too few points to enter the adjustment", len(wanted))

    def cues(self, reconstruction: Reconstruction, sigma: float) -> list[Cue]:
        """The metric scale that the depth states. sigma: doubt that all maps of an estimator share."""
        if self._given is None:
            cue = None if self.outcome is None else self.outcome.cue("depth", sigma)
            return [] if cue is None else [cue]
        if not self._given_config.depth_is_metric:
            return []
        given = self._given

        def at(frame: int) -> tuple[np.ndarray, np.ndarray | None] | None:
            for one in self._given_maps(given, [frame], []):
                if one.kind is DepthKind.METRIC:
                    return one.z, one.confidence
            return None

        has_depth = np.isin(self._video_idx(), given.frames())
        cue = depth_cue(reconstruction, at, sigma=self._given_config.depth_sigma, candidates=has_depth)
        return [] if cue is None else [replace(cue, name="given_depth")]

    def keep(self, path: Path, reconstruction: Reconstruction, metres_per_unit: float) -> int:
        """Writes the maps of every `stride`-th frame in the reconstruction's unit; how many. None are written
        (0) where no frame has depth.

        metres_per_unit: of the path before `reconstruction` was scaled, in which the adjustment measured.
        """
        chosen = self if self.backend is not None else self._by_plane_sweep()
        wanted = [
            i
            for i in range(0, len(self.timestamps_s), self._config.stride)
            if reconstruction.is_registered[i]
        ]
        maps = (chosen._in_unit(one, metres_per_unit) for one in chosen._maps(wanted, reconstruction))
        first = next(maps, None)
        if first is None:
            return 0
        return write_depth_file(path, _behind(first, maps))

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

    def _in_unit(self, one: DepthMap, metres_per_unit: float) -> DepthMap:
        """A map in the unit of the (scaled) trajectory, with the clip's agreement in place of the map's own
        metre, so that kept depth and path fit each other."""
        if one.kind is DepthKind.TRAJECTORY or self.outcome is None:
            return one
        factor = metres_per_unit / self.outcome.scale_at(one.frame_idx)
        return replace(one, z=(one.z * factor).astype(np.float32), kind=DepthKind.TRAJECTORY)

    def _maps(self, wanted: Sequence[int], reconstruction: Reconstruction) -> Iterator[DepthMap]:
        if self._given is not None:
            return self._given_maps(self._given, wanted, None)
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
        self, given: GivenDepth, wanted: Sequence[int], otherwise: list[DepthMap] | None
    ) -> Iterator[DepthMap]:
        """Given maps of those of the wanted frames that have one, numbered as in the clip. Raises ClipRejected
        where the clip has none at all and `otherwise` is None."""
        video_idx = self._video_idx()
        available = set(given.frames().tolist())
        if otherwise is None and not available & set(video_idx.tolist()):
            raise ClipRejected(
                GT_DEPTH,
                "no given depth in the clip",
                f"it has frames {video_idx[0]} to {video_idx[-1]} of the video, the depth {min(available)} to "
                f"{max(available)}",
            )
        both = [frame for frame in wanted if int(video_idx[frame]) in available]
        for frame, one in zip(both, given.maps([int(video_idx[f]) for f in both]), strict=True):
            self._check_shape(one)
            yield replace(one, frame_idx=int(frame))

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


def _behind(first: DepthMap, rest: Iterator[DepthMap]) -> Iterator[DepthMap]:
    yield first
    yield from rest
