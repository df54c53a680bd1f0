"""Camera scores of paths whose speed, turning and shape are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldline.datasets.schema import TRAJECTORIES
from worldline.filters.camera import SHAPES, CameraConfig, camera_scores

FPS = 24.0


def _row(centre, rotation=None, **values):
    """A table row of a path [T, 3], in world axes, and its rotations world_from_cam (identity where None)."""
    centre = np.asarray(centre, dtype=float)
    turn = np.tile(np.eye(3), (len(centre), 1, 1)) if rotation is None else rotation.as_matrix()
    poses = np.concatenate([turn, centre[:, :, None]], axis=2)
    times_s = 7.0 + np.arange(len(centre)) / FPS
    return {
        "world_from_cam": poses.reshape(-1).tolist(),
        "timestamps_s": times_s.tolist(),
        "degeneracy": "ok",
    } | values


def _times(seconds):
    return np.arange(round(seconds * FPS) + 1) / FPS


def _about_down(angles_rad):
    """Turns to the right: about y, which points down."""
    return Rotation.from_rotvec(np.outer(angles_rad, (0, 1, 0)))


def test_straight_drive_has_its_speed_and_nothing_else():
    t = _times(6)
    found = camera_scores(_row(np.outer(1.5 * t, (0, 0, 1))))
    for name in ("speed_mean", "speed_max"):
        assert found[name] == pytest.approx(1.5)
    for name in (
        "speed_variation",
        "acceleration_rms",
        "turn_rate",
        "turn_total_deg",
        "sideways_share",
        "smoothness",
    ):
        assert found[name] == pytest.approx(0, abs=1e-6), name
    assert (found["displacement"], found["path_extent"]) == pytest.approx((9.0, 9.0))
    assert (found["straightness"], found["forward_share"]) == pytest.approx((1, 1))
    assert (found["num_turns"], found["path_shape"]) == (0, "forward")


def test_circle_that_looks_ahead_has_closed_forms():
    """Radius 2 m, one turn in 12 s, to the right."""
    t, radius, rate = _times(12), 2.0, 2 * math.pi / 12
    centre = radius * np.stack([1 - np.cos(rate * t), 0 * t, np.sin(rate * t)], axis=1)
    found = camera_scores(_row(centre, _about_down(rate * t)))
    chord = 2 * radius * math.sin(rate * 0.25) / 0.5  # speed over half a second
    assert (found["speed_mean"], found["speed_max"]) == pytest.approx((chord, chord))
    assert found["acceleration_rms"] == pytest.approx(chord * 2 * math.sin(rate * 0.25) / 0.5)
    assert (found["turn_rate"], found["turn_rate_max"]) == pytest.approx((30, 30))
    for name in ("turn_total_deg", "yaw_net_deg", "yaw_range_deg"):
        assert found[name] == pytest.approx(360), name
    for name in ("pitch_range_deg", "roll_range_deg"):
        assert found[name] == pytest.approx(0, abs=1e-4), name
    assert found["straightness"] == pytest.approx(0, abs=1e-9)
    assert found["path_extent"] == pytest.approx(2 * radius)
    assert found["forward_share"] == pytest.approx(math.cos(rate * 0.25))
    assert found["path_shape"] == "loop"


def test_signs_of_yaw_pitch_and_roll_ranges():
    t = _times(2)
    up = Rotation.from_rotvec(np.outer(np.radians(10) * t, (1, 0, 0)))
    roll = Rotation.from_rotvec(np.outer(np.radians(7) * t, (0, 0, 1)))
    centre = np.outer(t, (0, 0, 1))
    assert camera_scores(_row(centre, _about_down(-np.radians(12) * t)))["yaw_net_deg"] == pytest.approx(-24)
    assert camera_scores(_row(centre, up))["pitch_range_deg"] == pytest.approx(20)
    assert camera_scores(_row(centre, roll))["roll_range_deg"] == pytest.approx(14)


@pytest.mark.parametrize(
    ("direction", "shape"),
    [((0, 0, 1), "forward"), ((0, 0, -1), "backward"), ((1, 0, 0), "sideways"), ((-1, 0, 0), "sideways"),
     ((0, -1, 0), "vertical"), ((1, 0, 1), "mixed")],
)  # fmt: skip
def test_shape_of_straight_paths_is_their_direction_in_the_camera(direction, shape):
    assert camera_scores(_row(np.outer(_times(3), direction)))["path_shape"] == shape


def test_arc_turn_static_and_loop():
    t = _times(4)
    quarter = 3 * np.stack([1 - np.cos(0.4 * t), 0 * t, np.sin(0.4 * t)], axis=1)
    assert camera_scores(_row(quarter, _about_down(0.4 * t)))["path_shape"] == "arc"
    still = np.zeros((len(t), 3))
    assert camera_scores(_row(still, degeneracy="static"))["path_shape"] == "static"
    turning = camera_scores(_row(still, _about_down(0.4 * t), degeneracy="pure_rotation"))
    assert turning["path_shape"] == "turn"
    assert turning["turn_rate"] == pytest.approx(math.degrees(0.4))
    assert turning["speed_mean"] is turning["straightness"] is turning["displacement"] is None
    there_and_back = np.outer(np.minimum(t, 4 - t), (0, 0, 1))
    assert camera_scores(_row(there_and_back))["path_shape"] == "loop"
    assert {"arc", "turn", "static", "loop"} < set(SHAPES)


def test_corners_are_counted():
    t = _times(9)
    leg = np.clip(t, 0, 3), np.clip(t - 3, 0, 3), np.clip(t - 6, 0, 3)
    zigzag = np.stack([leg[1], 0 * t, leg[0] + leg[2]], axis=1)
    assert camera_scores(_row(zigzag))["num_turns"] == 2


def test_scores_keep_under_a_change_of_world_and_lengths_scale():
    t = _times(5)
    centre = np.stack([np.sin(t), 0.2 * np.cos(2 * t), 1.1 * t], axis=1)
    rotation = Rotation.from_rotvec(np.stack([0.1 * np.sin(t), 0.3 * t, 0.05 * np.cos(t)], axis=1))
    move = Rotation.from_rotvec((0.4, -1.0, 0.3))
    first = camera_scores(_row(centre, rotation))
    second = camera_scores(_row(3 * (move.apply(centre) + (5, 6, 7)), move * rotation))
    lengths = {"speed_mean", "speed_max", "acceleration_rms", "displacement", "path_extent"}
    for name, value in first.items():
        if isinstance(value, float):
            assert second[name] == pytest.approx(
                3 * value if name in lengths else value, rel=1e-6, abs=1e-6
            ), name
    assert first["path_shape"] == second["path_shape"]


def test_noise_lowers_smoothness_by_its_size_and_a_jump_is_seen():
    t = _times(8)
    centre = np.outer(t, (0, 0, 1.0))
    rng = np.random.default_rng(0)
    noisy = camera_scores(_row(centre + rng.normal(0, 0.01, centre.shape)))
    # The difference of fourth order over 6 has the variance (1 + 16/36 + 16/36 + 2/36) = 70/36 a component.
    expected = 0.01 * math.sqrt(3 * 70 / 36) / 0.5
    assert noisy["smoothness"] == pytest.approx(expected, rel=0.1)
    assert noisy["jump_share"] == 0
    centre[60] += (0.5, 0, 0)
    jumped = camera_scores(_row(centre + rng.normal(0, 1e-3, centre.shape)))
    assert jumped["jump_share"] == pytest.approx(5 / (len(t) - 4))  # the frame and those that it foretells


def test_lens_scores_are_their_formulas():
    fxfycxcy = [[500, 550, 320, 240], [600, 660, 320, 240], [700, 770, 320, 240]]
    row = _row(np.outer(_times(1), (0, 0, 1))) | {"fxfycxcy_px": np.ravel(fxfycxcy).tolist()}
    found = camera_scores(row)
    assert found["focal_mismatch"] == pytest.approx(0.1 / 1.05)
    assert found["focal_variation"] == pytest.approx(np.std([500, 600, 700]) / 600)


def test_error_bars_and_frames_without_a_pose():
    t = _times(4)
    row = _row(np.outer(t, (0, 0, 2.0)))
    poses = np.array(row["world_from_cam"]).reshape(-1, 12)
    poses[10:20] = np.nan
    sigma = np.where(np.isnan(poses[:, 0]), np.nan, 0.04)
    found = camera_scores(
        row | {"world_from_cam": poses.ravel().tolist(), "sigma_translation": sigma.tolist(),
               "sigma_rotation_rad": (sigma / 10).tolist()}
    )  # fmt: skip
    assert found["speed_mean"] == pytest.approx(2.0)
    assert found["sigma_translation_median"] == pytest.approx(0.04)
    assert found["sigma_rotation_median_deg"] == pytest.approx(math.degrees(0.004))
    assert found["sigma_share"] == pytest.approx(0.04 / 8)


def test_without_a_path_all_is_unknown_and_every_score_has_its_column():
    none = camera_scores({})
    assert set(none.values()) == {None}
    assert set(none) <= set(TRAJECTORIES.names)
    assert set(camera_scores(_row(np.zeros((1, 3)))).values()) == {None}
    assert set(camera_scores(_row(np.outer(_times(3), (0, 0, 1))))) == set(none)


def test_senseless_settings_are_refused():
    with pytest.raises(ValueError, match="step_s"):
        CameraConfig(step_s=0.0)
