"""Rendered rooms for benchmarks: what is to be seen from a start, where things are, and true frames of any path."""

from __future__ import annotations

import math

import numpy as np

from worldline.annotate.camera import Intrinsics, compose, invert, transform, unproject
from worldline.datasets.camera_paths import Motion, excursion_start, scene_from_cam
from worldline.datasets.synthetic_renderer import Renderer
from worldline.datasets.synthetic_scenes import build_scene

_NO_OBJECTS = np.zeros((0, 3, 4))


class RenderedPlace:
    """A room of a seed and a camera in it, which is the first of all paths; a context manager."""

    def __init__(self, seed: int, *, width: int, height: int, fov_x_deg: float = 71.0) -> None:
        """Raises MissingBackend where nothing can be rendered."""
        focal_px = 0.5 * width / math.tan(0.5 * math.radians(fov_x_deg))
        lens = np.array([focal_px, focal_px, width / 2, height / 2])
        self.camera = Intrinsics(fxfycxcy_px=lens, width=width, height=height)
        scene = build_scene("room", seed=seed, route_length_m=10.0)
        x, y, heading = excursion_start(np.random.default_rng([7, seed]))
        self._start = _at(np.array([[x, y, scene.space.eye_height_m]]), np.array([heading]), np.zeros(1))
        self._renderer = Renderer(scene.mesh.vertices(), scene.mesh.textures())

    def __enter__(self) -> RenderedPlace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the driver's memory."""
        self._renderer.close()

    def frames(self, first_from_cam: np.ndarray) -> np.ndarray:
        """[F, H, W, 3] uint8 seen along a path [F, 3, 4] in metres."""
        return np.stack([self.seen_from(pose) for pose in compose(self._start, first_from_cam)])

    def seen_from(self, scene_from_cam: np.ndarray) -> np.ndarray:
        """[H, W, 3] uint8 seen from a pose [3, 4] in the room itself."""
        return self._renderer.image(self.camera, scene_from_cam, _NO_OBJECTS)

    def median_depth_m(self) -> float:
        """Of what the first camera sees."""
        depth, _ = self._renderer.depth(self.camera, self._start[0], _NO_OBJECTS)
        return float(np.median(depth[np.isfinite(depth)]))

    def obstacles(self, *, size_px: int = 64) -> np.ndarray:
        """[N, 3] points of all surfaces seen around the start, in the first camera's frame, metres."""
        view = Intrinsics(
            fxfycxcy_px=np.array([size_px / 2, size_px / 2, size_px / 2, size_px / 2]),
            width=size_px,
            height=size_px,
        )  # 90 degrees
        rows, columns = np.indices((size_px, size_px)) + 0.5
        rays = unproject(np.stack([columns, rows], axis=-1).reshape(-1, 2), view)
        headings, pitches = (
            grid.ravel() for grid in np.meshgrid(np.arange(4) * np.pi / 2, [-np.pi / 4, np.pi / 4])
        )
        place = np.repeat(self._start[:, :, 3], len(headings), axis=0)
        found = []
        for pose in _at(place, headings, pitches):
            depth, _ = self._renderer.depth(view, pose, _NO_OBJECTS)
            is_seen = np.isfinite(depth.ravel())
            points = rays[is_seen] / rays[is_seen, 2:] * depth.ravel()[is_seen, None]
            found.append(transform(compose(invert(self._start[0]), pose), points))
        return np.concatenate(found)


def _at(positions: np.ndarray, headings: np.ndarray, pitches: np.ndarray) -> np.ndarray:
    zero = np.zeros(len(headings))
    return scene_from_cam(
        Motion(position_in_scene=positions, heading_rad=headings, pitch_rad=pitches, roll_rad=zero)
    )
