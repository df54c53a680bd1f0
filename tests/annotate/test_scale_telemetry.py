"""GPS and inertial cues recover the scale of synthetic walks, with sigmas that cover their errors."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldline.annotate.camera import Intrinsics, invert
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.scale_gps import GpsConfig, gps_cue
from worldline.annotate.scale_inertial import InertialConfig, inertial_cue
from worldline.annotate.telemetry import Gps, Inertial, Orientation

GRAVITY = 9.80665


class Walk:
    """A walk with closed-form position and attitude; world: x right, y down, z ahead, metres."""

    def __init__(self, *, seconds: float = 10.0, fps: float = 30.0, steps: float = 1.0) -> None:
        self.times = np.arange(0, seconds, 1 / fps)
        self.steps = steps

    def position(self, t: np.ndarray) -> np.ndarray:
        wave = 2 * math.pi * 1.9
        return np.stack(
            [
                0.03 * self.steps * np.sin(wave / 2 * t),
                0.025 * self.steps * np.cos(wave * t),
                1.3 * t + 0.02 * self.steps * np.sin(wave * t),
            ],
            axis=-1,
        )

    def acceleration(self, t: np.ndarray) -> np.ndarray:
        step = 1e-3
        return (self.position(t + step) - 2 * self.position(t) + self.position(t - step)) / step**2

    def world_from_cam(self, t: np.ndarray) -> Rotation:
        angles = [0.05 * np.sin(3 * t), 0.15 * np.sin(0.9 * t) + 0.03 * np.sin(7 * t), 0.04 * np.cos(5 * t)]
        return Rotation.from_rotvec(np.stack(angles, axis=-1))

    def inertial(
        self,
        cam_from_sensor: Rotation,
        rng: np.random.Generator,
        *,
        offset_s: float = 0.0,
        noise: float = 0.05,
    ) -> Inertial:
        """Samples of a sensor fixed to the camera whose clock runs ahead by `offset_s`."""
        t = np.arange(self.times[0] - 0.5, self.times[-1] + 0.5, 1 / 200)
        world_from_sensor = self.world_from_cam(t) * cam_from_sensor
        force = world_from_sensor.inv().apply(self.acceleration(t) - [0, GRAVITY, 0])
        turned = (self.world_from_cam(t - 5e-4).inv() * self.world_from_cam(t + 5e-4)).as_rotvec() / 1e-3
        return Inertial(
            times_s=t + offset_s,
            gyro_rad_s=cam_from_sensor.inv().apply(turned) + rng.normal(0, 0.01, (len(t), 3)),
            accel_m_s2=force + rng.normal(0, 0.1, 3) + rng.normal(0, noise, (len(t), 3)),
        )

    def reconstruction(
        self,
        unit_m: float,
        rng: np.random.Generator,
        *,
        noise_m: float = 0.002,
        image: Rotation | None = None,
    ) -> Reconstruction:
        """Poses in units of `unit_m`, turned by a fixed world rotation; `image`: cam_from_image of a
        stabiliser."""
        turn = Rotation.from_rotvec([0.4, -1.0, 0.2])
        rotation = self.world_from_cam(self.times)
        rotation = turn * (rotation if image is None else rotation * image)
        centres = turn.apply(self.position(self.times)) + rng.normal(0, noise_m, (len(self.times), 3))
        world_from_cam = np.concatenate([rotation.as_matrix(), (centres / unit_m)[:, :, None]], axis=-1)
        intrinsics = Intrinsics(fxfycxcy_px=np.array([500.0, 500.0, 320.0, 240.0]), width=640, height=480)
        return Reconstruction(
            timestamps_s=self.times,
            cam_from_world=invert(world_from_cam),
            intrinsics=intrinsics,
            points_in_world=np.zeros((0, 3)),
            point_rgb=np.zeros((0, 3), dtype=np.uint8),
            frame_idx=np.zeros(0, dtype=np.int32),
            point_idx=np.zeros(0, dtype=np.int32),
            xy_px=np.zeros((0, 2), dtype=np.float32),
        )

    down_in_world = Rotation.from_rotvec([0.4, -1.0, 0.2]).apply([0.0, 1.0, 0.0])


# Inertial


@pytest.mark.parametrize(("unit_m", "offset_s"), [(0.05, 0.0), (3.0, 0.085)])
def test_inertial_scale_and_gravity_for_any_mount_unit_and_clock(unit_m: float, offset_s: float) -> None:
    rng = np.random.default_rng(0)
    walk = Walk()
    inertial = walk.inertial(Rotation.random(rng=rng), rng, offset_s=offset_s)
    cue, gravity = inertial_cue(walk.reconstruction(unit_m, rng), inertial, None, InertialConfig())
    assert cue is not None
    assert math.exp(cue.log_scale) == pytest.approx(unit_m, rel=0.02)
    assert cue.sigma < 0.08
    assert gravity is not None
    assert np.degrees(np.arccos(gravity @ walk.down_in_world)) < 0.5


@pytest.mark.parametrize("is_inverse", [True, False])
def test_stabilised_video_needs_the_orientation_record(is_inverse: bool) -> None:
    rng = np.random.default_rng(1)
    walk = Walk()
    cam_from_image = Rotation.from_rotvec(
        np.stack(
            [0.2 * np.sin(4 * walk.times), 0.25 * np.cos(3 * walk.times), 0.2 * np.sin(6 * walk.times)],
            axis=-1,
        )
    )
    reconstruction = walk.reconstruction(0.4, rng, image=cam_from_image)
    inertial = walk.inertial(Rotation.random(rng=rng), rng)
    assert inertial_cue(reconstruction, inertial, None, InertialConfig()) == (None, None)

    start_from_cam = Rotation.from_rotvec([0.3, 0.1, -0.7]) * walk.world_from_cam(walk.times)
    record = (start_from_cam.inv(), cam_from_image.inv()) if is_inverse else (start_from_cam, cam_from_image)
    orientation = Orientation(
        times_s=walk.times, camera_quat_xyzw=record[0].as_quat(), image_quat_xyzw=record[1].as_quat()
    )
    cue, gravity = inertial_cue(reconstruction, inertial, orientation, InertialConfig())
    assert cue is not None
    assert math.exp(cue.log_scale) == pytest.approx(0.4, rel=0.02)
    assert gravity is not None
    assert np.degrees(np.arccos(gravity @ walk.down_in_world)) < 0.5


def test_a_sensor_of_another_device_is_refused() -> None:
    rng = np.random.default_rng(2)
    walk = Walk()
    inertial = walk.inertial(Rotation.identity(), rng)
    shuffled = dataclasses.replace(inertial, gyro_rad_s=rng.normal(0, 0.3, inertial.gyro_rad_s.shape))
    assert inertial_cue(walk.reconstruction(1.0, rng), shuffled, None, InertialConfig()) == (None, None)


def test_motion_without_acceleration_gives_gravity_but_no_scale() -> None:
    rng = np.random.default_rng(3)
    walk = Walk(steps=0.0)
    inertial = walk.inertial(Rotation.identity(), rng, noise=0.2)
    cue, gravity = inertial_cue(
        walk.reconstruction(1.0, rng, noise_m=0.005), inertial, None, InertialConfig()
    )
    assert cue is None
    assert gravity is not None
    assert np.degrees(np.arccos(gravity @ walk.down_in_world)) < 1.0


@pytest.mark.slow
def test_inertial_sigma_covers_its_errors() -> None:
    rng = np.random.default_rng(4)
    ratios = []
    for _ in range(30):
        walk = Walk(seconds=6.0, steps=rng.uniform(0.3, 1.2))
        scale_factor = 1 + rng.normal(0, 0.02)  # the sensor's own
        inertial = walk.inertial(Rotation.random(rng=rng), rng, noise=0.2)
        inertial = dataclasses.replace(inertial, accel_m_s2=inertial.accel_m_s2 * scale_factor)
        reconstruction = walk.reconstruction(1.0, rng, noise_m=rng.uniform(0.002, 0.008))
        config = InertialConfig(half_widths_s=(0.3, 0.5), max_offset_s=0.02)
        cue, _ = inertial_cue(reconstruction, inertial, None, config)
        if cue is not None:
            ratios.append(abs(cue.log_scale) / cue.sigma)
    assert len(ratios) > 20
    assert 0.5 < np.mean(np.array(ratios) < 1) < 0.97
    assert np.mean(np.array(ratios) < 2) > 0.85


# GPS


def noisy_gps(walk: Walk, rng: np.random.Generator, config: GpsConfig, dop: float = 1.5) -> Gps:
    """Fixes at 10 Hz with the noise that the configuration states, both kinds as Gauss-Markov processes."""
    t = np.arange(walk.times[0], walk.times[-1], 0.1)

    def wander(sigma: float, memory_s: float, channels: int) -> np.ndarray:
        keep = math.exp(-0.1 / memory_s)
        values = np.zeros((len(t), channels))
        values[0] = rng.normal(0, sigma, channels)
        for i in range(1, len(t)):
            values[i] = keep * values[i - 1] + math.sqrt(1 - keep**2) * rng.normal(0, sigma, channels)
        return values

    position = (
        walk.position(t)[:, [2, 0, 1]]
        + wander(config.position_sigma_m, config.position_memory_s, 3) * dop / 1.5
    )
    # The time constant of an average over windows of `speed_memory_s` is half of it.
    speed = 1.3 + wander(config.speed_sigma_m_s, config.speed_memory_s / 2, 1)[:, 0] * dop / 1.5
    return Gps(times_s=t, east_north_up_m=position, speed_m_s=speed, dop=np.full(len(t), dop))


def test_gps_scale_without_noise() -> None:
    rng = np.random.default_rng(5)
    walk = Walk()
    quiet = GpsConfig(speed_sigma_m_s=1e-6, position_sigma_m=1e-6)
    gps = noisy_gps(walk, rng, quiet)
    cue = gps_cue(walk.reconstruction(0.3, rng, noise_m=0), gps, GpsConfig())
    assert cue is not None
    assert math.exp(cue.log_scale) == pytest.approx(0.3, rel=0.01)


@pytest.mark.parametrize(("seconds", "dop"), [(10.0, 1.5), (40.0, 3.0)])
def test_gps_sigma_covers_the_noise_it_states(seconds: float, dop: float) -> None:
    rng = np.random.default_rng(6)
    walk = Walk(seconds=seconds, fps=5)
    reconstruction = walk.reconstruction(1.0, rng, noise_m=0)
    ratios = []
    for _ in range(200):
        cue = gps_cue(reconstruction, noisy_gps(walk, rng, GpsConfig(), dop), GpsConfig())
        assert cue is not None
        ratios.append(abs(cue.log_scale) / cue.sigma)
    # The two parts are taken as correlated, which here they are not: a little wide.
    assert 0.6 < np.mean(np.array(ratios) < 1) < 0.9
    assert np.mean(np.array(ratios) < 2) > 0.93


def test_gps_needs_motion_and_time() -> None:
    rng = np.random.default_rng(7)
    walk = Walk(seconds=2.0)
    gps = noisy_gps(walk, rng, GpsConfig())
    assert gps_cue(walk.reconstruction(1.0, rng), gps, GpsConfig()) is None
    later = dataclasses.replace(gps, times_s=gps.times_s + 100)
    assert gps_cue(Walk().reconstruction(1.0, rng), later, GpsConfig()) is None


def test_gps_standing_still_is_no_scale() -> None:
    rng = np.random.default_rng(8)
    t = np.arange(0, 10, 0.1)
    gps = Gps(
        times_s=t,
        east_north_up_m=np.cumsum(rng.normal(0, 0.02, (len(t), 3)), axis=0),
        speed_m_s=np.abs(rng.normal(0, 0.03, len(t))),
        dop=np.full(len(t), 2.0),
    )
    assert gps_cue(Walk().reconstruction(1.0, rng), gps, GpsConfig()) is None


def test_bad_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="half_widths_s"):
        InertialConfig(half_widths_s=())
    with pytest.raises(ValueError, match="correlation"):
        GpsConfig(correlation=1.0)
