"""Depth in the bundle adjustment, on rendered clips whose depth is exact until the test spoils it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import cv2
import numpy as np
import pytest

from worldline.annotate.camera import invert, umeyama
from worldline.annotate.depth import DepthKind, DepthMap
from worldline.annotate.depth_adjustment import (
    DepthAdjustment,
    DepthAdjustmentConfig,
    adjust_with_depth,
    keyframes_for_depth,
)
from worldline.annotate.geometry import GeometryConfig, estimate_geometry
from worldline.annotate.mapper import Mapper
from worldline.annotate.tracks import Tracks
from worldline.datasets.synthetic import SyntheticConfig, Truth, render_clip, truth_of

pytest.importorskip("moderngl")

CONFIG = SyntheticConfig(width=480, height=270, num_frames=60, seed=3)


class _Step:
    """Exact depth times `factor`, with flicker from frame to frame and smooth noise within each."""

    def __init__(
        self,
        depths: Sequence[np.ndarray],
        *,
        factor: float = 1.0,
        flicker: float = 0.0,
        noise: float = 0.0,
        kind: DepthKind = DepthKind.METRIC,
    ) -> None:
        self.depths, self.factor, self.flicker, self.noise, self.kind = depths, factor, flicker, noise, kind
        self.outcome: DepthAdjustment | None = None

    def maps(self, wanted: Sequence[int]) -> Iterator[DepthMap]:
        rng = np.random.default_rng(5)
        for frame in wanted:
            size = self.depths[frame].shape[::-1]
            smooth = cv2.resize(rng.standard_normal((9, 16)), size, interpolation=cv2.INTER_CUBIC)
            spoilt = self.factor * np.exp(self.flicker * rng.standard_normal() + self.noise * smooth)
            z = np.where(np.isfinite(self.depths[frame]), self.depths[frame] * spoilt, np.nan)
            yield DepthMap(
                frame_idx=frame,
                z=z.astype(np.float32),
                confidence=np.isfinite(z).astype(np.float32),
                kind=self.kind,
                intrinsics=None,
            )

    def __call__(self, mapper: Mapper, tracks: Tracks) -> None:
        config = DepthAdjustmentConfig()
        wanted = keyframes_for_depth(mapper, tracks, config)
        self.outcome = adjust_with_depth(mapper, tracks, self.maps(wanted), config)


class _Clip:
    def __init__(self, config: SyntheticConfig) -> None:
        rendered = list(render_clip(config))
        self.frames = [(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), image) for image, _, _ in rendered]
        self.depths = [depth for _, depth, _ in rendered]
        self.truth: Truth = truth_of(config)

    def solve(self, step: _Step | None) -> tuple[float, float]:
        """Rms distance [m] of the path from the true one after Sim(3), and metres per unit by that."""
        times = list(self.truth.timestamps_s)
        geometry = estimate_geometry(self.frames, times, GeometryConfig(), adjust_map=step)
        assert geometry.reconstruction is not None
        found = invert(geometry.reconstruction.cam_from_world)[:, :, 3]
        true = self.truth.world_from_cam[:, :, 3]
        aligned = umeyama(true, found)
        return float(np.sqrt(np.mean(np.sum((aligned.points(found) - true) ** 2, axis=1)))), aligned.scale


@pytest.fixture(scope="module")
def drive() -> _Clip:
    return _Clip(replace(CONFIG, scene="street", path="driving"))


@pytest.fixture(scope="module")
def orbit() -> _Clip:
    return _Clip(replace(CONFIG, scene="desk", path="orbiting"))


@pytest.mark.slow
def test_depth_mends_a_forward_drive_and_leaves_a_good_path_alone(drive: _Clip, orbit: _Clip) -> None:
    """Straight ahead, rays of far points hardly cross; around a desk they cross by 20 degrees."""
    without, _ = drive.solve(None)
    with_noisy_depth, _ = drive.solve(_Step(drive.depths, flicker=0.07, noise=0.07))
    assert with_noisy_depth < without
    with_depth, _ = drive.solve(_Step(drive.depths, flicker=0.01, noise=0.01))
    assert with_depth < min(0.9 * without, with_noisy_depth)
    without, _ = orbit.solve(None)
    with_depth, _ = orbit.solve(_Step(orbit.depths, flicker=0.07, noise=0.07))
    assert with_depth < 1.1 * without


@pytest.mark.slow
def test_true_depth_gives_the_metre_within_one_percent(drive: _Clip, orbit: _Clip) -> None:
    for clip in (drive, orbit):
        step = _Step(clip.depths)
        _, metres_per_unit = clip.solve(step)
        assert step.outcome is not None
        cue = step.outcome.cue("depth", 0.1)
        assert cue is not None
        assert cue.log_scale == pytest.approx(np.log(metres_per_unit), abs=0.01)
        assert cue.sigma == pytest.approx(0.1, rel=0.02)
        assert step.outcome.residual_log < 0.03
        assert step.outcome.scale_variation < 0.01


@pytest.mark.slow
def test_scale_follows_the_depth_and_the_flicker_is_found(orbit: _Clip) -> None:
    step = _Step(orbit.depths, factor=1.3, flicker=0.05)
    _, metres_per_unit = orbit.solve(step)
    assert step.outcome is not None
    spoilt = np.random.default_rng(5)
    flicker = []
    for _ in step.outcome.frame_idx:
        spoilt.standard_normal((9, 16))
        flicker.append(0.05 * spoilt.standard_normal())
    expected = np.log(1.3 * metres_per_unit) + np.array(flicker)
    np.testing.assert_allclose(step.outcome.log_scale, expected, atol=0.015)


@pytest.mark.slow
def test_what_cannot_enter_is_said(orbit: _Clip) -> None:
    relative = _Step(orbit.depths, flicker=1.0, kind=DepthKind.UP_TO_SCALE)
    error, _ = orbit.solve(relative)
    assert error < 0.01
    assert relative.outcome is not None
    assert relative.outcome.cue("depth", 0.1) is None
    blind = _Step([np.full_like(depth, np.nan) for depth in orbit.depths])
    without, _ = orbit.solve(None)
    assert orbit.solve(blind)[0] == without
    assert blind.outcome is None
    with pytest.raises(ValueError, match="made from the trajectory"):
        orbit.solve(_Step(orbit.depths, kind=DepthKind.TRAJECTORY))


def test_configs_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="scale_sigma"):
        DepthAdjustmentConfig(scale_sigma=0)
    with pytest.raises(ValueError, match="max_frames"):
        DepthAdjustmentConfig(max_frames=2)
