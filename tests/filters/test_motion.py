"""Motion scores against pictures moved by known amounts."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from worldline.filters.motion import MotionConfig, MotionScores


def _texture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    noise = sum(
        cv2.GaussianBlur(rng.standard_normal((height, width, 3)), (0, 0), sigma) * sigma
        for sigma in (2.0, 6.0, 20.0)
    )
    return np.clip(127 + 45 * noise, 0, 255).astype(np.uint8)


def _shifted(shift_px, count, size=(480, 640), fps=30.0):
    """(frame, time) of a texture that moves right by `shift_px` each half second."""
    height, width = size
    world = _texture(height, width + 700)
    for k in range(count):
        offset = 650 - shift_px * (k / fps) / 0.5
        move = np.float32([[1, 0, -offset], [0, 1, 0]])
        yield cv2.warpAffine(world, move, (width, height), flags=cv2.INTER_LINEAR), k / fps


@pytest.mark.parametrize("shift_px", [3.0, 12.0, 40.0, 80.0])
@pytest.mark.parametrize("size", [(480, 640), (121, 161)])
def test_flow_of_a_moving_texture_is_its_shift(shift_px, size):
    if shift_px > size[1] / 5:
        pytest.skip("most of the picture would leave the frame")
    scores = MotionScores()
    for image, time_s in _shifted(shift_px, 31, size):
        scores.add(image, time_s)
    result = scores.result()
    # The border that comes into view has no counterpart: up to shift / width of the frame is guessed.
    assert result["flow_px"] == pytest.approx(shift_px, rel=0.1)
    assert result["static_share"] == 0.0


def test_a_still_picture_is_static_and_each_pair_counts():
    still, moved = _texture(240, 320), np.roll(_texture(240, 320), 5, axis=1)
    scores = MotionScores()
    for k, image in enumerate([still, still, still, moved, moved]):
        scores.add(image, 0.5 * k)
    assert scores.result()["static_share"] == 0.75
    assert scores.result()["flow_px"] == pytest.approx(5 / 4, rel=0.1)


def test_pairs_are_half_a_second_apart_whatever_the_rate():
    """Equal motion in time gives an equal score at 10, 25 and 60 frames a second."""
    found = []
    for fps in (10.0, 25.0, 60.0):
        scores = MotionScores()
        for image, time_s in _shifted(10.0, round(1.5 * fps) + 1, (240, 320), fps):
            scores.add(image, round(time_s, 3))
        found.append(scores.result()["flow_px"])
    assert found == pytest.approx([10.0] * 3, rel=0.1)


def test_without_a_pair_the_scores_are_unknown():
    scores = MotionScores()
    assert scores.result() == {"flow_px": None, "static_share": None}
    scores.add(_texture(120, 160), 0.0)
    scores.add(_texture(120, 160), 0.4)
    assert scores.result() == {"flow_px": None, "static_share": None}


def test_senseless_settings_are_refused():
    with pytest.raises(ValueError, match="pair_gap_s"):
        MotionConfig(pair_gap_s=0.0)
