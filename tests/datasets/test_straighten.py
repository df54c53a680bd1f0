"""Straightened pictures against pictures of a pinhole: the same function of direction seen through both lenses."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.annotate.camera import Intrinsics, unproject
from worldline.datasets.schema import ClipRejected
from worldline.datasets.straighten import straighten

K = np.array([150.0, 150.0, 98.0, 76.0])


def _picture(lens: Intrinsics) -> np.ndarray:
    """[H, W, 3] uint8: a smooth pattern over the direction of each pixel's ray."""
    x, y = np.meshgrid(np.arange(lens.width) + 0.5, np.arange(lens.height) + 0.5)
    rays = unproject(np.stack([x, y], axis=-1), lens)
    u, v = rays[..., 0] / rays[..., 2], rays[..., 1] / rays[..., 2]
    waves = np.stack([np.sin(9 * u), np.cos(8 * v), np.sin(7 * u + 6 * v)], axis=-1)
    return np.round(127.5 + 100 * waves).astype(np.uint8)


@pytest.mark.parametrize(
    ("model", "distortion"), [("radial", (-0.2, 0.03)), ("radial", (0.15, 0.0)), ("fisheye", (0.05, -0.01))]
)
def test_a_straightened_picture_is_the_pinholes(model: str, distortion: tuple[float, float]) -> None:
    lens = Intrinsics(fxfycxcy_px=K, width=200, height=150, model=model, distortion=distortion)
    images, pinhole = straighten(_picture(lens)[None].repeat(2, axis=0), lens)
    assert pinhole.model == "pinhole"
    np.testing.assert_array_equal(pinhole.fxfycxcy_px[0, 2:], K[2:])
    own = Intrinsics(fxfycxcy_px=pinhole.fxfycxcy_px[0], width=200, height=150)
    difference = np.abs(images[1].astype(int) - _picture(own))
    assert difference.max() <= 4
    assert difference.mean() < 0.6


def test_a_lens_without_a_straight_view_is_refused() -> None:
    lens = Intrinsics(fxfycxcy_px=K, width=200, height=150, model="radial", distortion=(400.0, 0.0))
    with pytest.raises(ClipRejected, match="lens_distortion"):
        straighten(np.zeros((1, 150, 200, 3), np.uint8), lens)
