"""The metric scale of a clip as a measurement: every cue the clip offers in, one scale with an error bar out.

Each cue states ln(metres per unit) and its sigma. Any of them can lie (a stretched GPS track, a camera on a
crane), so each is believed with a probability, not a rule: the posterior over all 2^n choices of honest cues
is an exact mixture of Gaussians, and its 68 % interval is the sigma. Agreeing cues sharpen each other, a lone
dissenter is outvoted, and two that contradict each other leave a wide interval. Cue values stay as measured.
Without a cue the scale is unknown: no metres are invented.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

from worldline.annotate.camera import invert
from worldline.annotate.ground import GreyFrames, Ground, GroundConfig, fit_ground
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.scale_cues import (
    Cue,
    DepthMaps,
    baseline_cue,
    camera_height_cue,
    depth_cue,
    known_poses_cue,
)
from worldline.annotate.scale_gps import GpsConfig, gps_cue
from worldline.annotate.scale_inertial import InertialConfig, inertial_cue
from worldline.annotate.telemetry import read_telemetry
from worldline.datasets.schema import METRIC, UP_TO_SCALE, MissingBackend

logger = logging.getLogger(__name__)

Motion = Literal["unknown", "handheld", "walking", "driving"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MotionLimits:
    """What one kind of camera motion can be. `None`: no statement."""

    camera_height_m: tuple[float, float] | None
    """Usual height over the ground and its sigma, the prior of the height cue."""
    height_range_m: tuple[float, float]
    """Heights outside veto the scale."""
    max_speed_m_s: float
    """Median speed above vetoes the scale."""
    max_acceleration_m_s2: float
    """Median acceleration between seconds above vetoes the scale."""


MOTION_LIMITS: dict[str, MotionLimits] = {
    # Anything filmed on or near the earth; an airliner flies 260 m/s.
    "unknown": MotionLimits(
        camera_height_m=None, height_range_m=(0.01, 12_000.0), max_speed_m_s=300.0, max_acceleration_m_s2=30.0
    ),
    # Carried, also running or on a bicycle; held at table height or on a pole.
    "handheld": MotionLimits(
        camera_height_m=None, height_range_m=(0.1, 4.0), max_speed_m_s=9.0, max_acceleration_m_s2=8.0
    ),
    # People walk 0.8-2.0 m/s; above 2.2 m/s they run. Head or chest height, sigma over people and ways of
    # holding.
    "walking": MotionLimits(
        camera_height_m=(1.6, 0.12), height_range_m=(0.8, 2.4), max_speed_m_s=3.0, max_acceleration_m_s2=3.0
    ),
    # Dash of a car to windscreen of a van; hard braking is 9 m/s^2.
    "driving": MotionLimits(
        camera_height_m=(1.5, 0.3), height_range_m=(0.5, 4.0), max_speed_m_s=70.0, max_acceleration_m_s2=9.0
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleConfig:
    """What is known about the clips, and how far cues are trusted."""

    motion: Motion = "unknown"
    """How the camera was moved: gives the height prior of walks and drives, and the limits of the sanity
    check."""
    camera_height_m: float | None = None
    """Known height of the camera over the ground in metres; None: the prior of `motion`, if it has one."""
    camera_height_sigma_m: float = 0.02
    """Doubt about `camera_height_m`: a tape measure and the car's suspension."""
    use_telemetry: bool = True
    """Read GPS and inertial data from the media file where it has them."""
    depth_sigma: float = 0.1
    """Relative doubt that all frames of a metric depth network share (published scale errors are 3-19 %); a
    depth sensor 0.01."""
    baseline_sigma_m: float = 0.001
    """Doubt about a given stereo baseline."""
    lie_probability: float = 0.05
    """Prior probability that a cue is wrong by far more than its sigma says."""
    lie_sigma: float = 0.7
    """How far a lying cue strays, in log scale: a factor of two."""
    max_sigma: float = 0.4
    """A fused sigma above this is no measurement: the clip stays up to scale."""
    ground: GroundConfig = field(default_factory=GroundConfig)
    gps: GpsConfig = field(default_factory=GpsConfig)
    inertial: InertialConfig = field(default_factory=InertialConfig)

    def __post_init__(self) -> None:
        if self.motion not in MOTION_LIMITS:
            raise ValueError(f"motion {self.motion!r}: known are {sorted(MOTION_LIMITS)}")
        if self.camera_height_m is not None and not self.camera_height_m > 0:
            raise ValueError(f"camera_height_m must be positive, got {self.camera_height_m}")
        if not 0 < self.lie_probability < 0.5:
            raise ValueError(f"lie_probability must lie in (0, 0.5), got {self.lie_probability}")
        for name in ("camera_height_sigma_m", "depth_sigma", "baseline_sigma_m", "lie_sigma", "max_sigma"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """The fused scale. Unknown is None, never 1."""

    status: str
    """`metric` or `up_to_scale` (datasets/schema.py)."""
    scale: float | None
    """Metres per unit of the reconstruction."""
    sigma: float | None
    """Relative 1-sigma of `scale`: half the 68 % interval of log scale."""
    cues: tuple[Cue, ...]
    """Every cue that could be measured, also those not believed."""
    gravity_in_world: np.ndarray | None = None
    """[3] unit vector, downwards, in the reconstruction's world frame; None: no inertial data."""
    reason: str | None = None
    """Why the scale is unknown: no cue, cues too weak, or the limit of `motion` that the scaled path
    breaks."""


def fuse_cues(cues: tuple[Cue, ...], config: ScaleConfig) -> tuple[float, float, tuple[Cue, ...]]:
    """(log_scale, sigma, cues with `is_used` set) of at least one cue.

    log_scale is the posterior's median and sigma half its central 68 % interval. Raises ValueError without a
    cue.
    """
    if not cues:
        raise ValueError("fuse_cues: no cues")
    values = np.array([cue.log_scale for cue in cues])
    sigmas = np.array([cue.sigma for cue in cues])
    is_honest = (np.arange(2 ** len(cues))[:, None] >> np.arange(len(cues))) % 2 == 1  # [2^n, n]
    variance = np.where(is_honest, sigmas**2, sigmas**2 + config.lie_sigma**2)
    precision = 1 / variance
    total = precision.sum(axis=1)
    mean = (precision * values).sum(axis=1) / total
    log_evidence = (
        np.where(is_honest, math.log(1 - config.lie_probability), math.log(config.lie_probability)).sum(
            axis=1
        )
        - 0.5 * np.log(variance).sum(axis=1)
        - 0.5 * np.log(total)
        - 0.5 * (precision * (values - mean[:, None]) ** 2).sum(axis=1)
    )
    weight = np.exp(log_evidence - log_evidence.max())
    weight /= weight.sum()
    spread = 1 / np.sqrt(total)

    def quantile(share: float) -> float:
        low, high = float((mean - 9 * spread).min()), float((mean + 9 * spread).max())
        return float(
            brentq(lambda x: float(weight @ ndtr((x - mean) / spread)) - share, low, high, xtol=1e-9)
        )

    belief = weight @ is_honest
    used = tuple(replace(cue, is_used=bool(b > 0.5)) for cue, b in zip(cues, belief, strict=True))
    return quantile(0.5), 0.5 * (quantile(0.8413447) - quantile(0.1586553)), used


def estimate_scale(
    reconstruction: Reconstruction,
    media_path: Path | None,
    config: ScaleConfig,
    *,
    grey_frames: GreyFrames | None = None,
    depth_maps: DepthMaps | None = None,
    measured_cues: Sequence[Cue] = (),
    known_world_from_cam: np.ndarray | None = None,
    partner_cam_from_world: np.ndarray | None = None,
    baseline_m: float | None = None,
    focal_sigma: float = 0.0,
) -> Scale:
    """Measures the metric scale of a reconstruction from every cue at hand.

    media_path: the clip's file, read for telemetry (None: none). grey_frames: frames on demand, for the
    ground. depth_maps: metric depth. measured_cues: further cues that the caller measured (depth in the bundle
    adjustment). known_world_from_cam [T, 3, 4]: known metric poses, NaN where unknown.
    partner_cam_from_world [T, 3, 4] with baseline_m: a second camera of the same rig in the same
    reconstruction. focal_sigma: relative 1-sigma of the focal length, 0 where it was given. Raises ValueError
    where one of the latter two is given without the other, MissingBackend where the file has telemetry to
    read and its package is absent.
    """
    if (partner_cam_from_world is None) != (baseline_m is None):
        raise ValueError("partner_cam_from_world and baseline_m belong together")
    cues: list[Cue | None] = []
    gravity_in_world = None
    if media_path is not None and config.use_telemetry:
        cues, gravity_in_world = _telemetry_cues(reconstruction, media_path, config)
    ground = _find_ground(reconstruction, config, grey_frames, gravity_in_world)
    cues.append(_height_cue(ground, config, focal_sigma))
    cues.extend(measured_cues)
    if depth_maps is not None:
        cues.append(depth_cue(reconstruction, depth_maps, sigma=config.depth_sigma))
    if known_world_from_cam is not None:
        cues.append(known_poses_cue(reconstruction, known_world_from_cam))
    if partner_cam_from_world is not None and baseline_m is not None:
        cues.append(
            baseline_cue(
                reconstruction.cam_from_world,
                partner_cam_from_world,
                baseline_m,
                sigma_m=config.baseline_sigma_m,
            )
        )
    return _conclude(
        reconstruction, tuple(c for c in cues if c is not None), ground, gravity_in_world, config
    )


def _conclude(
    reconstruction: Reconstruction,
    cues: tuple[Cue, ...],
    ground: Ground | None,
    gravity_in_world: np.ndarray | None,
    config: ScaleConfig,
) -> Scale:
    """Fuses the cues and holds the outcome against the limits of the stated motion."""

    def unknown(reason: str, used: tuple[Cue, ...]) -> Scale:
        return Scale(
            status=UP_TO_SCALE,
            scale=None,
            sigma=None,
            cues=used,
            gravity_in_world=gravity_in_world,
            reason=reason,
        )

    if not cues:
        return unknown("no cue", cues)
    log_scale, sigma, used = fuse_cues(cues, config)
    if sigma > config.max_sigma:
        return unknown(f"cues too weak or contradictory: sigma {sigma:.2f} over {config.max_sigma:g}", used)
    scale = math.exp(log_scale)
    broken = broken_limit(reconstruction, scale, ground, MOTION_LIMITS[config.motion])
    if broken is not None:
        return unknown(f"not {config.motion}: {broken}", used)
    return Scale(status=METRIC, scale=scale, sigma=sigma, cues=used, gravity_in_world=gravity_in_world)


def broken_limit(
    reconstruction: Reconstruction, scale: float, ground: Ground | None, limits: MotionLimits
) -> str | None:
    """The first physical limit that the path breaks at `scale` metres per unit; None where it keeps all."""
    speed, acceleration = _median_motion(reconstruction)
    if speed * scale > limits.max_speed_m_s:
        return f"median speed {speed * scale:.2f} m/s over {limits.max_speed_m_s:g}"
    if acceleration * scale > limits.max_acceleration_m_s2:
        return f"median acceleration {acceleration * scale:.2f} m/s^2 over {limits.max_acceleration_m_s2:g}"
    if ground is not None:
        height_m = ground.median_height * scale
        low, high = limits.height_range_m
        if not low <= height_m <= high:
            return f"camera height {height_m:.2f} m outside {low:g} to {high:g}"
    return None


def _median_motion(reconstruction: Reconstruction) -> tuple[float, float]:
    """Median speed and acceleration, in units per s and s^2, between points of the path about a second apart.

    A second averages over steps and jitter. NaN (which breaks no limit) where the clip is too short.
    """
    posed = reconstruction.is_registered
    times = reconstruction.timestamps_s[posed]
    centres = invert(reconstruction.cam_from_world[posed])[:, :, 3]
    if len(times) < 3:
        return math.nan, math.nan
    step_s = min(1.0, (times[-1] - times[0]) / 2)
    grid = np.arange(times[0], times[-1] + 1e-6, step_s)
    at_grid = np.stack([np.interp(grid, times, centres[:, axis]) for axis in range(3)], axis=-1)
    velocity = np.diff(at_grid, axis=0) / step_s
    speed = float(np.median(np.linalg.norm(velocity, axis=1))) if len(velocity) else math.nan
    change = np.linalg.norm(np.diff(velocity, axis=0), axis=1) / step_s
    return speed, float(np.median(change)) if len(change) else math.nan


def _telemetry_cues(
    reconstruction: Reconstruction, media_path: Path, config: ScaleConfig
) -> tuple[list[Cue | None], np.ndarray | None]:
    """Cues of the sensors in the file and gravity [3]; none, with a warning, without the package that reads
    them."""
    try:
        telemetry = read_telemetry(media_path)
    except MissingBackend as missing:
        logger.warning("%s: not looked at for GPS and inertial data: %s", media_path.name, missing)
        return [], None
    cues: list[Cue | None] = []
    gravity_in_world = None
    if telemetry is not None and telemetry.gps is not None:
        cues.append(gps_cue(reconstruction, telemetry.gps, config.gps))
    if telemetry is not None and telemetry.inertial is not None:
        cue, gravity_in_world = inertial_cue(
            reconstruction, telemetry.inertial, telemetry.orientation, config.inertial
        )
        cues.append(cue)
    return cues, gravity_in_world


def _find_ground(
    reconstruction: Reconstruction,
    config: ScaleConfig,
    grey_frames: GreyFrames | None,
    gravity_in_world: np.ndarray | None,
) -> Ground | None:
    """The ground, where the configuration has a use for it: a height to compare with."""
    if config.camera_height_m is None and MOTION_LIMITS[config.motion].camera_height_m is None:
        return None
    up_in_world = None if gravity_in_world is None else -gravity_in_world
    return fit_ground(reconstruction, config.ground, grey_frames=grey_frames, up_in_world=up_in_world)


def _height_cue(ground: Ground | None, config: ScaleConfig, focal_sigma: float) -> Cue | None:
    if ground is None:
        return None
    if config.camera_height_m is not None:
        known, about = (config.camera_height_m, config.camera_height_sigma_m), "given"
    else:
        prior = MOTION_LIMITS[config.motion].camera_height_m
        if prior is None:
            return None
        known, about = prior, config.motion
    return camera_height_cue(ground, *known, about=about, focal_sigma=focal_sigma)
