"""Known heights, poses, baselines and depth give the right scale, and sigmas that cover their errors."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import minimize_scalar

from worldline.annotate.camera import Intrinsics, invert, project, rotation_from_rotvec, transform
from worldline.annotate.ground import Ground
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.scale_cues import (
    Cue,
    baseline_cue,
    camera_height_cue,
    depth_cue,
    depth_ratio,
    known_poses_cue,
    smoothed_ratios,
)


def scene(*, num_frames: int = 40, num_points: int = 60, seed: int = 0) -> Reconstruction:
    """A camera that swings past a cloud of points, in arbitrary units."""
    rng = np.random.default_rng(seed)
    times = np.arange(num_frames) / 10
    world_from_cam = np.zeros((num_frames, 3, 4))
    world_from_cam[:, :, :3] = rotation_from_rotvec(np.stack([0.1 * times, 0.05 * times, 0 * times], axis=-1))
    world_from_cam[:, :, 3] = np.stack([np.sin(times), 0.3 * np.cos(times), 0.4 * times], axis=-1)
    cam_from_world = invert(world_from_cam)
    points = rng.uniform([-3, -2, 6], [3, 2, 14], (num_points, 3))
    intrinsics = Intrinsics(
        fxfycxcy_px=np.tile([300.0, 300.0, 160.0, 120.0], (num_frames, 1)), width=320, height=240
    )
    pixels = project(transform(cam_from_world, points), intrinsics)
    is_seen = (
        np.isfinite(pixels).all(axis=-1) & (pixels > 0).all(axis=-1) & (pixels < [320, 240]).all(axis=-1)
    )
    frame_idx, point_idx = np.nonzero(is_seen)
    return Reconstruction(
        timestamps_s=times,
        cam_from_world=cam_from_world,
        intrinsics=intrinsics,
        points_in_world=points,
        point_rgb=np.zeros((num_points, 3), dtype=np.uint8),
        frame_idx=frame_idx.astype(np.int32),
        point_idx=point_idx.astype(np.int32),
        xy_px=pixels[is_seen].astype(np.float32),
    )


def coverage(errors: list[float], sigmas: list[float]) -> float:
    return float(np.mean(np.abs(errors) < np.array(sigmas)))


def test_a_cue_needs_a_finite_value_and_a_positive_sigma() -> None:
    for log_scale, sigma in ((math.nan, 0.1), (0.0, 0.0), (0.0, math.inf)):
        with pytest.raises(ValueError, match="finite"):
            Cue(name="x", log_scale=log_scale, sigma=sigma)


# Camera height


def test_camera_height_sigma_covers_prior_and_scatter() -> None:
    rng = np.random.default_rng(0)
    errors, sigmas = [], []
    for _ in range(600):
        true_height_m = rng.normal(1.6, 0.08)
        height_units = true_height_m * 0.25 * np.exp(rng.normal(0, 0.06, 8))
        ground = Ground(
            frame_idx=np.arange(8),
            up_in_world=np.tile([0.0, -1.0, 0.0], (8, 1)),
            height=height_units,
            bend=np.zeros(8),
            support=np.ones(8),
            method="sparse",
        )
        cue = camera_height_cue(ground, 1.6, 0.08, about="given")
        errors.append(cue.log_scale - math.log(4))
        sigmas.append(cue.sigma)
    assert 0.62 < coverage(errors, sigmas) < 0.76


# Known poses


def test_known_poses_recover_the_scale_with_a_fifth_of_them_wrong() -> None:
    reconstruction = scene()
    rng = np.random.default_rng(1)
    known = invert(reconstruction.cam_from_world)
    known[:, :, 3] = 2.5 * known[:, :, 3] @ rotation_from_rotvec(np.array([0.3, 1.0, -0.5])).T + [3, 4, 5]
    wrong = rng.choice(len(known), 7, replace=False)
    known[wrong, :, 3] += rng.normal(0, 5, (7, 3))
    cue = known_poses_cue(reconstruction, known)
    assert cue is not None
    assert math.exp(cue.log_scale) == pytest.approx(2.5, rel=1e-6)


def test_known_poses_sigma_covers_drifting_noise() -> None:
    rng = np.random.default_rng(2)
    reconstruction = scene(num_frames=60)
    truth = invert(reconstruction.cam_from_world)
    errors, sigmas = [], []
    for _ in range(300):
        noise = gaussian_filter1d(rng.normal(0, 1, (60, 3)), 2, axis=0, mode="reflect")
        known = truth.copy()
        known[:, :, 3] += 0.05 * noise / noise.std()
        cue = known_poses_cue(reconstruction, known, sigma=1e-4)
        assert cue is not None
        errors.append(cue.log_scale)
        sigmas.append(cue.sigma)
    assert 0.60 < coverage(errors, sigmas) < 0.8


def test_known_poses_need_motion_and_three_frames() -> None:
    reconstruction = scene()
    known = invert(reconstruction.cam_from_world)
    still = known.copy()
    still[:, :, 3] = 1.0
    assert known_poses_cue(reconstruction, still) is None
    few = np.full_like(known, np.nan)
    few[:2] = known[:2]
    assert known_poses_cue(reconstruction, few) is None


# Baseline


def test_baseline_between_two_cameras_of_a_rig() -> None:
    rng = np.random.default_rng(3)
    reconstruction = scene()
    errors, sigmas = [], []
    for _ in range(300):
        partner = reconstruction.cam_from_world.copy()
        partner[:, 0, 3] -= 0.3  # 0.3 units to the right
        partner[:, 0, 3] += rng.normal(0, 0.003, len(partner))
        true_m = rng.normal(0.12, 0.0002)
        cue = baseline_cue(reconstruction.cam_from_world, partner, true_m, sigma_m=0.0002)
        assert cue is not None
        errors.append(cue.log_scale - math.log(0.12 / 0.3))
        sigmas.append(cue.sigma)
    assert 0.62 < coverage(errors, sigmas) < 0.78
    unposed = np.full_like(reconstruction.cam_from_world, np.nan)
    assert baseline_cue(reconstruction.cam_from_world, unposed, 0.12, sigma_m=0.001) is None


# Depth


def test_depth_ratio_is_the_weighted_least_squares_of_its_formula() -> None:
    rng = np.random.default_rng(4)
    reconstructed = rng.uniform(1, 10, 200)
    metric = 3.0 * reconstructed * np.exp(rng.uniform(-0.05, 0.05, 200))
    weight = rng.uniform(0.5, 1, 200)
    slow = minimize_scalar(
        lambda s: float(np.sum(weight / reconstructed * (s * reconstructed - metric) ** 2)),
        bounds=(1, 9),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert depth_ratio(reconstructed, metric, weight) == pytest.approx(slow.x, rel=1e-6)


def test_depth_ratio_leaves_out_outliers() -> None:
    reconstructed = np.linspace(1, 10, 100)
    metric = 0.5 * reconstructed * np.exp(0.01 * np.sin(np.arange(100)))
    metric[::7] *= 4
    assert depth_ratio(reconstructed, metric) == pytest.approx(0.5, rel=3e-3)


@pytest.mark.parametrize("size", [(240, 320), (60, 80)])
def test_depth_maps_give_the_scale(size: tuple[int, int]) -> None:
    reconstruction = scene(num_points=150)

    def depth_maps(frame: int) -> tuple[np.ndarray, None] | None:
        """Depth of the points themselves, in metres, at their pixels; 0 elsewhere."""
        if frame % 3 == 0:
            return None
        here = reconstruction.frame_idx == frame
        z = transform(
            reconstruction.cam_from_world[frame],
            reconstruction.points_in_world[reconstruction.point_idx[here]],
        )[:, 2]
        depth = np.zeros(size)
        x, y = (reconstruction.xy_px[here] / [320, 240] * [size[1], size[0]]).astype(int).T
        depth[y, x] = 1.7 * z
        return depth, None

    cue = depth_cue(reconstruction, depth_maps, sigma=0.01)
    assert cue is not None
    assert math.exp(cue.log_scale) == pytest.approx(1.7, rel=5e-3)  # pixels that two points share
    assert cue.sigma == pytest.approx(0.01, rel=0.3)
    assert depth_cue(reconstruction, lambda frame: None, sigma=0.01) is None


def test_depth_sigma_covers_a_shared_bias_and_frame_noise() -> None:
    rng = np.random.default_rng(5)
    reconstruction = scene(num_frames=30, num_points=80)
    depth_of = [transform(p, reconstruction.points_in_world)[:, 2] for p in reconstruction.cam_from_world]
    errors, sigmas = [], []
    for _ in range(100):
        bias, frame_noise = rng.normal(0, 0.03), rng.normal(0, 0.08, 30)

        def depth_maps(frame: int, bias: float = bias, frame_noise: np.ndarray = frame_noise) -> tuple:
            depth = np.zeros((240, 320))
            here = reconstruction.frame_idx == frame
            x, y = reconstruction.xy_px[here].astype(int).T
            depth[y, x] = depth_of[frame][reconstruction.point_idx[here]] * math.exp(
                bias + frame_noise[frame]
            )
            return depth, None

        cue = depth_cue(reconstruction, depth_maps, sigma=0.03)
        assert cue is not None
        errors.append(cue.log_scale)
        sigmas.append(cue.sigma)
    assert 0.6 < coverage(errors, sigmas) < 0.85


def test_depth_far_from_the_points_and_unposed_frames_are_no_cue() -> None:
    reconstruction = scene()
    unposed = dataclasses.replace(
        reconstruction, cam_from_world=np.full_like(reconstruction.cam_from_world, np.nan)
    )
    assert depth_cue(unposed, lambda frame: (np.ones((24, 32)), None), sigma=0.1) is None
    empty = np.full((24, 32), np.nan)
    assert depth_cue(reconstruction, lambda frame: (empty, None), sigma=0.1) is None


def test_smoothed_ratios_follow_the_recursion_and_skip_unknown_frames() -> None:
    ratios = np.array([np.nan, 2.0, np.nan, 4.0, 4.0])
    expected = [np.nan, 2.0, 2.0, 0.9 * 2 + 0.1 * 4, 0.9 * (0.9 * 2 + 0.1 * 4) + 0.1 * 4]
    np.testing.assert_allclose(smoothed_ratios(ratios, momentum=0.9), expected)


def test_an_unsure_focal_length_makes_the_height_unsure() -> None:
    ground = Ground(
        frame_idx=np.arange(4),
        up_in_world=np.tile([0.0, -1.0, 0.0], (4, 1)),
        height=np.full(4, 0.8),
        bend=np.zeros(4),
        support=np.ones(4),
        method="photometric",
    )
    sure = camera_height_cue(ground, 1.6, 0.02, about="given")
    unsure = camera_height_cue(ground, 1.6, 0.02, about="given", focal_sigma=0.05)
    assert unsure.log_scale == sure.log_scale == pytest.approx(math.log(2))
    assert unsure.sigma == pytest.approx(math.hypot(sure.sigma, 0.05))
