"""Resection against the general adjustment with its points held, and against exact truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from worldline.annotate.bundle import adjust
from worldline.annotate.bundle_problem import Bundle, BundleConfig, project_all
from worldline.annotate.camera import rotation_from_rotvec
from worldline.annotate.resection import resect


def _cameras(model: str, *, noise_px: float, outlier_share: float) -> tuple[Bundle, np.ndarray]:
    """Five cameras before a cloud, moved off their true poses, and these [5, 3, 4]."""
    rng = np.random.default_rng(3)
    points = rng.uniform(-2, 2, (120, 3)) + [0, 0, 6]
    rotation = rotation_from_rotvec(0.1 * rng.standard_normal((5, 3)))
    true = np.concatenate([rotation, 0.3 * rng.standard_normal((5, 3, 1))], axis=2)
    cam_idx, point_idx = np.nonzero(rng.random((5, 120)) < 0.8)
    shuffled = rng.permutation(len(cam_idx))
    bundle = Bundle(
        cam_from_world=true,
        points_in_world=points,
        cam_idx=cam_idx[shuffled],
        point_idx=point_idx[shuffled],
        xy_px=np.zeros((len(cam_idx), 2)),
        focal_px=np.full(5, 400.0),
        centre_px=np.array([320.0, 240.0]),
        model=model,
        distortion=np.zeros(2) if model == "pinhole" else np.array([0.05, -0.01]),
    )
    xy, _ = project_all(bundle)
    xy += noise_px * rng.standard_normal(xy.shape)
    wrong = rng.random(len(xy)) < outlier_share
    xy[wrong] += rng.uniform(20, 60, (int(wrong.sum()), 2))
    start = np.concatenate(
        [rotation_from_rotvec(np.full((5, 3), 0.02)) @ rotation, true[:, :, 3:] + 0.05], axis=2
    )
    return replace(bundle, xy_px=xy, cam_from_world=start), true


@pytest.mark.parametrize("model", ["pinhole", "radial", "fisheye"])
def test_exact_observations_give_the_exact_poses(model: str) -> None:
    bundle, true = _cameras(model, noise_px=0.0, outlier_share=0.0)
    np.testing.assert_allclose(resect(bundle, max_iterations=30).cam_from_world, true, atol=1e-7)


def test_minimum_is_that_of_the_adjustment_with_its_points_held() -> None:
    bundle, true = _cameras("radial", noise_px=0.7, outlier_share=0.15)
    own = resect(bundle, max_iterations=100, loss_scale=2.0).cam_from_world
    config = BundleConfig(free_points=False, loss_scale=2.0, max_iterations=200, relative_tolerance=1e-12)
    np.testing.assert_allclose(own, adjust(bundle, config).cam_from_world, atol=2e-4)
    np.testing.assert_allclose(own, true, atol=0.02)


def test_a_camera_without_observations_stays_where_it_is() -> None:
    bundle, _ = _cameras("pinhole", noise_px=0.0, outlier_share=0.0)
    kept = bundle.cam_idx != 2
    fewer = replace(
        bundle, cam_idx=bundle.cam_idx[kept], point_idx=bundle.point_idx[kept], xy_px=bundle.xy_px[kept]
    )
    np.testing.assert_array_equal(resect(fewer).cam_from_world[2], bundle.cam_from_world[2])
