"""An estimated camera path and the true one in, error figures out: ATE, RPE, rotation error, scale ratio.

The definitions are those of the TUM RGB-D benchmark as `evo` computes them (a test holds both to 1e-6). Two
things are added. Where the positions leave the aligning rotation open (a straight or resting camera), it
comes from the orientations, and the result says so. And `orientation_*` gives the rotation error after the
best rotation between the orientations themselves, which no straight path can spoil.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from worldline.annotate.camera import Sim3, compose, invert, rotation_angle, umeyama

Alignment = Literal["none", "se3", "sim3"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareConfig:
    """How two paths are paired, aligned and compared."""

    alignment: Alignment = "sim3"
    """none: as stored. se3: rotation and translation (a metric path). sim3: scale too (a path up to
    scale)."""
    max_time_difference_s: float = 0.02
    """A pose and a true pose belong together when their times differ by at most this much; the TUM
    benchmark's value."""
    rpe_delta: float = 1.0
    """Distance of the two poses of a relative error, in `rpe_unit`."""
    rpe_unit: Literal["frames", "seconds"] = "frames"
    """frames counts poses that have a partner, as evo does, so a gap of unregistered frames counts as one
    step; seconds pairs each pose with the one nearest to `rpe_delta` later, if that lies within
    `max_time_difference_s`."""

    def __post_init__(self) -> None:
        if self.alignment not in ("none", "se3", "sim3"):
            raise ValueError(f"alignment {self.alignment!r}: known are none, se3, sim3")
        if not self.max_time_difference_s >= 0:
            raise ValueError(f"max_time_difference_s {self.max_time_difference_s}: must be 0 or more")
        if self.rpe_unit not in ("frames", "seconds"):
            raise ValueError(f"rpe_unit {self.rpe_unit!r}: known are frames, seconds")
        if not self.rpe_delta > 0 or (self.rpe_unit == "frames" and self.rpe_delta != int(self.rpe_delta)):
            raise ValueError(f"rpe_delta {self.rpe_delta}: must be positive, and whole when it counts frames")


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """Summary of one kind of error; NaN where there is nothing to summarise."""

    rmse: float
    mean: float
    median: float
    max: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PathError:
    """Errors of one estimated path. N pairs of poses; lengths in the truth's unit (metres)."""

    alignment: Alignment
    true_from_est: Sim3
    """The alignment that was applied; identity for none."""
    is_rotation_from_orientations: bool
    """The positions left the aligning rotation open (straight or resting path), so the orientations decided
    it."""
    num_estimated: int
    """Frames of the estimate."""
    num_unregistered: int
    """Frames of the estimate without a pose (NaN), left out of every figure."""
    num_true: int
    """Finite poses of the truth."""
    num_pairs: int
    """N: poses with a partner in time."""
    frame_idx: np.ndarray
    """[N] index into the estimate."""
    true_idx: np.ndarray
    """[N] index into the truth."""
    position_error: np.ndarray
    """[N, 3] aligned estimate minus truth, in the truth's world."""
    rotation_error_deg: np.ndarray
    """[N] angle between aligned and true orientation."""
    ate: Statistics
    """Of the norms of `position_error`."""
    rotation_deg: Statistics
    """Of `rotation_error_deg`."""
    orientation_deg: Statistics
    """Rotation error after the best rotation between the orientations, whatever `alignment` is."""
    rpe_translation: Statistics
    """Norms of the relative errors' translations over `rpe_delta`."""
    rpe_rotation_deg: Statistics
    """Angles of the same relative errors."""
    scale_ratio: float
    """Estimated over true length by the Sim(3) fit, whatever `alignment` is; NaN for a resting camera."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraControlError:
    """How well a generated video follows the path that was asked for (CameraCtrl's and SANA-WM's figures)."""

    rotation_deg: float
    """RotErr: mean angle(R_t^T R~_t) in degrees."""
    translation: float
    """TransErr: mean |t_t - t~_t|."""
    cam_mc: float
    """CamMC: mean Frobenius norm of [R_t | t_t] - [R~_t | t~_t]."""


def associate(
    timestamps_s: np.ndarray, true_timestamps_s: np.ndarray, max_difference_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of indices (estimate, truth) [N], [N] nearest in time within `max_difference_s`.

    Each pose of the shorter list takes its nearest in the longer (the earlier of two equally near). Both
    lists ascend; ValueError otherwise.
    """
    for times in (timestamps_s, true_timestamps_s):
        if np.any(np.diff(times) < 0):
            raise ValueError("associate: timestamps must ascend")
    if len(true_timestamps_s) > len(timestamps_s):
        short, long = timestamps_s, true_timestamps_s
    else:
        short, long = true_timestamps_s, timestamps_s
    if len(short) == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    after = np.clip(np.searchsorted(long, short, side="right"), 0, len(long) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(np.abs(long[after] - short) < np.abs(short - long[before]), after, before)
    near = np.flatnonzero(np.abs(long[nearest] - short) <= max_difference_s)
    if short is timestamps_s:
        return near, nearest[near]
    return nearest[near], near


def mean_rotation(rotations: np.ndarray) -> np.ndarray:
    """The rotation [3, 3] nearest to `rotations` [N, 3, 3] in the chordal sense."""
    u, _, vt = np.linalg.svd(rotations.sum(axis=0))
    u[:, 2] *= np.sign(np.linalg.det(u @ vt))
    return u @ vt


def align(
    world_from_cam: np.ndarray, true_world_from_cam: np.ndarray, alignment: Alignment
) -> tuple[Sim3, bool]:
    """The true_from_est of paired poses [N, 3, 4], and whether its rotation came from the orientations.

    Rotation, translation and scale are Umeyama's over the positions. Where either path's positions lie on a
    line or in a point, to a millionth of their extent, the rotation is the mean of the relative orientations
    instead.
    """
    if alignment == "none":
        return Sim3(scale=1.0, rotation=np.eye(3), translation=np.zeros(3)), False
    positions, true_positions = world_from_cam[:, :, 3], true_world_from_cam[:, :, 3]
    if _spans_plane(positions) and _spans_plane(true_positions):
        return umeyama(true_positions, positions, with_scale=alignment == "sim3"), False
    rotation = mean_rotation(true_world_from_cam[:, :, :3] @ world_from_cam[:, :, :3].mT)
    centre, true_centre = positions.mean(axis=0), true_positions.mean(axis=0)
    scale = 1.0
    if alignment == "sim3" and _extent(positions) > 0 and _extent(true_positions) > 0:
        rotated = (positions - centre) @ rotation.T
        scale = float(np.sum(rotated * (true_positions - true_centre)) / np.sum(rotated * rotated))
    return Sim3(scale=scale, rotation=rotation, translation=true_centre - scale * (rotation @ centre)), True


def compare(
    *,
    timestamps_s: np.ndarray,
    world_from_cam: np.ndarray,
    true_timestamps_s: np.ndarray,
    true_world_from_cam: np.ndarray,
    config: CompareConfig | None = None,
) -> PathError:
    """Errors of an estimated path against the true one.

    timestamps_s [T], world_from_cam [T, 3, 4] with NaN where a frame has no pose; the truth likewise. Raises
    ValueError when shapes disagree or no pose has a partner in time.
    """
    config = config or CompareConfig()
    times, poses, kept = _finite(timestamps_s, world_from_cam)
    true_times, true_poses, true_kept = _finite(true_timestamps_s, true_world_from_cam)
    pair, true_pair = associate(times, true_times, config.max_time_difference_s)
    if len(pair) == 0:
        raise ValueError(
            f"compare: none of {len(times)} poses ({_span(times)}) has one of {len(true_times)} true poses "
            f"({_span(true_times)}) within {config.max_time_difference_s} s"
        )
    times, poses, true_poses = times[pair], poses[pair], true_poses[true_pair]
    true_from_est, from_orientations = align(poses, true_poses, config.alignment)
    aligned = true_from_est.poses(poses)
    position_error = aligned[:, :, 3] - true_poses[:, :, 3]
    rotation_error_deg = angle_between_deg(true_poses[:, :, :3], aligned[:, :, :3])
    own_rotation = mean_rotation(true_poses[:, :, :3] @ poses[:, :, :3].mT)
    orientation_error_deg = angle_between_deg(true_poses[:, :, :3], own_rotation @ poses[:, :, :3])
    first, second = _relative_pairs(times, config)
    relative_error = compose(
        invert(compose(invert(true_poses[first]), true_poses[second])),
        compose(invert(aligned[first]), aligned[second]),
    )
    return PathError(
        alignment=config.alignment,
        true_from_est=true_from_est,
        is_rotation_from_orientations=from_orientations,
        num_estimated=len(timestamps_s),
        num_unregistered=len(timestamps_s) - len(kept),
        num_true=len(true_times),
        num_pairs=len(pair),
        frame_idx=kept[pair],
        true_idx=true_kept[true_pair],
        position_error=position_error,
        rotation_error_deg=rotation_error_deg,
        ate=statistics(np.linalg.norm(position_error, axis=-1)),
        rotation_deg=statistics(rotation_error_deg),
        orientation_deg=statistics(orientation_error_deg),
        rpe_translation=statistics(np.linalg.norm(relative_error[:, :, 3], axis=-1)),
        rpe_rotation_deg=statistics(np.degrees(rotation_angle(relative_error[:, :, :3]))),
        scale_ratio=_scale_ratio(poses, true_poses),
    )


def camera_control_error(world_from_cam: np.ndarray, true_world_from_cam: np.ndarray) -> CameraControlError:
    """RotErr, TransErr and CamMC of paired poses [N, 3, 4] (SANA-WM, arXiv 2605.15178, App. D).

    Both paths are taken relative to their first frame, then the estimate is aligned by Sim(3). Raises
    ValueError for unequal lengths or a pose that is not finite: a missing pose cannot be scored as if it were
    there.
    """
    if world_from_cam.shape != true_world_from_cam.shape or len(world_from_cam) == 0:
        raise ValueError(f"camera_control_error: {world_from_cam.shape} against {true_world_from_cam.shape}")
    if not (np.all(np.isfinite(world_from_cam)) and np.all(np.isfinite(true_world_from_cam))):
        raise ValueError("camera_control_error: a pose is missing")
    first_from_cam = compose(invert(world_from_cam[:1]), world_from_cam)
    true_first_from_cam = compose(invert(true_world_from_cam[:1]), true_world_from_cam)
    aligned = align(first_from_cam, true_first_from_cam, "sim3")[0].poses(first_from_cam)
    difference = aligned - true_first_from_cam
    return CameraControlError(
        rotation_deg=float(np.mean(angle_between_deg(true_first_from_cam[:, :, :3], aligned[:, :, :3]))),
        translation=float(np.mean(np.linalg.norm(difference[:, :, 3], axis=-1))),
        cam_mc=float(np.mean(np.linalg.norm(difference, axis=(-2, -1)))),
    )


def angle_between_deg(rotations_a: np.ndarray, rotations_b: np.ndarray) -> np.ndarray:
    """Angle [...] in degrees between rotations [..., 3, 3]."""
    return np.degrees(rotation_angle(rotations_a.mT @ rotations_b))


def statistics(errors: np.ndarray) -> Statistics:
    """Summary of errors [N]; NaN for none."""
    if len(errors) == 0:
        return Statistics(rmse=np.nan, mean=np.nan, median=np.nan, max=np.nan)
    return Statistics(
        rmse=float(np.sqrt(np.mean(errors**2))),
        mean=float(np.mean(errors)),
        median=float(np.median(errors)),
        max=float(np.max(errors)),
    )


def _finite(
    timestamps_s: np.ndarray, world_from_cam: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times, poses and indices of the poses that are finite, in float64."""
    times, poses = np.asarray(timestamps_s, dtype=np.float64), np.asarray(world_from_cam, dtype=np.float64)
    if times.ndim != 1 or poses.shape != (len(times), 3, 4):
        raise ValueError(
            f"compare: timestamps {times.shape} need poses ({len(times)}, 3, 4), got {poses.shape}"
        )
    kept = np.flatnonzero(np.isfinite(poses).all(axis=(1, 2)))
    return times[kept], poses[kept], kept


def _span(times_s: np.ndarray) -> str:
    return f"{times_s[0]:.3f} to {times_s[-1]:.3f} s" if len(times_s) else "none"


def _extent(positions: np.ndarray) -> float:
    """Largest singular value of the centred positions, 0 where it is lost in rounding."""
    largest = float(np.linalg.svd(positions - positions.mean(axis=0), compute_uv=False)[0])
    return largest if largest > 1e-12 * (1 + float(np.abs(positions).max())) else 0.0


def _spans_plane(positions: np.ndarray) -> bool:
    singular = np.linalg.svd(positions - positions.mean(axis=0), compute_uv=False)
    floor = max(1e-6 * singular[0], 1e-12 * (1 + float(np.abs(positions).max())))
    return len(singular) > 1 and bool(singular[1] > floor)


def _scale_ratio(poses: np.ndarray, true_poses: np.ndarray) -> float:
    if _extent(poses[:, :, 3]) == 0 or _extent(true_poses[:, :, 3]) == 0:
        return float("nan")
    return 1 / align(poses, true_poses, "sim3")[0].scale


def _relative_pairs(times_s: np.ndarray, config: CompareConfig) -> tuple[np.ndarray, np.ndarray]:
    """Indices [M], [M] of the pose pairs that relative errors are taken over: every start, overlapping."""
    start = np.arange(len(times_s))
    if config.rpe_unit == "frames":
        step = int(config.rpe_delta)
        return start[:-step], start[step:]
    wanted = times_s + config.rpe_delta
    after = np.clip(np.searchsorted(times_s, wanted), 0, len(times_s) - 1)
    before = np.maximum(after - 1, 0)
    end = np.where(np.abs(times_s[after] - wanted) < np.abs(times_s[before] - wanted), after, before)
    is_near = (np.abs(times_s[end] - wanted) <= config.max_time_difference_s) & (end > start)
    return start[is_near], end[is_near]
