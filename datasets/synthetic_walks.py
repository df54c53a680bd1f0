"""Short walks through rendered places: frames and exact poses, two walks from each start for paired tests."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from worldline.annotate.camera import Intrinsics, compose, invert
from worldline.datasets.camera_paths import Motion, excursion, excursion_start, scene_from_cam
from worldline.datasets.synthetic_renderer import Renderer
from worldline.datasets.synthetic_scenes import build_scene


@dataclass(frozen=True, kw_only=True, slots=True)
class Walks:
    """N walks of F frames."""

    frames: np.ndarray
    """[N, F, H, W, 3] uint8"""
    first_from_cam: np.ndarray
    """[N, F, 3, 4], metres."""
    scene_from_first: np.ndarray
    """[N, 3, 4], of the first cameras in the room."""
    camera: Intrinsics


def rendered_walks(
    seed_of_place: int,
    *,
    num_starts: int,
    walks_a_start: int,
    num_frames: int,
    width: int,
    height: int,
    seed: int,
    fov_x_deg: float = 71.0,
) -> Walks:
    """Walks ordered by start: those of start i are i * walks_a_start and the ones after it.

    Raises MissingBackend where nothing can be rendered.
    """
    rng = np.random.default_rng([seed, seed_of_place])
    focal_px = 0.5 * width / math.tan(0.5 * math.radians(fov_x_deg))
    camera = Intrinsics(
        fxfycxcy_px=np.array([focal_px, focal_px, width / 2, height / 2]), width=width, height=height
    )
    scene = build_scene("room", seed=seed_of_place, route_length_m=10.0)
    frames, poses, firsts = [], [], []
    with Renderer(scene.mesh.vertices(), scene.mesh.textures()) as renderer:
        for _ in range(num_starts):
            start = excursion_start(rng)
            for _ in range(walks_a_start):
                path = _walk(rng, start, scene.space.eye_height_m, num_frames)
                frames.append([renderer.image(camera, pose, np.zeros((0, 3, 4))) for pose in path])
                poses.append(compose(invert(path[:1]), path))
                firsts.append(path[0])
    return Walks(
        frames=np.array(frames),
        first_from_cam=np.array(poses),
        scene_from_first=np.array(firsts),
        camera=camera,
    )


def _walk(rng: np.random.Generator, start: np.ndarray, eye_height_m: float, num_frames: int) -> np.ndarray:
    """scene_from_cam [F, 3, 4]: an arc at an even speed from start (x, y in metres, heading in radians)."""
    x, y, heading, pitch = excursion(rng, start, np.linspace(0, 1, num_frames)).T
    motion = Motion(
        position_in_scene=np.stack([x, y, np.full(num_frames, eye_height_m)], axis=-1),
        heading_rad=heading,
        pitch_rad=pitch,
        roll_rad=np.zeros(num_frames),
    )
    return scene_from_cam(motion)
