"""Poses found by rendering: true renders, known offsets, the standing frame, spoilt frames, and another place."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from worldline.annotate.camera import compose, rotation_from_rotvec
from worldline.datasets.schema import MissingBackend
from worldline.datasets.synthetic_walks import Walks, rendered_walks
from worldline.evaluate.rendered_pose import (
    CAM_MC,
    ROTATION,
    TOLD,
    TRANSLATION,
    SearchConfig,
    WalkCameras,
    pose_errors,
    spread_poses,
)

SIZE = {"walks_a_start": 2, "num_frames": 4, "width": 64, "height": 48, "seed": 5}


@pytest.fixture(scope="module")
def walks() -> Walks:
    try:
        return rendered_walks(1, num_starts=2, **SIZE)
    except MissingBackend as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def cameras(walks: Walks) -> Iterator[WalkCameras]:
    with WalkCameras(walks, seed_of_place=1, fov_x_deg=71.0) as cameras:
        yield cameras


def _rendered(cameras: WalkCameras, walks: Walks, first_from_cam: np.ndarray) -> np.ndarray:
    return np.stack(
        [
            [cameras._place.seen_from(compose(start, pose)) for pose in path]
            for start, path in zip(walks.scene_from_first, first_from_cam, strict=True)
        ]
    )


def test_the_walks_frames_are_those_of_the_place(walks: Walks, cameras: WalkCameras) -> None:
    assert np.array_equal(_rendered(cameras, walks, walks.first_from_cam), walks.frames)


def test_true_renders_are_where_they_were_taken(walks: Walks, cameras: WalkCameras) -> None:
    found = cameras.found(walks.frames)
    errors = pose_errors(found.first_from_cam, walks.first_from_cam[:, 1:])
    assert np.median(errors.rotation_deg) < 0.2
    assert np.median(errors.translation_m) < 0.015
    assert errors.rotation_deg.max() < 1.5
    assert errors.translation_m.max() < 0.1
    assert found.likeness.min() > 0.995


def test_a_known_offset_is_found(walks: Walks, cameras: WalkCameras) -> None:
    """Videos of a camera that is turned by 10 degrees and 20 cm off: that is the error, and nothing else."""
    offset = np.concatenate(
        [rotation_from_rotvec(np.array([0, np.radians(10.0), 0])), [[0.2], [0], [0]]], axis=1
    )
    off = compose(walks.first_from_cam, offset)
    found = cameras.found(_rendered(cameras, walks, off))
    beside_truth = pose_errors(found.first_from_cam, off[:, 1:])
    assert np.median(beside_truth.rotation_deg) < 0.3
    assert np.median(beside_truth.translation_m) < 0.02
    scores = cameras.scores(_rendered(cameras, walks, off), least_likeness=0.6)
    np.testing.assert_allclose(scores[ROTATION], 10.0, atol=1.0)
    np.testing.assert_allclose(scores[TRANSLATION], 0.2, atol=0.05)
    assert (scores[TOLD] == 1).all()


def test_a_standing_frame_is_a_camera_that_rests(walks: Walks, cameras: WalkCameras) -> None:
    still = np.broadcast_to(walks.frames[:, :1], walks.frames.shape)
    scores = cameras.scores(still, least_likeness=0.6)
    commanded = walks.first_from_cam[:, 1:]
    resting = pose_errors(np.broadcast_to(np.eye(3, 4), commanded.shape), commanded)
    np.testing.assert_allclose(scores[ROTATION], resting.rotation_deg.mean(axis=1), atol=0.5)
    np.testing.assert_allclose(scores[TRANSLATION], resting.translation_m.mean(axis=1), atol=0.03)
    np.testing.assert_allclose(scores[CAM_MC], resting.cam_mc.mean(axis=1), atol=0.03)


def test_neither_brightness_nor_blur_and_noise_move_the_camera_far(
    walks: Walks, cameras: WalkCameras
) -> None:
    generator = np.random.default_rng(0)
    darker = (0.7 * walks.frames + 20).astype(np.uint8)
    commanded = walks.first_from_cam[:, 1:]
    assert np.median(pose_errors(cameras.found(darker).first_from_cam, commanded).rotation_deg) < 0.3
    spoilt = np.stack([[cv2.GaussianBlur(frame, (0, 0), 1.5) for frame in video] for video in walks.frames])
    spoilt = np.clip(spoilt + generator.normal(0, 10, spoilt.shape), 0, 255).astype(np.uint8)
    errors = pose_errors(cameras.found(spoilt).first_from_cam, commanded)
    assert errors.rotation_deg.mean() < 2
    assert errors.translation_m.mean() < 0.12


def test_frames_of_another_place_are_not_told(walks: Walks, cameras: WalkCameras) -> None:
    elsewhere = rendered_walks(1001, num_starts=2, **SIZE).frames
    limit = cameras.unlike(elsewhere)
    assert limit < 0.8
    scores = cameras.scores(elsewhere, least_likeness=limit)
    assert scores[TOLD].mean() <= 0.1
    assert scores[ROTATION].mean() > 10
    assert (cameras.scores(walks.frames, least_likeness=limit)[TOLD] == 1).all()


def test_errors_by_hand_and_the_spread() -> None:
    commanded = np.eye(3, 4)
    found = np.concatenate(
        [rotation_from_rotvec(np.array([0.0, 0, np.radians(90)])), [[3.0], [4], [0]]], axis=1
    )
    errors = pose_errors(found, commanded)
    assert errors.rotation_deg == pytest.approx(90)
    assert errors.translation_m == pytest.approx(5)
    assert errors.cam_mc == pytest.approx((4 + 25) ** 0.5)  # [[-1, -1], [1, -1]] and (3, 4)
    config = SearchConfig(num_poses=200)
    poses = spread_poses(config)
    np.testing.assert_array_equal(poses[0], np.eye(3, 4))
    assert (np.abs(poses[..., 3]) <= config.reach_m).all()
    np.testing.assert_allclose(
        poses[..., :3] @ poses[..., :3].mT, np.tile(np.eye(3), (200, 1, 1)), atol=1e-12
    )
    turned = np.degrees(pose_errors(poses, np.eye(3, 4)).rotation_deg)
    assert turned.max() > 0
    with pytest.raises(ValueError, match="positive"):
        SearchConfig(num_kept=0)
