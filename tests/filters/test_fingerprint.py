"""Fingerprints of copies agree, those of other pictures do not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from worldline.filters.duplicates import agreement
from worldline.filters.fingerprint import CROPS, FLAT, Fingerprint, FingerprintConfig, picture_hashes


def _scene(seed, size=(240, 320)):
    rng = np.random.default_rng(seed)
    noise = sum(cv2.GaussianBlur(rng.standard_normal(size), (0, 0), s) * s for s in (1.5, 6.0, 25.0, 60.0))
    return cv2.normalize(noise, None, 20, 235, cv2.NORM_MINMAX).astype(np.uint8)


def _clip(seed, seconds=4.0, fps=24.0, size=(240, 320)):
    """A camera that passes along a scene."""
    world = _scene(seed, (size[0], size[1] + 200))
    for k in range(round(seconds * fps)):
        x = 40.0 * k / fps
        yield cv2.warpAffine(world, np.float32([[1, 0, -x], [0, 1, 0]]), (size[1], size[0])), k / fps


def _fingerprint(clip, change=lambda luma: luma):
    gathered = Fingerprint()
    for luma, time_s in clip:
        luma = np.ascontiguousarray(change(luma))
        gathered.add(np.repeat(luma[..., None], 3, axis=2), time_s, luma)
    return gathered.result()


def _bits(first, second):
    return np.bitwise_count(
        np.array(first, np.int64).view(np.uint64) ^ np.array(second, np.int64).view(np.uint64)
    )


def test_the_hash_is_the_sign_of_the_lowest_frequencies_about_their_median():
    """Against the cosine transform written out as sums."""
    luma = _scene(0, (32, 32))
    k = np.arange(32)
    basis = np.cos(np.pi * (2 * k[None] + 1) * np.arange(9)[:, None] / 64)  # [9, 32]
    scale = np.where(np.arange(9) == 0, np.sqrt(1 / 32), np.sqrt(2 / 32))
    spectrum = (scale[:, None] * basis) @ luma.astype(float) @ (scale[:, None] * basis).T
    order = sorted((i + j, i, j) for i in range(9) for j in range(9))[1:65]
    values = np.array([spectrum[i, j] for _, i, j in order])
    bits = "".join("1" if value > np.median(values) else "0" for value in values)
    assert np.uint64(int(bits, 2)) == np.array(picture_hashes(luma)[:1]).view(np.uint64)[0]
    assert bits.count("1") == 32


CHANGES = {
    "half the size": lambda luma: cv2.resize(luma, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "other shape": lambda luma: cv2.resize(luma, (320, 180), interpolation=cv2.INTER_AREA),
    "coarse code": lambda luma: cv2.imdecode(
        cv2.imencode(".jpg", luma, [cv2.IMWRITE_JPEG_QUALITY, 12])[1], cv2.IMREAD_GRAYSCALE
    ),
    "brighter": lambda luma: np.clip(luma * 1.15 + 8.0, 0, 255).astype(np.uint8),
    "letterbox": lambda luma: cv2.copyMakeBorder(luma, 30, 30, 0, 0, cv2.BORDER_CONSTANT, value=0),
    "cropped by 9 %": lambda luma: luma[11:-11, 14:-14],
    "cropped by 19 %": lambda luma: luma[23:-23, 30:-30],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_agrees_and_another_clip_does_not(change):
    original, other = _fingerprint(_clip(1)), _fingerprint(_clip(2))
    copy = _fingerprint(_clip(1), CHANGES[change])
    first, second = (np.array(found["fingerprint"]) for found in (original, copy))
    assert agreement(first, second, 5) >= 0.8
    assert agreement(np.array(other["fingerprint"]), second, 5) == 0
    assert original["pixels_hash"] != copy["pixels_hash"]


@pytest.mark.parametrize("fps", [12.0, 25.0, 30.0, 59.94])
def test_looks_lie_on_one_grid_of_times_at_any_rate(fps):
    first = _fingerprint(_clip(3))["fingerprint"]
    second = _fingerprint(_clip(3, fps=fps))["fingerprint"]
    assert len(first) == len(second) == 8 * len(CROPS)
    assert np.mean(_bits(first, second)) < 2


def test_equal_pixels_have_an_equal_digest_whatever_their_times():
    first = _fingerprint(_clip(4))
    later = _fingerprint((luma, time_s + 17.3) for luma, time_s in _clip(4))
    assert first == later
    assert first["pixels_hash"] != _fingerprint(_clip(5))["pixels_hash"]


def test_a_plain_picture_is_flat_and_agrees_with_none():
    plain = np.full((60, 80), 90, np.uint8)
    assert picture_hashes(plain) == [FLAT] * len(CROPS)
    flat = np.zeros(6, np.int64)
    assert agreement(flat, flat, 5) == 0


def test_without_a_frame_it_is_unknown_and_a_gap_of_nothing_is_refused():
    assert set(Fingerprint().result().values()) == {None}
    with pytest.raises(ValueError, match="look_gap_s"):
        FingerprintConfig(look_gap_s=0.0)
