"""Image quality behind a table: PIQE's own numbers, the sign of drift, and what a missing backend asks for."""

from __future__ import annotations

import importlib.util

import cv2
import numpy as np
import pytest

from worldline.datasets.schema import MissingBackend
from worldline.evaluate.image_quality import drift, image_quality
from worldline.filters.piqe import piqe

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)


def test_piqe_is_that_of_each_frame() -> None:
    quality = image_quality("piqe")
    wanted = [piqe(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)) for frame in FRAMES]
    np.testing.assert_array_equal(quality(FRAMES), wanted)
    with pytest.raises(ValueError, match="known are piqe, vbench"):
        image_quality("musiq")


class Brightness:
    """A score that is known by hand."""

    name = "brightness"

    def __init__(self, *, higher_is_better: bool) -> None:
        self.higher_is_better = higher_is_better

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        return frames.reshape(len(frames), -1).mean(axis=1)


@pytest.mark.parametrize(("higher_is_better", "wanted"), [(True, 30.0), (False, -30.0)])
def test_drift_is_above_zero_where_it_gets_worse(higher_is_better: bool, wanted: float) -> None:
    first, last = (np.full((9, 4, 4, 3), value, np.uint8) for value in (100, 70))
    assert drift(Brightness(higher_is_better=higher_is_better), first, last) == pytest.approx(wanted)


def test_vbench_says_what_it_needs(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path))
    is_there = all(importlib.util.find_spec(name) for name in ("pyiqa", "vbench"))
    message = (
        "fetch https.*musiq_spaq" if is_there else "pip install pyiqa, then pip install --no-deps vbench"
    )
    with pytest.raises(MissingBackend, match=message):
        image_quality("vbench")
