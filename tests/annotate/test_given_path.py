"""Structure triangulated on a given trajectory, against a scene made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from worldline.annotate.camera import Intrinsics, invert, project, rotation_from_rotvec, transform
from worldline.annotate.given import GivenConfig, GivenPoses
from worldline.annotate.given_path import keep_given_path
from worldline.annotate.reconstruction import Reconstruction

TIMES = np.arange(12) / 10
CAMERA = Intrinsics(fxfycxcy_px=np.array([400.0, 400, 320, 240]), width=640, height=480)


def _scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray, Reconstruction]:
    """True world_from_cam [T, 3, 4], true points [P, 3] and what the images gave: exact pixels of every point
    in every frame, with a crooked path, no true point and a focal length 8 % off."""
    rng = np.random.default_rng(seed)
    points = rng.uniform([-2, -1.5, 4], [2, 1.5, 8], (150, 3))
    centre = np.stack([0.15 * np.arange(12), 0.02 * rng.standard_normal(12), np.zeros(12)], axis=1)
    rotation = rotation_from_rotvec(0.03 * rng.standard_normal((12, 3)))
    rotation[0], centre[0] = np.eye(3), 0
    world_from_cam = np.concatenate([rotation, centre[:, :, None]], axis=2)
    pixels = project(transform(invert(world_from_cam), points), CAMERA)  # [T, P, 2]
    wrong = invert(world_from_cam) + 0.05 * rng.standard_normal((12, 3, 4))
    seen = Reconstruction(
        timestamps_s=TIMES,
        cam_from_world=wrong,
        intrinsics=replace(CAMERA, fxfycxcy_px=np.tile([432.0, 432, 320, 240], (12, 1))),
        points_in_world=rng.standard_normal((150, 3)),
        point_rgb=np.arange(450).reshape(150, 3).astype(np.uint8),
        frame_idx=np.repeat(np.arange(12), 150).astype(np.int32),
        point_idx=np.tile(np.arange(150), 12).astype(np.int32),
        xy_px=pixels.reshape(-1, 2).astype(np.float32),
    )
    return world_from_cam, points, seen


def test_points_and_focal_length_follow_from_the_given_poses() -> None:
    world_from_cam, points, seen = _scene()
    elsewhere = np.concatenate([rotation_from_rotvec(np.array([0.2, 1, 0])), [[3.0], [4], [5]]], axis=1)
    moved = np.concatenate(
        [
            elsewhere[:, :3] @ world_from_cam[:, :, :3],
            transform(elsewhere, world_from_cam[:, :, 3])[..., None],
        ],
        axis=2,
    )
    given = GivenPoses(timestamps_s=TIMES, world_from_cam=moved)
    path = keep_given_path(seen, given, TIMES, GivenConfig(), size_px=(640, 480), held=None)
    kept = path.reconstruction
    np.testing.assert_allclose(invert(kept.cam_from_world), world_from_cam, atol=1e-12)
    np.testing.assert_allclose(kept.points_in_world, points, atol=2e-3)
    assert kept.intrinsics.fxfycxcy_px[3, 0] == pytest.approx(400, rel=1e-4)
    assert path.reprojection_px is not None
    assert path.reprojection_px < 0.01
    np.testing.assert_array_equal(kept.point_rgb, seen.point_rgb)


def test_wrong_observations_are_left_out_and_frames_without_a_pose_stay_so() -> None:
    world_from_cam, points, seen = _scene()
    spoilt = seen.xy_px.copy()
    wrong = np.arange(0, len(spoilt), 37)
    spoilt[wrong] += 40
    given = GivenPoses(timestamps_s=TIMES[1:], world_from_cam=world_from_cam[1:])
    exact = replace(CAMERA, fxfycxcy_px=np.tile(CAMERA.fxfycxcy_px, (12, 1)))
    path = keep_given_path(
        replace(seen, xy_px=spoilt, intrinsics=exact),
        given,
        TIMES,
        GivenConfig(),
        size_px=(640, 480),
        held=CAMERA,
    )
    kept = path.reconstruction
    assert not kept.is_registered[0]
    assert kept.is_registered[1:].all()
    np.testing.assert_array_equal(kept.cam_from_world[1], np.eye(3, 4))
    assert (kept.frame_idx > 0).all()
    right = set(map(tuple, seen.xy_px.tolist()))
    assert all(tuple(xy) in right for xy in kept.xy_px.tolist())
    in_first = transform(invert(world_from_cam[1]), points)
    distance = np.linalg.norm(kept.points_in_world[:, None] - in_first, axis=2).min(axis=1)
    assert len(kept.points_in_world) > 120
    assert distance.max() < 2e-3


def test_without_structure_the_trajectory_alone_is_kept() -> None:
    world_from_cam, _, _ = _scene()
    given = GivenPoses(timestamps_s=TIMES, world_from_cam=world_from_cam)
    path = keep_given_path(None, given, TIMES, GivenConfig(), size_px=(320, 240), held=CAMERA)
    assert path.agreement is None
    assert path.reprojection_px is None
    assert len(path.reconstruction.points_in_world) == 0
    assert path.reconstruction.intrinsics.fxfycxcy_px[5, 0] == 200
    bare = keep_given_path(None, given, TIMES, GivenConfig(), size_px=(320, 240), held=None)
    assert np.isnan(bare.reconstruction.intrinsics.fxfycxcy_px).all()
