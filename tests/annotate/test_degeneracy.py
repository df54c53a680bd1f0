"""Planar scenes are told by their images, whatever shape a wrong focal length gave the map."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.annotate.camera import Intrinsics, project, rotation_from_rotvec, transform
from worldline.annotate.degeneracy import DegeneracyConfig, is_planar, looks_flat
from worldline.annotate.keyframe_map import KeyframeMap


def keyframe_map(relief: float | np.ndarray, num_cams: int = 5, noise_px: float = 0.5) -> KeyframeMap:
    """Cameras on an arc before a slanted wall with bumps of `relief`, of all points or of each [300], its points mapped
    onto a bowl."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-2, 2, (300, 3)) * [1, 1, 0] + [0, 0, 5]
    points[:, 2] += 0.3 * points[:, 0] + relief * rng.uniform(-1, 1, 300)
    angle = np.linspace(-0.3, 0.3, num_cams)
    rotation = rotation_from_rotvec(np.stack([0 * angle, -angle, 0.1 * angle], axis=1))
    centre = np.stack([1.5 * np.sin(angle), 0.2 * angle, 0 * angle], axis=1)
    cam_from_world = np.concatenate([rotation, -rotation @ centre[:, :, None]], axis=2)
    lens = Intrinsics(fxfycxcy_px=np.array([500.0, 500.0, 320.0, 240.0]), width=640, height=480)
    kf_idx, track_idx = np.divmod(np.arange(num_cams * 300), 300)
    xy = project(transform(cam_from_world[:, None], points[None]), lens).reshape(-1, 2)
    bowl = points.copy()
    bowl[:, 2] += 0.25 * np.square(points[:, :2]).sum(axis=1)
    return KeyframeMap(
        cam_from_world=cam_from_world,
        points=bowl,
        width=640,
        height=480,
        focal_px=900.0,
        centre_px=np.array([320.0, 240.0]),
        model="pinhole",
        distortion=np.zeros(2),
        kf_idx=kf_idx,
        track_idx=track_idx,
        xy_px=xy + noise_px * rng.standard_normal(xy.shape),
        is_inlier=np.ones(len(kf_idx), dtype=bool),
    )


@pytest.mark.parametrize(("relief", "expected"), [(0.0, True), (0.5, False)])
def test_a_plane_is_told_though_its_map_is_bent(relief: float, expected: bool) -> None:
    found = keyframe_map(relief)
    assert not is_planar(found.points, np.zeros(3), DegeneracyConfig())
    assert looks_flat(found, DegeneracyConfig()) is expected


@pytest.mark.parametrize(("relief", "expected"), [(0.0, True), (0.03, False)])
def test_depth_that_is_small_beside_an_image_shows_beside_the_noise(relief: float, expected: bool) -> None:
    found = keyframe_map(relief)
    exact = keyframe_map(relief, noise_px=0.0).xy_px
    found.xy_px = exact + 0.05 * np.random.default_rng(1).standard_normal(exact.shape)
    assert looks_flat(found, DegeneracyConfig())
    assert looks_flat(found, DegeneracyConfig(), sigma_px=0.05) is expected


def test_a_map_whose_keyframes_share_too_little_is_not_called_flat() -> None:
    found = keyframe_map(0.0)
    found.is_inlier[found.track_idx > 40] = False
    assert not looks_flat(found, DegeneracyConfig())


def test_a_wall_alone_in_most_pairs_of_keyframes_is_no_planar_scene() -> None:
    relief = np.where(np.arange(300) < 150, 0.0, 0.5)
    found = keyframe_map(relief, num_cams=9)
    found.is_inlier[(found.track_idx >= 150) & (found.kf_idx < 5)] = False
    assert not looks_flat(found, DegeneracyConfig())
    found.is_inlier[found.track_idx >= 150] = False
    assert looks_flat(found, DegeneracyConfig())
