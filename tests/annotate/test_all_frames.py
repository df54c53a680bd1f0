"""From keyframes to all frames: the slant of surfaces, the drift of tracks and the turns of points and frames, on
scenes that are known exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from worldline.annotate.all_frames import pose_all_frames
from worldline.annotate.bundle import adjust
from worldline.annotate.bundle_problem import Bundle, BundleConfig
from worldline.annotate.camera import Intrinsics, invert, project, transform
from worldline.annotate.drift import without_drift
from worldline.annotate.keyframe_map import KeyframeMap
from worldline.annotate.slant import SlantConfig, inverse_depth_slope
from worldline.annotate.tracks import Keyframe, Tracks
from worldline.evaluate.trajectory import CompareConfig, compare

WIDTH, HEIGHT, FOCAL = 640, 360, 500.0


def test_the_slope_of_a_plane_is_found_beside_another_surface() -> None:
    rng = np.random.default_rng(0)
    xy = rng.uniform([0, 0], [WIDTH, HEIGHT], (400, 2))
    # A road that fills the picture below the horizon at y = 100: inverse depth proportional to y - 100.
    inverse = np.maximum(xy[:, 1] - 100, 5.0) / 1000
    is_post = (np.abs(xy[:, 0] - 320) < 40) & (xy[:, 1] > 150)
    depth = np.where(is_post, 3.0, 1 / inverse)
    beside = np.abs(xy[:, 0] - 320)
    at = np.flatnonzero((xy[:, 1] > 200) & (beside > 100))
    slope = inverse_depth_slope(xy, depth, at, SlantConfig(prior_px=1e-3))
    assert np.allclose(slope[:, 0], 0, atol=1e-9)
    assert np.allclose(slope[:, 1], 1 / (xy[at, 1] - 100), rtol=1e-7)
    # At the post's edge: the road's slope or none, never one between the two surfaces.
    at = np.flatnonzero((xy[:, 1] > 200) & (beside > 42) & (beside < 70))
    slope = inverse_depth_slope(xy, depth, at, SlantConfig())
    is_found = slope.any(axis=1)
    assert 0 < is_found.sum() < len(at)
    assert np.abs(slope[is_found, 1] * (xy[at[is_found], 1] - 100) - 1).max() < 0.3


def test_no_slope_is_made_up() -> None:
    rng = np.random.default_rng(1)
    xy = rng.uniform(0, 300, (60, 2))
    everyone = np.arange(60)
    assert not inverse_depth_slope(xy, np.full(60, 4.0), everyone, SlantConfig()).any()
    assert not inverse_depth_slope(xy[:3], np.array([1.0, 2.0, 3.0]), np.arange(3), SlantConfig()).any()
    # Leaves of a tree: neighbours at any depth.
    leaves = inverse_depth_slope(xy, rng.uniform(1, 30, 60), everyone, SlantConfig())
    assert np.mean(leaves.any(axis=1)) < 0.2
    steep = inverse_depth_slope(
        xy, 1 / (0.01 + xy[:, 0]), everyone, SlantConfig(min_agreeing=0.0, scatter=1e9)
    )
    assert np.linalg.norm(steep, axis=1).max() <= SlantConfig().max_slope * (1 + 1e-9)


def _scene(num_frames: int, every: int, num_points: int = 80) -> tuple[Tracks, KeyframeMap, np.ndarray]:
    """A walk past random points that all frames see, without noise: tracks, the true map, and the true poses."""
    rng = np.random.default_rng(2)
    points = rng.uniform([-4, -2, 5], [4, 2, 12], (num_points, 3))
    time = np.linspace(0, 1, num_frames)
    turn = Rotation.from_euler("xyz", np.stack([0.03 * np.sin(5 * time), 0.1 * time, 0.02 * time], axis=1))
    centre = np.stack([1.2 * time, 0.1 * np.sin(7 * time), 0.3 * time], axis=1)
    poses = invert(np.concatenate([turn.as_matrix(), centre[:, :, None]], axis=2))
    camera = Intrinsics(
        fxfycxcy_px=np.array([FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2]), width=WIDTH, height=HEIGHT
    )
    xy = np.stack([project(transform(pose, points), camera) for pose in poses])
    frame, track = (
        each.ravel() for each in np.meshgrid(np.arange(num_frames), np.arange(num_points), indexing="ij")
    )
    kf_frames = np.arange(0, num_frames, every)
    nothing = np.zeros((0, 32), np.uint8)
    keyframes = tuple(
        Keyframe(
            frame_idx=int(f),
            track_idx=np.zeros(0, dtype=int),
            descriptors=nothing,
            rgb=np.zeros((0, 3), np.uint8),
            grey=np.zeros((1, 1), np.uint8),
        )
        for f in kf_frames
    )
    tracks = Tracks(
        num_frames=num_frames,
        width=WIDTH,
        height=HEIGHT,
        num_tracks=num_points,
        frame_idx=frame.astype(np.int32),
        track_idx=track.astype(np.int32),
        xy_px=xy.reshape(-1, 2),
        keyframes=keyframes,
        motion_px=np.ones(num_frames),
        is_lost=np.zeros(num_frames, dtype=bool),
    )
    kf, kf_track = (
        each.ravel() for each in np.meshgrid(np.arange(len(kf_frames)), np.arange(num_points), indexing="ij")
    )
    keyframe_map = KeyframeMap(
        cam_from_world=poses[kf_frames],
        points=points.copy(),
        width=WIDTH,
        height=HEIGHT,
        focal_px=FOCAL,
        centre_px=np.array([WIDTH / 2, HEIGHT / 2]),
        model="pinhole",
        distortion=np.zeros(2),
        kf_idx=kf,
        track_idx=kf_track,
        xy_px=xy[kf_frames].reshape(-1, 2).copy(),
        is_inlier=np.ones(len(kf), dtype=bool),
    )
    return tracks, keyframe_map, poses


def _rate(seed: int, shape: tuple[int, int]) -> np.ndarray:
    return 0.4 * np.random.default_rng(seed).standard_normal((*shape, 2))


def test_steady_drift_between_keyframes_is_taken_out_exactly() -> None:
    tracks, keyframe_map, _ = _scene(23, 5)
    kf_frames = np.arange(0, 23, 5)
    # Off by a random walk at the keyframes, straight between them, and as at the last one after it.
    at_keyframes = np.cumsum(_rate(3, (5, 80)), axis=0)
    drift = np.stack(
        [[np.interp(np.arange(23), kf_frames, at_keyframes[:, n, i]) for i in range(2)] for n in range(80)]
    )
    xy = tracks.xy_px.reshape(23, 80, 2)
    drifted = replace(tracks, xy_px=(xy + drift.transpose(2, 0, 1)).reshape(-1, 2))
    assert np.abs(drifted.xy_px - tracks.xy_px).max() > 0.5
    assert np.abs(without_drift(drifted, keyframe_map) - tracks.xy_px).max() < 1e-9


def test_where_an_alignment_is_missing_the_other_side_or_none_is_used() -> None:
    tracks, keyframe_map, _ = _scene(11, 5)
    moved = replace(tracks, xy_px=tracks.xy_px + np.array([0.5, -0.25]))
    off = np.abs(without_drift(moved, keyframe_map) - tracks.xy_px).reshape(11, 80, 2)
    assert off.max() < 1e-9
    keyframe_map.is_inlier = keyframe_map.is_inlier & ~(
        (keyframe_map.track_idx == 7) | ((keyframe_map.track_idx == 8) & (keyframe_map.kf_idx == 1))
    )
    off = np.abs(without_drift(moved, keyframe_map) - tracks.xy_px).reshape(11, 80, 2)
    assert np.allclose(off[:, 7], [0.5, 0.25])
    assert np.delete(off, 7, axis=1).max() < 1e-9


def test_exact_tracks_give_the_exact_path_back() -> None:
    tracks, keyframe_map, poses = _scene(21, 5)
    found = pose_all_frames(tracks, keyframe_map, max_error_px=3.0)
    assert np.abs(found.cam_from_world - poses).max() < 1e-5
    assert np.abs(found.points - keyframe_map.points).max() < 1e-4
    assert found.error_px.max() < 1e-3


def _with_short_tracks(tracks: Tracks, keyframe_map: KeyframeMap, length: int, seed: int) -> Tracks:
    """Tracks of `length` frames that begin at any, with noise of their own in every frame, and in place the map that an
    adjustment of the keyframes makes of them; those that fewer than two keyframes see are left out of both."""
    rng = np.random.default_rng(seed)
    kf_frames = np.array([keyframe.frame_idx for keyframe in tracks.keyframes])
    begin = rng.integers(5 - length, tracks.num_frames - 5, tracks.num_tracks)
    xy = tracks.xy_px + 0.3 * rng.standard_normal(tracks.xy_px.shape)
    at_kf = xy.reshape(tracks.num_frames, tracks.num_tracks, 2)[kf_frames].reshape(-1, 2)

    def is_seen(frame: np.ndarray, track: np.ndarray) -> np.ndarray:
        return (frame >= begin[track]) & (frame < begin[track] + length)

    rows = is_seen(kf_frames[keyframe_map.kf_idx], keyframe_map.track_idx)
    often = np.bincount(keyframe_map.track_idx[rows], minlength=tracks.num_tracks) >= 2
    rows &= often[keyframe_map.track_idx]
    keyframe_map.kf_idx, keyframe_map.track_idx = keyframe_map.kf_idx[rows], keyframe_map.track_idx[rows]
    keyframe_map.xy_px, keyframe_map.is_inlier = at_kf[rows], keyframe_map.is_inlier[rows]
    seen, point_idx = np.unique(keyframe_map.track_idx, return_inverse=True)
    solved = adjust(
        Bundle(
            cam_from_world=keyframe_map.cam_from_world,
            points_in_world=keyframe_map.points[seen],
            cam_idx=keyframe_map.kf_idx,
            point_idx=point_idx,
            xy_px=keyframe_map.xy_px,
            focal_px=np.full(len(kf_frames), FOCAL),
            centre_px=keyframe_map.centre_px,
            sigma_px=0.3,
        ),
        BundleConfig(),
    )
    keyframe_map.points[:] = np.nan
    keyframe_map.cam_from_world, keyframe_map.points[seen] = solved.cam_from_world, solved.points_in_world
    kept = is_seen(tracks.frame_idx, tracks.track_idx) & often[tracks.track_idx]
    return replace(tracks, frame_idx=tracks.frame_idx[kept], track_idx=tracks.track_idx[kept], xy_px=xy[kept])


def _ate(cam_from_world: np.ndarray, true_cam_from_world: np.ndarray) -> float:
    times = np.arange(float(len(cam_from_world)))
    return compare(
        timestamps_s=times,
        world_from_cam=invert(cam_from_world),
        true_timestamps_s=times,
        true_world_from_cam=invert(true_cam_from_world),
        config=CompareConfig(alignment="sim3"),
    ).ate.rmse


def test_all_frames_tell_better_where_points_are_than_keyframes_alone() -> None:
    """A point that two or three keyframes see is seen by two dozen frames, each with noise of its own."""
    ratios = []
    for seed in range(4):
        whole, keyframe_map, poses = _scene(61, 15, num_points=600)
        tracks = _with_short_tracks(whole, keyframe_map, 25, seed)
        before = keyframe_map.points.copy()
        held = pose_all_frames(tracks, keyframe_map, max_error_px=3.0, move_points=False)
        moved = pose_all_frames(tracks, keyframe_map, max_error_px=3.0)
        assert np.array_equal(held.points, before, equal_nan=True)
        assert np.array_equal(keyframe_map.points, before, equal_nan=True)
        assert np.array_equal(held.cam_from_world[::15], keyframe_map.cam_from_world)
        ratios.append(_ate(moved.cam_from_world, poses) / _ate(held.cam_from_world, poses))
    assert np.max(ratios) < 0.95
    assert np.mean(ratios) < 0.88
