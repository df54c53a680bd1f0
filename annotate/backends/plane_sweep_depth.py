"""Depth without weights: the clip's own posed frames matched by plane sweep, then checked against each other.

Each frame is swept on its own (annotate/plane_sweep.py). A pixel's depth is kept only where the sweep of
another frame, seen from there, puts the surface at the same place: wrong matches, moving things and surfaces
without texture seldom agree from two places.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from worldline.annotate.camera import (
    Intrinsics,
    compose,
    invert,
    pixel_centres,
    project,
    transform,
    unproject,
)
from worldline.annotate.depth import DepthConfig, DepthKind, DepthMap, FrameSource
from worldline.annotate.flatten import flattened, pixels_seen_by, sample_inverse_depth, sample_nearest
from worldline.annotate.plane_sweep import Sweep, View, sweep
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.view_selection import frame_camera, select_views

_PARTNER_REACH = 8
"""A map is checked against maps at most this many requests away: bounds the sweeps kept in memory."""
_MAX_PIXEL_ERROR = 0.25
"""Depth is unknown where a shift of one pixel in the best source changes it by more than this share: near the
epipole."""
_SPECKLE_PX = 40
"""Connected surfaces smaller than this are taken for wrong matches."""


class PlaneSweepDepth:
    """`plane_sweep` of annotate/depth.py."""

    def __init__(self, config: DepthConfig) -> None:
        self.config = config

    def __call__(
        self, frames: FrameSource, frame_idx: Sequence[int], reconstruction: Reconstruction | None
    ) -> Iterator[DepthMap]:
        if reconstruction is None:
            raise ValueError("plane_sweep needs the clip's reconstruction: it matches posed frames")
        return self._maps(_Clip(frames, reconstruction, self.config), list(frame_idx))

    @staticmethod
    def _maps(clip: _Clip, wanted: list[int]) -> Iterator[DepthMap]:
        for position, frame_idx in enumerate(wanted):
            near = wanted[max(0, position - _PARTNER_REACH) : position + _PARTNER_REACH + 1]
            yield clip.depth_map(frame_idx, [i for i in near if i != frame_idx])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Swept:
    """A frame's sweep with the sources it was matched against."""

    sweep: Sweep
    sources: tuple[int, ...]


class _Clip:
    """Views and sweeps of one clip, made when first needed and forgotten when no longer near."""

    def __init__(self, frames: FrameSource, reconstruction: Reconstruction, config: DepthConfig) -> None:
        self.frames, self.reconstruction, self.config = frames, reconstruction, config.plane_sweep
        camera = reconstruction.intrinsics
        shrink = min(1.0, self.config.max_side_px / max(camera.width, camera.height))
        self.size = (max(8, round(camera.width * shrink)), max(8, round(camera.height * shrink)))
        self._views: OrderedDict[int, View] = OrderedDict()
        self._sweeps: OrderedDict[int, _Swept | None] = OrderedDict()

    def depth_map(self, frame_idx: int, others: list[int]) -> DepthMap:
        """Depth of one frame, checked against its two best sources or, where near, frames of `others` in
        their stead."""
        camera = frame_camera(self.reconstruction, frame_idx).resized(*self.size)
        swept = self._swept(frame_idx)
        if swept is None:
            z = np.full(self.size[::-1], np.nan, np.float32)
            confidence = np.zeros_like(z)
        else:
            inverse_depth, confidence = self._checked(frame_idx, swept, others)
            if camera.model != "pinhole":
                inverse_depth, confidence = self._bent_back(frame_idx, camera, inverse_depth, confidence)
            with np.errstate(divide="ignore"):
                z = (1 / inverse_depth).astype(np.float32)
        return DepthMap(
            frame_idx=frame_idx, z=z, confidence=confidence, kind=DepthKind.TRAJECTORY, intrinsics=camera
        )

    def _checked(self, frame_idx: int, swept: _Swept, others: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Inverse depth (NaN where unconfirmed) and confidence of a frame, in its pinhole view."""
        result = swept.sweep
        inverse_depth = _without_speckles(result.inverse_depth)
        num_seen = np.zeros(inverse_depth.shape, np.float32)
        num_agree = np.zeros(inverse_depth.shape, np.float32)
        for partner in _partners(frame_idx, swept.sources, others):
            theirs = self._swept(partner)
            if theirs is not None:
                is_seen, agrees = self._compare(frame_idx, inverse_depth, result.sigma, partner, theirs.sweep)
                num_seen += is_seen
                num_agree += agrees
        pixel_error = result.sigma / np.maximum(np.nan_to_num(inverse_depth, nan=0.0), 1e-12)
        is_known = np.isfinite(inverse_depth) & (num_agree > 0) & (pixel_error < _MAX_PIXEL_ERROR)
        share = num_agree / np.maximum(num_seen, 1)
        precision = 1 / (1 + (pixel_error / 0.1) ** 2)
        confidence = share * precision * (0.3 + 0.7 * result.correlation)
        confidence = np.where(is_known, np.clip(confidence, 1e-3, 1), 0).astype(np.float32)
        return np.where(is_known, inverse_depth, np.nan).astype(np.float32), confidence

    def _compare(
        self, frame_idx: int, inverse_depth: np.ndarray, sigma: np.ndarray, partner: int, theirs: Sweep
    ) -> tuple[np.ndarray, np.ndarray]:
        """Per pixel: whether the partner sees the point unoccluded, and whether it puts a surface there
        too."""
        mine_view, their_view = self._view(frame_idx), self._view(partner)
        mine, other = _pinhole(mine_view), _pinhole(their_view)
        rays = unproject(pixel_centres(np, mine.width, mine.height), mine)
        with np.errstate(divide="ignore", invalid="ignore"):
            points = rays / rays[..., 2:] / inverse_depth[..., None]
        other_from_mine = compose(their_view.cam_from_world, invert(mine_view.cam_from_world))
        points = transform(other_from_mine, points.reshape(-1, 3))
        pixels = project(points, other)
        expected = (1 / np.where(points[:, 2] > 0, points[:, 2], np.nan)).reshape(inverse_depth.shape)
        found = sample_nearest(theirs.inverse_depth, pixels).reshape(inverse_depth.shape)
        their_sigma = sample_nearest(theirs.sigma, pixels).reshape(inverse_depth.shape)
        tolerance = np.maximum(sigma, their_sigma) + 0.01 * expected
        is_seen = found < expected + 3 * tolerance
        return is_seen, np.abs(found - expected) < tolerance

    def _bent_back(
        self, frame_idx: int, camera: Intrinsics, inverse_depth: np.ndarray, confidence: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Maps of the pinhole view at the pixels of the lens."""
        pixels = pixels_seen_by(camera, _pinhole(self._view(frame_idx)))
        bent = sample_inverse_depth(inverse_depth, pixels)
        bent_confidence = np.nan_to_num(sample_nearest(confidence, pixels), nan=0.0)
        return bent, np.where(np.isfinite(bent), bent_confidence, 0).astype(np.float32)

    def _swept(self, frame_idx: int) -> _Swept | None:
        if frame_idx not in self._sweeps:
            self._sweeps[frame_idx] = self._sweep(frame_idx)
            if len(self._sweeps) > 2 * _PARTNER_REACH + 4:
                self._sweeps.popitem(last=False)
        self._sweeps.move_to_end(frame_idx)
        return self._sweeps[frame_idx]

    def _sweep(self, frame_idx: int) -> _Swept | None:
        config = self.config
        selection = select_views(
            self.reconstruction,
            frame_idx,
            num_sources=config.num_sources,
            parallax=config.parallax_px / config.max_side_px,
            max_gap=config.max_gap,
        )
        if selection is None:
            return None
        sources = [self._view(i) for i in selection.sources]
        result = sweep(self._view(frame_idx), sources, selection.near, selection.far, config)
        return _Swept(sweep=result, sources=selection.sources)

    def _view(self, frame_idx: int) -> View:
        if frame_idx not in self._views:
            self._views[frame_idx] = self._make_view(frame_idx)
            if len(self._views) > 4 * _PARTNER_REACH:
                self._views.popitem(last=False)
        self._views.move_to_end(frame_idx)
        return self._views[frame_idx]

    def _make_view(self, frame_idx: int) -> View:
        image = cv2.resize(np.asarray(self.frames[frame_idx]), self.size, interpolation=cv2.INTER_AREA)
        gray = np.maximum(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), 1)  # 0 marks pixels without an image
        camera = frame_camera(self.reconstruction, frame_idx).resized(*self.size)
        flat = flattened(camera)
        if flat is not camera:
            # Ours to OpenCV's pixels: it puts the first pixel's centre at 0.
            grid = pixels_seen_by(flat, camera).astype(np.float32) - 0.5
            gray = cv2.remap(
                gray,
                grid[..., 0],
                grid[..., 1],
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_CONSTANT,
                borderValue=0,
            )
        return View(
            gray=gray,
            camera_matrix=flat.matrix(),
            cam_from_world=self.reconstruction.cam_from_world[frame_idx],
        )


def _partners(frame_idx: int, sources: tuple[int, ...], others: list[int]) -> list[int]:
    """For each of the two best sources, the frame of `others` that can stand in for it, else the source
    itself."""
    partners = []
    for source in sources[:2]:
        nearest = min(others, key=lambda i: abs(i - source), default=source)
        partners.append(nearest if 2 * abs(nearest - source) <= abs(frame_idx - source) else source)
    return list(dict.fromkeys(partners))


def _pinhole(view: View) -> Intrinsics:
    matrix, (height, width) = view.camera_matrix, view.gray.shape
    return Intrinsics(
        fxfycxcy_px=np.array([matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]]),
        width=width,
        height=height,
    )


def _without_speckles(inverse_depth: np.ndarray) -> np.ndarray:
    """NaN in place of small islands that differ from all around them."""
    known = np.isfinite(inverse_depth)
    if not known.any():
        return inverse_depth
    low, high = float(inverse_depth[known].min()), float(inverse_depth[known].max())
    levels = 8000
    scaled = np.full(inverse_depth.shape, -1, np.int16)
    scaled[known] = ((inverse_depth[known] - low) / max(high - low, 1e-12) * levels).astype(np.int16)
    cv2.filterSpeckles(scaled, -1, _SPECKLE_PX, levels // 40)
    return np.where(scaled >= 0, inverse_depth, np.nan)
