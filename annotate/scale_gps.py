"""Scale from a GPS track: posed frames and fixes in, log-scale with its sigma out.

Two measurements of one receiver: the distance travelled by Doppler speed, and the shape of the position
track, each against the visual path. Their error models differ (speed errors average out, position errors
wander), their errors are partly shared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from worldline.annotate.camera import invert, umeyama
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.scale_cues import Cue
from worldline.annotate.telemetry import Gps


@dataclass(frozen=True, kw_only=True, slots=True)
class GpsConfig:
    """Error model of a consumer receiver."""

    speed_sigma_m_s: float = 0.1
    """Error of Doppler speed at a dilution of precision of 1.5; consumer receivers state 0.05 to 0.1 m/s."""
    speed_memory_s: float = 5.0
    """Speed errors closer in time than this are alike (the receiver filters)."""
    position_sigma_m: float = 2.0
    """Error of a position at a dilution of precision of 1.5."""
    position_memory_s: float = 60.0
    """Position errors wander with this time constant, so positions close in time err alike."""
    lag_s: float = 0.5
    """Delay of the receiver's filter, unknown in sign and size up to this."""
    correlation: float = 0.5
    """Speed and position come out of one filter: correlation of their errors."""

    def __post_init__(self) -> None:
        for name in ("speed_sigma_m_s", "speed_memory_s", "position_sigma_m", "position_memory_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.correlation < 1:
            raise ValueError(f"correlation must lie in [0, 1), got {self.correlation}")


def gps_cue(reconstruction: Reconstruction, gps: Gps, config: GpsConfig) -> Cue | None:
    """Speed and position track against the visual path; None with under 3 s of both or with no motion."""
    posed = reconstruction.is_registered
    if posed.sum() < 5:
        return None
    times = reconstruction.timestamps_s[posed]
    centres = invert(reconstruction.cam_from_world[posed])[:, :, 3]
    start, end = max(times[0], gps.times_s[0]), min(times[-1], gps.times_s[-1])
    if end - start < 3.0:
        return None
    estimates = []
    dop = float(np.nanmedian(gps.dop)) if np.isfinite(gps.dop).any() else 1.5
    for estimate in (
        _by_speed(times, centres, gps, (start, end), dop / 1.5, config),
        _by_position(times, centres, gps, (start, end), dop / 1.5, config),
    ):
        if estimate is not None and estimate[1] < 1.0:
            estimates.append(estimate)
    if not estimates:
        return None
    values, sigmas = np.array(estimates).T
    value, sigma = _combine(values, sigmas, config.correlation)
    parts = ", ".join(f"{math.exp(v):.4g} +- {100 * s:.0f} %" for v, s in estimates)
    return Cue(
        name="gps", log_scale=value, sigma=sigma, detail=f"{end - start:.1f} s, dop {dop:.1f}: {parts}"
    )


def _by_speed(
    times: np.ndarray,
    centres: np.ndarray,
    gps: Gps,
    span: tuple[float, float],
    noise: float,
    config: GpsConfig,
) -> tuple[float, float] | None:
    """(log scale, sigma) of the integral of speed over the visual path in steps of about a second."""
    grid = np.linspace(*span, max(2, round(span[1] - span[0]) + 1))
    visual = float(np.linalg.norm(np.diff(_interpolate(grid, times, centres), axis=0), axis=1).sum())
    fine = np.linspace(*span, 20 * len(grid))
    is_known = np.isfinite(gps.speed_m_s)
    if is_known.sum() < 5 or not visual > 0:
        return None
    speed = np.interp(fine, gps.times_s[is_known], gps.speed_m_s[is_known])
    duration = span[1] - span[0]
    distance = float(speed.mean()) * duration
    if not distance > 0:
        return None
    independent = max(1.0, duration / config.speed_memory_s)
    speed_error = noise * config.speed_sigma_m_s / math.sqrt(independent) * duration
    lag_error = abs(float(speed[-1] - speed[0])) * config.lag_s
    return math.log(distance / visual), math.hypot(speed_error, lag_error) / distance


def _by_position(
    times: np.ndarray,
    centres: np.ndarray,
    gps: Gps,
    span: tuple[float, float],
    noise: float,
    config: GpsConfig,
) -> tuple[float, float] | None:
    """(log scale, sigma) of the similarity that lays the visual path onto the GPS track."""
    inside = (gps.times_s >= span[0]) & (gps.times_s <= span[1])
    track = gps.east_north_up_m[inside]
    visual = _interpolate(gps.times_s[inside], times, centres)
    extent = float(np.linalg.norm(np.ptp(track, axis=0)))
    if len(track) < 5 or not extent > 0 or not np.ptp(visual, axis=0).max() > 0:
        return None
    scale = umeyama(track, visual).scale
    if not scale > 0:
        return None
    # First-order Gauss-Markov wander: the error of a difference between two times.
    wander = math.sqrt(2 * (1 - math.exp(-(span[1] - span[0]) / config.position_memory_s)))
    return math.log(scale), noise * config.position_sigma_m * wander / extent


def _combine(values: np.ndarray, sigmas: np.ndarray, correlation: float) -> tuple[float, float]:
    """Inverse-variance mean with the sigma of equally correlated errors, widened (Birge) where the values
    disagree."""
    weight = sigmas**-2 / (sigmas**-2).sum()
    value = float(weight @ values)
    covariance = np.outer(sigmas, sigmas) * (correlation + (1 - correlation) * np.eye(len(sigmas)))
    sigma = math.sqrt(float(weight @ covariance @ weight))
    if len(values) > 1:
        gap_variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
        sigma *= max(1.0, abs(float(values[0] - values[1])) / math.sqrt(gap_variance))
    return value, sigma


def _interpolate(at: np.ndarray, times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Linear interpolation of values [N, C] given at ascending times [N]."""
    return np.stack([np.interp(at, times, values[:, c]) for c in range(values.shape[1])], axis=-1)
