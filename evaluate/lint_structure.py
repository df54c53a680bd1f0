"""One table row in, what is formally wrong with it out: lengths, times, rotations, units that contradict each
other."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from worldline.datasets.schema import (
    CONVENTIONS,
    DEGENERACIES,
    METRIC,
    OK,
    PER_FRAME,
    SCHEMA_VERSION,
    UP_TO_SCALE,
)

MAX_SPEED_M_S = 120.0
"""A metric clip whose median speed is higher is taken for one in another unit; trains and racing cars stay
below."""


def check_metadata(metadata: dict[bytes, bytes] | None) -> list[str]:
    """Problems of a Parquet file's schema metadata."""
    metadata = metadata or {}
    problems = []
    version = metadata.get(b"worldline_schema", b"none").decode()
    if version != str(SCHEMA_VERSION):
        problems.append(f"schema: version {version}, expected {SCHEMA_VERSION}")
    try:
        stored = json.loads(metadata.get(b"worldline_conventions", b"{}"))
    except json.JSONDecodeError:
        stored = {}
    for name, text in CONVENTIONS.items():
        if stored.get(name) != text:
            problems.append(f"schema: convention {name!r} is {stored.get(name)!r}, expected {text!r}")
    return problems


def check_row(row: dict[str, Any]) -> list[str]:
    """Problems of one row that its own numbers show; empty for a sound row."""
    if row["status"] != OK:
        return [] if row.get("reason") else [f"status: {row['status']} without a reason"]
    problems = _check_lengths(row)
    if problems:
        return problems
    problems += _check_times(row)
    problems += _check_values(row)
    if row.get("world_from_cam"):
        poses = np.array(row["world_from_cam"], dtype=np.float64).reshape(-1, 3, 4)
        problems += _check_poses(row, poses)
    if row.get("fxfycxcy_px"):
        problems += _check_intrinsics(row)
    return problems


def _check_lengths(row: dict[str, Any]) -> list[str]:
    count = row.get("num_frames")
    if count is None or not row.get("timestamps_s"):
        return ["length: num_frames or timestamps_s is missing"]
    return [
        f"length: {name} has {len(row[name])} numbers, expected {width} x {count} frames"
        for name, width in PER_FRAME.items()
        if row.get(name) is not None and len(row[name]) != width * count
    ]


def _check_times(row: dict[str, Any]) -> list[str]:
    times = np.array(row["timestamps_s"], dtype=np.float64)
    problems = []
    if not np.isfinite(times).all() or np.any(np.diff(times) <= 0):
        problems.append("time: timestamps do not ascend")
    # Half a microsecond: start and end are rounded to microseconds for the clip's identity.
    elif times[0] < row["start_s"] - 1e-6 or times[-1] > row["end_s"] + 1e-6:
        span = f"{row['start_s']:.3f} to {row['end_s']:.3f}"
        problems.append(
            f"time: frames at {times[0]:.3f} to {times[-1]:.3f} s lie outside the clip's {span} s"
        )
    return problems


def _check_values(row: dict[str, Any]) -> list[str]:
    problems = []
    if row.get("degeneracy") is not None and row["degeneracy"] not in DEGENERACIES:
        problems.append(f"label: degeneracy {row['degeneracy']!r} is unknown")
    if row.get("scale_status") not in (None, METRIC, UP_TO_SCALE):
        problems.append(f"label: scale_status {row['scale_status']!r} is unknown")
    for name in ("scale", "scale_sigma"):
        if row.get(name) is not None and not row[name] > 0:
            problems.append(f"unit: {name} is {row[name]}, must be positive")
    gravity = row.get("gravity_in_world")
    if gravity is not None and (len(gravity) != 3 or abs(np.linalg.norm(gravity) - 1) > 1e-3):
        problems.append("unit: gravity_in_world is not a unit vector")
    for name in ("sigma_translation", "sigma_rotation_rad"):
        if row.get(name) is not None and np.any(np.array(row[name], dtype=np.float64) < 0):
            problems.append(f"unit: {name} has a negative number")
    return problems


def _check_poses(row: dict[str, Any], poses: np.ndarray) -> list[str]:
    is_finite = np.isfinite(poses).all(axis=(1, 2))
    problems = []
    if row.get("is_registered") is not None and np.any(np.array(row["is_registered"]) != is_finite):
        problems.append("length: is_registered contradicts which poses are numbers")
    if not is_finite.any():
        return [*problems, "length: status is ok but no frame has a pose"]
    rotation = poses[is_finite][:, :, :3]
    skew = np.abs(rotation @ rotation.mT - np.eye(3)).max()
    if skew > 1e-5:
        problems.append(f"rotation: rotations are not orthonormal (off by {skew:.2g})")
    if np.any(np.linalg.det(rotation) < 0):
        problems.append("handedness: rotations mirror (determinant -1)")
    first = poses[is_finite][0]
    if np.abs(first - np.eye(3, 4)).max() > 1e-6:
        problems.append("gauge: the first registered pose is not the identity")
    return problems + _check_units(row, poses[is_finite], is_finite)


def _check_units(row: dict[str, Any], poses: np.ndarray, is_finite: np.ndarray) -> list[str]:
    times = np.array(row["timestamps_s"], dtype=np.float64)[is_finite]
    if len(times) < 2 or np.any(np.diff(times) <= 0):
        return []
    problems = []
    steps = np.linalg.norm(np.diff(poses[:, :, 3], axis=0), axis=-1)
    stated, found = row.get("path_length"), float(steps.sum())
    if stated is not None and abs(found - stated) > 0.01 * max(found, stated):
        problems.append(f"unit: path_length is {stated:.6g}, the poses' path is {found:.6g} long")
    speed = float(np.median(steps / np.diff(times)))
    if row.get("scale_status") == METRIC and speed > MAX_SPEED_M_S:
        problems.append(f"unit: a metric clip moves at {speed:.4g} m/s; are its lengths metres?")
    return problems


def _check_intrinsics(row: dict[str, Any]) -> list[str]:
    fxfycxcy = np.array(row["fxfycxcy_px"], dtype=np.float64).reshape(-1, 4)
    known = fxfycxcy[np.isfinite(fxfycxcy).all(axis=1)]
    if len(known) == 0:
        return []
    problems = []
    fx, fy, cx, cy = known.T
    if np.any(fx <= 0) or np.any(fy <= 0):
        problems.append("handedness: a focal length is not positive")
    if not row.get("width") or not row.get("height"):
        return [*problems, "unit: intrinsics without width and height"]
    width, height = row["width"], row["height"]
    if np.median(fx) < 0.05 * width and np.median(fx) < 20:
        problems.append(
            f"unit: fx is {np.median(fx):.4g} for a width of {width}: normalised instead of pixels?"
        )
    elif np.any((cx < 0) | (cx > width) | (cy < 0) | (cy > height)):
        problems.append(
            f"unit: the principal point leaves the {width}x{height} image: another size's intrinsics?"
        )
    stated = row.get("fov_x_deg")
    if stated is not None and not problems and (row.get("camera_model") or "pinhole") == "pinhole":
        found = float(np.median(np.degrees(np.arctan(cx / fx) + np.arctan((width - cx) / fx))))
        if abs(found - stated) > 1.0:
            problems.append(f"unit: fov_x_deg is {stated:.2f}, the intrinsics say {found:.2f}")
    return problems
