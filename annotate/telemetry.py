"""Motion sensors written beside the video: media file in, GPS track, inertial samples and camera orientation
out.

GoPro, DJI, Sony, Insta360 and others are read through `telemetry-parser` (pip extra `telemetry`), a Karma drone's
position by annotate/gpmf.py. Sensor axes are kept as the package delivers them: how they sit in the camera is derived
from data where they are used (annotate/scale_inertial.py). All times are seconds on the video's clock as far as the
file tells it; a shift of some tenths of a second can remain.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldline.annotate.gpmf import drone_rows
from worldline.datasets.schema import MissingBackend


@dataclass(frozen=True, kw_only=True, slots=True)
class Gps:
    """N position fixes."""

    times_s: np.ndarray
    """[N] seconds on the video's clock."""
    east_north_up_m: np.ndarray
    """[N, 3] metres from the first fix."""
    speed_m_s: np.ndarray
    """[N] speed from the Doppler shift, over ground and up where the receiver gives it in 3D; NaN unknown."""
    dop: np.ndarray
    """[N] dilution of precision; NaN unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inertial:
    """N samples of gyroscope and accelerometer in the sensor's own axes."""

    times_s: np.ndarray
    """[N] seconds, ascending."""
    gyro_rad_s: np.ndarray
    """[N, 3] angular velocity."""
    accel_m_s2: np.ndarray
    """[N, 3] specific force: at rest it points up with 9.8 m/s^2."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Orientation:
    """The camera's own orientation estimate, one for each video frame (GoPro CORI and IORI)."""

    times_s: np.ndarray
    """[T] seconds of the frames."""
    camera_quat_xyzw: np.ndarray
    """[T, 4] the body's rotation since the start, as stored."""
    image_quat_xyzw: np.ndarray
    """[T, 4] the image's rotation against the body (stabilisation), as stored; identity without
    stabilisation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Telemetry:
    """What one file holds; None where it lacks a sensor."""

    camera: str
    gps: Gps | None
    inertial: Inertial | None
    orientation: Orientation | None


def read_telemetry(path: Path) -> Telemetry | None:
    """The file's telemetry; None where it has none.

    Raises MissingBackend without the package `telemetry-parser`.
    """
    stat = os.stat(path)
    return _read_cached(str(path), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=2)
def _read_cached(path: str, _mtime_ns: int, _size_bytes: int) -> Telemetry | None:
    """Scenes of one file come one after the other: the last files are remembered."""
    try:
        import telemetry_parser
    except ModuleNotFoundError as error:
        raise MissingBackend("telemetry needs: pip install 'worldline[telemetry]'") from error
    try:
        parser = telemetry_parser.Parser(path)
    except OSError:  # no known camera's file
        return None
    blocks: list[dict[str, Any]] = parser.telemetry()
    telemetry = Telemetry(
        camera=f"{parser.camera or ''} {parser.model or ''}".strip(),
        gps=_gps(blocks, Path(path)),
        inertial=_inertial(parser.normalized_imu()),
        orientation=_orientation(blocks),
    )
    has_any = telemetry.gps is not None or telemetry.inertial is not None or telemetry.orientation is not None
    return telemetry if has_any else None


# Inertial and orientation


def _inertial(samples: list[dict[str, Any]]) -> Inertial | None:
    whole = [s for s in samples if s.get("gyro") is not None and s.get("accl") is not None]
    if len(whole) < 50:
        return None
    times_s = np.array([s["timestamp_ms"] for s in whole], dtype=np.float64) / 1000
    order = np.argsort(times_s, kind="stable")
    return Inertial(
        times_s=times_s[order],
        gyro_rad_s=np.radians(
            np.array([s["gyro"] for s in whole], dtype=np.float64)[order]
        ),  # delivered in deg/s
        accel_m_s2=np.array([s["accl"] for s in whole], dtype=np.float64)[order],
    )


def _orientation(blocks: list[dict[str, Any]]) -> Orientation | None:
    camera = _quaternions(blocks, "CameraOrientation")
    if camera is None:
        return None
    image = _quaternions(blocks, "ImageOrientation")
    if image is None:
        image = np.tile([0.0, 0.0, 0.0, 1.0], (len(camera), 1))
    count = min(len(camera), len(image))
    frame_times = [q["t"] for b in blocks for q in b.get("Quaternion", {}).get("Data", []) if "t" in q]
    if len(frame_times) < count:
        return None
    times_s = np.array(frame_times[:count], dtype=np.float64) / 1000
    return Orientation(times_s=times_s, camera_quat_xyzw=camera[:count], image_quat_xyzw=image[:count])


def _quaternions(blocks: list[dict[str, Any]], group: str) -> np.ndarray | None:
    rows = [[q["x"], q["y"], q["z"], q["w"]] for b in blocks for q in b.get(group, {}).get("Data", [])]
    if len(rows) < 10:
        return None
    quat = np.array(rows, dtype=np.float64)
    norm = np.linalg.norm(quat, axis=1, keepdims=True)
    return quat / norm if (norm > 0).all() else None


# GPS


_EARTH_RADIUS_M = 6_378_137.0
_GPMF_FIX, _GPMF_PRECISION, _GPMF_GPS9 = "0x47505346", "0x47505350", "0x47505339"
"""Four-letter codes GPSF (2: 2D, 3: 3D fix), GPSP (100 x dilution of precision) and GPS9, as the package
spells them."""


def _gps(blocks: list[dict[str, Any]], path: Path | None = None) -> Gps | None:
    """GPS of any layout -> rows (time, latitude, longitude, altitude, speed, dop) of valid fixes. path: the file, read
    again where the package names a drone's position without its values."""
    rows = _gopro_rows(blocks) or _record_rows(blocks)
    if not rows and path is not None and any("GLPI" in block for block in blocks):
        rows = drone_rows(path)
    if len(rows) < 5:
        return None
    table = np.array(sorted(rows), dtype=np.float64)
    latitude, longitude = np.radians(table[:, 1]), np.radians(table[:, 2])
    east = (longitude - longitude[0]) * np.cos(latitude[0]) * _EARTH_RADIUS_M
    north = (latitude - latitude[0]) * _EARTH_RADIUS_M
    return Gps(
        times_s=table[:, 0],
        east_north_up_m=np.stack([east, north, table[:, 3] - table[0, 3]], axis=-1),
        speed_m_s=table[:, 4],
        dop=table[:, 5],
    )


def _gopro_rows(blocks: list[dict[str, Any]]) -> list[tuple[float, ...]]:
    """GPS5 (latitude, longitude, altitude, 2D speed, 3D speed) and GPS9 (..., days, seconds, dop, fix)
    streams."""
    found = [(i, group) for i, block in enumerate(blocks) if (group := _gopro_group(block)) is not None]
    if not found:
        return []
    zero_us = next(
        (
            b[name]["TimestampUs"]
            for b in blocks
            for name in _FRAME_STREAMS
            if "TimestampUs" in b.get(name, {})
        ),
        0,
    )
    starts_s = [
        (group["TimestampUs"] - zero_us) / 1e6 if "TimestampUs" in group else 1.001 * (i - found[0][0])
        for i, group in found
    ]
    rows: list[tuple[float, ...]] = []
    step_s = 1.0 / 18  # GPS5 of a file with one payload only; else the payloads' own spacing
    for i, (_, group) in enumerate(found):
        scale = np.atleast_1d(np.asarray(group["Scale"], dtype=np.float64))
        values = np.array(_numbers(group.get("Data") or group[_GPMF_GPS9]), dtype=np.float64)
        data = np.atleast_2d(values) / scale
        if (
            i + 1 < len(found) and starts_s[i + 1] > starts_s[i]
        ):  # the last payload is shorter: it keeps the rate
            step_s = (starts_s[i + 1] - starts_s[i]) / len(data)
        for j, row in enumerate(data):
            fix = row[8] if len(row) >= 9 else group.get(_GPMF_FIX, 3)
            dop = row[7] if len(row) >= 9 else group.get(_GPMF_PRECISION, np.nan) / 100
            if fix >= 2:
                rows.append((starts_s[i] + j * step_s, row[0], row[1], row[2], row[4], dop))
    return rows


_FRAME_STREAMS = ("CameraOrientation", "Exposure")
"""Streams with one sample per video frame: their first time stamp is the video's zero."""


def _gopro_group(block: dict[str, Any]) -> dict[str, Any] | None:
    for name in ("GPS9", "GPS"):
        group = block.get(name, {})
        if "Scale" in group and (group.get("Data") or group.get(_GPMF_GPS9)):
            return group
    return None


def _numbers(data: Any) -> Any:
    """Plain nested lists of numbers; mixed types arrive wrapped as {type: value}."""
    if isinstance(data, dict):
        return next(iter(data.values()))
    return [_numbers(item) for item in data] if isinstance(data, list) else data


def _record_rows(blocks: list[dict[str, Any]]) -> list[tuple[float, ...]]:
    """Record-wise GPS (Insta360, CAMM): dictionaries with lat, lon, altitude and speed in km/h."""
    records = [
        r
        for b in blocks
        for r in b.get("GPS", {}).get("Data", [])
        if isinstance(r, dict) and r.get("is_acquired") and "lat" in r
    ]
    if not records:
        return []
    start_s = records[0]["unix_timestamp"]
    return [
        (r["unix_timestamp"] - start_s, r["lat"], r["lon"], r["altitude"], r["speed"] / 3.6, float("nan"))
        for r in records
    ]
