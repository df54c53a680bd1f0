"""A camera path in, people or cars that move about in front of it out."""

from __future__ import annotations

import numpy as np

from worldline.datasets import synthetic_prints as prints
from worldline.datasets import synthetic_textures as textures
from worldline.datasets.camera_paths import CameraPath, FreeSpace
from worldline.datasets.synthetic_mesh import FIRST_MOVING, Mesh
from worldline.datasets.synthetic_streets import parked_car

_PERSON_M, _CAR_M = (0.5, 1.75), (1.75, 1.5)
"""Width and height that the camera sees."""

_FAR_M = 80.0
"""Nothing moves further away than this."""


class Movers:
    """Moving objects that stay around the camera's view: people, or cars where the camera drives."""

    def __init__(
        self,
        mesh: Mesh,
        path: CameraPath,
        space: FreeSpace,
        *,
        num: int,
        share: float,
        are_cars: bool,
        fov_rad: tuple[float, float],
    ) -> None:
        """Adds `num` objects to the mesh that together cover about `share` of the image.

        They stand where their size gives that share, or, where a scene has no room for it, closer and
        smaller.
        """
        rng = mesh.rng
        self._path, self._eye_height_m = path, space.eye_height_m
        start = path(np.zeros(1))
        space_m = _FAR_M
        if space.looks_at_target:
            space_m = 0.75 * float(np.linalg.norm((space.target_in_scene - start.position_in_scene[0])[:2]))
        distance, size = _placed(
            share / max(num, 1),
            _CAR_M if are_cars else _PERSON_M,
            furthest_m=space_m,
            eye_height_m=space.eye_height_m,
            pitch_rad=float(start.pitch_rad[0]),
            fov_rad=fov_rad,
        )
        self._distance_m = distance * rng.uniform(0.9, 1.1, num)
        swing_m = np.minimum(0.75 * self._distance_m * np.tan(fov_rad[0] / 2), 1.5 * space.reach_m)
        self._swing_m = swing_m * rng.uniform(0.6, 1.0, num)
        self._phase = rng.uniform(0, 2 * np.pi, num)
        pace = rng.uniform(0.5, 1.3, num) * (2.0 if are_cars else 1.0)
        self._rate_hz = pace / (2 * np.pi * np.maximum(self._swing_m, 0.3))
        for k in range(num):
            if are_cars:
                parked_car(mesh, [0, 0, 0.1], 0.0, FIRST_MOVING + k)
            else:
                _person(mesh, FIRST_MOVING + k, size)
        self._are_cars = are_cars

    def scene_from_object(self, time_s: float) -> np.ndarray:
        """[K, 3, 4] at a time."""
        motion = self._path(time_s + np.linspace(-1.0, 1.0, 9))
        anchor = motion.position_in_scene.mean(axis=0) - [0, 0, self._eye_height_m]
        heading = np.arctan2(np.sin(motion.heading_rad).mean(), np.cos(motion.heading_rad).mean())
        angle = 2 * np.pi * self._rate_hz * time_s + self._phase
        lateral = self._swing_m * np.sin(angle)
        ahead = self._distance_m * (1 + 0.08 * np.sin(1.7 * angle))
        sin, cos = np.sin(heading), np.cos(heading)
        foot = anchor + np.stack(
            [ahead * sin + lateral * cos, ahead * cos - lateral * sin, 0 * ahead], axis=-1
        )
        facing = np.full(len(foot), heading) if self._are_cars else heading + 0.5 * np.pi * np.cos(angle)
        lean = 0.0 if self._are_cars else 0.05 * np.sin(2 * np.pi * 0.95 * time_s + self._phase)
        sin, cos, zero = np.sin(facing), np.cos(facing), np.zeros(len(foot))
        right = np.stack([cos * np.cos(lean), -sin * np.cos(lean), zero + np.sin(lean)], axis=-1)
        front = np.stack([sin, cos, zero], axis=-1)
        return np.stack([right, front, np.cross(right, front), foot], axis=-1)


def _placed(
    share: float,
    size_m: tuple[float, float],
    *,
    furthest_m: float,
    eye_height_m: float,
    pitch_rad: float,
    fov_rad: tuple[float, float],
) -> tuple[float, float]:
    """Distance and magnification (at most 1) at which a thing on the ground covers `share` of an image."""
    distance = np.concatenate([np.geomspace(0.7, furthest_m, 400), np.full(400, furthest_m)])
    magnification = np.concatenate([np.ones(400), np.geomspace(1.0, 0.15, 400)])
    across = np.minimum(size_m[0] * magnification / (2 * distance * np.tan(fov_rad[0] / 2)), 1.0)
    half_y = fov_rad[1] / 2
    top, bottom = (
        np.tan(np.clip(np.arctan2(height - eye_height_m, distance) - pitch_rad, -half_y, half_y))
        for height in (size_m[1] * magnification, 0.0)
    )
    covered = 0.85 * across * (top - bottom) / (2 * np.tan(half_y))
    best = np.argmin(np.abs(covered - share))
    return float(distance[best]), float(magnification[best])


def _person(mesh: Mesh, object_idx: int, size: float) -> None:
    """An upright figure of boxes, 1.75 m times `size` tall, feet at the origin, facing +y."""

    def box(
        foot: tuple[float, float, float], extent: tuple[float, float, float], layer: int, tile_m: float | None
    ) -> None:
        mesh.box(
            size * np.array(foot),
            tuple(size * e for e in extent),
            [layer],
            tile_m=tile_m,
            object_idx=object_idx,
        )

    trousers, shirt = mesh.texture(textures.cloth), mesh.texture(textures.cloth)
    for x in (-0.11, 0.11):
        box((x, 0.08 * np.sign(x), 0), (0.17, 0.2, 0.85), trousers, 0.6)
    box((0, 0, 0.85), (0.44, 0.25, 0.62), shirt, 0.55)
    for x in (-0.28, 0.28):
        box((x, 0.05, 0.75), (0.11, 0.14, 0.68), shirt, 0.45)
    box((0, 0, 1.49), (0.19, 0.22, 0.26), mesh.texture(prints.face), None)
