"""Picture scores against closed forms."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from worldline.filters.image import ImageConfig, ImageScores, blockiness, blur_effect


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
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert result["blur"] is None  # a plain picture has no edges to be blurred
    assert result["border_share"] == result["clipped_share"] == 0


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


def _scene(height, width, seed=0):
    rng = np.random.default_rng(seed)
    noise = sum(
        cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), s) * s for s in (0.8, 3.0, 12.0)
    )
    return np.clip(128 + 40 * noise, 40, 230).astype(np.uint8)


def test_blur_effect_is_cretes_formula_and_grows_with_blur():
    grey = _scene(60, 81)
    found = []
    for axis in (0, 1):
        image = np.moveaxis(grey.astype(float), axis, 0)
        padded = np.pad(image, ((4, 4), (0, 0)), mode="symmetric")
        blurred = np.stack([padded[k : k + 9].mean(axis=0) for k in range(len(image))])
        own, lost = np.abs(np.diff(image, axis=0)), np.abs(np.diff(blurred, axis=0))
        found.append((own.sum() - np.maximum(own - lost, 0).sum()) / own.sum())
    assert blur_effect(grey) == pytest.approx(max(found), rel=1e-4)
    series = [blur_effect(cv2.GaussianBlur(grey, (0, 0), sigma)) for sigma in (0.5, 1, 2, 4)]
    assert series == sorted(series)
    assert series[-1] > 0.6 > 0.4 > series[0]


@pytest.mark.parametrize(("top", "left"), [(0, 0), (12, 0), (0, 20), (9, 14)])
def test_bars_are_measured_to_the_pixel(top, left):
    image = np.repeat(_scene(90, 120)[..., None], 3, axis=2)
    image[:top] = image[90 - top :] = 3
    image[:, :left] = image[:, 120 - left :] = 3
    result = _scores(image, image)
    assert result["letterbox_share"] == pytest.approx(2 * top / 90)
    assert result["pillarbox_share"] == pytest.approx(2 * left / 120)
    is_bar = np.zeros((90, 120), dtype=bool)
    is_bar[:top] = is_bar[90 - top :] = is_bar[:, :left] = is_bar[:, 120 - left :] = True
    assert result["border_share"] == pytest.approx(is_bar.mean())


def test_a_bar_must_stay_and_a_black_frame_is_no_bar():
    plain = np.repeat(_scene(90, 120)[..., None], 3, axis=2)
    barred = plain.copy()
    barred[:20] = 0
    assert _scores(plain, barred, plain)["border_share"] == 0
    assert _scores(barred, _plain((0, 0, 0), (90, 120)), barred)["border_share"] == pytest.approx(20 / 90)


def test_clipped_pixels_are_counted_outside_the_bars():
    image = np.full((80, 100, 3), 128, np.uint8)
    image[:16] = 0
    image[20:36, :50] = 255
    image[40:56, 50:] = 1
    image[16:, ::7] = 90  # so that no row is plain
    inside = image[16:, :, 0]
    result = _scores(image)
    assert result["clipped_bright_share"] == pytest.approx((inside >= 253).mean())
    assert result["clipped_dark_share"] == pytest.approx((inside <= 2).mean())
    assert result["clipped_share"] == pytest.approx(((inside >= 253) | (inside <= 2)).mean())


def test_blockiness_sees_the_grid_of_the_coded_size_only():
    grey = _scene(240, 320)
    assert blockiness(grey) == pytest.approx(1.0, abs=0.1)
    coded = cv2.imdecode(cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, 10])[1], cv2.IMREAD_GRAYSCALE)
    assert blockiness(coded) > 1.5
    shifted = coded[4:, 4:]
    assert blockiness(shifted) < blockiness(coded)
    small = cv2.resize(coded, (256, 192), interpolation=cv2.INTER_AREA)
    assert blockiness(small, (320, 240)) > 1.2
    assert np.isnan(blockiness(cv2.resize(coded, (128, 96)), (320, 240)))  # lines closer than 4 px
