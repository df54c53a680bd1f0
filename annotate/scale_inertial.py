"""Scale and gravity from an inertial sensor: posed frames and IMU samples in, log-scale with its sigma and
gravity out.

The second difference of camera positions p(t+h) - 2 p(t) + p(t-h) equals the acceleration weighted by a
triangle of half width h, exactly and without any integration constant, so

integral of (h - |tau|) R (f - b) dtau + g h^2 = s (p(t+h) - 2 p(t) + p(t-h))

is linear in scale s, gravity g and accelerometer bias b (f: specific force, R: world from sensor). The visual
side has noise of its own, so the slope is bounded from both sides by the two regressions and the sigma
includes their distance.

The rotation between sensor and camera is never assumed: it is the one that maps the angular velocities of one
onto those of the other (Wahba's problem). Where the video is stabilised after the sensor, the camera's own
orientation record tells how.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from worldline.annotate.camera import invert
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.scale_cues import Cue
from worldline.annotate.telemetry import Inertial, Orientation


@dataclass(frozen=True, kw_only=True, slots=True)
class InertialConfig:
    """Settings of the comparison and the error model of the sensor."""

    max_offset_s: float = 0.3
    """Largest shift searched between the clocks of sensor and video."""
    half_widths_s: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
    """Half widths h tried; steps of a walk show at 0.3 s, braking of a car at 1 s. The one that explains most
    is taken."""
    bias_sigma_m_s2: float = 0.3
    """Prior of the accelerometer's bias."""
    floor_sigma: float = 0.02
    """Relative floor of the inertial cue: sensor scale factor, lever arm to the lens, clock jitter."""
    max_rotation_residual: float = 0.35
    """Angular velocities of sensor and camera that differ by a larger share of their size were not of one
    body."""
    min_explained: float = 0.5
    """The two accelerations must share at least this much of their variance."""

    def __post_init__(self) -> None:
        if not self.half_widths_s or min(self.half_widths_s) <= 0:
            raise ValueError(f"half_widths_s must be positive, got {self.half_widths_s}")
        if not 0 < self.min_explained < 1 or not 0 < self.max_rotation_residual < 1:
            raise ValueError("min_explained and max_rotation_residual must lie in (0, 1)")


def inertial_cue(
    reconstruction: Reconstruction,
    inertial: Inertial,
    orientation: Orientation | None,
    config: InertialConfig,
) -> tuple[Cue | None, np.ndarray | None]:
    """Acceleration against the second differences of the path, and gravity [3] in world (unit, down).

    No gravity where the sensor's rotation cannot be tied to the video; no cue where the motion excites it too
    little.
    """
    mount = _find_mount(reconstruction, inertial, orientation, config)
    if mount is None:
        return None, None
    fits = [
        fit
        for h in config.half_widths_s
        if (fit := _fit_scale(reconstruction, inertial, mount, h, config)) is not None
    ]
    if not fits:
        return None, None
    best = max(fits, key=lambda fit: fit.explained)
    size = float(np.linalg.norm(best.gravity))
    gravity = best.gravity / size if 9.0 < size < 10.6 else None
    if best.explained < config.min_explained or not best.slope_low > 0:
        return None, gravity
    log_low, log_high = math.log(best.slope_low), math.log(best.slope_high)
    statistical = math.sqrt((1 - best.explained) / best.explained / max(best.num_independent, 1.0))
    sigma = math.hypot(config.floor_sigma, statistical, 0.5 * (log_high - log_low))
    detail = (
        f"half width {best.half_width_s:.2f} s, explains {100 * best.explained:.0f} %, |g| {size:.2f} m/s^2, "
        f"clock offset {1000 * mount.offset_s:.0f} ms, rotation residual {100 * mount.residual:.0f} % ("
        f"{mount.source})"
    )
    return Cue(name="inertial", log_scale=0.5 * (log_low + log_high), sigma=sigma, detail=detail), gravity


@dataclass(frozen=True, kw_only=True, slots=True)
class _Mount:
    """How the sensor sits in the reconstruction's world at any time of the video."""

    world_from_body: Slerp
    """Over the video's clock."""
    span_s: tuple[float, float]
    body_from_sensor: Rotation
    offset_s: float
    """Sensor time = video time + offset."""
    residual: float
    source: str


def _find_mount(
    reconstruction: Reconstruction,
    inertial: Inertial,
    orientation: Orientation | None,
    config: InertialConfig,
) -> _Mount | None:
    """Ties the sensor to the video by angular velocities; None where they do not belong to one rotating
    body."""
    posed = np.flatnonzero(reconstruction.is_registered)
    if len(posed) < 15:
        return None
    times = reconstruction.timestamps_s[posed]
    visual = Rotation.from_matrix(invert(reconstruction.cam_from_world[posed])[:, :, :3])
    if orientation is not None:
        body = _stabilised_body(times, visual, orientation, config)
        if body is not None:
            times, visual, source = *body, "orientation record"
        else:
            source = "gyroscope"
    else:
        source = "gyroscope"
    best = None
    for offset in np.arange(-config.max_offset_s, config.max_offset_s + 1e-9, 0.005):
        fit = _align_gyro(times + offset, visual, inertial)
        if fit is not None and (best is None or fit[1] < best[1]):
            best = (*fit, float(offset))
    if best is None or best[1] > config.max_rotation_residual:
        return None
    return _Mount(
        world_from_body=Slerp(times, visual),
        span_s=(float(times[0]), float(times[-1])),
        body_from_sensor=best[0],
        offset_s=best[2],
        residual=best[1],
        source=source,
    )


def _stabilised_body(
    times: np.ndarray, visual: Rotation, orientation: Orientation, config: InertialConfig
) -> tuple[np.ndarray, Rotation] | None:
    """(times, world_from_body) from the camera's record, in the reconstruction's world; None where it does
    not fit.

    Whether the record is body-from-start or its inverse differs between firmwares; the one that turns like
    the video is taken. Axes of the record's image frame may differ from the camera's by a fixed rotation,
    found by Wahba's problem.
    """
    camera = Rotation.from_quat(orientation.camera_quat_xyzw)
    image = Rotation.from_quat(orientation.image_quat_xyzw)
    inside = (times >= orientation.times_s[0]) & (times <= orientation.times_s[-1])
    if inside.sum() < 15:
        return None
    step = max(1, round(0.1 / max(float(np.median(np.diff(times))), 1e-3)))
    turned = _turns(visual[inside], step)
    best = None
    for body_record, image_record in (
        (camera.inv(), image.inv()),
        (camera, image),
        (camera.inv(), image),
        (camera, image.inv()),
    ):
        world0_from_image = Slerp(orientation.times_s, body_record * image_record)(times[inside])
        fit = _wahba(turned, _turns(world0_from_image, step))
        if best is None or fit[1] < best[1]:
            best = (*fit, body_record, world0_from_image)
    assert best is not None
    cam_from_image, residual, body_record, world0_from_image = best
    if residual > config.max_rotation_residual:
        return None
    # visual = world_from_world0 * world0_from_image * image_from_cam, for one world_from_world0
    world_from_world0 = (visual[inside] * cam_from_image * world0_from_image.inv()).mean()
    return orientation.times_s, world_from_world0 * body_record


def _turns(rotations: Rotation, step: int) -> np.ndarray:
    """[N - step, 3] rotation vectors from each rotation to the one `step` later, in its own axes."""
    return (rotations[:-step].inv() * rotations[step:]).as_rotvec()


def _wahba(a: np.ndarray, b: np.ndarray) -> tuple[Rotation, float]:
    """a_from_b of paired vectors [N, 3] and the share of a's size that it leaves unexplained."""
    a_from_b, _ = Rotation.align_vectors(a, b)
    residual = float(np.linalg.norm(a - a_from_b.apply(b)) / max(float(np.linalg.norm(a)), 1e-12))
    return a_from_b, residual


def _align_gyro(
    sensor_times: np.ndarray, world_from_body: Rotation, inertial: Inertial
) -> tuple[Rotation, float] | None:
    """(body_from_sensor, residual) from turns over about 0.1 s; None with too little overlap."""
    inside = (sensor_times >= inertial.times_s[0]) & (sensor_times <= inertial.times_s[-1])
    if inside.sum() < 15:
        return None
    times, rotations = sensor_times[inside], world_from_body[inside]
    step = max(1, round(0.1 / max(float(np.median(np.diff(times))), 1e-3)))
    gap = np.diff(inertial.times_s)[:, None]
    middle = 0.5 * (inertial.gyro_rad_s[1:] + inertial.gyro_rad_s[:-1])
    angle = np.concatenate([np.zeros((1, 3)), np.cumsum(middle * gap, axis=0)])
    at_times = _interpolate(times, inertial.times_s, angle)
    turned = _turns(rotations, step)
    if np.sqrt(np.mean(turned**2)) < 1e-3:  # hardly turns: rotations of noise have no direction
        return None
    return _wahba(turned, at_times[step:] - at_times[:-step])


@dataclass(frozen=True, kw_only=True, slots=True)
class _ScaleFit:
    half_width_s: float
    slope_low: float
    """Regression of inertial on visual: noise of the visual side pulls it down."""
    slope_high: float
    """Inverse regression: noise of the inertial side pushes it up."""
    explained: float
    num_independent: float
    gravity: np.ndarray
    """[3] m/s^2 in world."""


def _fit_scale(
    reconstruction: Reconstruction,
    inertial: Inertial,
    mount: _Mount,
    half_width_s: float,
    config: InertialConfig,
) -> _ScaleFit | None:
    """Solves the linear system of the module's docstring at the video's own frames; None with too few."""
    posed = np.flatnonzero(reconstruction.is_registered)
    times = reconstruction.timestamps_s[posed]
    centres = invert(reconstruction.cam_from_world[posed])[:, :, 3]
    k = max(1, round(half_width_s / max(float(np.median(np.diff(times))), 1e-6)))
    if len(times) < 2 * k + 10:
        return None
    h_before, h_after = times[k:-k] - times[: -2 * k], times[2 * k :] - times[k:-k]
    h = 0.5 * (h_before + h_after)
    first, last = times[: -2 * k], times[2 * k :]
    usable = np.abs(h_after - h_before) < 0.02 * h  # a gap in the frames makes the triangle lopsided
    usable &= np.abs(h - np.median(h)) < 0.02 * np.median(h)
    usable &= (first >= mount.span_s[0]) & (last <= mount.span_s[1])
    usable &= (first + mount.offset_s >= inertial.times_s[0]) & (
        last + mount.offset_s <= inertial.times_s[-1]
    )
    if usable.sum() < 10:
        return None
    h0 = float(np.median(h))
    visual = (centres[2 * k :] - 2 * centres[k:-k] + centres[: -2 * k])[usable]  # [N, 3]
    measured, bias_response = _triangle_integrals(times[k:-k][usable], h0, inertial, mount)
    count = len(visual)
    nuisance = np.concatenate([np.tile(-np.eye(3) * h0**2, (count, 1)), bias_response.reshape(-1, 3)], axis=1)
    # A prior row per axis keeps the bias, which gravity mimics while the camera hardly turns, within its
    # usual size. The expected residual (2 cm/s^2 over h^2) sets its weight.
    prior = np.zeros((3, 6))
    prior[:, 3:] = np.eye(3) * 0.02 * h0**2 * math.sqrt(count) / config.bias_sigma_m_s2
    design = np.concatenate([nuisance, prior])

    def residual(values: np.ndarray) -> np.ndarray:
        target = np.concatenate([values, np.zeros(3)])
        return (target - design @ np.linalg.lstsq(design, target, rcond=None)[0])[:-3]

    x, y = residual(visual.ravel()), residual(measured.ravel())
    xy, xx, yy = float(x @ y), float(x @ x), float(y @ y)
    if not xy > 0:
        return None
    solution = np.linalg.lstsq(
        design, np.concatenate([(measured - xy / xx * visual).ravel(), np.zeros(3)]), rcond=None
    )[0]
    return _ScaleFit(
        half_width_s=h0,
        slope_low=xy / xx,
        slope_high=yy / xy,
        explained=xy * xy / (xx * yy),
        num_independent=float(times[-1] - times[0]) / h0,
        gravity=solution[:3],
    )


def _triangle_integrals(
    times: np.ndarray, half_width_s: float, inertial: Inertial, mount: _Mount
) -> tuple[np.ndarray, np.ndarray]:
    """Integrals of (h - |tau|) R f [N, 3] and of (h - |tau|) R [N, 3, 3] about each time, R =
    world_from_sensor."""
    tau = np.linspace(-half_width_s, half_width_s, 2 * math.ceil(half_width_s * 200) + 1)
    weight = half_width_s - np.abs(tau)
    weight *= half_width_s**2 / weight.sum()
    forces, turns = [], []
    for time in times:
        at = np.clip(time + tau, *mount.span_s)
        world_from_sensor = mount.world_from_body(at) * mount.body_from_sensor
        force = _interpolate(at + mount.offset_s, inertial.times_s, inertial.accel_m_s2)
        forces.append(weight @ world_from_sensor.apply(force))
        turns.append(np.tensordot(weight, world_from_sensor.as_matrix(), axes=1))
    return np.array(forces), np.array(turns)


def _interpolate(at: np.ndarray, times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Linear interpolation of values [N, C] given at ascending times [N]."""
    return np.stack([np.interp(at, times, values[:, c]) for c in range(values.shape[1])], axis=-1)
