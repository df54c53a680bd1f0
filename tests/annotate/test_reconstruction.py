"""A reconstruction comes back from its file as it went in."""

import numpy as np
import pytest

from worldline.annotate.camera import Intrinsics
from worldline.annotate.reconstruction import Reconstruction


def reconstruction(num_frames=4, num_points=6, num_observations=9, model="radial", distortion=(-0.1, 0.02)):
    rng = np.random.default_rng(0)
    poses = np.tile(np.eye(3, 4), (num_frames, 1, 1))
    poses[1:2] = np.nan
    return Reconstruction(
        timestamps_s=np.arange(num_frames) / 29.97,
        cam_from_world=poses,
        intrinsics=Intrinsics(
            fxfycxcy_px=rng.uniform(300, 500, (num_frames, 4)),
            width=641,
            height=359,
            model=model,
            distortion=distortion,
        ),
        points_in_world=rng.normal(size=(num_points, 3)),
        point_rgb=rng.integers(0, 256, (num_points, 3)).astype(np.uint8),
        frame_idx=rng.integers(0, max(num_frames, 1), num_observations).astype(np.int32),
        point_idx=rng.integers(0, max(num_points, 1), num_observations).astype(np.int32),
        xy_px=rng.uniform(0, 350, (num_observations, 2)).astype(np.float32),
    )


@pytest.mark.parametrize(
    "original",
    [
        reconstruction(),
        reconstruction(num_points=0, num_observations=0),
        reconstruction(model="pinhole", distortion=()),
    ],
    ids=["full", "no points", "pinhole"],
)
def test_file_round_trip(tmp_path, original):
    path = tmp_path / "clip.npz"
    original.save(path)
    read = Reconstruction.load(path)
    for name in ("timestamps_s", "cam_from_world", "point_rgb", "frame_idx", "point_idx", "xy_px"):
        before, after = getattr(original, name), getattr(read, name)
        np.testing.assert_array_equal(after, before)
        assert after.dtype == before.dtype, name
    # Points are kept in single precision: 1e-7 of their distance, far under their own sigma.
    np.testing.assert_allclose(read.points_in_world, original.points_in_world, rtol=1e-6)
    np.testing.assert_array_equal(read.intrinsics.fxfycxcy_px, original.intrinsics.fxfycxcy_px)
    assert read.intrinsics.model == original.intrinsics.model
    assert read.intrinsics.distortion == original.intrinsics.distortion
    assert (read.intrinsics.width, read.intrinsics.height) == (641, 359)


def test_frames_without_a_pose_are_not_registered():
    assert reconstruction().is_registered.tolist() == [True, False, True, True]


def test_nothing_is_unpickled(tmp_path):
    path = tmp_path / "evil.npz"
    original = reconstruction()
    original.save(path)
    with np.load(path) as data:
        arrays = dict(data)
    arrays["xy_px"] = np.array([{"a": 1}], dtype=object)
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="allow_pickle"):
        Reconstruction.load(path)
