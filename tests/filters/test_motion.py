"""Motion scores against pictures moved by known amounts."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from worldline.filters.motion import MotionConfig, MotionScores, moving_share, weaker_gradient


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
    assert set(scores.result().values()) == {None}
    scores.add(_texture(120, 160), 0.0)
    scores.add(_texture(120, 160), 0.4)
    assert set(scores.result().values()) == {None}


def test_senseless_settings_are_refused():
    with pytest.raises(ValueError, match="pair_gap_s"):
        MotionConfig(pair_gap_s=0.0)


@pytest.mark.parametrize("size", [(480, 640), (360, 640), (640, 360)])
def test_published_flow_is_the_mean_component_at_576x320(size):
    scores = MotionScores()
    for image, time_s in _shifted(24.0, 31, size):
        scores.add(image, time_s)
    wide = 576 if size[1] >= size[0] else 320
    # All motion is along x: the mean over both components is half of it.
    expected = 24.0 * wide / size[1] / 2
    assert scores.result()["flow_576x320_px"] == pytest.approx(expected, rel=0.15)


def test_spread_is_that_of_the_field_and_deviation_that_of_the_pairs():
    field = MotionScores()
    for image, time_s in _shifted(12.0, 31):
        field.add(image, time_s)
    assert field.result()["flow_spread_px"] < 3
    assert field.result()["flow_std_px"] < 0.5
    # Two pairs, one at rest and one that moves by 10.
    uneven = MotionScores()
    world = _texture(240, 360)
    for k, offset in enumerate((20, 20, 30)):
        uneven.add(world[:, offset : offset + 320], 0.5 * k)
    assert uneven.result()["flow_std_px"] == pytest.approx(5.0, rel=0.1)


def _path_frames(offsets):
    world = _texture(300, 500)
    for k, (x, y) in enumerate(offsets):
        move = np.float32([[1, 0, -90 - x], [0, 1, -30 - y]])
        yield cv2.warpAffine(world, move, (320, 240)), k / 30


def test_jitter_is_the_rms_shake_over_the_width_and_not_the_path():
    """Against the same shake measured on the true offsets, at 15 Hz, which no smoothing keeps."""
    frames = 45
    pan = np.stack([0.8 * np.arange(frames), np.zeros(frames)], axis=1)
    shake = np.zeros((frames, 2))
    shake[::2, 0] += 6.0
    results = []
    for offsets in (pan, pan + shake):
        scores = MotionScores()
        for image, time_s in _path_frames(offsets):
            scores.add(image, time_s)
        results.append(scores.result()["jitter"])
    assert results[0] < 0.0015
    assert results[1] == pytest.approx(3.0 / 320, rel=0.2)  # alternates by +-3 px about its mean


def test_what_moves_by_itself_is_measured_against_a_turning_camera_and_a_moving_one():
    height, width = 180, 240
    y, x = np.mgrid[:height, :width].astype(np.float32)
    turning = np.stack([np.full_like(x, 7.0), np.full_like(x, -3.0)], axis=2)
    rng = np.random.default_rng(2)
    inverse_depth = cv2.GaussianBlur(rng.uniform(0, 1, (height, width)).astype(np.float32), (0, 0), 6)
    inverse_depth = (inverse_depth - inverse_depth.min()) / np.ptp(inverse_depth)
    driving = np.stack([(x - 120), (y - 90)], axis=2) * (0.05 + 0.25 * inverse_depth[..., None])
    for flow in (turning, driving.astype(np.float32)):
        assert moving_share(flow, 2.0) < 0.03
        mixed = flow.copy()
        mixed[60:120, 80:140] += (-9.0, 12.0)
        assert moving_share(mixed, 2.0) == pytest.approx(60 * 60 / (height * width), abs=0.04)


def test_the_weaker_gradient_is_that_of_the_fainter_wave_and_none_along_an_edge():
    """Closed form: central differences of a wave of period 9 are sin(2 pi / 9) of its height, their rms 1 / sqrt(2)."""
    phase = 2 * np.pi * np.arange(90) / 9
    waves = 127 + 80 * np.sin(phase)[None, :] + 30 * np.sin(phase)[:, None]
    found = weaker_gradient(np.round(waves).astype(np.uint8))[9:-9, 9:-9]
    np.testing.assert_allclose(found, 30 * np.sin(2 * np.pi / 9) / np.sqrt(2), rtol=0.03)
    edge = np.tile(np.arange(90, dtype=np.uint8) // 45 * 100, (90, 1))
    assert weaker_gradient(edge).max() < 0.01


def test_what_moves_is_unknown_where_hardly_any_flow_is_known():
    """A textured square, a twentieth of the picture, moves over a textured ground and over a plain one."""
    ground, square = _texture(180, 240), _texture(48, 48, seed=3)
    found = []
    for behind in (ground, np.full_like(ground, 127)):
        scores = MotionScores()
        for k in range(4):
            image = behind.copy()
            image[60:108, 60 + 8 * k : 108 + 8 * k] = square
            scores.add(image, 0.5 * k)
        found.append(scores.result()["moving_share"])
    assert found[0] == pytest.approx(48 * 48 / (180 * 240), abs=0.04)
    assert found[1] is None
