"""Draws the control onto frames: keys that are held, and the path so far from above."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import cv2
import numpy as np

MIN_HEIGHT = 240
"""Smaller frames are enlarged first, by a whole number, so that the drawing can be read."""


def with_control(
    frames: Iterable[np.ndarray], world_from_cam: np.ndarray, keys: list[str] | None
) -> Iterator[np.ndarray]:
    """Frames [H, W, 3] uint8 with the path [F, 3, 4] up to each drawn in, and the keys [F] where they are known."""
    ground = world_from_cam[:, [0, 2], 3]  # right and ahead, metres
    middle = 0.5 * (ground.min(axis=0) + ground.max(axis=0))
    extent = max(float(np.ptp(ground, axis=0).max()), 1e-6)
    for i, frame in enumerate(frames):
        factor = -(-MIN_HEIGHT // frame.shape[0])
        picture = np.ascontiguousarray(frame.repeat(factor, axis=0).repeat(factor, axis=1))
        side = picture.shape[0] // 4
        points = (ground - middle) / extent * [0.8, -0.8] + 0.5
        pixels = np.rint(points * side * 16).astype(np.int32)  # 4 fractional bits
        corner = picture[:side, :side]
        corner[:] = corner // 2
        cv2.polylines(corner, [pixels[:, None]], False, (150, 150, 150), 1, cv2.LINE_AA, 4)
        cv2.polylines(corner, [pixels[: i + 1, None]], False, (255, 220, 0), 2, cv2.LINE_AA, 4)
        if keys is not None:
            place = (side // 12, picture.shape[0] - side // 6)
            text = " ".join(keys[i].upper()) or "-"
            cv2.putText(
                picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, side / 80, (255, 220, 0), 2, cv2.LINE_AA
            )
        yield picture
