"""Picture scores against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.filters.image import ImageConfig, ImageScores


def _scores(*images, gap_s=0.5, config=None):
    scores = ImageScores(config)
    for k, image in enumerate(images):
        scores.add(image, k * gap_s)
    return scores.result()


def _plain(rgb, size=(37, 53)):
    return np.full((*size, 3), rgb, np.uint8)


def test_a_plain_picture_has_its_own_luma_and_no_contrast():
    result = _scores(_plain((90, 90, 90)))
    expected = {"luminance": 90.0, "contrast": 0.0, "saturation": 0.0, "sharpness": 0.0}
    assert result == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("rgb", "saturation"), [((200, 0, 0), 255), ((200, 100, 100), 127.5), ((10, 20, 40), 191.25)]
)
def test_saturation_is_chroma_over_value(rgb, saturation):
    result = _scores(_plain(rgb))
    assert result["saturation"] == pytest.approx(saturation, abs=0.6)  # OpenCV rounds to whole numbers
    assert result["luminance"] == pytest.approx(np.dot(rgb, (0.299, 0.587, 0.114)), abs=0.6)


def test_contrast_is_the_mean_over_frames_of_the_deviation_not_of_the_pool():
    black, white = _plain((0, 0, 0)), _plain((255, 255, 255))
    halves = np.concatenate([_plain((0, 0, 0), (20, 40)), _plain((200, 200, 200), (20, 40))])
    assert _scores(black, white)["contrast"] == pytest.approx(0.0, abs=1e-5)
    assert _scores(black, white)["luminance"] == pytest.approx(127.5)
    assert _scores(halves, _plain((7, 7, 7)))["contrast"] == pytest.approx(50.0)


def test_sharpness_is_the_variance_of_the_laplacian_by_its_definition():
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (31, 45))
    padded = np.pad(grey, 1, mode="reflect")
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * grey
    image = np.repeat(grey[..., None], 3, axis=-1).astype(np.uint8)
    assert _scores(image)["sharpness"] == pytest.approx(laplacian.var(), rel=1e-9)


def test_sharpness_is_the_median_over_frames():
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)
    alone = _scores(noise)["sharpness"]
    assert _scores(noise, noise, _plain((50, 50, 50), (30, 40)))["sharpness"] == alone


def test_frames_are_sampled_by_time_whatever_the_rate():
    frames = [_plain((k, k, k)) for k in range(60)]
    # 30 fps for two seconds, times as a container with a millisecond clock rounds them.
    scores = ImageScores(ImageConfig(sample_gap_s=0.5))
    for k, frame in enumerate(frames):
        scores.add(frame, round(k / 30, 3))
    assert scores.result()["luminance"] == pytest.approx(np.mean([0, 15, 30, 45]))


def test_no_frame_means_unknown():
    assert set(ImageScores().result().values()) == {None}


def test_a_negative_gap_is_refused():
    with pytest.raises(ValueError, match="sample_gap_s"):
        ImageConfig(sample_gap_s=-1.0)
