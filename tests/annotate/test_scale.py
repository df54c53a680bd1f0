"""Fusion of cues is calibrated, vetoes hold, and no cue gives no metres."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from worldline.annotate.camera import Intrinsics, invert
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.scale import ScaleConfig, estimate_scale, fuse_cues
from worldline.annotate.scale_cues import Cue

CONFIG = ScaleConfig()


def cues_of(values: np.ndarray, sigmas: np.ndarray) -> tuple[Cue, ...]:
    return tuple(
        Cue(name=f"cue{i}", log_scale=float(v), sigma=float(s))
        for i, (v, s) in enumerate(zip(values, sigmas, strict=True))
    )


def walk(speed_m_s: float, *, seconds: float = 6.0, unit_m: float = 1.0) -> Reconstruction:
    """A straight walk at constant speed in units of `unit_m` metres, without points."""
    times = np.arange(0, seconds, 1 / 15)
    world_from_cam = np.tile(np.eye(3, 4), (len(times), 1, 1))
    world_from_cam[:, 2, 3] = speed_m_s * times / unit_m
    return Reconstruction(
        timestamps_s=times,
        cam_from_world=invert(world_from_cam),
        intrinsics=Intrinsics(
            fxfycxcy_px=np.tile([500.0, 500.0, 320.0, 240.0], (len(times), 1)), width=640, height=480
        ),
        points_in_world=np.zeros((0, 3)),
        point_rgb=np.zeros((0, 3), dtype=np.uint8),
        frame_idx=np.zeros(0, dtype=np.int32),
        point_idx=np.zeros(0, dtype=np.int32),
        xy_px=np.zeros((0, 2), dtype=np.float32),
    )


def known_metric(reconstruction: Reconstruction, unit_m: float) -> np.ndarray:
    """The same poses in metres, bent a little sideways so that a rotation is defined."""
    known = invert(reconstruction.cam_from_world)
    known[:, :, 3] *= unit_m
    return known


# Fusion


def test_fusion_matches_the_posterior_integrated_on_a_grid() -> None:
    values, sigmas = np.array([0.1, 0.16, 0.9]), np.array([0.05, 0.08, 0.1])
    log_scale, sigma, used = fuse_cues(cues_of(values, sigmas), CONFIG)
    grid = np.linspace(-4, 5, 200_001)
    density = np.ones_like(grid)
    for value, s in zip(values, sigmas, strict=True):
        wide = math.hypot(s, CONFIG.lie_sigma)
        honest = np.exp(-0.5 * ((grid - value) / s) ** 2) / s
        lying = np.exp(-0.5 * ((grid - value) / wide) ** 2) / wide
        density *= (1 - CONFIG.lie_probability) * honest + CONFIG.lie_probability * lying
    cumulative = np.cumsum(density) / density.sum()
    low, median, high = np.interp([0.1586553, 0.5, 0.8413447], cumulative, grid)
    assert log_scale == pytest.approx(median, abs=1e-4)
    assert sigma == pytest.approx((high - low) / 2, abs=1e-4)
    assert [cue.is_used for cue in used] == [True, True, False]
    assert [cue.log_scale for cue in used] == list(values)  # stored as measured


def test_a_single_cue_keeps_its_value_and_nearly_its_sigma() -> None:
    log_scale, sigma, _ = fuse_cues(cues_of(np.array([0.3]), np.array([0.04])), CONFIG)
    assert log_scale == pytest.approx(0.3, abs=1e-9)
    assert 0.04 <= sigma <= 0.04 * 1.15


def test_agreeing_cues_sharpen_each_other() -> None:
    _, sigma, used = fuse_cues(cues_of(np.array([0.3, 0.3]), np.array([0.05, 0.05])), CONFIG)
    assert sigma == pytest.approx(0.05 / math.sqrt(2), rel=0.05)
    assert all(cue.is_used for cue in used)


def test_contradicting_cues_of_equal_weight_leave_an_interval_as_wide_as_their_gap() -> None:
    _, sigma, _ = fuse_cues(cues_of(np.array([0.0, 1.0]), np.array([0.02, 0.02])), CONFIG)
    assert 0.4 < sigma < 0.8


@pytest.mark.parametrize("num_cues", [1, 2, 4])
def test_sigma_is_calibrated_when_cues_are_honest(num_cues: int) -> None:
    rng = np.random.default_rng(num_cues)
    ratios = []
    for _ in range(700):
        sigmas = rng.uniform(0.01, 0.15, num_cues)
        log_scale, sigma, _ = fuse_cues(cues_of(rng.normal(0, sigmas), sigmas), CONFIG)
        ratios.append(abs(log_scale) / sigma)
    assert 0.64 < np.mean(np.array(ratios) < 1) < 0.76
    assert 0.93 < np.mean(np.array(ratios) < 2) < 0.99


def test_sigma_is_calibrated_when_one_of_three_cues_lies() -> None:
    rng = np.random.default_rng(0)
    ratios, is_caught, plain_errors, errors = [], [], [], []
    for _ in range(700):
        sigmas = rng.uniform(0.02, 0.1, 3)
        values = rng.normal(0, sigmas)
        values[0] += rng.normal(0, CONFIG.lie_sigma)
        log_scale, sigma, used = fuse_cues(cues_of(values, sigmas), CONFIG)
        ratios.append(abs(log_scale) / sigma)
        errors.append(abs(log_scale))
        plain_errors.append(abs(np.average(values, weights=sigmas**-2)))
        if abs(values[0]) > 0.5:
            is_caught.append(not used[0].is_used and used[1].is_used and used[2].is_used)
    assert 0.58 < np.mean(np.array(ratios) < 1) < 0.76
    assert np.mean(np.array(ratios) < 2) > 0.85
    assert np.mean(is_caught) > 0.95
    assert np.mean(errors) < 0.5 * np.mean(plain_errors)


def test_order_of_cues_does_not_matter() -> None:
    cues = cues_of(np.array([0.0, 0.1, 0.7]), np.array([0.05, 0.1, 0.2]))
    forward, backward = fuse_cues(cues, CONFIG), fuse_cues(cues[::-1], CONFIG)
    assert forward[0] == pytest.approx(backward[0], abs=1e-8)
    assert forward[1] == pytest.approx(backward[1], abs=1e-8)


def test_fusing_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no cues"):
        fuse_cues((), CONFIG)


# The whole stage


def test_without_a_cue_there_are_no_metres() -> None:
    scale = estimate_scale(walk(1.4), None, CONFIG)
    assert (scale.status, scale.scale, scale.sigma, scale.cues) == ("up_to_scale", None, None, ())
    assert scale.reason == "no cue"


@pytest.mark.parametrize("unit_m", [0.02, 1.0, 35.0])
def test_scale_follows_the_unit_of_the_reconstruction(unit_m: float) -> None:
    reconstruction = walk(1.4, unit_m=unit_m)
    scale = estimate_scale(
        reconstruction, None, CONFIG, known_world_from_cam=known_metric(reconstruction, unit_m)
    )
    assert scale.status == "metric"
    assert scale.scale == pytest.approx(unit_m, rel=1e-9)


@pytest.mark.parametrize(
    ("motion", "speed_m_s", "is_vetoed"),
    [("walking", 3.2, True), ("walking", 2.8, False), ("driving", 3.2, False), ("driving", 90.0, True)],
)
def test_speed_beyond_the_stated_motion_vetoes(motion: str, speed_m_s: float, is_vetoed: bool) -> None:
    reconstruction = walk(speed_m_s, unit_m=0.3)
    config = dataclasses.replace(CONFIG, motion=motion)  # type: ignore[arg-type]
    scale = estimate_scale(
        reconstruction, None, config, known_world_from_cam=known_metric(reconstruction, 0.3)
    )
    assert (scale.scale is None) == is_vetoed
    assert len(scale.cues) == 1  # kept either way
    if is_vetoed:
        assert scale.status == "up_to_scale"
        assert scale.reason is not None
        assert "speed" in scale.reason


def test_acceleration_beyond_the_stated_motion_vetoes() -> None:
    reconstruction = walk(1.0)
    zigzag = invert(reconstruction.cam_from_world)
    zigzag[:, 0, 3] = 1.0 * (2 * np.abs(reconstruction.timestamps_s % 2 - 1) - 1)  # turns each second
    reconstruction = dataclasses.replace(reconstruction, cam_from_world=invert(zigzag))
    config = ScaleConfig(motion="walking")
    scale = estimate_scale(reconstruction, None, config, known_world_from_cam=zigzag)
    assert scale.reason is not None
    assert "acceleration" in scale.reason


def test_frames_without_a_pose_are_left_out() -> None:
    reconstruction = walk(1.4, unit_m=0.5)
    known = known_metric(reconstruction, 0.5)
    gaps = reconstruction.cam_from_world.copy()
    gaps[10:20] = np.nan
    known[40:50] = np.nan
    reconstruction = dataclasses.replace(reconstruction, cam_from_world=gaps)
    scale = estimate_scale(reconstruction, None, CONFIG, known_world_from_cam=known)
    assert scale.scale == pytest.approx(0.5, rel=1e-9)


def test_contradicting_cues_are_no_measurement() -> None:
    reconstruction = walk(1.4)
    partner = reconstruction.cam_from_world.copy()
    partner[:, 0, 3] -= 0.12  # 12 cm to the right in the same unit as known poses 4x as long
    scale = estimate_scale(
        reconstruction,
        None,
        dataclasses.replace(CONFIG, baseline_sigma_m=0.0005),
        known_world_from_cam=known_metric(reconstruction, 4.0),
        partner_cam_from_world=partner,
        baseline_m=0.12,
    )
    assert scale.status == "up_to_scale"
    assert len(scale.cues) == 2
    assert scale.reason is not None
    assert "contradictory" in scale.reason


def test_a_file_without_sensors_adds_nothing(tmp_path) -> None:
    path = tmp_path / "noise.mp4"
    path.write_bytes(bytes(range(256)) * 64)
    assert estimate_scale(walk(1.4), path, CONFIG).cues == ()


def test_bad_configurations_are_refused() -> None:
    for bad in (
        {"motion": "flying"},
        {"camera_height_m": 0.0},
        {"lie_probability": 0.5},
        {"max_sigma": 0.0},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            ScaleConfig(**bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="baseline_m"):
        estimate_scale(walk(1.0), None, CONFIG, baseline_m=0.1)
