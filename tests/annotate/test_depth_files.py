"""Depth files: round trip, unknown stays unknown, random access, atomic and repeatable writing."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

from worldline.annotate.camera import Intrinsics
from worldline.annotate.depth import DepthKind, DepthMap
from worldline.annotate.depth_files import DepthFile, write_depth_file


def some_map(frame_idx: int, *, size=(13, 17), kind=DepthKind.TRAJECTORY, with_camera=True) -> DepthMap:
    rng = np.random.default_rng(frame_idx)
    height, width = size
    z = np.exp(rng.uniform(np.log(0.3), np.log(300), (height, width))).astype(np.float32)
    z[rng.uniform(size=z.shape) < 0.3] = np.nan
    confidence = np.where(np.isfinite(z), rng.uniform(1e-3, 1, z.shape), 0).astype(np.float32)
    camera = None
    if with_camera:
        focal = 20.0 + frame_idx
        camera = Intrinsics(
            fxfycxcy_px=np.array([focal, focal, width / 2, height / 2]),
            width=width,
            height=height,
            model="radial",
            distortion=(-0.1, 0.01),
        )
    return DepthMap(frame_idx=frame_idx, z=z, confidence=confidence, kind=kind, intrinsics=camera)


def test_round_trip_is_near_lossless(tmp_path):
    path = tmp_path / "clip.depth.zip"
    maps = [some_map(i) for i in (3, 7, 100000)]
    assert write_depth_file(path, iter(maps)) == 3
    with DepthFile(path) as file:
        assert file.frame_idx.tolist() == [3, 7, 100000]
        for one in reversed(maps):  # any order
            back = file.read(one.frame_idx)
            np.testing.assert_array_equal(np.isnan(back.z), np.isnan(one.z))
            np.testing.assert_array_equal(back.confidence > 0, np.isfinite(one.z))
            known = np.isfinite(one.z)
            # Half a step of 2^-13 plus float32 rounding.
            assert np.abs(back.z[known] / one.z[known] - 1).max() < 6.3e-5
            assert np.abs(back.confidence - one.confidence).max() <= 0.5 / 255 + 1e-3 + 1e-6
            assert back.kind is DepthKind.TRAJECTORY
            np.testing.assert_array_equal(back.intrinsics.fxfycxcy_px, one.intrinsics.fxfycxcy_px)
            assert (back.intrinsics.model, back.intrinsics.distortion) == ("radial", (-0.1, 0.01))


def test_a_map_without_anything_known_and_one_without_a_camera(tmp_path):
    empty = DepthMap(
        frame_idx=0,
        z=np.full((4, 5), np.nan, np.float32),
        confidence=np.zeros((4, 5), np.float32),
        kind=DepthKind.METRIC,
        intrinsics=None,
    )
    write_depth_file(tmp_path / "a.zip", [empty])
    with DepthFile(tmp_path / "a.zip") as file:
        back = file.read(0)
    assert np.isnan(back.z).all()
    assert (back.confidence == 0).all()
    assert back.intrinsics is None
    assert back.kind is DepthKind.METRIC


def test_depth_beyond_the_range_is_unknown_not_wrong(tmp_path):
    z = np.array([[1.0, 2000.0, 2900.0, 1e6]], np.float32)
    one = DepthMap(frame_idx=0, z=z, confidence=np.ones_like(z), kind=DepthKind.METRIC, intrinsics=None)
    write_depth_file(tmp_path / "a.zip", [one])
    with DepthFile(tmp_path / "a.zip") as file:
        back = file.read(0)
    np.testing.assert_allclose(back.z[0, :3], z[0, :3], rtol=1e-4)
    assert np.isnan(back.z[0, 3])
    assert back.confidence[0, 3] == 0


def test_a_frame_that_is_not_there_is_a_key_error(tmp_path):
    write_depth_file(tmp_path / "a.zip", [some_map(2)])
    with DepthFile(tmp_path / "a.zip") as file, pytest.raises(KeyError):
        file.read(3)


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.zip"
    write_depth_file(path, [some_map(1)])
    before = path.read_bytes()

    def breaks():
        yield some_map(2)
        raise OSError("decoder died")

    with pytest.raises(OSError, match="decoder died"):
        write_depth_file(path, breaks())
    with pytest.raises(ValueError, match="no depth map"):
        write_depth_file(path, [])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize(
    "other",
    [some_map(2, size=(13, 18)), some_map(2, kind=DepthKind.METRIC), some_map(2, with_camera=False)],
    ids=["size", "kind", "lens"],
)
def test_maps_of_one_file_must_match(tmp_path, other):
    with pytest.raises(ValueError, match="frame 2"):
        write_depth_file(tmp_path / "a.zip", [some_map(1), other])


def test_equal_maps_give_equal_bytes(tmp_path):
    for name in ("a.zip", "b.zip"):
        write_depth_file(tmp_path / name, [some_map(1), some_map(2)])
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_another_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match="no depth file"):
        DepthFile(tmp_path / "a.zip")


def test_the_file_is_smaller_than_raw_floats(tmp_path):
    y, x = np.mgrid[0:120, 0:160]
    z = (2 + 0.01 * x + 0.02 * y).astype(np.float32)
    one = DepthMap(frame_idx=0, z=z, confidence=np.ones_like(z), kind=DepthKind.METRIC, intrinsics=None)
    write_depth_file(tmp_path / "a.zip", [one])
    assert (tmp_path / "a.zip").stat().st_size < z.nbytes / 2
