"""One clip's trajectory in, scores of its camera out: lens, speed, turning, smoothness, shape, error bars.

All from the columns of a table row, so that they can be made for old rows and imported ones too. Lengths are in the
row's length unit (metres where scale_status is metric). Rates are over half seconds: shorter ones would measure the
noise of single frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

SHAPES = ("static", "turn", "forward", "backward", "sideways", "vertical", "arc", "loop", "mixed")


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraConfig:
    """What counts as a turn, as still and as a shape."""

    step_s: float = 0.5
    """Time in seconds over which speeds and rates are taken."""
    turn_deg: float = 26.0
    """Change of direction that counts as a turn: SpatialVID's 0.45 rad."""
    static_turn_deg: float = 3.0
    """A path of no length that turns less than this in all is static, else a turn."""
    axis_share: float = 0.75
    """Share of a path along one axis of the camera that names its shape."""
    loop_straightness: float = 0.25
    """Displacement over length under which a path is a loop."""
    arc_deg: float = 30.0
    """A path that bends by more than this, always to one side, is an arc."""
    jump_sigma: float = 8.0
    """A frame is a jump where it is this many times the median off what its neighbours foretell."""

    def __post_init__(self) -> None:
        if self.step_s <= 0 or not 0 < self.axis_share <= 1:
            raise ValueError("step_s must be positive and axis_share in (0, 1]")


_COLUMNS = (
    *("focal_mismatch", "focal_variation", "speed_mean", "speed_max", "speed_variation", "acceleration_rms"),
    *("smoothness", "jump_share", "turn_rate", "turn_rate_max", "turn_total_deg", "yaw_net_deg"),
    *("yaw_range_deg", "pitch_range_deg", "roll_range_deg", "displacement", "straightness", "path_extent"),
    *("num_turns", "forward_share", "sideways_share", "vertical_share", "path_shape"),
    *("sigma_translation_median", "sigma_rotation_median_deg", "sigma_share"),
)


def camera_scores(row: Mapping[str, Any], config: CameraConfig | None = None) -> dict[str, Any]:
    """The camera columns of `datasets/schema.py` of a row with world_from_cam, timestamps_s, fxfycxcy_px and
    sigmas; None where they are unknown."""
    config = config or CameraConfig()
    found: dict[str, Any] = dict.fromkeys(_COLUMNS) | _lens(row.get("fxfycxcy_px"))
    if row.get("world_from_cam") is None or row.get("timestamps_s") is None:
        return found
    world_from_cam = np.array(row["world_from_cam"], dtype=np.float64).reshape(-1, 3, 4)
    times_s = np.array(row["timestamps_s"], dtype=np.float64)
    is_known = np.isfinite(world_from_cam).all(axis=(1, 2))
    if is_known.sum() < 2:
        return found
    world_from_cam, times_s = world_from_cam[is_known], times_s[is_known]
    # A path of a camera that stood still or only turned has no length to speak of.
    has_path = row.get("degeneracy") not in ("static", "pure_rotation")
    found |= _jumps(world_from_cam[:, :, 3], times_s, config) if has_path else {}
    steps = _even_steps(world_from_cam, times_s, config.step_s)
    found |= _turning(steps)
    if has_path:
        found |= _path(steps, config)
    found["path_shape"] = _shape(found, steps, config, has_path)
    found |= _sigmas(row, found["path_extent"])
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Steps:
    """The path at equal times, some half a second apart."""

    centre: np.ndarray
    """[N + 1, 3]"""
    rotation: Rotation
    """[N + 1] world_from_cam."""
    gap_s: float


def _even_steps(world_from_cam: np.ndarray, times_s: np.ndarray, step_s: float) -> _Steps:
    duration_s = times_s[-1] - times_s[0]
    count = max(1, round(duration_s / step_s))
    wanted_s = np.linspace(times_s[0], times_s[-1], count + 1)
    centre = np.stack([np.interp(wanted_s, times_s, world_from_cam[:, k, 3]) for k in range(3)], axis=1)
    rotation = Slerp(times_s, Rotation.from_matrix(world_from_cam[:, :, :3]))(wanted_s)
    return _Steps(centre=centre, rotation=rotation, gap_s=float(duration_s / count))


def _lens(fxfycxcy_px: Any) -> dict[str, Any]:
    if fxfycxcy_px is None or len(fxfycxcy_px) == 0:
        return {}
    fx, fy = np.array(fxfycxcy_px, dtype=np.float64).reshape(-1, 4)[:, :2].T
    is_known = np.isfinite(fx) & np.isfinite(fy)
    if not is_known.any():
        return {}
    fx, fy = fx[is_known], fy[is_known]
    return {
        "focal_mismatch": float(np.median(np.abs(fx - fy) / ((fx + fy) / 2))),
        "focal_variation": float(fx.std() / fx.mean()),
    }


def _turning(steps: _Steps) -> dict[str, Any]:
    turns = (steps.rotation[:-1].inv() * steps.rotation[1:]).magnitude()
    rates = np.degrees(turns) / steps.gap_s
    # Angles of the optical axis about the first camera's own axes: y down, so yaw to the right is positive.
    first_from_cam = (steps.rotation[0].inv() * steps.rotation).as_matrix()
    forward, right = first_from_cam[:, :, 2], first_from_cam[:, :, 0]
    yaw = np.degrees(np.unwrap(np.arctan2(forward[:, 0], forward[:, 2])))
    pitch = np.degrees(np.arcsin(np.clip(-forward[:, 1], -1, 1)))
    roll = np.degrees(np.arcsin(np.clip(right[:, 1], -1, 1)))
    return {
        "turn_rate": float(rates.mean()),
        "turn_rate_max": float(rates.max()),
        "turn_total_deg": float(np.degrees(turns.sum())),
        "yaw_net_deg": float(yaw[-1] - yaw[0]),
        "yaw_range_deg": float(np.ptp(yaw)),
        "pitch_range_deg": float(np.ptp(pitch)),
        "roll_range_deg": float(np.ptp(roll)),
    }


def _path(steps: _Steps, config: CameraConfig) -> dict[str, Any]:
    moves = np.diff(steps.centre, axis=0)
    lengths = np.linalg.norm(moves, axis=1)
    speed, total = lengths / steps.gap_s, float(lengths.sum())
    displacement = float(np.linalg.norm(steps.centre[-1] - steps.centre[0]))
    found: dict[str, Any] = {
        "speed_mean": float(speed.mean()),
        "speed_max": float(speed.max()),
        "displacement": displacement,
        "path_extent": float(np.linalg.norm(steps.centre - steps.centre[0], axis=1).max()),
    }
    if len(moves) > 1:
        found["acceleration_rms"] = float(
            np.sqrt(np.mean(np.sum(np.diff(moves, axis=0) ** 2, axis=1))) / steps.gap_s**2
        )
    if total <= 0:
        return found
    in_cam = steps.rotation[:-1].inv().apply(moves)
    found |= {
        "speed_variation": float(speed.std() / speed.mean()),
        "straightness": displacement / total,
        "forward_share": float(in_cam[:, 2].sum() / total),
        "sideways_share": float(np.abs(in_cam[:, 0]).sum() / total),
        "vertical_share": float(np.abs(in_cam[:, 1]).sum() / total),
        "num_turns": _num_turns(moves, config.turn_deg),
    }
    return found


def _num_turns(moves: np.ndarray, turn_deg: float) -> int:
    """How often the direction of the path has changed by more than turn_deg since the last turn."""
    lengths = np.linalg.norm(moves, axis=1)
    # Steps far shorter than usual have no direction.
    directions = moves[lengths > 0.1 * lengths.mean()]
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    turns, held = 0, directions[0]
    for direction in directions[1:]:
        if held @ direction < math.cos(math.radians(turn_deg)):
            turns, held = turns + 1, direction
    return turns


def _jumps(centre: np.ndarray, times_s: np.ndarray, config: CameraConfig) -> dict[str, Any]:
    """Smoothness and jumps, of single frames: how far each centre is off the parabola through its neighbours."""
    if len(centre) < 8:
        return {}
    gap_s = float(np.median(np.diff(times_s)))
    is_even = np.abs(np.diff(times_s) - gap_s) < 0.5 * gap_s
    usable = is_even[:-3] & is_even[1:-2] & is_even[2:-1] & is_even[3:]
    # Fourth difference over 6: the middle frame less the cubic through the other four.
    off = centre[2:-2] - (4 * (centre[1:-3] + centre[3:-1]) - centre[:-4] - centre[4:]) / 6
    off = np.linalg.norm(off, axis=1)[usable]
    if len(off) < 4:
        return {}
    window = max(1, round(config.step_s / gap_s))
    if len(centre) <= window:
        return {}
    step = float(np.linalg.norm(centre[window:] - centre[:-window], axis=1).mean())
    median = float(np.median(off))
    return {
        "smoothness": float(np.sqrt(np.mean(off**2)) / step) if step > 0 else None,
        # Where most frames are exact, as in rendered paths, rounding is no jump.
        "jump_share": float(np.mean(off > config.jump_sigma * median + 1e-3 * step)),
    }


def _shape(found: Mapping[str, Any], steps: _Steps, config: CameraConfig, has_path: bool) -> str:
    if not has_path or (not found["straightness"] and not found["path_extent"]):
        return "static" if found["turn_total_deg"] < config.static_turn_deg else "turn"
    if found["straightness"] < config.loop_straightness:
        return "loop"
    forward, level, vertical = (found[f"{name}_share"] for name in ("forward", "sideways", "vertical"))
    if _bend_deg(steps.centre) > config.arc_deg and abs(found["yaw_net_deg"]) > config.arc_deg:
        return "arc"
    for share, name in (
        (forward, "forward"),
        (-forward, "backward"),
        (level, "sideways"),
        (vertical, "vertical"),
    ):
        if share > config.axis_share:
            return name
    return "mixed"


def _bend_deg(centre: np.ndarray) -> float:
    """Angle between the directions of the path's first and last third."""
    third = max(1, len(centre) // 3)
    start, end = centre[third] - centre[0], centre[-1] - centre[-1 - third]
    lengths = np.linalg.norm(start) * np.linalg.norm(end)
    return math.degrees(math.acos(np.clip(start @ end / lengths, -1, 1))) if lengths > 0 else 0.0


def _sigmas(row: Mapping[str, Any], path_extent: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for column, name, factor in (
        ("sigma_translation", "sigma_translation_median", 1.0),
        ("sigma_rotation_rad", "sigma_rotation_median_deg", math.degrees(1.0)),
    ):
        values = row.get(column)
        known = np.array([] if values is None else values, dtype=np.float64)
        known = known[np.isfinite(known)]
        if len(known):
            found[name] = float(np.median(known)) * factor
    if path_extent and "sigma_translation_median" in found:
        found["sigma_share"] = found["sigma_translation_median"] / path_extent
    return found
