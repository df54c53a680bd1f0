"""Depth at observations against the closed form of a slanted plane; the per-frame scale and its running
average."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from worldline.annotate.camera import Intrinsics, pixel_centres
from worldline.annotate.depth import Depth, DepthKind, DepthMap
from worldline.annotate.depth_fusion import MOMENTUM, RunningScale, frame_scale, smoothed_scales
from worldline.annotate.depth_samples import DepthSamplesConfig, sample_depth
from worldline.annotate.reconstruction import Reconstruction

MAP_WIDTH, MAP_HEIGHT = 40, 30


def plane_z(pixels: np.ndarray) -> np.ndarray:
    """Depth of a plane: its inverse is linear in the pixel (of the map)."""
    return 1 / (0.2 + 0.004 * pixels[..., 0] - 0.002 * pixels[..., 1])


def map_of(z: np.ndarray, frame_idx: int = 0, confidence: np.ndarray | None = None) -> DepthMap:
    known = np.isfinite(z)
    return DepthMap(
        frame_idx=frame_idx,
        z=z.astype(np.float32),
        confidence=(known * 1.0 if confidence is None else confidence).astype(np.float32),
        kind=DepthKind.METRIC,
        intrinsics=None,
    )


def observed(frame_idx, xy_px) -> Reconstruction:
    """Observations in images twice the size of the maps."""
    num_frames = max(frame_idx) + 1
    return Reconstruction(
        timestamps_s=np.arange(num_frames, dtype=float),
        cam_from_world=np.tile(np.eye(3, 4), (num_frames, 1, 1)),
        intrinsics=Intrinsics(
            fxfycxcy_px=np.tile([80.0, 80.0, 40.0, 30.0], (num_frames, 1)),
            width=2 * MAP_WIDTH,
            height=2 * MAP_HEIGHT,
        ),
        points_in_world=np.zeros((1, 3)),
        point_rgb=np.zeros((1, 3), np.uint8),
        frame_idx=np.array(frame_idx, np.int32),
        point_idx=np.zeros(len(frame_idx), np.int32),
        xy_px=np.array(xy_px, np.float32).reshape(-1, 2),
    )


def plane_map(frame_idx: int = 0) -> DepthMap:
    return map_of(plane_z(pixel_centres(np, MAP_WIDTH, MAP_HEIGHT)), frame_idx)


def test_a_plane_is_read_exactly_between_its_pixels():
    rng = np.random.default_rng(0)
    xy_px = rng.uniform([1, 1], [2 * MAP_WIDTH - 1, 2 * MAP_HEIGHT - 1], (50, 2)).astype(np.float32)
    samples = sample_depth([plane_map()], observed([0] * 50, xy_px))
    np.testing.assert_allclose(samples.z, plane_z(xy_px.astype(float) / 2), rtol=1e-5)
    assert (samples.sigma_log >= 0.1).all()
    assert (samples.sigma_log < 0.105).all()


def test_each_observation_is_read_from_its_own_frame():
    near, far = (
        map_of(np.full((MAP_HEIGHT, MAP_WIDTH), 2.0), 0),
        map_of(np.full((MAP_HEIGHT, MAP_WIDTH), 5.0), 2),
    )
    xy_px = [[10, 10]] * 4
    samples = sample_depth([near, far], observed([2, 0, 1, 2], xy_px))
    np.testing.assert_allclose(samples.z, [5, 2, np.nan, 5])
    np.testing.assert_array_equal(np.isnan(samples.sigma_log), np.isnan(samples.z))


def test_edges_unknown_and_outside_give_nothing():
    z = np.full((MAP_HEIGHT, MAP_WIDTH), 2.0)
    z[:, 20:] = 3.0
    z[5, 5] = np.nan
    xy_px = [[40.0, 30.0], [38.5, 30.0], [11.0, 11.0], [-3.0, 4.0], [81.0, 4.0], [20.0, 30.0]]
    samples = sample_depth([map_of(z)], observed([0] * 6, xy_px))
    np.testing.assert_allclose(samples.z, [np.nan, 2.0, np.nan, np.nan, np.nan, 2.0])


def test_the_rim_of_the_image_is_read_from_the_border_pixels():
    samples = sample_depth([plane_map()], observed([0] * 2, [[0.0, 0.0], [80.0, 60.0]]))
    np.testing.assert_allclose(samples.z, plane_z(np.array([[0.5, 0.5], [39.5, 29.5]])), rtol=1e-6)


def test_less_confidence_is_a_larger_sigma():
    z = np.full((MAP_HEIGHT, MAP_WIDTH), 2.0)
    quarter = map_of(z, confidence=np.full_like(z, 0.25))
    config = DepthSamplesConfig(sigma_log=0.06)
    samples = sample_depth([quarter], observed([0], [[20, 20]]), config)
    np.testing.assert_allclose(samples.sigma_log, 0.12)


def test_a_stack_gives_what_its_maps_give():
    one = plane_map()
    stack = Depth(
        frame_idx=np.array([0], np.int32),
        z=one.z[None],
        confidence=one.confidence[None],
        kind=one.kind,
        intrinsics=None,
    )
    seen = observed([0, 0], [[10, 20], [30.3, 7.7]])
    np.testing.assert_array_equal(sample_depth(stack.maps(), seen).z, sample_depth([one], seen).z)


@pytest.mark.parametrize("wrong", [{"sigma_log": 0.0}, {"edge_ratio": 1.0}])
def test_config_is_checked(wrong):
    with pytest.raises(ValueError, match="need"):
        DepthSamplesConfig(**wrong)


def test_frame_scale_is_the_minimum_of_the_weighted_squares():
    rng = np.random.default_rng(1)
    consistent = rng.uniform(0.5, 9, 300)
    metric = 2.4 * consistent * np.exp(0.1 * rng.normal(size=300))
    best = minimize_scalar(
        lambda s: ((s * consistent - metric) ** 2 / consistent).sum(), bracket=(1, 5), options={"xtol": 1e-12}
    )
    np.testing.assert_allclose(frame_scale(consistent, metric), best.x, rtol=1e-7)


def test_frame_scale_leaves_out_what_either_does_not_know():
    consistent = np.array([[1.0, 2.0, np.nan, 4.0, 0.0]])
    metric = np.array([[3.0, np.nan, 5.0, 12.0, 7.0]])
    assert frame_scale(consistent, metric) == pytest.approx(3.0)
    assert np.isnan(frame_scale(np.full(3, np.nan), np.ones(3)))


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=40))
def test_running_scale_is_the_weighted_sum_of_all_before(scales):
    num = len(scales)
    weights = (1 - MOMENTUM) * MOMENTUM ** np.arange(num - 1, -1, -1.0)
    weights[0] = MOMENTUM ** (num - 1)
    assert smoothed_scales(np.array(scales))[-1] == pytest.approx(float(weights @ np.array(scales)))


def test_a_frame_without_a_scale_leaves_the_average_alone():
    smooth = smoothed_scales(np.array([np.nan, 2.0, np.nan, 3.0]))
    np.testing.assert_allclose(smooth, [np.nan, 2.0, 2.0, 2.01])
    assert RunningScale(momentum=0.5, value=1.0).update(3.0) == 2.0
