"""Lens of a finished map: what its residuals demand, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.annotate.camera import Intrinsics, project, rotation_from_rotvec, transform
from worldline.annotate.keyframe_map import CameraFreedom, KeyframeMap
from worldline.annotate.lens import LensConfig, settle_lens
from worldline.annotate.mapper import Mapper, MappingConfig

_FOCAL_PX, _NUM_KF, _NUM_POINTS = 500.0, 8, 500


def _finished(distortion: tuple[float, float], centre_px: tuple[float, float], noise_px: float) -> Mapper:
    """A map of a lens seen with noise, adjusted with one parameter of distortion and a principal point near the centre."""
    rng = np.random.default_rng(5)
    rotation = rotation_from_rotvec(rng.normal(0, 0.06, (_NUM_KF, 3)))
    poses = np.concatenate([rotation, rng.normal(0, 0.5, (_NUM_KF, 3, 1))], axis=2)
    points = rng.uniform([-3.5, -2.5, 4], [3.5, 2.5, 7], (_NUM_POINTS, 3))
    lens = Intrinsics(
        fxfycxcy_px=np.array([_FOCAL_PX, _FOCAL_PX, *centre_px]),
        width=640,
        height=480,
        model="radial",
        distortion=distortion,
    )
    seen = np.stack([project(transform(pose, points), lens) for pose in poses])
    kf_idx, track_idx = (each.ravel() for each in np.indices(seen.shape[:2]))
    start = KeyframeMap(
        cam_from_world=poses,
        points=points,
        width=640,
        height=480,
        focal_px=_FOCAL_PX,
        centre_px=np.array([320.0, 240.0]),
        model="radial",
        distortion=np.zeros(2),
        kf_idx=kf_idx,
        track_idx=track_idx,
        xy_px=seen.reshape(-1, 2) + rng.normal(0, noise_px, (seen.shape[0] * seen.shape[1], 2)),
        is_inlier=np.ones(len(kf_idx), dtype=bool),
    )
    mapper = Mapper(start, MappingConfig(), max_error_px=3.0, known_focal=False)
    mapper.freedom = CameraFreedom(
        distortion_sigma=(0.1, 1e-4), centre_sigma_px=3.8, centre_prior_px=(320.0, 240.0)
    )
    mapper.adjust_all(max_iterations=30)
    return mapper


def test_a_second_parameter_is_found_where_the_lens_has_one() -> None:
    mapper = _finished((0.15, -0.25), (320.0, 240.0), noise_px=0.2)
    before = abs(mapper.map.focal_px - _FOCAL_PX)
    settle_lens(mapper, LensConfig())
    assert before > 4
    assert abs(mapper.map.focal_px - _FOCAL_PX) < 0.5 * before
    assert mapper.map.distortion == pytest.approx([0.15, -0.25], abs=0.05)
    assert mapper.freedom.is_centre_held


@pytest.mark.parametrize("noise_px", [0.1, 0.5])
def test_a_lens_without_one_keeps_its_map(noise_px: float) -> None:
    mapper = _finished((-0.05, 0.0), (320.0, 240.0), noise_px=noise_px)
    settle_lens(mapper, LensConfig())
    assert mapper.map.distortion[0] == pytest.approx(-0.05, abs=0.01)
    assert mapper.map.distortion[1] == pytest.approx(0, abs=1e-4)


def test_a_principal_point_off_the_centre_is_kept() -> None:
    mapper = _finished((-0.05, 0.0), (326.0, 236.0), noise_px=0.2)
    settle_lens(mapper, LensConfig())
    assert not mapper.freedom.is_centre_held
    assert mapper.map.centre_px == pytest.approx([326, 236], abs=1.5)
