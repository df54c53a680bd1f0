"""Noise against what was put in, and the worst part of three against closed forms."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from worldline.filters.impairment import impairment, noise_level


@pytest.mark.parametrize("sigma", [2.0, 8.0, 20.0])
def test_noise_on_a_slope_is_the_noise_put_in(sigma: float) -> None:
    """The quietest quarter of the blocks has a little less than the mean: 1 / sqrt(256) of spread at most."""
    slope = 80 + 0.1 * np.arange(320)[None] + 0.15 * np.arange(243)[:, None]
    noisy = slope + np.random.default_rng(0).normal(0, sigma, slope.shape)
    assert noise_level(np.round(noisy).astype(np.uint8)) == pytest.approx(sigma, rel=0.07)


def test_edges_and_texture_in_three_quarters_of_the_picture_are_no_noise() -> None:
    luma = np.full((160, 320), 90, np.uint8)
    luma[:, 100:] = np.random.default_rng(0).integers(0, 256, (160, 220))
    luma[20:40, :80] = 160
    assert noise_level(luma) < 1.5
    assert math.isnan(noise_level(luma[:17]))


def test_noise_is_the_formula_on_one_block() -> None:
    luma = np.random.default_rng(1).integers(0, 256, (18, 18)).astype(np.uint8)
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])
    patches = np.lib.stride_tricks.sliding_window_view(luma.astype(int), (3, 3))
    expected = np.abs((patches * kernel).sum(axis=(2, 3))).mean() * math.sqrt(math.pi / 2) / 6
    assert noise_level(luma) == pytest.approx(expected, rel=1e-12)


def test_the_worst_part_counts_and_unknown_ones_do_not() -> None:
    assert impairment(0.30, 1.15, 0.0) == 0.0
    assert impairment(0.2, 1.0, 5.0) == pytest.approx(0.25)
    assert impairment(0.425, 1.0, 5.0) == pytest.approx(0.5)
    assert impairment(0.425, math.sqrt(1.15 * 2.3), None) == pytest.approx(0.5)
    assert impairment(None, 2.3, 1.0) == pytest.approx(1.0)
    assert impairment(0.9, None, None) == 1.0
    assert impairment(None, None, None) is None


def test_a_blurred_a_blocky_and_a_noisy_picture_are_worse_than_the_clean_one() -> None:
    from worldline.filters.image import blockiness, blur_effect

    rng = np.random.default_rng(0)
    texture = sum(cv2.GaussianBlur(rng.standard_normal((200, 320)), (0, 0), s) * s for s in (1.0, 4.0, 12.0))
    clean = np.clip(128 + 30 * texture, 0, 255).astype(np.uint8)
    coded = cv2.imencode(".jpg", clean, [cv2.IMWRITE_JPEG_QUALITY, 8])[1]
    blocky = cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE)
    noisy = np.clip(clean + rng.normal(0, 20, clean.shape), 0, 255).astype(np.uint8)

    def score(luma: np.ndarray) -> float:
        found = impairment(blur_effect(luma), blockiness(luma), noise_level(luma))
        assert found is not None
        return found

    spoilt = [cv2.GaussianBlur(clean, (0, 0), 3), blocky, noisy]
    assert min(map(score, spoilt)) > score(clean) + 0.2
