"""Control strings against closed forms of the path."""

import math

import numpy as np
import pytest

from worldline.annotate.camera import rotation_from_rotvec
from worldline.train.actions import ActionConfig, ActionStepper, parse_actions, poses_of_actions

PLAIN = ActionConfig(ease_frames=0)


def test_strings_are_read_frame_by_frame():
    assert parse_actions("w-2, DW-1,none-2") == ["w", "w", "dw", "", ""]


@pytest.mark.parametrize("text", ["", "w", "w-0", "w--3", "x-3", "-3", "w-2,", "w-1.5", "w-9999999"])
def test_strings_that_mean_nothing_are_refused(text):
    with pytest.raises(ValueError, match="action"):
        parse_actions(text)


@pytest.mark.parametrize(
    ("text", "position"),
    [("w-40", (0, 0, 1.0)), ("s-40", (0, 0, -1.0)), ("l-8", (0.2, 0, 0)), ("j-8", (-0.2, 0, 0))],
)
def test_straight_steps(text, position):
    poses = poses_of_actions(text, PLAIN)
    assert len(poses) == int(text.split("-")[1]) + 1
    np.testing.assert_allclose(poses[-1, :, 3], position, atol=1e-12)
    np.testing.assert_array_equal(poses[:, :, :3], np.tile(np.eye(3), (len(poses), 1, 1)))


def test_turning_right_looks_to_the_right_and_looking_up_looks_up():
    right = poses_of_actions("d-50", PLAIN)[-1, :, 2]
    np.testing.assert_allclose(right, [math.sin(math.radians(30)), 0, math.cos(math.radians(30))], atol=1e-12)
    up = poses_of_actions("i-50", PLAIN)[-1, :, 2]
    np.testing.assert_allclose(up, [0, -0.5, math.cos(math.radians(30))], atol=1e-12)  # y points down
    steep = poses_of_actions("i-500,k-10", PLAIN)
    assert steep[-11, 1, 2] == pytest.approx(-math.sin(math.radians(60)))
    assert steep[-1, 1, 2] == pytest.approx(-math.sin(math.radians(54)))  # comes down at once from the stop


def test_walking_while_turning_closes_a_circle_of_the_arc_length():
    poses = poses_of_actions("dw-600", PLAIN)  # 600 frames of 0.6 degrees
    np.testing.assert_allclose(poses[-1, :, 3], 0, atol=1e-9)
    across = np.linalg.norm(poses[300, :, 3])
    assert across == pytest.approx(0.025 / math.sin(math.radians(0.3)), rel=1e-9)  # of a regular 600-gon


def test_walking_stays_level_when_looking_up():
    poses = poses_of_actions("i-40,w-40", PLAIN)
    np.testing.assert_allclose(poses[-1, :, 3], [0, 0, 1], atol=1e-12)


def test_easing_keeps_the_way_and_starts_and_ends_slowly():
    config = ActionConfig(ease_frames=6)
    poses = poses_of_actions("w-20,dw-20,none-9", config)
    speed = np.linalg.norm(np.diff(poses[:, :, 3], axis=0), axis=1)
    assert speed.sum() == pytest.approx(40 * 0.025)  # w is one run of 40 frames
    ramp = [0.025 * (3 * t**2 - 2 * t**3) for t in (np.arange(6) + 0.5) / 6]
    np.testing.assert_allclose(speed[:6], ramp)
    np.testing.assert_allclose(speed[6:40], 0.025, rtol=1e-9)
    np.testing.assert_allclose(speed[40:46], ramp[::-1])
    np.testing.assert_array_equal(speed[46:], 0)
    heading = math.degrees(math.atan2(poses[-1, 0, 2], poses[-1, 2, 2]))
    assert heading == pytest.approx(20 * 0.6)
    # Let go before full speed, a key falls from where it was.
    tap = np.diff(poses_of_actions("w-2,none-4", config)[:, 2, 3])
    np.testing.assert_allclose(tap, [*ramp[:2], *ramp[1::-1], 0, 0])


def test_frame_by_frame_is_the_string():
    """The poses a live control gets, and the rotations as a product of two about the axes."""
    text = "w-3,dwi-9,none-4,jk-15,a-2,sa-11,none-1"
    stepper = ActionStepper()
    live = [stepper.pose] + [stepper.step(keys) for keys in parse_actions(text)]
    poses = poses_of_actions(text)
    np.testing.assert_array_equal(np.stack(live), poses)
    pitch, yaw = np.arcsin(-poses[:, 1, 2]), np.arctan2(-poses[:, 2, 0], poses[:, 0, 0])
    about_y = rotation_from_rotvec(yaw[:, None] * np.array([0.0, 1.0, 0.0]))
    about_x = rotation_from_rotvec(pitch[:, None] * np.array([1.0, 0.0, 0.0]))
    np.testing.assert_allclose(poses[:, :, :3], about_y @ about_x, atol=1e-12)
    assert np.ptp(pitch) > 0.05
    with pytest.raises(ValueError, match="unknown keys"):
        stepper.step("wq")
