"""Windows of one long shot joined again: a scene made by hand, cut into windows with worlds of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from worldline.annotate import stitch
from worldline.annotate.camera import (
    Intrinsics,
    compose,
    invert,
    project,
    rotation_angle,
    transform,
    umeyama,
)
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.stitch import StitchConfig, stitch_shot
from worldline.annotate.window_joint import JointConfig, Window, find_loop, join_neighbours

RATE_HZ = 10.0
CAMERA = Intrinsics(fxfycxcy_px=np.array([300.0, 300, 160, 120]), width=320, height=240)


def _circle(num_frames: int, turns: float = 1.0, radius: float = 4.0) -> np.ndarray:
    """world_from_cam [T, 3, 4] of a camera that circles the origin and looks at it."""
    angle = np.linspace(0, 2 * np.pi * turns, num_frames)
    centre = np.stack([radius * np.sin(angle), 0.3 * np.sin(3 * angle), -radius * np.cos(angle)], axis=1)
    forward = -centre / np.linalg.norm(centre, axis=1, keepdims=True)
    right = np.cross(np.array([0.0, 1, 0]), forward)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return np.concatenate(
        [np.stack([right, np.cross(forward, right), forward], axis=2), centre[:, :, None]], axis=2
    )


class _Shot:
    """Points around the origin seen from a path, and windows of it, each in a world and unit of its own."""

    def __init__(self, num_frames: int, *, turns: float = 1.0, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.times = np.arange(num_frames) / RATE_HZ
        self.path = _circle(num_frames, turns)
        direction = self.rng.standard_normal((600, 3))
        self.points = (
            direction
            / np.linalg.norm(direction, axis=1, keepdims=True)
            * self.rng.uniform(0.8, 1.6, (600, 1))
        )
        self.descriptors = self.rng.integers(0, 256, (600, 32)).astype(np.uint8)

    def window(
        self,
        first: int,
        last: int,
        *,
        scale: float = 1.0,
        noise: float = 0.0,
        bend: float = 0.0,
        is_metric: bool = False,
        sigma: float | None = None,
    ) -> Window:
        """Frames first .. last - 1. noise: of points and centres, in true units; bend: the window's unit grows
        by this share along it."""
        inner = compose(invert(self.path[first : first + 1]), self.path[first:last])
        grow = np.exp(bend * np.linspace(0, 1, last - first))
        steps = np.diff(inner[:, :, 3], axis=0) * grow[1:, None]
        inner[:, :, 3] = np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0)])
        inner[1:, :, 3] += noise * self.rng.standard_normal((last - first - 1, 3))
        points = transform(invert(self.path[first]), self.points)
        points = points + noise * self.rng.standard_normal(points.shape)
        inner[:, :, 3] *= scale
        return Window(
            clip_id=f"{first}-{last}",
            timestamps_s=self.times[first:last],
            world_from_cam=inner,
            is_metric=is_metric,
            scale_sigma=sigma,
            sigma_translation=np.full(last - first, 0.01 * scale),
            sigma_rotation_rad=np.full(last - first, 0.001),
            structure=lambda: self._structure(first, last, inner, scale * points),
        )

    def _structure(self, first: int, last: int, inner: np.ndarray, points: np.ndarray) -> Reconstruction:
        """Points on the near side of the ball, observed in every fourth frame; each frame's lens alike."""
        frames = np.arange(0, last - first, 4)
        frame_idx, point_idx, xy = [], [], []
        for frame in frames:
            centre = self.path[first + frame, :, 3]
            near = np.flatnonzero(self.points @ centre > 0.3 * np.linalg.norm(centre))
            pixels = project(transform(invert(inner[frame]), points[near]), CAMERA)
            inside = (
                np.isfinite(pixels).all(axis=1) & (pixels > 0).all(axis=1) & (pixels < [320, 240]).all(axis=1)
            )
            frame_idx.append(np.full(int(inside.sum()), frame))
            point_idx.append(near[inside])
            xy.append(pixels[inside])
        used, index = np.unique(np.concatenate(point_idx), return_inverse=True)
        return Reconstruction(
            timestamps_s=self.times[first:last],
            cam_from_world=invert(inner),
            intrinsics=replace(CAMERA, fxfycxcy_px=np.tile(CAMERA.fxfycxcy_px, (last - first, 1))),
            points_in_world=points[used],
            point_rgb=np.zeros((len(used), 3), np.uint8),
            frame_idx=np.concatenate(frame_idx).astype(np.int32),
            point_idx=index.astype(np.int32),
            xy_px=np.concatenate(xy).astype(np.float32),
            point_descriptor=self.descriptors[used],
        )


def _error(piece_poses: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Rms distance after Sim(3) and its scale (true per found)."""
    fit = umeyama(true[:, :, 3], piece_poses[:, :, 3])
    residual = fit.points(piece_poses[:, :, 3]) - true[:, :, 3]
    return float(np.sqrt(np.mean(np.sum(residual**2, axis=1)))), fit.scale


def test_exact_windows_of_any_unit_make_the_exact_path() -> None:
    shot = _Shot(200)
    windows = [
        shot.window(0, 80, scale=1.0),
        shot.window(60, 140, scale=0.4),
        shot.window(120, 200, scale=7.0),
    ]
    (piece,) = stitch_shot(windows, StitchConfig(close_loops=False))
    expected = compose(invert(shot.path[:1]), shot.path)
    np.testing.assert_allclose(piece.world_from_cam, expected, atol=1e-6)
    np.testing.assert_allclose(piece.timestamps_s, shot.times)
    assert piece.windows == (0, 1, 2)
    assert piece.window_of_frame[[0, 79, 80, 139, 140, 199]].tolist() == [0, 0, 1, 1, 2, 2]
    assert piece.frame_of_window[[79, 80, 140]].tolist() == [79, 20, 20]
    assert not piece.is_metric
    assert piece.scale_sigma is None
    assert piece.why_ended is None


def test_joint_is_the_similarity_between_two_windows_and_its_sigma_holds() -> None:
    errors = []
    for seed in range(12):
        shot = _Shot(200, seed=seed)
        a, b = shot.window(0, 80, noise=0.01), shot.window(60, 140, scale=0.5, noise=0.01)
        joint = join_neighbours(a, b, JointConfig())
        assert not isinstance(joint, str)
        errors.append(np.log(joint.a_from_b.scale * 0.5) / joint.log_scale_sigma)
        assert joint.a_from_b.scale == pytest.approx(2, rel=0.02)
        expected = compose(invert(shot.path[0]), shot.path[60])
        assert np.linalg.norm(joint.a_from_b.translation - expected[:, 3]) < 0.05
    # 12 normal deviates: their rms lies within 0.5 to 1.6 but for one case in a thousand.
    assert 0.3 < np.sqrt(np.mean(np.square(errors))) < 2


def test_windows_that_failed_or_contradict_end_a_piece_and_say_so() -> None:
    shot = _Shot(260)
    windows: list[Window | str] = [
        shot.window(0, 80),
        shot.window(60, 140),
        "geometry: static",
        shot.window(180, 260, scale=3.0),
    ]
    first, second = stitch_shot(windows, StitchConfig())
    assert (first.windows, second.windows) == ((0, 1), (3,))
    assert first.why_ended == "window 2: geometry: static"
    assert second.why_ended is None
    assert len(first.timestamps_s) == 140
    backwards = _Shot(260).window(30, 110).world_from_cam[::-1]
    strange = replace(_Shot(260, seed=9).window(120, 200), world_from_cam=backwards)
    apart = stitch_shot([shot.window(60, 140), strange], StitchConfig(close_loops=False))
    assert len(apart) == 2
    assert apart[0].why_ended is not None
    assert apart[0].why_ended.startswith("no joint with window 1")
    gap = stitch_shot([shot.window(0, 80), shot.window(80, 160)], StitchConfig(close_loops=False))
    assert [piece.why_ended for piece in gap] == [
        "no joint with window 1: 0 shared frames with a pose in both",
        None,
    ]
    assert stitch_shot(["a", "b"], StitchConfig()) == []


def test_a_loop_takes_out_the_drift_of_the_chain() -> None:
    """Once and a quarter around, each window's unit drifting by 6 %."""
    shot = _Shot(500, turns=1.25)
    windows = [shot.window(k, k + 120, noise=0.003, bend=0.06) for k in range(0, 400, 95)]
    (open_chain,) = stitch_shot(windows, StitchConfig(close_loops=False))
    (closed,) = stitch_shot(windows, StitchConfig())
    true = shot.path[: len(open_chain.timestamps_s)]
    assert any(link.joint.is_loop for link in closed.links)
    assert _error(closed.world_from_cam, true)[0] < 0.6 * _error(open_chain.world_from_cam, true)[0]


def test_places_are_known_again_and_other_places_are_not() -> None:
    shot, other = _Shot(200), _Shot(200, seed=5)
    a, b = shot.window(0, 60), shot.window(20, 70, scale=2.0)
    loop = find_loop(a, b, JointConfig())
    assert loop is not None
    assert loop.a_from_b.scale == pytest.approx(0.5, rel=1e-6)
    assert rotation_angle(loop.a_from_b.rotation @ shot.path[20, :, :3].T @ shot.path[0, :, :3]) < 1e-6
    assert find_loop(a, other.window(20, 70), JointConfig()) is None
    # The same descriptors on other places: matches without a similarity behind them.
    shuffled = _Shot(200)
    shuffled.points = shuffled.points[np.random.default_rng(3).permutation(600)]
    assert find_loop(a, shuffled.window(20, 70), JointConfig()) is None


def test_metres_of_the_windows_are_averaged_and_carried_to_those_without() -> None:
    shot = _Shot(200)
    windows = [
        shot.window(0, 80, scale=1.03, is_metric=True, sigma=0.05),
        shot.window(60, 140, scale=3.0),
        shot.window(120, 200, scale=0.97, is_metric=True, sigma=0.05),
    ]
    (piece,) = stitch_shot(windows, StitchConfig(close_loops=False))
    assert piece.is_metric
    assert 1 / _error(piece.world_from_cam, shot.path)[1] == pytest.approx(np.sqrt(1.03 * 0.97), rel=1e-3)
    # Two windows with one cue's error in common know the metre no better than one.
    assert piece.scale_sigma == pytest.approx(0.05, rel=0.02)
    assert piece.scale_spread == pytest.approx(0.03, rel=0.02)


def test_the_derivatives_are_those_of_the_residuals() -> None:
    shot = _Shot(300, turns=1.3)
    windows = [
        shot.window(k, k + 60, scale=1 + 0.001 * k, noise=0.01, is_metric=k % 90 == 0, sigma=0.05)
        for k in range(0, 241, 45)
    ]
    joint = join_neighbours(windows[0], windows[1], JointConfig())
    assert not isinstance(joint, str)
    edges = [(0, 1, joint), (1, 2, joint), (0, 2, replace(joint, is_loop=True))]
    graph = stitch._Graph(windows[:3], edges)
    start = graph._start()
    zero = np.zeros(int(graph.is_free.sum()))
    numeric = approx_fprime(zero, lambda x: graph._residuals(graph._moved(start, x)), 1e-7)
    analytic = graph._jacobian(start)
    np.testing.assert_allclose(analytic, numeric, atol=1e-4 * np.abs(numeric).max())


def test_error_bars_grow_along_the_chain() -> None:
    shot = _Shot(400, turns=0.9)
    windows = [shot.window(k, k + 100, noise=0.01) for k in range(0, 301, 75)]
    (piece,) = stitch_shot(windows, StitchConfig(close_loops=False))
    assert np.isfinite(piece.sigma_translation).all()
    late, early = piece.sigma_translation[350:].mean(), piece.sigma_translation[:60].mean()
    assert late > 1.2 * early
    assert piece.sigma_rotation_rad[380] > piece.sigma_rotation_rad[10]


def test_frames_without_a_pose_in_both_windows_stay_without() -> None:
    shot = _Shot(140)
    a, b = shot.window(0, 80), shot.window(60, 140)
    lost_a, lost_b = a.world_from_cam.copy(), b.world_from_cam.copy()
    lost_a[62:65], lost_b[2:4], lost_b[30] = np.nan, np.nan, np.nan
    (piece,) = stitch_shot(
        [replace(a, world_from_cam=lost_a), replace(b, world_from_cam=lost_b)],
        StitchConfig(close_loops=False),
    )
    assert np.flatnonzero(~np.isfinite(piece.world_from_cam[:, 0, 0])).tolist() == [62, 63, 90]
    expected = compose(invert(shot.path[:1]), shot.path)
    known = np.isfinite(piece.world_from_cam[:, 0, 0])
    np.testing.assert_allclose(piece.world_from_cam[known], expected[known], atol=1e-5)


def test_configs_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="min_frames"):
        JointConfig(min_frames=1)
    with pytest.raises(ValueError, match="limits"):
        JointConfig(loop_misfit=0)
