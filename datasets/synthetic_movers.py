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
        """Adds `num` objects to the mesh, at distances where together they cover about `share` of the image.

        Where a scene is too small for such a distance they come closer and cover more.
        """
        rng = mesh.rng
        self._path, self._eye_height_m = path, space.eye_height_m
        size = _CAR_M if are_cars else _PERSON_M
        distance = _distance_m(share / max(num, 1), size, space.eye_height_m, fov_rad)
        if space.looks_at_target:
            start = space.route_in_scene[0]
            distance = min(distance, 0.8 * float(np.linalg.norm((space.target_in_scene - start)[:2])))
        self._distance_m = distance * rng.uniform(0.85, 1.2, num)
        swing_m = np.minimum(0.75 * self._distance_m * np.tan(fov_rad[0] / 2), 1.5 * space.reach_m)
        self._swing_m = swing_m * rng.uniform(0.6, 1.0, num)
        self._phase = rng.uniform(0, 2 * np.pi, num)
        pace = rng.uniform(0.5, 1.3, num) * (2.0 if are_cars else 1.0)
        self._rate_hz = pace / (2 * np.pi * np.maximum(self._swing_m, 0.3))
        for k in range(num):
            if are_cars:
                parked_car(mesh, [0, 0, 0.1], 0.0, FIRST_MOVING + k)
            else:
                _person(mesh, FIRST_MOVING + k)
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


def _distance_m(
    share: float, size_m: tuple[float, float], eye_height_m: float, fov_rad: tuple[float, float]
) -> float:
    """Distance at which an upright thing on the ground covers `share` of a level camera's image."""
    distance = np.geomspace(0.7, 80.0, 400)
    half_x, half_y = distance * np.tan(fov_rad[0] / 2), distance * np.tan(fov_rad[1] / 2)
    across = np.minimum(size_m[0] / (2 * half_x), 1.0)
    top, bottom = np.minimum(size_m[1] - eye_height_m, half_y), np.minimum(eye_height_m, half_y)
    covered = 0.85 * across * np.clip((top + bottom) / (2 * half_y), 0.0, 1.0)
    return float(distance[np.argmin(np.abs(covered - share))])


def _person(mesh: Mesh, object_idx: int) -> None:
    """An upright figure of boxes, 1.75 m tall, feet at the origin, facing +y."""
    trousers, shirt, head = (
        mesh.texture(textures.cloth),
        mesh.texture(textures.cloth),
        mesh.texture(prints.face),
    )
    for x in (-0.11, 0.11):
        mesh.box([x, 0.08 * np.sign(x), 0], (0.17, 0.2, 0.85), [trousers], tile_m=0.6, object_idx=object_idx)
    mesh.box([0, 0, 0.85], (0.44, 0.25, 0.62), [shirt], tile_m=0.55, object_idx=object_idx)
    for x in (-0.28, 0.28):
        mesh.box([x, 0.05, 0.75], (0.11, 0.14, 0.68), [shirt], tile_m=0.45, object_idx=object_idx)
    mesh.box([0, 0, 1.49], (0.19, 0.22, 0.26), [head], object_idx=object_idx)
