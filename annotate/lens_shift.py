"""How bent a lens is, in one number."""

from __future__ import annotations

import numpy as np

from worldline.annotate.camera import Intrinsics, unproject


def corner_shift(intrinsics: Intrinsics) -> float:
    """How far the lens moves a corner from where a pinhole of the same focal length has it, over the half
    diagonal; infinite where no pinhole sees that far."""
    corner = np.zeros((1, 2))
    ray = unproject(corner, intrinsics)[0]
    if not ray[2] > 0.05:
        return float("inf")
    pinhole = intrinsics.fxfycxcy_px[:2] * ray[:2] / ray[2] + intrinsics.fxfycxcy_px[2:]
    return float(np.linalg.norm(pinhole) / np.linalg.norm(intrinsics.fxfycxcy_px[2:]))
