"""Poses or depth that a user knows already: where they lie, how they belong to the frames, how they agree with
the images.

Given data are trusted, so what could make them wrong is looked for first: times that are not the video's,
matrices that do not rotate, a clock that runs ahead. Each ends in a ClipRejected that says so; nothing is
stretched to fit in silence.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from worldline.annotate.camera import Sim3, invert, rotation_angle, umeyama
from worldline.annotate.depth import DepthMap
from worldline.annotate.reconstruction import Reconstruction
from worldline.datasets.schema import ClipRejected

GT_POSE: Final = "gt_pose"
GT_DEPTH: Final = "gt_depth"
ESTIMATE: Final = "estimate"
MODES = (ESTIMATE, GT_DEPTH, GT_POSE)

_MAX_LAG_S = 1.0
"""A clock error looked for is at most this large."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenConfig:
    """Where given poses and depth lie, and what they are. In names, {folder}, {stem} and {name} stand for the
    video's."""

    poses_path: str = "{folder}/{stem}.tum"
    """File of the video's trajectory; times on the clock of the video's frames."""
    poses_format: str = "tum"
    """tum, colmap, vipe, nerfstudio, ...; an unknown name lists the known."""
    poses_are_metric: bool = True
    """The trajectory is in metres; if not, only its shape is trusted and metres come from the clip's cues."""
    poses_offset_s: float = 0.0
    """Added to the trajectory's times to get the video's."""
    poses_min_share: float = 0.5
    """A clip with given poses for fewer of its frames is rejected; lower it for trajectories at a lower
    rate."""
    depth_path: str = "{folder}/{stem}.depth"
    """Folder or zip (the suffix .zip is tried too) of the video's depth maps, named by the frame's number in
    the video: docs/depth.md."""
    depth_is_metric: bool = True
    """Depth is in metres; if not, it is right up to one factor a frame."""
    depth_unit_m: float = 0.001
    """Metres per unit of 16-bit maps: 0.001 is the millimetre of most depth cameras."""
    depth_fxfycxcy_px: tuple[float, float, float, float] | None = None
    """Intrinsics of a depth camera that is not the video's, in pixels of its maps; the two are taken to look
    from one place in one direction. None: the maps are aligned with the video."""
    depth_sigma: float = 0.01
    """Relative doubt about the depth's metre that all frames share; structured-light cameras 0.01."""
    depth_noise: float = 0.02
    """Relative noise of one pixel; time-of-flight cameras 0.01 to 0.03."""
    depth_scale_sigma: float = 0.002
    """Spread of the depth's scale from frame to frame: a sensor's hardly changes."""

    def __post_init__(self) -> None:
        if not 0 < self.poses_min_share <= 1:
            raise ValueError(f"poses_min_share must lie in (0, 1], got {self.poses_min_share}")
        for name in ("depth_unit_m", "depth_sigma", "depth_noise", "depth_scale_sigma"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for template in (self.poses_path, self.depth_path):
            try:
                named(template, "folder/stem.mp4")
            except (KeyError, IndexError) as error:
                raise ValueError(f"{template!r}: known are {{folder}}, {{stem}}, {{name}}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenPoses:
    """A trajectory of the whole video, N poses in order of time."""

    timestamps_s: np.ndarray
    """[N]"""
    world_from_cam: np.ndarray
    """[N, 3, 4], OpenCV axes."""


class GivenDepth(Protocol):
    """Depth of the whole video."""

    def frames(self) -> np.ndarray:
        """[N] frames of the video that have depth, increasing."""
        ...

    def maps(self, wanted: Sequence[int]) -> Iterator[DepthMap]:
        """Maps of these frames of the video. Raises ClipRejected where one cannot be read."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What a user knows of one video; `given_id` changes with its content."""

    given_id: str
    poses: GivenPoses | None = None
    depth: GivenDepth | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How a path seen in the images agrees with a given one, over the frames that have both."""

    given_from_seen: Sim3
    deviation: float
    """Rms distance after alignment over the best 80 % of frames, in the given unit."""
    deviation_share: float
    """The same over the rms extent of those frames of the given path."""
    rotation_rad: float
    """Median angle between seen and given rotations after alignment."""


def named(template: str, video_path: str) -> str:
    """The path that a template stands for."""
    folder, name = os.path.split(video_path)
    return template.format(folder=folder or ".", stem=os.path.splitext(name)[0], name=name)


def match_poses(given: GivenPoses, timestamps_s: np.ndarray, config: GivenConfig) -> np.ndarray:
    """The given pose nearest in time to each frame, at most half a frame away: [T, 3, 4], NaN where none.

    Raises ClipRejected where a pose used is no rigid transform, or too few frames have one.
    """
    times = given.timestamps_s + config.poses_offset_s
    gap_s = float(np.median(np.diff(timestamps_s))) if len(timestamps_s) > 1 else 0.04
    if len(times) == 0:
        raise ClipRejected(GT_POSE, "no given poses", "the file holds none")
    nearest = np.searchsorted(0.5 * (times[1:] + times[:-1]), timestamps_s)
    is_near = np.abs(times[nearest] - timestamps_s) <= 0.5 * gap_s + 1e-6
    is_near &= np.isfinite(given.world_from_cam[nearest]).all(axis=(1, 2))
    poses = np.where(is_near[:, None, None], given.world_from_cam[nearest], np.nan)
    is_known = np.isfinite(poses[:, 0, 0])
    if is_known.mean() < config.poses_min_share:
        inside = int(((times >= timestamps_s[0] - gap_s) & (times <= timestamps_s[-1] + gap_s)).sum())
        raise ClipRejected(
            GT_POSE,
            "given poses do not cover the clip",
            f"{int(is_known.sum())} of {len(is_known)} frames have one; the clip runs {timestamps_s[0]:.3f} to "
            f"{timestamps_s[-1]:.3f} s, the {len(times)} poses {times[0]:.3f} to {times[-1]:.3f} s with {inside} "
            "in the clip: other clock, other unit of time, or a lower rate (given.poses_min_share)",
        )
    _check_rigid(poses[is_known])
    return np.where(is_known[:, None, None], poses, np.nan)


def _check_rigid(poses: np.ndarray) -> None:
    rotation = poses[:, :, :3]
    off = np.abs(rotation @ rotation.mT - np.eye(3)).max(axis=(1, 2))
    if (np.linalg.det(rotation) < 0).any():
        raise ClipRejected(GT_POSE, "given poses are not rigid", "a rotation mirrors (determinant -1)")
    if off.max() > 1e-3:
        raise ClipRejected(
            GT_POSE,
            "given poses are not rigid",
            f"R R^T differs from the identity by up to {off.max():.3g} in {int((off > 1e-3).sum())} poses",
        )


def agreement(seen: Reconstruction, given_world_from_cam: np.ndarray) -> Agreement | None:
    """Sim(3) of the camera centres with the best 80 % of frames (SANA-WM Sec. 4), and what is left.

    None with fewer than 3 common frames, or where either path has no extent.
    """
    both = seen.is_registered & np.isfinite(given_world_from_cam).all(axis=(1, 2))
    if both.sum() < 3:
        return None
    ours, known = invert(seen.cam_from_world[both]), given_world_from_cam[both]
    keep = np.ones(len(ours), dtype=bool)
    for _ in range(6):
        try:
            given_from_seen = umeyama(known[keep][:, :, 3], ours[keep][:, :, 3])
        except ValueError:
            return None
        if not given_from_seen.scale > 0:
            return None
        error = np.linalg.norm(given_from_seen.points(ours[:, :, 3]) - known[:, :, 3], axis=1)
        better = error <= np.quantile(error, 0.8)
        if (better == keep).all():
            break
        keep = better
    deviation = float(np.sqrt(np.mean(error[keep] ** 2)))
    centred = known[keep][:, :, 3] - known[keep][:, :, 3].mean(axis=0)
    extent = float(np.sqrt(np.mean(np.sum(centred**2, axis=1))))
    turned = _residual_rotation(known[keep], ours[keep])
    return Agreement(
        given_from_seen=given_from_seen,
        deviation=deviation,
        deviation_share=deviation / max(extent, 1e-12),
        rotation_rad=float(np.median(turned)),
    )


def _residual_rotation(known: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """[N] angles between the two paths' rotations after the best common turn; a straight path leaves the
    alignment of centres free to roll, so rotations are aligned by themselves."""
    u, _, vt = np.linalg.svd(np.einsum("nij,nkj->ik", known[:, :, :3], ours[:, :, :3]))
    turn = u @ np.diag([1, 1, np.linalg.det(u) * np.linalg.det(vt)]) @ vt
    return rotation_angle(known[:, :, :3].mT @ turn @ ours[:, :, :3])


def check_clock(seen: Reconstruction, given: GivenPoses, config: GivenConfig) -> None:
    """Compares how fast camera and trajectory turn. Raises ClipRejected where a shift of the clock would make
    them agree far better: every pose would belong to another frame."""
    registered = np.flatnonzero(seen.is_registered)
    if len(registered) < 20:
        return
    times = seen.timestamps_s[registered]
    gap_s = float(np.median(np.diff(times)))
    ours = _turning(invert(seen.cam_from_world[registered]), times)
    lags = np.arange(-int(_MAX_LAG_S / gap_s), int(_MAX_LAG_S / gap_s) + 1)
    given_times = given.timestamps_s + config.poses_offset_s
    rate, middle = (
        _turning(given.world_from_cam, given_times),
        0.5 * (given_times[1:] + given_times[:-1]),
    )
    at = 0.5 * (times[1:] + times[:-1])
    inside = (at - _MAX_LAG_S >= middle[0]) & (at + _MAX_LAG_S <= middle[-1])
    if inside.sum() < 20 or np.std(ours[inside]) < 1e-3:
        return
    error = np.array([_rms(np.interp(at[inside] - lag * gap_s, middle, rate) - ours[inside]) for lag in lags])
    best, none = int(np.argmin(error)), int(np.flatnonzero(lags == 0)[0])
    if abs(lags[best]) >= 2 and error[best] < 0.5 * error[none]:
        shift_s = float(lags[best] * gap_s)
        raise ClipRejected(
            GT_POSE,
            "given poses run on another clock",
            f"the video turns as they do {abs(shift_s):.2f} s {'later' if shift_s > 0 else 'earlier'}: set "
            f"given.poses_offset_s to {config.poses_offset_s + shift_s:.3f} if that is right",
        )


def _turning(world_from_cam: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """[N - 1] angular speed in rad/s between neighbours."""
    step = world_from_cam[:-1, :, :3].mT @ world_from_cam[1:, :, :3]
    return rotation_angle(step) / np.maximum(np.diff(times_s), 1e-9)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
