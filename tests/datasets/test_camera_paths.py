"""Camera paths: axes by hand, and each kind of motion by what defines it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from worldline.annotate.camera import compose, invert, rotation_angle
from worldline.datasets.camera_paths import PATHS, CameraPath, FreeSpace, Motion, scene_from_cam

ANGLES = np.linspace(0, 2 * np.pi, 25)[:-1]
SPACE = FreeSpace(
    route_in_scene=np.stack([12 * np.cos(ANGLES), 9 * np.sin(ANGLES), 0 * ANGLES], axis=-1),
    is_closed=True,
    eye_height_m=1.6,
    target_in_scene=np.array([3.0, 1.0, 1.0]),
    reach_m=1.0,
    ahead_m=5.0,
    walking_m_s=1.4,
    looks_at_target=True,
)
TIMES = np.arange(0, 20, 1 / 30)


def poses(kind: str, seed: int = 0, times: np.ndarray = TIMES) -> np.ndarray:
    return scene_from_cam(CameraPath(kind, SPACE, seed=seed, duration_s=float(TIMES[-1]))(times))


def level(heading: float, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    one = np.ones(1)
    motion = Motion(
        position_in_scene=np.zeros((1, 3)),
        heading_rad=heading * one,
        pitch_rad=pitch * one,
        roll_rad=roll * one,
    )
    return scene_from_cam(motion)[0, :, :3]


def test_axes_by_hand() -> None:
    # Columns: where the camera's right, down and forward point in the scene (x east, y north, z up).
    np.testing.assert_allclose(level(0.0), [[1, 0, 0], [0, 0, 1], [0, -1, 0]], atol=1e-12)
    np.testing.assert_allclose(level(np.pi / 2), [[0, 0, 1], [-1, 0, 0], [0, -1, 0]], atol=1e-12)
    np.testing.assert_allclose(level(0.0, pitch=np.pi / 2), [[1, 0, 0], [0, 1, 0], [0, 0, 1]], atol=1e-12)
    # Rolled clockwise by a quarter: what was right is now down, so the camera's right looks down.
    np.testing.assert_allclose(level(0.0, roll=np.pi / 2)[:, 0], [0, 0, -1], atol=1e-12)


@pytest.mark.parametrize("kind", PATHS)
def test_every_path_is_rigid_smooth_and_repeatable(kind: str) -> None:
    a = poses(kind)
    np.testing.assert_allclose(a[:, :, :3].mT @ a[:, :, :3], np.tile(np.eye(3), (len(a), 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(a[:, :, :3]), 1, atol=1e-12)
    np.testing.assert_array_equal(a, poses(kind))
    np.testing.assert_allclose(a[::-1], poses(kind, times=TIMES[::-1]), atol=1e-12)
    # No jumps: halving the time step halves the largest step (a jump would keep its size).
    fine = poses(kind, times=np.arange(0, 20, 1 / 60))
    steps, fine_steps = (np.linalg.norm(np.diff(p[:, :, 3], axis=0), axis=1).max() for p in (a, fine))
    assert fine_steps <= 0.62 * steps + 1e-9
    turns, fine_turns = (rotation_angle(p[:-1, :, :3].mT @ p[1:, :, :3]).max() for p in (a, fine))
    assert fine_turns <= 0.62 * turns + 1e-9


def test_seeds_differ() -> None:
    assert np.abs(poses("handheld", seed=1) - poses("handheld", seed=2)).max() > 0.01


@pytest.mark.parametrize("kind", ["static", "zooming"])
def test_fixed_cameras_do_not_move(kind: str) -> None:
    assert np.ptp(poses(kind), axis=0).max() == 0


def test_pure_rotation_turns_around_its_centre() -> None:
    a = poses("pure_rotation")
    assert np.ptp(a[:, :, 3], axis=0).max() == 0
    assert 0.4 < rotation_angle(a[:1, :, :3].mT @ a[:, :, :3]).max() < 1.2


@pytest.mark.parametrize(("kind", "speed_m_s"), [("walking", 1.4), ("driving", 10.0)])
def test_speed_over_ground(kind: str, speed_m_s: float) -> None:
    ground = poses(kind)[:, :2, 3]
    # Sway and tremor lengthen the path of single frames; over half a second they do not.
    moved = np.linalg.norm(ground[15:] - ground[:-15], axis=1) / 0.5
    assert np.median(moved) == pytest.approx(speed_m_s, rel=0.03)


def test_walkers_look_ahead_and_drivers_along_the_tangent() -> None:
    a = poses("driving")
    velocity = np.gradient(a[:, :, 3], TIMES, axis=0)
    cosine = np.sum(velocity * a[:, :, 2], axis=1) / np.linalg.norm(velocity, axis=1)
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 1.5


def test_orbit_keeps_its_distance_and_looks_at_the_target() -> None:
    a = poses("orbiting")
    delta = SPACE.target_in_scene - a[:, :, 3]
    radius = np.linalg.norm(delta[:, :2], axis=1)
    assert np.ptp(radius) < 0.03
    cosine = np.sum(delta * a[:, :, 2], axis=1) / np.linalg.norm(delta, axis=1)
    assert np.degrees(np.arccos(cosine)).max() < 1.0
    assert np.linalg.norm(a[0, :, 3] - a[200, :, 3]) > 2.0


def test_loop_ends_where_it_began_after_one_turn() -> None:
    a = poses("loop")
    cam0_from_last = compose(invert(a[0]), a[-1])
    assert np.linalg.norm(cam0_from_last[:, 3]) < 0.03
    assert np.degrees(rotation_angle(cam0_from_last[:, :3])) < 2.0
    middle = compose(invert(a[0]), a[len(a) // 2])
    assert np.degrees(rotation_angle(middle[:, :3])) > 150
    assert np.linalg.norm(a[:, :2, 3] - SPACE.route_in_scene[0, :2], axis=1).max() <= SPACE.reach_m


def test_backtrack_returns_the_same_way() -> None:
    a = poses("backtrack")
    out, back = a[:300, :, 3], a[::-1][:300, :, 3]
    assert np.abs(out - back).max() < 0.03  # hands tremble by millimetres
    assert np.linalg.norm(a[len(a) // 2, :, 3] - a[0, :, 3]) > 1.0


def test_straight_has_equal_steps_and_no_rotation() -> None:
    a = poses("straight")
    assert np.ptp(a[:, :, :3], axis=0).max() == 0
    steps = np.diff(a[:, :, 3], axis=0)
    np.testing.assert_allclose(steps, np.tile(steps[:1], (len(steps), 1)), atol=1e-12)
    assert np.linalg.norm(a[-1, :, 3] - a[0, :, 3]) == pytest.approx(SPACE.ahead_m)


def test_open_routes_go_on_straight_beyond_their_end() -> None:
    line = np.array([[0.0, y, 0.0] for y in range(5)])
    space = dataclasses.replace(SPACE, route_in_scene=line, is_closed=False)
    drive = CameraPath("driving", space, seed=0, duration_s=2.0)(np.array([0.2, 1.0]))
    np.testing.assert_allclose(drive.position_in_scene[:, :2], [[0, 2], [0, 10]], atol=1e-9)


def test_unknown_path_is_refused() -> None:
    with pytest.raises(ValueError, match="known are"):
        CameraPath("teleport", SPACE, seed=0, duration_s=1.0)
