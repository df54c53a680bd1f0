"""One picture in, its PIQE score out: quality without a reference and without learned weights.

Venkatanath et al., "Blind image quality evaluation using perception based features", NCC 2015, in the form of
MATLAB's `piqe`, whose numbers the tests compare with: 16x16 blocks with some activity are looked at; a block
whose rim has a flat stretch counts as an artefact, one whose spread is that of noise counts as noise.
"""

from __future__ import annotations

import cv2
import numpy as np

_BLOCK = 16
_SEGMENT = 6
_ACTIVE_VARIANCE = 0.1
_FLAT_DEVIATION = 0.1


def piqe(luma: np.ndarray) -> float:
    """[H, W] uint8 -> 0 (best) to 100 (worst); 100 for a plain picture."""
    blocks = _blocks(_normalised(luma))  # [n, 16, 16]
    variance = blocks.reshape(len(blocks), -1).var(axis=1, ddof=1)
    is_active = variance > _ACTIVE_VARIANCE
    if not is_active.any():
        return 100.0
    blocks, variance = blocks[is_active], variance[is_active]
    distortion = np.sum(_has_flat_rim(blocks) * (1 - variance) + _is_noise(blocks, variance) * variance)
    return float(np.clip(100 * (distortion + 1) / (1 + len(blocks)), 0, 100))


def _normalised(luma: np.ndarray) -> np.ndarray:
    """Luma stretched to 255, less its local mean, over its local deviation plus one; sides are multiples of a
    block."""
    height, width = luma.shape
    padding = (0, -height % _BLOCK, 0, -width % _BLOCK)
    image = cv2.copyMakeBorder(luma, *padding, borderType=cv2.BORDER_REFLECT).astype(np.float32)
    image = np.round(image * (255 / max(1.0, float(image.max()))))

    def smooth(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (7, 7), 7 / 6, borderType=cv2.BORDER_REPLICATE)

    mean = smooth(image)
    deviation = np.sqrt(np.abs(smooth(image * image) - mean * mean))
    return (image - mean) / (deviation + 1)


def _blocks(image: np.ndarray) -> np.ndarray:
    rows, columns = image.shape[0] // _BLOCK, image.shape[1] // _BLOCK
    return image.reshape(rows, _BLOCK, columns, _BLOCK).swapaxes(1, 2).reshape(-1, _BLOCK, _BLOCK)


def _has_flat_rim(blocks: np.ndarray) -> np.ndarray:
    """[n] bool: six neighbouring pixels somewhere on the rim hardly differ."""
    rims = np.stack([blocks[:, 0], blocks[:, -1], blocks[:, :, 0], blocks[:, :, -1]], axis=1)  # [n, 4, 16]
    segments = np.lib.stride_tricks.sliding_window_view(rims, _SEGMENT, axis=2)  # [n, 4, 11, 6]
    return (segments.std(axis=-1, ddof=1) < _FLAT_DEVIATION).any(axis=(1, 2))


def _is_noise(blocks: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """[n] bool: the two middle columns spread as the block does."""
    middle = blocks[:, :, 7:9].reshape(len(blocks), -1).std(axis=1, ddof=1)
    # MATLAB deletes column 8 and then column 9 of what is left, so it is the tenth that goes.
    around = np.delete(blocks, (7, 9), axis=2).reshape(len(blocks), -1).std(axis=1, ddof=1)
    ratio = np.divide(middle, around, out=np.zeros_like(middle), where=around > 0)
    deviation = np.sqrt(variance)
    difference = np.abs(deviation - ratio) / np.maximum(deviation, ratio)
    return deviation > 2 * difference
