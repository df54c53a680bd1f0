"""Bent pictures in, pictures of a pinhole out."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from worldline.annotate.camera import Intrinsics, project, unproject
from worldline.datasets.schema import ClipRejected

_MOST = 4.0
"""Largest factor on the focal length; a lens that needs more has no straight view worth training on."""


def straighten(images: np.ndarray, lens: Intrinsics) -> tuple[np.ndarray, Intrinsics]:
    """Images [F, H, W, 3] through `lens` (one row of intrinsics, or one a frame) and what a pinhole sees of them.

    The pinhole has the lens's principal point and the smallest focal length, at least the lens's own, at which all
    of its picture was seen. Raises ClipRejected("view", "lens_distortion") where four times the focal length are
    not enough.
    """
    rows = np.broadcast_to(np.atleast_2d(lens.fxfycxcy_px), (len(images), 4))
    straight, focal = np.empty_like(images), np.array(rows)
    done: dict[bytes, tuple[float, np.ndarray]] = {}
    for number, row in enumerate(rows):
        key = np.ascontiguousarray(row).tobytes()
        if key not in done:
            done[key] = _view(replace(lens, fxfycxcy_px=np.array(row)))
        factor, source = done[key]
        focal[number, :2] *= factor
        straight[number] = cv2.remap(
            images[number], source[..., 0], source[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
    return straight, Intrinsics(fxfycxcy_px=focal, width=lens.width, height=lens.height)


def _view(lens: Intrinsics) -> tuple[float, np.ndarray]:
    """Factor on the focal length and, for every pixel of the pinhole, where OpenCV finds it in the bent picture
    [H, W, 2] (OpenCV counts from the first pixel's centre)."""
    x, y = np.meshgrid(np.arange(lens.width) + 0.5, np.arange(lens.height) + 0.5)
    pixels = np.stack([x, y], axis=-1)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    for factor in np.geomspace(1.0, _MOST, 60):
        pinhole = Intrinsics(
            fxfycxcy_px=lens.fxfycxcy_px * [factor, factor, 1, 1], width=lens.width, height=lens.height
        )
        seen = project(unproject(border, pinhole), lens)
        # Half a pixel at the rim is the border's own.
        if np.all((seen >= 0) & (seen <= [lens.width, lens.height])):
            return float(factor), (project(unproject(pixels, pinhole), lens) - 0.5).astype(np.float32)
    raise ClipRejected("view", "lens_distortion", f"{lens.model} {lens.distortion}")
