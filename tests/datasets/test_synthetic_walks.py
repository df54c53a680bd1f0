"""Rendered walks: two from each start, poses that belong to the frames."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.datasets.camera_paths import MAX_FORWARD_M, MAX_SIDE_M
from worldline.datasets.schema import MissingBackend
from worldline.datasets.synthetic_walks import Walks, rendered_walks


@pytest.fixture(scope="module")
def walks() -> Walks:
    try:
        return rendered_walks(1, num_starts=2, walks_a_start=2, num_frames=3, width=64, height=48, seed=5)
    except MissingBackend as missing:
        pytest.skip(str(missing))


def test_walks_of_a_start_share_its_frame_and_part_from_there(walks: Walks) -> None:
    assert walks.frames.shape == (4, 3, 48, 64, 3)
    np.testing.assert_allclose(walks.first_from_cam[:, 0], np.tile(np.eye(3, 4), (4, 1, 1)), atol=1e-12)
    # The tilt of a walk begins at its second frame, so the first frames of one start are the same picture.
    np.testing.assert_array_equal(walks.frames[0, 0], walks.frames[1, 0])
    assert (walks.frames[0, 0] != walks.frames[2, 0]).mean() > 0.1
    assert (walks.frames[0, 2] != walks.frames[1, 2]).mean() > 0.1


def test_walks_stay_within_their_reach(walks: Walks) -> None:
    length_m = np.linalg.norm(walks.first_from_cam[:, -1, :, 3], axis=-1)
    assert (length_m > 0).all()
    assert (length_m <= np.hypot(MAX_FORWARD_M, MAX_SIDE_M)).all()
    rotation = walks.first_from_cam[..., :3]
    np.testing.assert_allclose(rotation @ rotation.mT, np.tile(np.eye(3), (4, 3, 1, 1)), atol=1e-12)


def test_poses_belong_to_the_frames(walks: Walks) -> None:
    """A far point of the first frame, carried over by the walk's rotation alone, is found again there: the
    frame warped by the pose is nearer to the true one than the frame left standing."""
    import cv2

    fx, fy, cx, cy = walks.camera.fxfycxcy_px
    matrix = np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]])
    gains = []
    for frames, poses in zip(walks.frames, walks.first_from_cam, strict=True):
        warp = matrix @ poses[-1, :, :3].T @ np.linalg.inv(matrix)
        ones = np.full(frames[0].shape[:2], 255, np.uint8)
        size = (walks.camera.width, walks.camera.height)
        seen = cv2.warpPerspective(ones, warp, size) == 255
        warped = cv2.warpPerspective(frames[0], warp, size)
        error = np.abs(warped.astype(float) - frames[-1])[seen].mean()
        gains.append(error / np.abs(frames[0].astype(float) - frames[-1])[seen].mean())
    assert np.mean(gains) < 0.95
