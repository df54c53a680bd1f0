"""Threads within a clip: the same answers as one thread gives."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from worldline.annotate.bundle import adjust
from worldline.annotate.bundle_problem import Bundle, BundleConfig
from worldline.annotate.camera import rotation_from_rotvec
from worldline.annotate.threads import even_parts, in_threads


@pytest.fixture(params=[1, 2, 5])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(request.param)
    yield request.param
    cv2.setNumThreads(before)


def test_results_come_in_order(num_threads: int) -> None:
    assert in_threads(lambda n: n * n, range(40)) == [n * n for n in range(40)]


def test_an_error_of_one_part_is_raised(num_threads: int) -> None:
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda n: 1 // (n - 7), range(10))


def test_parts_cover_everything_once_with_about_equal_work(num_threads: int) -> None:
    work = np.random.default_rng(0).integers(1, 9, 1000)
    parts = even_parts(np.cumsum(work), min_size=100)
    assert len(parts) == num_threads
    assert [n for first, last in parts for n in range(first, last)] == list(range(1000))
    assert np.ptp([work[first:last].sum() for first, last in parts]) < 20


def test_little_work_is_one_part(num_threads: int) -> None:
    assert even_parts([3, 5, 9], min_size=10) == [(0, 3)]
    assert even_parts([], min_size=10) == [(0, 0)]


def test_an_adjustment_ends_where_one_thread_ends(num_threads: int) -> None:
    rng = np.random.default_rng(3)
    poses = np.concatenate(
        [rotation_from_rotvec(rng.normal(0, 0.05, (6, 3))), rng.normal(0, 0.3, (6, 3, 1))], axis=2
    )
    points = rng.uniform([-2, -1, 4], [2, 1, 8], (1500, 3))
    cam_idx, point_idx = np.repeat(np.arange(6), 1500), np.tile(np.arange(1500), 6)
    seen = np.einsum("mij,mj->mi", poses[cam_idx, :, :3], points[point_idx]) + poses[cam_idx, :, 3]
    xy = 500 * seen[:, :2] / seen[:, 2:] + [320, 240] + rng.normal(0, 0.5, (len(seen), 2))
    bundle = Bundle(
        cam_from_world=poses,
        points_in_world=points + rng.normal(0, 0.02, points.shape),
        cam_idx=cam_idx,
        point_idx=point_idx,
        xy_px=xy,
        focal_px=np.full(6, 500.0),
        centre_px=np.array([320.0, 240.0]),
    )
    config = BundleConfig(free_focal=True, max_iterations=5, relative_tolerance=0.0)
    found = adjust(bundle, config)
    cv2.setNumThreads(1)
    expected = adjust(bundle, config)
    assert found.cost == pytest.approx(expected.cost, rel=1e-9)
    np.testing.assert_allclose(found.cam_from_world, expected.cam_from_world, atol=1e-6)
