"""A kind of camera motion and the free space of a scene in, exact poses at any time out.

Paths are smooth functions of time, so that they can be sampled between frames for motion blur. Scene frame:
x east, y north, z up, metres; headings are radians clockwise from y as seen from above; a camera looks along
its z axis (OpenCV axes, as in annotate/camera.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline

SPEED_M_S = {
    "walking": 1.4,
    "driving": 10.0,
    "orbiting": 0.6,
    "dolly": 0.8,
    "straight": 1.0,
    "backtrack": 0.8,
}
"""Usual speed of the motions that have one; that of walking belongs to the scene."""

MAX_FORWARD_M, MAX_SIDE_M, MAX_YAW_RAD, MAX_PITCH_RAD = 0.7, 0.5, 0.6, 0.15
"""How far an excursion leads from its start; its last view still shares part with its first."""
START_REACH_M, START_YAW_RAD, EXCURSION_PITCH_RAD = 0.15, 0.15, -math.radians(8)
"""Excursions start this far around the middle of a room, looking this far to either side of north and a
little down."""
EXCURSION_S = 2.0
"""Duration of an excursion, out or back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FreeSpace:
    """Where a camera may go in a scene, and what there is to look at."""

    route_in_scene: np.ndarray
    """[K, 3] ground points, K >= 4, of a smooth line that walkers and drivers follow from its first point."""
    is_closed: bool
    """Whether the route returns to its start (the first point is not repeated)."""
    eye_height_m: float
    """Height of the camera above the route."""
    target_in_scene: np.ndarray
    """[3] what orbits turn around and wanderers look at."""
    reach_m: float
    """Radius around the start, at eye height, that is free of obstacles."""
    ahead_m: float
    """Free distance straight ahead of the start."""
    walking_m_s: float
    """How fast people walk here: 1.4 in the open, half of that around furniture."""
    gaze_rad: float = 0.0
    """Direction in which walkers look, relative to the route's heading: 0 is ahead, -pi/2 is left."""
    orbit_rad: float = math.radians(35)
    """How far to either side of the start an orbit around the target stays clear of things."""
    looks_at_target: bool
    """Whether a camera at the start looks at the target rather than along the route."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Motion:
    """Positions and attitude of a camera at N times."""

    position_in_scene: np.ndarray
    """[N, 3] metres."""
    heading_rad: np.ndarray
    """[N] clockwise from y (north), seen from above."""
    pitch_rad: np.ndarray
    """[N] up is positive."""
    roll_rad: np.ndarray
    """[N] clockwise as the camera sees itself is positive."""


Wobble = Callable[[np.ndarray], np.ndarray]


def excursion(rng: np.random.Generator, start: np.ndarray, share: np.ndarray) -> np.ndarray:
    """[F, 4] x, y in metres, heading and pitch in radians at shares [F] of a random arc from start (x, y, heading)."""
    limits = [MAX_FORWARD_M, MAX_SIDE_M, MAX_YAW_RAD, MAX_PITCH_RAD]
    forward, side, yaw, pitch = rng.uniform(-1, 1, 4) * limits
    middle = start[2] + 0.5 * yaw * share  # the chord of an arc points half as far round as its end
    x = start[0] + share * (forward * np.sin(middle) + side * np.cos(middle))
    y = start[1] + share * (forward * np.cos(middle) - side * np.sin(middle))
    return np.stack([x, y, start[2] + yaw * share, EXCURSION_PITCH_RAD + pitch * share], axis=-1)


def excursion_start(rng: np.random.Generator) -> np.ndarray:
    """x, y in metres and heading in radians."""
    return rng.uniform(-1, 1, 3) * [START_REACH_M, START_REACH_M, START_YAW_RAD]


def scene_from_cam(motion: Motion) -> np.ndarray:
    """Camera poses [N, 3, 4] of a motion; OpenCV axes in the camera, z up in the scene."""
    h, p, r = motion.heading_rad, motion.pitch_rad, motion.roll_rad
    zero = np.zeros_like(h)
    forward = np.stack([np.sin(h) * np.cos(p), np.cos(h) * np.cos(p), np.sin(p)], axis=-1)
    level_right = np.stack([np.cos(h), -np.sin(h), zero], axis=-1)
    level_down = np.cross(forward, level_right)
    right = np.cos(r)[:, None] * level_right + np.sin(r)[:, None] * level_down
    down = np.cross(forward, right)
    return np.stack([right, down, forward, motion.position_in_scene], axis=-1)  # [N, 3, 4]


class CameraPath:
    """One camera motion through one scene, a function of time."""

    def __init__(
        self, kind: str, space: FreeSpace, *, seed: int, duration_s: float, speed_m_s: float | None = None
    ) -> None:
        """Raises ValueError for an unknown kind."""
        if kind not in PATHS:
            raise ValueError(f"camera path {kind!r}: known are {list(PATHS)}")
        rng = np.random.default_rng([seed, PATHS.index(kind)])
        self._motion = _MOTIONS[kind]
        self._seed = seed
        self._space = space
        self._eye = np.array([0.0, 0.0, space.eye_height_m])
        self._duration_s = max(duration_s, 1e-3)
        usual_m_s = space.walking_m_s if kind == "walking" else SPEED_M_S.get(kind, 0.0)
        self._speed_m_s = usual_m_s if speed_m_s is None else speed_m_s
        self._route = _Route(space.route_in_scene, space.is_closed)
        self._wander = _wobble(rng, (0.05, 0.35), 3)
        self._gaze = _wobble(rng, (0.05, 0.3), 2)
        self._shake = _wobble(rng, (0.6, 3.0), 6)
        self._tremble = _wobble(rng, (7.0, 11.0), 3)

    def __call__(self, times_s: np.ndarray) -> Motion:
        """The motion at times [N] in seconds after the first frame."""
        return self._motion(self, np.asarray(times_s, dtype=np.float64))

    def _start(self) -> tuple[np.ndarray, float, float]:
        """Position [3], heading and pitch in radians."""
        position = self._route.position(np.zeros(1))[0] + self._eye
        if not self._space.looks_at_target:
            return position, float(self._route.heading(np.zeros(1))[0]), 0.0
        heading, pitch = _look_at(position[None], self._space.target_in_scene)
        return position, float(heading[0]), float(pitch[0])

    def _fixed(self, times_s: np.ndarray) -> Motion:
        position, heading, pitch = self._start()
        n = len(times_s)
        return Motion(
            position_in_scene=np.tile(position, (n, 1)),
            heading_rad=np.full(n, heading),
            pitch_rad=np.full(n, pitch),
            roll_rad=np.zeros(n),
        )

    def _pure_rotation(self, times_s: np.ndarray) -> Motion:
        """Pans to and fro by up to 25 degrees and tilts by up to 8, exactly around the optical centre."""
        base, look = self._fixed(times_s), self._gaze(times_s) - self._gaze(np.zeros(1))
        swing = np.radians(25) * np.sin(2 * np.pi * times_s / 8)
        return Motion(
            position_in_scene=base.position_in_scene,
            heading_rad=base.heading_rad + swing + np.radians(3) * look[:, 0],
            pitch_rad=base.pitch_rad + np.radians(8) * look[:, 1],
            roll_rad=base.roll_rad,
        )

    def _handheld(self, times_s: np.ndarray) -> Motion:
        """A standing person films: the hands sway within half a metre, the gaze wanders, muscles tremble."""
        base, look = self._fixed(times_s), self._gaze(times_s)
        sway = min(0.25, 0.5 * self._space.reach_m) * self._wander(times_s) * [1, 1, 0.4]
        motion = Motion(
            position_in_scene=base.position_in_scene + sway,
            heading_rad=base.heading_rad + np.radians(9) * look[:, 0],
            pitch_rad=base.pitch_rad + np.radians(5) * look[:, 1],
            roll_rad=base.roll_rad,
        )
        return self._held(times_s, motion)

    def _walking(self, times_s: np.ndarray) -> Motion:
        """Along the route with the bob and sway of steps; the head looks about."""
        motion, look = self._along_route(self._speed_m_s * times_s), self._gaze(times_s)
        step = 2 * np.pi * 1.9 * times_s
        heading = self._route.heading(self._speed_m_s * times_s)
        side = np.stack([np.cos(heading), -np.sin(heading), 0 * times_s], axis=-1)
        bob = np.stack([0 * times_s, 0 * times_s, 0.022 * np.sin(step)], axis=-1)
        walker = Motion(
            position_in_scene=motion.position_in_scene + bob + 0.018 * np.sin(step / 2)[:, None] * side,
            heading_rad=motion.heading_rad + np.radians(10) * look[:, 0],
            pitch_rad=motion.pitch_rad + np.radians(4) * look[:, 1] + np.radians(0.3) * np.cos(step),
            roll_rad=np.radians(0.8) * np.sin(step / 2 + 0.5),
        )
        return self._held(times_s, walker, strength=0.6)

    def _driving(self, times_s: np.ndarray) -> Motion:
        """Along the route on wheels: nods and rolls a little over the road."""
        motion, shake = self._along_route(self._speed_m_s * times_s), self._wander(4 * times_s)
        return Motion(
            position_in_scene=motion.position_in_scene + 0.012 * shake * [0, 0, 1],
            heading_rad=motion.heading_rad,
            pitch_rad=motion.pitch_rad + np.radians(0.35) * shake[:, 0],
            roll_rad=np.radians(0.4) * shake[:, 1],
        )

    def _orbiting(self, times_s: np.ndarray) -> Motion:
        """Around the target at constant distance, to and fro, looking at it."""
        start, _, _ = self._start()
        target = self._space.target_in_scene
        offset = start - target
        radius = float(np.hypot(offset[0], offset[1]))
        swing = self._space.orbit_rad
        angle = np.arctan2(offset[1], offset[0]) + swing * np.sin(
            self._speed_m_s * times_s / (radius * swing)
        )
        circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1) * radius
        rise = 0.1 * (self._wander(times_s)[:, 2] - self._wander(np.zeros(1))[:, 2])
        position = np.concatenate([target[:2] + circle, (start[2] + rise)[:, None]], axis=-1)
        heading, pitch = _look_at(position, target)
        motion = Motion(
            position_in_scene=position, heading_rad=heading, pitch_rad=pitch, roll_rad=np.zeros(len(times_s))
        )
        return self._held(times_s, motion, strength=0.3)

    def _dolly(self, times_s: np.ndarray) -> Motion:
        """Forward with a soft start and stop, drifting a few centimetres sideways, with a slight turn."""
        base, look = self._fixed(times_s), self._gaze(times_s)
        share = np.clip(times_s / self._duration_s, -0.5, 1.5)
        travel = self._travel_m() * share**2 * (3 - 2 * share)
        drift = 0.06 * self._wander(times_s)
        return Motion(
            position_in_scene=base.position_in_scene + travel[:, None] * _ahead(base) + drift,
            heading_rad=base.heading_rad + np.radians(2) * look[:, 0],
            pitch_rad=base.pitch_rad + np.radians(1) * look[:, 1],
            roll_rad=base.roll_rad,
        )

    def _straight(self, times_s: np.ndarray) -> Motion:
        """Forward at constant speed without any rotation: the focus of expansion never moves."""
        base = self._fixed(times_s)
        travel = self._travel_m() * times_s / self._duration_s
        return Motion(
            position_in_scene=base.position_in_scene + travel[:, None] * _ahead(base),
            heading_rad=base.heading_rad,
            pitch_rad=base.pitch_rad,
            roll_rad=base.roll_rad,
        )

    def _loop(self, times_s: np.ndarray) -> Motion:
        """Once around a circle, turning once as well: the last view meets the first. Give it 10 s or more."""
        base = self._fixed(times_s)
        turn = 2 * np.pi * times_s / self._duration_s
        radius = 0.8 * self._space.reach_m
        heading = base.heading_rad + turn
        right = np.stack([np.cos(heading), -np.sin(heading)], axis=-1)
        position = base.position_in_scene.copy()  # the centre of the free disc
        position[:, :2] -= radius * right
        wobble = self._gaze(times_s) - self._gaze(np.zeros(1))
        fade = np.sin(np.pi * np.clip(times_s / self._duration_s, 0, 1)) ** 2
        motion = Motion(
            position_in_scene=position,
            heading_rad=heading,
            pitch_rad=base.pitch_rad + np.radians(4) * fade * wobble[:, 1],
            roll_rad=base.roll_rad,
        )
        return self._held(times_s, motion, strength=0.3)

    def _backtrack(self, times_s: np.ndarray) -> Motion:
        """Forward for the first half of the clip and back the same way, still looking ahead."""
        base, look = self._fixed(times_s), self._gaze(times_s)
        share = np.sin(np.pi * times_s / self._duration_s) ** 2
        travel = 0.5 * self._travel_m() * share
        motion = Motion(
            position_in_scene=base.position_in_scene + travel[:, None] * _ahead(base),
            heading_rad=base.heading_rad + np.radians(5) * look[:, 0],
            pitch_rad=base.pitch_rad + np.radians(2) * look[:, 1],
            roll_rad=base.roll_rad,
        )
        return self._held(times_s, motion, strength=0.6)

    def _spline(self, times_s: np.ndarray) -> Motion:
        """A smooth random flight within reach; the gaze hovers around the target."""
        start, _, _ = self._start()
        rise = min(1.0, 0.5 * self._space.eye_height_m / max(self._space.reach_m, 1e-6))
        wander = self._wander(1.5 * times_s)
        position = start + 0.5 * self._space.reach_m * wander * [1, 1, 0.6 * rise]
        look = self._gaze(times_s)
        base = self._fixed(times_s)
        heading, pitch = base.heading_rad, base.pitch_rad
        if self._space.looks_at_target:
            heading, pitch = _look_at(position, self._space.target_in_scene)
        return Motion(
            position_in_scene=position,
            heading_rad=heading + np.radians(14) * look[:, 0],
            pitch_rad=pitch + np.radians(7) * look[:, 1],
            roll_rad=np.radians(4) * wander[:, 1],
        )

    def _excursions(self, times_s: np.ndarray) -> Motion:
        """Out along a random arc and back to another start, again and again, around the middle of a room."""
        rng = np.random.default_rng([self._seed, PATHS.index("excursions"), 1])
        points = []
        for _ in range(2 + math.ceil(self._duration_s / (2 * EXCURSION_S))):
            out = excursion(rng, excursion_start(rng), np.array([0.0, 0.5, 1.0]))
            points.extend([*out, out[1] + rng.uniform(-0.05, 0.05, 4)])
        line = CubicSpline(0.5 * EXCURSION_S * np.arange(len(points)), np.array(points))(times_s)
        height_m = np.full(len(times_s), self._space.eye_height_m)
        return Motion(
            position_in_scene=np.column_stack([line[:, :2], height_m]),
            heading_rad=line[:, 2],
            pitch_rad=line[:, 3],
            roll_rad=np.zeros(len(times_s)),
        )

    def _travel_m(self) -> float:
        return min(self._speed_m_s * self._duration_s, self._space.ahead_m)

    def _along_route(self, arc_m: np.ndarray) -> Motion:
        return Motion(
            position_in_scene=self._route.position(arc_m) + self._eye,
            heading_rad=self._route.heading(arc_m) + self._space.gaze_rad,
            pitch_rad=self._route.slope(arc_m),
            roll_rad=np.zeros(len(arc_m)),
        )

    def _held(self, times_s: np.ndarray, motion: Motion, strength: float = 1.0) -> Motion:
        """The motion with unsteady hands: millimetres and half a degree at 1-3 Hz, a finer tremor at 9 Hz."""
        shake, tremble = strength * self._shake(times_s), strength * self._tremble(times_s)
        turn = np.radians(0.45) * shake[:, 3:] + np.radians(0.04) * tremble
        return Motion(
            position_in_scene=motion.position_in_scene + 0.006 * shake[:, :3],
            heading_rad=motion.heading_rad + turn[:, 0],
            pitch_rad=motion.pitch_rad + turn[:, 1],
            roll_rad=motion.roll_rad + turn[:, 2],
        )


_MOTIONS: dict[str, Callable[[CameraPath, np.ndarray], Motion]] = {
    "static": CameraPath._fixed,
    "handheld": CameraPath._handheld,
    "walking": CameraPath._walking,
    "driving": CameraPath._driving,
    "orbiting": CameraPath._orbiting,
    "pure_rotation": CameraPath._pure_rotation,
    "zooming": CameraPath._fixed,
    "dolly": CameraPath._dolly,
    "straight": CameraPath._straight,
    "loop": CameraPath._loop,
    "backtrack": CameraPath._backtrack,
    "spline": CameraPath._spline,
    "excursions": CameraPath._excursions,
}
PATHS = tuple(_MOTIONS)
"""Known kinds of motion."""


class _Route:
    """A smooth line by arc length; closed lines go round, open ones continue straight beyond their ends."""

    def __init__(self, points_in_scene: np.ndarray, is_closed: bool) -> None:
        points = np.concatenate([points_in_scene, points_in_scene[:1]]) if is_closed else points_in_scene
        chord = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
        spline = CubicSpline(chord, points, bc_type="periodic" if is_closed else "natural")
        # Chord length is not arc length; resampling at equal arc steps makes the speed constant.
        fine = np.linspace(0, chord[-1], 40 * len(points))
        samples = spline(fine)
        arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(samples, axis=0), axis=1))])
        self._length_m = arc[-1]
        self._is_closed = is_closed
        self._spline = CubicSpline(arc, samples, bc_type="periodic" if is_closed else "natural")

    def _split(self, arc_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._is_closed:
            return np.mod(arc_m, self._length_m), np.zeros_like(arc_m)
        inside = np.clip(arc_m, 0, self._length_m)
        return inside, arc_m - inside

    def position(self, arc_m: np.ndarray) -> np.ndarray:
        """[N, 3] at arc lengths [N]."""
        inside, beyond = self._split(arc_m)
        return self._spline(inside) + beyond[:, None] * self._spline(inside, 1)

    def heading(self, arc_m: np.ndarray) -> np.ndarray:
        tangent = self._spline(self._split(arc_m)[0], 1)
        return np.arctan2(tangent[:, 0], tangent[:, 1])

    def slope(self, arc_m: np.ndarray) -> np.ndarray:
        tangent = self._spline(self._split(arc_m)[0], 1)
        return np.arctan2(tangent[:, 2], np.hypot(tangent[:, 0], tangent[:, 1]))


def _wobble(rng: np.random.Generator, band_hz: tuple[float, float], num: int) -> Wobble:
    """`num` smooth random functions of time within about [-1, 1]: sums of five sines in a frequency band."""
    frequency = rng.uniform(*band_hz, (5, num))
    phase = rng.uniform(0, 2 * np.pi, (5, num))
    weight = rng.uniform(0.4, 1.0, (5, num))
    weight /= weight.sum(axis=0)

    def evaluate(times_s: np.ndarray) -> np.ndarray:
        angle = 2 * np.pi * frequency * times_s[:, None, None] + phase  # [N, 5, num]
        return 1.6 * np.sum(weight * np.sin(angle), axis=1)

    return evaluate


def _look_at(position_in_scene: np.ndarray, target_in_scene: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Heading and pitch [N] in radians that point cameras at [N, 3] to the target."""
    delta = target_in_scene - position_in_scene
    return np.arctan2(delta[:, 0], delta[:, 1]), np.arctan2(delta[:, 2], np.hypot(delta[:, 0], delta[:, 1]))


def _ahead(motion: Motion) -> np.ndarray:
    """Level unit vectors [N, 3] in the direction of the heading."""
    h = motion.heading_rad
    return np.stack([np.sin(h), np.cos(h), np.zeros_like(h)], axis=-1)
