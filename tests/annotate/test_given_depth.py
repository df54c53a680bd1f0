"""Known depth in its three forms on disk, and what is wrong with it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from worldline.annotate.depth import DepthKind, DepthMap
from worldline.annotate.depth_files import write_depth_file
from worldline.annotate.given import GivenConfig
from worldline.annotate.given_depth import depth_digest, open_given_depth
from worldline.datasets.schema import ClipRejected

CONFIG = GivenConfig()


def _z(frame: int) -> np.ndarray:
    z = np.linspace(0.5, 4, 12 * 16, dtype=np.float32).reshape(12, 16) + frame
    z[0, :3] = np.nan
    return z


def _png(folder: Path, frame: int, name: str = "{:06d}.png") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name.format(frame)
    cv2.imwrite(str(path), np.rint(np.nan_to_num(_z(frame)) * 1000).astype(np.uint16))
    return path


def _check(path: Path, tolerance: float) -> None:
    depth = open_given_depth(path, CONFIG)
    assert depth.frames().tolist() == [3, 10]
    one, two = list(depth.maps([3, 10]))
    assert (one.frame_idx, two.frame_idx, one.kind) == (3, 10, DepthKind.METRIC)
    np.testing.assert_allclose(two.z, _z(10), atol=tolerance)
    np.testing.assert_array_equal(one.confidence > 0, np.isfinite(_z(3)))


def test_folder_of_millimetres_and_its_zip(tmp_path: Path) -> None:
    folder = tmp_path / "video.depth"
    files = [_png(folder, frame) for frame in (10, 3)]
    (folder / "readme.txt").write_text("not depth")
    _check(folder, 0.0006)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        for file in files:
            archive.write(file, f"inside/{file.name}")
    _check(tmp_path / "other", 0.0006)


def test_folder_of_arrays(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for frame in (3, 10):
        np.save(tmp_path / "d" / f"{frame:06d}.npy", _z(frame))
    _check(tmp_path / "d", 0)


def test_kept_depth_file_is_metres_because_the_user_says_so(tmp_path: Path) -> None:
    maps = [
        DepthMap(
            frame_idx=frame,
            z=_z(frame),
            confidence=np.isfinite(_z(frame)).astype(np.float32),
            kind=DepthKind.TRAJECTORY,
            intrinsics=None,
        )
        for frame in (3, 10)
    ]
    write_depth_file(tmp_path / "v.depth.zip", maps)
    _check(tmp_path / "v.depth", 0.002)
    relative = open_given_depth(tmp_path / "v.depth", GivenConfig(depth_is_metric=False))
    assert [one.kind for one in relative.maps([3])] == [DepthKind.UP_TO_SCALE]


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(ClipRejected, match="no given depth"):
        open_given_depth(tmp_path / "absent", CONFIG)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClipRejected, match=r"holds no 000042\.png"):
        open_given_depth(tmp_path / "empty", CONFIG)
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    with pytest.raises(ClipRejected, match="damaged"):
        open_given_depth(tmp_path / "bad", CONFIG)
    _png(tmp_path / "twice", 3)
    _png(tmp_path / "twice", 3, "depth_{}.png")
    with pytest.raises(ClipRejected, match="two files for frame 3"):
        open_given_depth(tmp_path / "twice", CONFIG)
    cut = _png(tmp_path / "cut", 3)
    cut.write_bytes(cut.read_bytes()[:20])
    with pytest.raises(ClipRejected, match="damaged"):
        list(open_given_depth(tmp_path / "cut", CONFIG).maps([3]))
    _png(tmp_path / "grey", 3)
    cv2.imwrite(str(tmp_path / "grey" / "000003.png"), np.zeros((4, 4), np.uint8))
    with pytest.raises(ClipRejected, match="16 bits"):
        list(open_given_depth(tmp_path / "grey", CONFIG).maps([3]))


def test_digest_follows_the_content(tmp_path: Path) -> None:
    absent = depth_digest(tmp_path / "d")
    file = _png(tmp_path / "d", 3)
    one = depth_digest(tmp_path / "d")
    assert depth_digest(tmp_path / "d") == one != absent
    _png(tmp_path / "d", 4)
    assert depth_digest(tmp_path / "d") not in (one, absent)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(file, file.name)
    first = depth_digest(tmp_path / "z")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr(file.name, b"other")
    assert depth_digest(tmp_path / "z") != first
