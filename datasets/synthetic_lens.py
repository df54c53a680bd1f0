"""A lens with distortion in, the pinhole camera to render and the resampling that bends its image out."""

from __future__ import annotations

import cv2
import numpy as np

from worldline.annotate.camera import Intrinsics, unproject

_MAX_ANGLE_DEG = 80.0
"""Rays further off the axis would need a pinhole image of unbounded size."""

_MAX_SOURCE_PIXELS = 20_000_000


class Lens:
    """Bends pinhole images as a `radial` or `fisheye` camera sees them, exactly by camera.unproject.

    The pinhole image covers every ray of the output at no less than the output's resolution, so nothing is
    invented; colour is sampled at 2 x 2 points a pixel and averaged.
    """

    def __init__(self, camera: Intrinsics) -> None:
        """camera: fxfycxcy_px [4].

        Raises ValueError where a pixel has no ray, or a ray is too far off the axis for a pinhole source.
        """
        self._size = (camera.width, camera.height)
        x, y = _plane_coordinates(camera, 2)  # [2H, 2W]
        scale = _densest(camera)
        fx, fy = (scale * float(f) for f in camera.fxfycxcy_px[:2])
        left, top = np.floor(fx * x.min()) - 2, np.floor(fy * y.min()) - 2
        width, height = int(np.ceil(fx * x.max()) + 2 - left), int(np.ceil(fy * y.max()) + 2 - top)
        if width * height > _MAX_SOURCE_PIXELS:
            raise ValueError(
                f"this lens needs a {width}x{height} pinhole image: lower the size or the field of view"
            )
        self.source = Intrinsics(fxfycxcy_px=np.array([fx, fy, -left, -top]), width=width, height=height)
        self._fine = _map(x, y, self.source)
        self._coarse = _map(*_plane_coordinates(camera, 1), self.source)

    def image(self, source_image: np.ndarray) -> np.ndarray:
        """[H, W, 3] of the pinhole image."""
        fine = cv2.remap(source_image, *self._fine, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return cv2.resize(fine, self._size, interpolation=cv2.INTER_AREA)

    def depth(self, source_depth_m: np.ndarray) -> np.ndarray:
        """[H, W] depth along z: exact on planes, where 1/z is linear; at edges the nearest sample."""
        inverse = 1 / source_depth_m
        linear = cv2.remap(inverse, *self._coarse, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        nearest = cv2.remap(inverse, *self._coarse, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
        is_edge = np.abs(linear - nearest) > 0.02 * nearest
        with np.errstate(divide="ignore"):
            return (1 / np.where(is_edge, nearest, linear)).astype(np.float32)

    def labels(self, source_labels: np.ndarray) -> np.ndarray:
        """[H, W] int32 of the nearest source pixels."""
        values = source_labels.astype(np.float32)
        return cv2.remap(values, *self._coarse, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE).astype(
            np.int32
        )


def _plane_coordinates(camera: Intrinsics, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """x/z and y/z [samples H, samples W] of the rays through samples x samples points a pixel."""
    u = (np.arange(camera.width * samples) + 0.5) / samples
    v = (np.arange(camera.height * samples) + 0.5) / samples
    pixels = np.stack(np.meshgrid(u, v), axis=-1)
    rays = unproject(pixels, camera)
    if not np.all(np.isfinite(rays)):
        raise ValueError(f"{camera.model} {camera.distortion}: some pixels of the image have no ray")
    if rays[..., 2].min() < np.cos(np.radians(_MAX_ANGLE_DEG)):
        raise ValueError(f"the lens sees further than {_MAX_ANGLE_DEG} degrees off its axis")
    return rays[..., 0] / rays[..., 2], rays[..., 1] / rays[..., 2]


def _densest(camera: Intrinsics) -> float:
    """The largest magnification of the lens relative to its pinhole part, at least 1."""
    x, y = _plane_coordinates(camera, 1)
    pixels_per_x = 1 / (float(camera.fxfycxcy_px[0]) * np.diff(x, axis=1).min())
    pixels_per_y = 1 / (float(camera.fxfycxcy_px[1]) * np.diff(y, axis=0).min())
    return float(max(1.0, pixels_per_x, pixels_per_y))


def _map(x: np.ndarray, y: np.ndarray, source: Intrinsics) -> tuple[np.ndarray, np.ndarray]:
    """cv2.remap coordinates; OpenCV counts from the centre of the first pixel, we from its corner."""
    fx, fy, cx, cy = source.fxfycxcy_px
    return (fx * x + cx - 0.5).astype(np.float32), (fy * y + cy - 0.5).astype(np.float32)
