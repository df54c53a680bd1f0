"""The rolling shutter: recovered from scenes projected line by line, and absent where there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldline.annotate.bundle import adjust
from worldline.annotate.bundle_problem import Bundle, BundleConfig, linearise, reprojection_errors
from worldline.annotate.bundle_system import apply_step
from worldline.annotate.camera import Intrinsics, invert, project, transform
from worldline.annotate.keyframe_map import shutter_px
from worldline.annotate.shutter import (
    ShutterConfig,
    choose_readout,
    image_velocity,
    is_rolling,
    velocity_nearby,
)
from worldline.annotate.tracks import Tracks

WIDTH, HEIGHT, FOCAL = 640, 480, 500.0
NUM_FRAMES = 40
CAMERA = Intrinsics(fxfycxcy_px=np.array([FOCAL, FOCAL, 320.0, 240.0]), width=WIDTH, height=HEIGHT)


def _pose(time: np.ndarray) -> np.ndarray:
    """cam_from_world [n, 3, 4] of a hand-held camera at times counted in frames."""
    turn = np.stack(
        [0.10 * np.sin(0.45 * time), 0.12 * np.sin(0.31 * time + 1), 0.04 * np.sin(0.5 * time)], axis=1
    )
    centre = np.stack(
        [0.5 * np.sin(0.2 * time), 0.2 * np.sin(0.33 * time + 2), 0.3 * np.sin(0.15 * time + 0.5)], axis=1
    )
    world_from_cam = np.concatenate([Rotation.from_rotvec(turn).as_matrix(), centre[:, :, None]], axis=2)
    return invert(world_from_cam)


def _points() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([rng.uniform(-2.5, 2.5, 300), rng.uniform(-2, 2, 300), rng.uniform(3, 8, 300)], axis=1)


def _tracks(readout: float, axis: int, noise_px: float = 0.1) -> Tracks:
    """Points as each line sees them at its own time: a fixed point of (line -> time -> pixel -> line)."""
    points, rng = _points(), np.random.default_rng(1)
    length = (WIDTH, HEIGHT)[axis]
    rows = []
    for frame in range(NUM_FRAMES):
        xy = project(transform(_pose(np.array([float(frame)]))[0], points), CAMERA)
        for _ in range(8):
            time = frame + readout * (xy[:, axis] / length - 0.5)
            pose = _pose(time)
            in_cam = np.einsum("nij,nj->ni", pose[:, :, :3], points) + pose[:, :, 3]
            xy = project(in_cam, CAMERA)
        seen = np.flatnonzero(np.all((xy > 5) & (xy < [WIDTH - 5, HEIGHT - 5]), axis=1))
        rows.append(
            (np.full(len(seen), frame), seen, xy[seen] + noise_px * rng.standard_normal((len(seen), 2)))
        )
    frame_idx, track_idx, xy_px = (np.concatenate(each) for each in zip(*rows, strict=True))
    return Tracks(
        num_frames=NUM_FRAMES,
        width=WIDTH,
        height=HEIGHT,
        num_tracks=len(points),
        frame_idx=frame_idx.astype(np.int32),
        track_idx=track_idx.astype(np.int32),
        xy_px=xy_px.astype(np.float32),
        keyframes=(),
        motion_px=np.zeros(NUM_FRAMES),
        is_lost=np.zeros(NUM_FRAMES, dtype=bool),
    )


def _bundle(tracks: Tracks, velocity: np.ndarray) -> tuple[Bundle, np.ndarray]:
    """Every fourth frame of the tracks, started at the true poses and points, and the velocities of its rows."""
    rows = tracks.frame_idx % 4 == 0
    frames, cam_idx = np.unique(tracks.frame_idx[rows], return_inverse=True)
    used, point_idx = np.unique(tracks.track_idx[rows], return_inverse=True)
    bundle = Bundle(
        cam_from_world=_pose(frames.astype(float)),
        points_in_world=_points()[used],
        cam_idx=cam_idx,
        point_idx=point_idx,
        xy_px=tracks.xy_px[rows].astype(np.float64),
        focal_px=np.full(len(frames), FOCAL),
        centre_px=np.array([320.0, 240.0]),
        sigma_px=0.1,
    )
    return bundle, velocity[rows]


_SETTINGS = BundleConfig(free_focal=True, max_iterations=60, relative_tolerance=1e-7)


@pytest.mark.parametrize(("readout", "axis"), [(0.8, 1), (-0.5, 1), (0.6, 0)])
def test_the_readout_of_a_rolling_shutter_is_found(readout: float, axis: int) -> None:
    tracks = _tracks(readout, axis)
    bundle, velocity = _bundle(tracks, image_velocity(tracks, np.arange(NUM_FRAMES) / 30))
    straight = adjust(bundle, _SETTINGS)
    found = choose_readout(straight, velocity, _SETTINGS, (WIDTH, HEIGHT), ShutterConfig())
    assert found is not None
    rolling, found_axis = found
    assert found_axis == axis
    # First order in the readout: what a point's acceleration adds within a frame is left.
    assert rolling.readout == pytest.approx(readout, rel=0.08)
    assert rolling.focal_px[0] == pytest.approx(FOCAL, rel=0.005)
    assert np.median(reprojection_errors(rolling)) < 0.5 * np.median(reprojection_errors(straight))
    assert is_rolling(rolling, replace(_SETTINGS, free_readout=True), ShutterConfig())


def test_a_global_shutter_stays_one() -> None:
    tracks = _tracks(0.0, 1)
    bundle, velocity = _bundle(tracks, image_velocity(tracks, np.arange(NUM_FRAMES) / 30))
    straight = adjust(bundle, _SETTINGS)
    assert choose_readout(straight, velocity, _SETTINGS, (WIDTH, HEIGHT), ShutterConfig()) is None


def test_the_readouts_derivative_matches_finite_differences() -> None:
    tracks = _tracks(0.5, 1)
    bundle, velocity = _bundle(tracks, image_velocity(tracks, np.arange(NUM_FRAMES) / 30))
    offset = shutter_px(bundle.xy_px, velocity, (WIDTH, HEIGHT), 1)
    bundle = replace(bundle, shutter_px=offset, readout=0.3, model="radial", distortion=np.array([0.1, 0.02]))
    config = BundleConfig(free_focal=True, free_distortion=True, free_readout=True, centre_sigma_px=5.0)

    def residual(change: float) -> np.ndarray:
        shared = np.zeros(config.num_shared)
        shared[config.readout_at] = change
        step = {"cam": np.zeros((len(bundle.cam_from_world), 6)), "shared": shared}
        moved = apply_step(bundle, config, step)
        assert moved is not None
        return linearise(moved, config)["residual"]

    numeric = (residual(1e-6) - residual(-1e-6)) / 2e-6
    analytic = linearise(bundle, config)["shared"][:, :, config.readout_at]
    assert np.allclose(numeric, analytic, atol=1e-6)


def test_velocity_is_that_of_the_track_whatever_the_frame_times() -> None:
    frame_times = np.array([0.0, 0.1, 0.3, 0.4, 0.5])
    xy = np.stack([100 + 50 * frame_times, 200 - 20 * frame_times], axis=1)
    tracks = Tracks(
        num_frames=5,
        width=WIDTH,
        height=HEIGHT,
        num_tracks=2,
        frame_idx=np.array([0, 1, 2, 2, 3, 4], dtype=np.int32),
        track_idx=np.array([0, 0, 0, 1, 0, 0], dtype=np.int32),
        xy_px=np.concatenate([xy[:3], [[5.0, 5.0]], xy[3:]]).astype(np.float32),
        keyframes=(),
        motion_px=np.zeros(5),
        is_lost=np.zeros(5, dtype=bool),
    )
    velocity = image_velocity(tracks, frame_times)
    assert np.allclose(velocity[[0, 1, 2, 4, 5]], [5.0, -2.0], atol=1e-3)  # The median interval is 0.1 s.
    assert np.array_equal(velocity[3], [0.0, 0.0])


def test_a_pixel_without_a_track_moves_as_its_surroundings() -> None:
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 600, (400, 2))
    field = np.array([[0.01, 0.002], [-0.003, 0.02]])
    wanted = rng.uniform(100, 500, (30, 2))
    assert np.abs(velocity_nearby(xy, xy @ field.T, wanted) - wanted @ field.T).max() < 1.0
    assert np.array_equal(velocity_nearby(np.zeros((0, 2)), np.zeros((0, 2)), wanted), np.zeros((30, 2)))
