"""Benchmark paths: splines against their definitions, limits, revisits, and room in a rendered place."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from worldline.annotate.camera import rotation_angle
from worldline.datasets.schema import MissingBackend
from worldline.datasets.synthetic_places import RenderedPlace
from worldline.evaluate.benchmark_paths import (
    TEMPLATES,
    PathLimits,
    catmull_rom,
    make_path,
    revisits,
    speeds,
    splits,
    squad,
)


def test_the_positions_spline_is_the_centripetal_one() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(7, 3))
    np.testing.assert_allclose(catmull_rom(points, np.arange(7.0)), points, atol=1e-9)
    # Slowly, by the pyramid as published, for one segment.
    p, at = points[1:5], 2.3
    knots = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(p, axis=0), axis=1) ** 0.5)])
    t = knots[1] + (at - 2) * (knots[2] - knots[1])

    def mix(a, b, low, high):
        return (knots[high] - t) / (knots[high] - knots[low]) * a + (t - knots[low]) / (
            knots[high] - knots[low]
        ) * b

    a = [mix(p[k], p[k + 1], k, k + 1) for k in range(3)]
    b = [mix(a[k], a[k + 1], k, k + 2) for k in range(2)]
    np.testing.assert_allclose(catmull_rom(points, np.array([at]))[0], mix(b[0], b[1], 1, 2), atol=1e-12)
    line = np.linspace(0, 1, 5)[:, None] * [1.0, 2.0, 3.0]
    at = np.linspace(0, 4, 33)
    np.testing.assert_allclose(catmull_rom(line, at), at[:, None] / 4 * [1.0, 2.0, 3.0], atol=1e-9)


def test_the_rotations_spline_passes_its_points_smoothly() -> None:
    turns = Rotation.random(6, rng=np.random.default_rng(1)) ** 0.4
    at_points = squad(turns, np.arange(6.0))
    assert (at_points * turns.inv()).magnitude().max() < 1e-6
    # About one axis and evenly, it is the even turn.
    even = Rotation.from_euler("Y", np.arange(5)[:, None] * 20.0, degrees=True)
    at = np.linspace(0, 4, 41)
    found = squad(even, at).as_rotvec(degrees=True)
    inside = (at >= 1) & (at <= 3)  # the ends have no neighbour to go on to
    np.testing.assert_allclose(found[inside], np.stack([0 * at, 20 * at, 0 * at], axis=1)[inside], atol=1e-9)
    # Continuous in its derivative at the points, by differences on both sides.
    for k in range(1, 5):
        rates = [
            (squad(turns, np.array([k + d])).inv() * squad(turns, np.array([k + d + 1e-4]))).as_rotvec()
            for d in (-1.01e-4, 1e-6)
        ]
        np.testing.assert_allclose(rates[0], rates[1], atol=2e-7)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize(("depth_m", "num_frames"), [(3.0, 961), (0.5, 161)])
def test_paths_keep_to_their_limits(name: str, depth_m: float, num_frames: int) -> None:
    limits = PathLimits()
    path = make_path(TEMPLATES[name], median_depth_m=depth_m, num_frames=num_frames)
    poses = path.first_from_cam
    assert poses.shape == (num_frames, 3, 4)
    np.testing.assert_allclose(poses[0], np.eye(3, 4), atol=1e-12)
    products = poses[:, :, :3] @ poses[:, :, :3].swapaxes(1, 2)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(3), products.shape), atol=1e-9)
    moved, turned = speeds(poses)
    assert moved.max() <= limits.speed_m_s
    assert turned.max() <= limits.turn_deg_s
    assert path.reach_m <= limits.depth_share * depth_m
    assert path.reach_m == pytest.approx(np.linalg.norm(poses[:, :, 3], axis=1).max())
    assert path.reach_m > 0.1 * min(limits.depth_share * depth_m, 0.2 * num_frames / 16)


@pytest.mark.parametrize("name", ["backtrack", "l_return", "figure_eight", "room_loop", "double_loop"])
def test_returning_paths_see_places_again(name: str) -> None:
    path = make_path(TEMPLATES[name], median_depth_m=3.0)
    assert 3 <= len(path.revisits) <= 5
    for one, other in path.revisits:
        a, b = path.first_from_cam[one], path.first_from_cam[other]
        assert other - one >= 5 * 16
        assert np.linalg.norm(a[:, 3] - b[:, 3]) < 0.5
        assert np.degrees(rotation_angle(a[:, :3].T @ b[:, :3])) < 20


def test_a_straight_way_is_never_seen_again() -> None:
    poses = np.tile(np.eye(3, 4), (321, 1, 1))
    poses[:, 2, 3] = 0.4 / 16 * np.arange(321)
    assert revisits(poses) == ()


def test_paths_shrink_away_from_things_or_are_refused() -> None:
    free = make_path(TEMPLATES["s_curve"], median_depth_m=3.0)
    wall = np.array([[x, 0.0, 1.2] for x in np.linspace(-2, 2, 81)])
    path = make_path(TEMPLATES["s_curve"], median_depth_m=3.0, obstacles=wall)
    assert path.reach_m < 0.8 * free.reach_m
    assert cKDTree(wall).query(path.first_from_cam[:, :, 3])[0].min() >= 0.3
    with pytest.raises(ValueError, match="s_curve: no room"):
        make_path(TEMPLATES["s_curve"], median_depth_m=3.0, obstacles=np.array([[0.0, 0.0, 0.1]]))


def test_splits() -> None:
    assert {t.split for t in splits("hard")} == {"hard"}
    assert len(splits("both")) == len(TEMPLATES) == len(splits("simple")) + len(splits("hard"))
    assert all(11 <= len(t.waypoints) <= 15 and not t.waypoints[0].any() for t in TEMPLATES.values())
    with pytest.raises(ValueError, match="easy"):
        splits("easy")


def test_a_rendered_place_knows_its_depth_and_its_walls() -> None:
    try:
        place = RenderedPlace(3, width=64, height=48)
    except MissingBackend as missing:
        pytest.skip(str(missing))
    with place:
        points, depth_m = place.obstacles(), place.median_depth_m()
        path = make_path(TEMPLATES["backtrack"], median_depth_m=depth_m, obstacles=points, num_frames=161)
        frames = place.frames(path.first_from_cam[[0, 80, 160]])
    # Points straight ahead lie as deep as the picture's middle says, on a wall of the same room.
    ahead = points[(np.abs(points[:, 0]) < 0.3) & (np.abs(points[:, 1]) < 0.3) & (points[:, 2] > 0)]
    assert 0.3 * depth_m < np.median(ahead[:, 2]) < 3 * depth_m
    assert np.linalg.norm(points, axis=1).max() < 30
    assert frames.shape == (3, 48, 64, 3)
    back, away = (np.abs(frames[k].astype(int) - frames[0]).mean() for k in (2, 1))
    assert back < 0.3 * away
