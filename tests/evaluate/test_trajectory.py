"""Path errors against evo, on real benchmark files and on made-up paths with known errors."""

from pathlib import Path

import numpy as np
import pytest
from evo.core import metrics, sync
from evo.core.metrics import PoseRelation, Unit
from evo.core.trajectory import PoseTrajectory3D
from evo.tools import file_interface
from scipy.spatial.transform import Rotation

from worldline.annotate.camera import as_matrix
from worldline.datasets.formats.tum import read_tum
from worldline.evaluate.trajectory import (
    CompareConfig,
    associate,
    camera_control_error,
    compare,
    mean_rotation,
)

DATA = Path(__file__).parents[2] / ".." / "shared" / "data" / "trajectories"
TUM_PAIRS = [
    ("freiburg1_xyz-rgbdslam_drift.txt", "freiburg1_xyz-groundtruth.txt"),
    ("freiburg1_xyz-ORB_kf_mono.txt", "freiburg1_xyz-groundtruth.txt"),
    ("fr2_desk_ORB_kf_mono.txt", "fr2_desk_groundtruth.txt"),
]


def smooth_path(num=120, seed=0):
    """A wandering, turning camera: poses [num, 3, 4] at 30 frames/s."""
    rng = np.random.default_rng(seed)
    t = np.arange(num) / 30
    centre = np.stack([np.sin(t) + 0.1 * t, 0.2 * np.cos(2 * t), 0.7 * t], axis=-1)
    rotation = Rotation.from_rotvec(np.stack([0.2 * np.sin(t), 0.5 * t, 0.1 * np.cos(t)], axis=-1))
    start = Rotation.random(rng=rng)
    return t, np.concatenate([(start * rotation).as_matrix(), start.apply(centre)[..., None]], axis=-1)


def noisy(poses, scale=1.0, seed=1, sigma=0.01):
    rng = np.random.default_rng(seed)
    rotation = Rotation.from_rotvec(sigma * rng.normal(size=(len(poses), 3))).as_matrix() @ poses[:, :, :3]
    centre = scale * poses[:, :, 3] + sigma * rng.normal(size=(len(poses), 3))
    return np.concatenate([rotation, centre[..., None]], axis=-1)


def evo_figures(times, poses, true_times, true_poses, alignment, delta):
    estimate = PoseTrajectory3D(timestamps=times, poses_se3=list(as_matrix(poses)))
    truth = PoseTrajectory3D(timestamps=true_times, poses_se3=list(as_matrix(true_poses)))
    truth, estimate = sync.associate_trajectories(truth, estimate, max_diff=0.02)
    scale = 1.0
    if alignment != "none":
        _, _, scale = estimate.align(truth, correct_scale=alignment == "sim3")
    figures = {"scale": scale, "num": estimate.num_poses}
    for name, relation in [
        ("ate", PoseRelation.translation_part),
        ("rotation", PoseRelation.rotation_angle_deg),
    ]:
        absolute = metrics.APE(relation)
        absolute.process_data((truth, estimate))
        relative = metrics.RPE(relation, delta=delta, delta_unit=Unit.frames, all_pairs=True)
        relative.process_data((truth, estimate))
        figures[name], figures["rpe_" + name] = absolute.get_all_statistics(), relative.get_all_statistics()
    return figures


def assert_agrees(result, figures):
    pairs = [
        (result.ate, "ate"),
        (result.rotation_deg, "rotation"),
        (result.rpe_translation, "rpe_ate"),
        (result.rpe_rotation_deg, "rpe_rotation"),
    ]
    for statistics, name in pairs:
        for field in ("rmse", "mean", "median", "max"):
            assert getattr(statistics, field) == pytest.approx(figures[name][field], abs=1e-6), (name, field)
    assert result.num_pairs == figures["num"]
    if result.alignment == "sim3":
        assert 1 / result.scale_ratio == pytest.approx(figures["scale"], abs=1e-9)


@pytest.mark.parametrize("alignment", ["none", "se3", "sim3"])
@pytest.mark.parametrize(("estimate_name", "truth_name"), TUM_PAIRS)
def test_agrees_with_evo_on_tum_files(estimate_name, truth_name, alignment):
    if not DATA.exists():
        pytest.skip(f"{DATA} is absent")
    estimate, truth = read_tum(DATA / estimate_name), read_tum(DATA / truth_name)
    by_evo = file_interface.read_tum_trajectory_file(str(DATA / estimate_name))
    np.testing.assert_allclose(as_matrix(estimate.world_from_cam), by_evo.poses_se3, atol=1e-6)
    result = compare(
        timestamps_s=estimate.timestamps_s,
        world_from_cam=estimate.world_from_cam,
        true_timestamps_s=truth.timestamps_s,
        true_world_from_cam=truth.world_from_cam,
        config=CompareConfig(alignment=alignment, rpe_delta=2),
    )
    poses = (estimate.timestamps_s, estimate.world_from_cam, truth.timestamps_s, truth.world_from_cam)
    assert_agrees(result, evo_figures(*poses, alignment, 2))


@pytest.mark.parametrize("alignment", ["none", "se3", "sim3"])
def test_agrees_with_evo_on_kitti_files(alignment):
    if not DATA.exists():
        pytest.skip(f"{DATA} is absent")
    estimate, truth = (
        np.loadtxt(DATA / f"KITTI_00_{name}.txt").reshape(-1, 3, 4)[:1500] for name in ("ORB", "gt")
    )
    times = np.arange(len(estimate)) * 0.1
    result = compare(
        timestamps_s=times,
        world_from_cam=estimate,
        true_timestamps_s=times,
        true_world_from_cam=truth,
        config=CompareConfig(alignment=alignment, rpe_delta=10),
    )
    assert_agrees(result, evo_figures(times, estimate, times, truth, alignment, 10))


@pytest.mark.parametrize("alignment", ["none", "se3", "sim3"])
def test_agrees_with_evo_on_a_made_up_path(alignment):
    times, truth = smooth_path()
    estimate = noisy(truth, scale=0.8)
    result = compare(
        timestamps_s=times,
        world_from_cam=estimate,
        true_timestamps_s=times,
        true_world_from_cam=truth,
        config=CompareConfig(alignment=alignment),
    )
    assert_agrees(result, evo_figures(times, estimate, times, truth, alignment, 1))


@pytest.mark.parametrize(("num", "num_true"), [(300, 37), (37, 300), (50, 50), (1, 9), (9, 1)])
def test_association_equals_evo(num, num_true):
    rng = np.random.default_rng(num)
    times, true_times = np.sort(rng.uniform(0, 5, num)), np.sort(rng.uniform(0, 5, num_true))
    pair, true_pair = associate(times, true_times, 0.02)
    short, long = (true_times, times) if num >= num_true else (times, true_times)
    expected_short, expected_long = sync.matching_time_indices(short, long, max_diff=0.02)
    found = (true_pair, pair) if num >= num_true else (pair, true_pair)
    assert found[0].tolist() == expected_short
    assert found[1].tolist() == expected_long


def test_known_transform_is_undone_exactly():
    times, truth = smooth_path()
    moved_rotation = Rotation.random(rng=4).as_matrix()
    centre = (2.5 * truth[:, :, 3]) @ moved_rotation.T + [1.0, -4, 2]
    estimate = np.concatenate([moved_rotation @ truth[:, :, :3], centre[..., None]], axis=-1)
    result = compare(
        timestamps_s=times, world_from_cam=estimate, true_timestamps_s=times, true_world_from_cam=truth
    )
    assert result.ate.max < 1e-12
    assert result.rotation_deg.max < 1e-9
    assert result.rpe_translation.max < 1e-12
    assert result.scale_ratio == pytest.approx(2.5)


def test_unregistered_frames_are_counted_and_left_out():
    times, truth = smooth_path()
    estimate = noisy(truth)
    estimate[[3, 50, 51]] = np.nan
    result = compare(
        timestamps_s=times, world_from_cam=estimate, true_timestamps_s=times, true_world_from_cam=truth
    )
    assert (result.num_estimated, result.num_unregistered, result.num_pairs) == (120, 3, 117)
    assert not {3, 50, 51} & set(result.frame_idx.tolist())
    kept = np.isfinite(estimate[:, 0, 0])
    alone = compare(
        timestamps_s=times[kept],
        world_from_cam=estimate[kept],
        true_timestamps_s=times,
        true_world_from_cam=truth,
    )
    assert result.ate == alone.ate
    np.testing.assert_allclose(np.linalg.norm(result.position_error, axis=-1).max(), result.ate.max)


def test_relative_error_in_seconds_is_exact_over_a_gap():
    """A constant drift of 0.1 m/s shows as 0.1 m over a second, wherever frames are missing."""
    times = np.delete(np.arange(0, 5, 0.1), [17, 18, 19, 20, 33])
    truth = np.tile(np.eye(3, 4), (len(times), 1, 1))
    truth[:, 2, 3] = times
    estimate = truth.copy()
    estimate[:, 0, 3] = 0.1 * times
    config = CompareConfig(alignment="none", rpe_delta=1.0, rpe_unit="seconds")
    result = compare(
        timestamps_s=times,
        world_from_cam=estimate,
        true_timestamps_s=times,
        true_world_from_cam=truth,
        config=config,
    )
    assert result.rpe_translation.max == pytest.approx(0.1, abs=1e-9)
    assert result.rpe_translation.mean == pytest.approx(0.1, abs=1e-9)


def test_straight_path_takes_its_rotation_from_the_orientations():
    times = np.arange(20) / 10
    truth = np.tile(np.eye(3, 4), (20, 1, 1))
    truth[:, 2, 3] = 3 * times
    turn = Rotation.from_euler("zyx", [40, 10, -20], degrees=True).as_matrix()
    estimate = np.concatenate([turn @ truth[:, :, :3], 0.5 * (turn @ truth[:, :, 3:])], axis=-1)
    result = compare(
        timestamps_s=times, world_from_cam=estimate, true_timestamps_s=times, true_world_from_cam=truth
    )
    assert result.is_rotation_from_orientations
    assert result.ate.max < 1e-12
    assert result.rotation_deg.max < 1e-9
    assert result.scale_ratio == pytest.approx(0.5)


def test_orientation_error_survives_a_nearly_straight_path():
    """A roll of the whole estimate about a nearly straight path is a matter of the world, not an error."""
    times, _ = smooth_path(60)
    truth = np.tile(np.eye(3, 4), (60, 1, 1))
    truth[:, 2, 3] = 10 * times
    estimate = noisy(truth, sigma=0.002)
    result = compare(
        timestamps_s=times, world_from_cam=estimate, true_timestamps_s=times, true_world_from_cam=truth
    )
    assert result.orientation_deg.mean < 0.3


def test_resting_camera_has_no_scale():
    times = np.arange(5.0)
    rest = np.tile(np.eye(3, 4), (5, 1, 1))
    result = compare(
        timestamps_s=times, world_from_cam=rest, true_timestamps_s=times, true_world_from_cam=rest
    )
    assert np.isnan(result.scale_ratio)
    assert result.ate.rmse == 0.0


def test_single_pose_and_errors():
    times, truth = smooth_path(5)
    one = compare(
        timestamps_s=times[:1], world_from_cam=truth[:1], true_timestamps_s=times, true_world_from_cam=truth
    )
    assert one.num_pairs == 1
    assert np.isnan(one.rpe_translation.rmse)
    with pytest.raises(ValueError, match="none of 5 poses"):
        compare(
            timestamps_s=times + 9, world_from_cam=truth, true_timestamps_s=times, true_world_from_cam=truth
        )
    with pytest.raises(ValueError, match="need poses"):
        compare(
            timestamps_s=times, world_from_cam=truth[:3], true_timestamps_s=times, true_world_from_cam=truth
        )
    with pytest.raises(ValueError, match="ascend"):
        associate(times[::-1], times, 0.1)
    for bad in (
        {"alignment": "affine"},
        {"rpe_delta": 0.5},
        {"rpe_delta": 0},
        {"max_time_difference_s": -1.0},
    ):
        with pytest.raises(ValueError, match=r"must|known"):
            CompareConfig(**bad)


def test_mean_rotation_of_noise_and_of_a_mirror_trap():
    base = Rotation.random(rng=8)
    noise = Rotation.from_rotvec(0.1 * np.random.default_rng(2).normal(size=(500, 3)))
    found = mean_rotation((noise * base).as_matrix())
    expected = (noise * base).mean().as_matrix()
    np.testing.assert_allclose(found, expected, atol=1e-12)
    spread = mean_rotation(Rotation.random(3, rng=11).as_matrix())
    assert np.linalg.det(spread) == pytest.approx(1.0)


def test_camera_control_figures_by_hand():
    """Yaw off by 5 degrees in every frame but the first, positions right: the formulas can be written
    down."""
    _, truth = smooth_path(50)
    truth = np.concatenate([truth[:, :, :3], truth[:, :, 3:]], axis=-1)
    zero = camera_control_error(truth, truth)
    assert zero.rotation_deg == pytest.approx(0, abs=1e-6)
    assert zero.cam_mc == pytest.approx(0, abs=1e-12)
    turned = truth.copy()
    turned[1:, :, :3] = truth[1:, :, :3] @ Rotation.from_euler("y", 5, degrees=True).as_matrix()
    error = camera_control_error(turned, truth)
    share = 49 / 50
    assert error.rotation_deg == pytest.approx(5 * share)
    assert error.translation == pytest.approx(0, abs=1e-12)
    # The Frobenius norm between two rotations theta apart is 2 sqrt(2) sin(theta / 2).
    assert error.cam_mc == pytest.approx(2 * np.sqrt(2) * np.sin(np.radians(2.5)) * share)
    with pytest.raises(ValueError, match="missing"):
        camera_control_error(np.where(np.arange(50)[:, None, None] == 3, np.nan, truth), truth)
