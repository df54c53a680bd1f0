"""PIQE against its definition, block by block, and against what it must not like."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from worldline.filters.piqe import piqe


def _scene(height, width):
    rng = np.random.default_rng(0)
    noise = sum(
        cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), s) * s for s in (1.0, 4.0, 12.0)
    )
    return np.clip(128 + 45 * noise, 0, 255).astype(np.uint8)


def _by_the_book(luma):
    """The published algorithm in loops; luma's sides are multiples of 16."""
    image = np.round(255 * (luma / luma.max()))
    padded = np.pad(image, 3, mode="edge")
    line = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
    window = np.outer(line, line) / line.sum() ** 2
    mean, square = np.zeros(image.shape), np.zeros(image.shape)
    for i in range(7):
        for j in range(7):
            shifted = padded[i : i + image.shape[0], j : j + image.shape[1]]
            mean, square = mean + window[i, j] * shifted, square + window[i, j] * shifted**2
    normalised = (image - mean) / (np.sqrt(np.abs(square - mean**2)) + 1)
    distortion, active = 0.0, 0
    for top in range(0, image.shape[0], 16):
        for left in range(0, image.shape[1], 16):
            block = normalised[top : top + 16, left : left + 16]
            variance = block.var(ddof=1)
            if variance <= 0.1:
                continue
            active += 1
            rims = (block[0], block[15], block[:, 0], block[:, 15])
            if any(rim[k : k + 6].std(ddof=1) < 0.1 for rim in rims for k in range(11)):
                distortion += 1 - variance
            around = np.delete(np.delete(block, 7, axis=1), 8, axis=1)
            ratio = block[:, 7:9].std(ddof=1) / around.std(ddof=1)
            sigma = np.sqrt(variance)
            if sigma > 2 * abs(sigma - ratio) / max(sigma, ratio):
                distortion += variance
    return 100 * (distortion + 1) / (1 + active)


@pytest.mark.parametrize("change", ["none", "blur", "noise", "jpeg"])
def test_score_is_that_of_the_published_algorithm(change):
    luma = _scene(128, 176)
    if change == "blur":
        luma = cv2.GaussianBlur(luma, (0, 0), 2)
    elif change == "noise":
        noise = np.random.default_rng(1).normal(0, 25, luma.shape)
        luma = np.clip(luma + noise, 0, 255).astype(np.uint8)
    elif change == "jpeg":
        luma = cv2.imdecode(
            cv2.imencode(".jpg", luma, [cv2.IMWRITE_JPEG_QUALITY, 8])[1], cv2.IMREAD_GRAYSCALE
        )
    assert piqe(luma) == pytest.approx(np.clip(_by_the_book(luma), 0, 100), rel=1e-3)


def test_odd_sizes_are_padded_and_a_plain_picture_is_the_worst():
    assert 0 <= piqe(_scene(101, 67)) <= 100
    assert piqe(np.full((50, 50), 90, np.uint8)) == 100
    assert piqe(np.zeros((50, 50), np.uint8)) == 100
