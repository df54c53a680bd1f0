"""Telemetry of a real GoPro file and of the layouts other cameras use."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from worldline.annotate.gpmf import position_rows
from worldline.annotate.telemetry import _gps, _orientation, read_telemetry
from worldline.datasets.schema import MissingBackend

GOPRO = Path(__file__).parents[3] / "shared" / "data" / "gopro_walk" / "video.mp4"
METRES_PER_DEGREE = np.pi / 180 * 6_378_137


@pytest.mark.skipif(not GOPRO.is_file(), reason="needs ../shared/data/gopro_walk")
def test_a_real_gopro_walk() -> None:
    telemetry = read_telemetry(GOPRO)
    assert telemetry is not None
    assert "GoPro" in telemetry.camera
    gps, inertial, orientation = telemetry.gps, telemetry.inertial, telemetry.orientation
    assert gps is not None
    assert inertial is not None
    assert orientation is not None
    # 10.5 s of video; the walk is 12.7 m by Doppler speed and 13.2 m by the ends of the position track.
    assert len(gps.times_s) == 191
    assert gps.times_s[0] == pytest.approx(0.0, abs=0.1)
    assert gps.times_s[-1] == pytest.approx(10.5, abs=0.2)
    assert np.trapezoid(gps.speed_m_s, gps.times_s) == pytest.approx(12.7, abs=0.3)
    assert np.linalg.norm(gps.east_north_up_m[-1]) == pytest.approx(13.2, abs=0.3)
    assert np.median(gps.dop) == pytest.approx(1.54)
    # At walking pace the specific force averages to gravity.
    assert np.diff(inertial.times_s).mean() == pytest.approx(1 / 200, rel=0.03)
    assert np.linalg.norm(inertial.accel_m_s2, axis=1).mean() == pytest.approx(9.8, abs=0.3)
    assert len(orientation.times_s) >= 315
    np.testing.assert_allclose(np.linalg.norm(orientation.camera_quat_xyzw, axis=1), 1)
    assert read_telemetry(GOPRO) is telemetry  # read once


def test_a_file_without_telemetry_has_none(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(b"\x00\x00\x00\x18ftypisom" + bytes(4096))
    assert read_telemetry(path) is None


def test_a_missing_package_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "other.mp4"
    path.write_bytes(bytes(100))
    monkeypatch.setitem(sys.modules, "telemetry_parser", None)
    with pytest.raises(MissingBackend, match=r"worldline\[telemetry\]"):
        read_telemetry(path)


def test_gps9_rows_carry_their_own_fix_and_precision() -> None:
    """GPS9: latitude, longitude, altitude, 2D and 3D speed, days, seconds, precision, fix; typed values come
    wrapped."""
    scale = [1e7, 1e7, 1000, 1000, 100, 1, 1000, 100, 1]
    rows = [
        [round(1e7 * j / METRES_PER_DEGREE), 0, 5000, 1500, 160, 9000, 100 * j, 250, 0 if j == 3 else 3]
        for j in range(10)
    ]
    wrapped = [[{"i32": value} for value in row] for row in rows]
    blocks = [{"GPS9": {"Scale": scale, "0x47505339": wrapped, "TimestampUs": 1_000_000 * k}} for k in (0, 1)]
    gps = _gps(blocks)
    assert gps is not None
    assert len(gps.times_s) == 18  # the rows without a fix are left out
    np.testing.assert_allclose(gps.times_s[:3], [0, 0.1, 0.2])
    np.testing.assert_allclose(gps.east_north_up_m[:3, 1], [0, 1, 2], atol=0.02)
    np.testing.assert_allclose(gps.speed_m_s, 1.6)
    np.testing.assert_allclose(gps.dop, 2.5)


def test_gps5_without_a_fix_is_no_gps() -> None:
    row = [331267700, -1173273436, -22959, 1046, 100]
    block = {
        "GPS": {"Scale": [1e7, 1e7, 1000, 1000, 100], "Data": [row] * 18, "0x47505346": 0, "0x47505350": 9999}
    }
    assert _gps([block] * 3) is None


def test_record_wise_gps_has_speed_in_km_h() -> None:
    records = [
        {
            "is_acquired": j != 2,
            "unix_timestamp": 1000.0 + j,
            "lat": 0.0,
            "lon": 10 + j / METRES_PER_DEGREE,
            "speed": 36.0,
        }
        | {"track": 90.0, "altitude": 2.0}
        for j in range(8)
    ]
    gps = _gps([{"GPS": {"Data": records}}])
    assert gps is not None
    np.testing.assert_allclose(gps.speed_m_s, 10.0)
    np.testing.assert_allclose(gps.east_north_up_m[:, 0], [0, 1, 3, 4, 5, 6, 7], atol=1e-6)
    assert np.isnan(gps.dop).all()


def test_orientation_without_stabilisation_has_an_identity_image_rotation() -> None:
    quaternions = [{"w": 32767, "x": 0, "y": k, "z": 0} for k in range(20)]
    times = [{"t": 33.367 * k, "v": {}} for k in range(20)]
    orientation = _orientation([{"CameraOrientation": {"Data": quaternions}, "Quaternion": {"Data": times}}])
    assert orientation is not None
    np.testing.assert_allclose(orientation.image_quat_xyzw, np.tile([0, 0, 0, 1.0], (20, 1)))
    assert orientation.times_s[-1] == pytest.approx(0.634, abs=1e-3)
    assert _orientation([{}]) is None


def _element(key: str, kind: str, size: int, data: bytes) -> bytes:
    header = struct.pack(">4scBH", key.encode(), kind.encode(), size, len(data) // size)
    return header + data + bytes(-len(data) % 4)


def _glpi(rows: list[tuple[int, ...]]) -> bytes:
    """A payload as a Karma drone writes it: a stream of another sensor, then that of its position."""
    scale = struct.pack(">9i", 1000, 10**7, 10**7, 1000, 1000, 100, 100, 100, 100)
    other = _element("SCAL", "l", 4, struct.pack(">i", 7)) + _element(
        "ACCL", "s", 6, struct.pack(">3h", 1, 2, 3)
    )
    data = b"".join(struct.pack(">IiiiihhhH", *row) for row in rows)
    position = (
        _element("SCAL", "l", 4, scale)
        + _element("TYPE", "c", 1, b"LllllsssS")
        + _element("GLPI", "?", 28, data)
    )
    streams = b"".join(_element("STRM", "\0", 1, stream) for stream in (other, position))
    return _element("DEVC", "\0", 1, streams)


def test_a_drones_position_is_scaled_column_by_column() -> None:
    row = (146071, 331253688, -1173310668, 15711, 2003, 300, -400, -8, 33156)
    found = position_rows(_glpi([row, row]))
    assert found.shape == (2, 9)
    assert found[0] == pytest.approx(
        [146.071, 33.1253688, -117.3310668, 15.711, 2.003, 3.0, -4.0, -0.08, 331.56]
    )


@pytest.mark.parametrize("length", [0, 7, 60, 90, 150])
def test_a_truncated_payload_yields_whole_rows_or_none(length: int) -> None:
    row = (146071, 331253688, -1173310668, 15711, 2003, 300, -400, -8, 33156)
    assert len(position_rows(_glpi([row, row])[:length])) == 0
