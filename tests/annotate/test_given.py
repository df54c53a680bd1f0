"""Given trajectories: which pose belongs to which frame, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.annotate.camera import Intrinsics, Sim3, invert, rotation_from_rotvec
from worldline.annotate.given import GivenConfig, GivenPoses, agreement, check_clock, match_poses, named
from worldline.annotate.reconstruction import Reconstruction
from worldline.datasets.schema import ClipRejected

TIMES = np.arange(60) / 30


def _path(times: np.ndarray, seed: int = 0) -> np.ndarray:
    """A smooth path [N, 3, 4] as a function of time alone."""
    phase = np.random.default_rng(seed).uniform(0, 6, 6)
    wave = np.stack([np.sin((1.3 + k) * times + phase[k]) for k in range(6)], axis=1)
    rotation = rotation_from_rotvec(0.3 * wave[:, :3])
    return np.concatenate([rotation, wave[:, 3:, None]], axis=2)


def _seen(world_from_cam: np.ndarray, times: np.ndarray) -> Reconstruction:
    count = len(times)
    return Reconstruction(
        timestamps_s=times,
        cam_from_world=invert(world_from_cam),
        intrinsics=Intrinsics(fxfycxcy_px=np.tile([500.0, 500, 320, 240], (count, 1)), width=640, height=480),
        points_in_world=np.zeros((0, 3)),
        point_rgb=np.zeros((0, 3), np.uint8),
        frame_idx=np.zeros(0, np.int32),
        point_idx=np.zeros(0, np.int32),
        xy_px=np.zeros((0, 2), np.float32),
    )


def test_each_frame_gets_the_nearest_pose_within_half_a_frame() -> None:
    dense = np.arange(400) / 200 + 0.001
    poses = match_poses(GivenPoses(timestamps_s=dense, world_from_cam=_path(dense)), TIMES, GivenConfig())
    nearest = np.abs(dense - TIMES[:, None]).argmin(axis=1)
    np.testing.assert_array_equal(poses, _path(dense)[nearest])


def test_frames_without_a_pose_stay_without() -> None:
    known = np.delete(TIMES, [5, 6, 59])
    poses = match_poses(GivenPoses(timestamps_s=known, world_from_cam=_path(known)), TIMES, GivenConfig())
    assert np.flatnonzero(~np.isfinite(poses[:, 0, 0])).tolist() == [5, 6, 59]


def test_an_offset_shifts_the_trajectory_onto_the_video() -> None:
    given = GivenPoses(timestamps_s=TIMES + 1e9, world_from_cam=_path(TIMES))
    with pytest.raises(ClipRejected, match=r"0 of 60 frames.*other clock"):
        match_poses(given, TIMES, GivenConfig())
    np.testing.assert_array_equal(match_poses(given, TIMES, GivenConfig(poses_offset_s=-1e9)), _path(TIMES))


def test_times_in_frames_and_too_few_poses_are_refused() -> None:
    in_frames = GivenPoses(timestamps_s=np.arange(60.0), world_from_cam=_path(TIMES))
    with pytest.raises(ClipRejected, match="2 of 60 frames"):
        match_poses(in_frames, TIMES, GivenConfig())
    slow = GivenPoses(timestamps_s=TIMES[::6], world_from_cam=_path(TIMES[::6]))
    with pytest.raises(ClipRejected, match="10 of 60 frames"):
        match_poses(slow, TIMES, GivenConfig())
    accepted = match_poses(slow, TIMES, GivenConfig(poses_min_share=0.1))
    assert np.isfinite(accepted[:, 0, 0]).sum() == 10
    none = GivenPoses(timestamps_s=np.zeros(0), world_from_cam=np.zeros((0, 3, 4)))
    with pytest.raises(ClipRejected, match="no given poses"):
        match_poses(none, TIMES, GivenConfig())


@pytest.mark.parametrize(
    ("spoil", "why"),
    [(np.diag([1.0, 1.0, -1.0]), "mirrors"), (1.1 * np.eye(3), "differs from the identity by up to 0.21")],
    ids=["mirrored", "scaled"],
)
def test_matrices_that_do_not_rotate_are_refused(spoil: np.ndarray, why: str) -> None:
    poses = _path(TIMES)
    poses[7, :, :3] = poses[7, :, :3] @ spoil
    with pytest.raises(ClipRejected, match=why):
        match_poses(GivenPoses(timestamps_s=TIMES, world_from_cam=poses), TIMES, GivenConfig())


def test_a_clock_that_runs_ahead_is_named_with_its_remedy() -> None:
    times = np.arange(150) / 30
    wide = np.arange(-60, 210) / 30
    seen = _seen(_path(times), times)
    check_clock(seen, GivenPoses(timestamps_s=wide, world_from_cam=_path(wide)), GivenConfig())
    early = GivenPoses(timestamps_s=wide - 0.3, world_from_cam=_path(wide))
    with pytest.raises(ClipRejected, match=r"0\.30 s later.*poses_offset_s to 0\.300"):
        check_clock(seen, early, GivenConfig())
    check_clock(seen, early, GivenConfig(poses_offset_s=0.3))


def test_agreement_is_the_similarity_of_the_best_four_fifths() -> None:
    rng = np.random.default_rng(1)
    seen = _path(TIMES)
    truth = Sim3(
        scale=2.5,
        rotation=rotation_from_rotvec(np.array([0.3, -1.0, 0.4])),
        translation=np.array([1.0, 2, 3]),
    )
    given = truth.poses(seen)
    wrong = rng.choice(60, 11, replace=False)
    given[wrong, :, 3] += rng.standard_normal((11, 3))
    found = agreement(_seen(seen, TIMES), given)
    assert found is not None
    assert found.given_from_seen.scale == pytest.approx(2.5, rel=1e-9)
    assert found.deviation < 1e-9
    assert found.rotation_rad < 1e-6
    shaken = given.copy()
    shaken[:, :, 3] += 0.05 * rng.standard_normal((60, 3))
    noisy = agreement(_seen(seen, TIMES), shaken)
    assert noisy is not None
    assert 0.03 < noisy.deviation < 0.09
    assert agreement(_seen(np.tile(np.eye(3, 4), (60, 1, 1)), TIMES), given) is None


def test_names_stand_for_the_videos_own_and_others_are_refused() -> None:
    assert named("{folder}/{stem}.tum", "/a/b/c.d.mp4") == "/a/b/c.d.tum"
    assert named("truth/{name}.txt", "c.mp4") == "truth/c.mp4.txt"
    with pytest.raises(ValueError, match="known are"):
        GivenConfig(poses_path="{nonsense}")
    with pytest.raises(ValueError, match="poses_min_share"):
        GivenConfig(poses_min_share=0)
