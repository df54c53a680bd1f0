"""DOVER (Wu et al., ICCV 2023): technical and aesthetic quality of a video as people rate it, by its two networks.

The networks come as one ONNX file, which the authors' `convert_to_onnx.py` writes from their weights (S-Lab licence: no
commercial use); inputs are `aes_view` and `tech_view`, outputs the aesthetic and the technical score in this order.
Views, sampling and fusion are those of the authors' test settings, but for what they draw at random (the place of a
fragment in its cell, the start of a clip), which is the middle here: one video has one score.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime

from worldline.filters.content import ContentConfig

CHUNK_S = 5.0
"""A score is of this much video; SANA-WM takes the mean over such chunks."""

_SHORTEST_S = 1.0
"""A last chunk shorter than this does not count, unless it is the only one."""

_NUM_FRAMES, _STEP = 32, 2
_SIDE_PX, _CELLS = 224, 7
_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_DEVIATION = np.array([58.395, 57.12, 57.375], np.float32)


class DoverScorer:
    """`dover` of filters/content.py; watches every frame and keeps two small pictures of each of one chunk."""

    def __init__(self, config: ContentConfig) -> None:
        """Raises ValueError where the config names no file or the file is of another network."""
        if config.dover_weights is None or not Path(config.dover_weights).expanduser().is_file():
            raise ValueError(
                f"dover_weights {config.dover_weights}: name the ONNX file that DOVER's convert_to_onnx.py writes"
                " (github.com/VQAssessment/DOVER, non-commercial)"
            )
        self._session = onnxruntime.InferenceSession(
            str(Path(config.dover_weights).expanduser()), providers=onnxruntime.get_available_providers()
        )
        inputs = {given.name: given.shape for given in self._session.get_inputs()}
        if set(inputs) != {"aes_view", "tech_view"} or len(self._session.get_outputs()) != 2:
            raise ValueError(f"{config.dover_weights}: has inputs {sorted(inputs)}, not DOVER's two views")
        # The authors' export fixes the number of technical clips; they test with three.
        fixed = inputs["tech_view"][0]
        self._num_clips = fixed if isinstance(fixed, int) else 3
        self._chunk: list[tuple[np.ndarray, np.ndarray]] = []
        self._first_s = self._last_s = 0.0
        self._scores: list[float] = []

    def watch(self, image: np.ndarray, timestamp_s: float) -> None:
        """Takes the next frame, [H, W, 3] uint8 RGB."""
        if self._chunk and timestamp_s - self._first_s >= CHUNK_S - 1e-6:
            self._finish()
        if not self._chunk:
            self._first_s = timestamp_s
        self._last_s = timestamp_s
        whole = cv2.resize(image, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA)
        self._chunk.append((whole, fragments(image)))

    def __call__(self, images: Sequence[np.ndarray], times_s: Sequence[float]) -> dict[str, Any]:
        """dover: the mean over the chunks watched since the last call."""
        if self._chunk and (not self._scores or self._last_s - self._first_s >= _SHORTEST_S):
            self._finish()
        scores, self._scores, self._chunk = self._scores, [], []
        return {"dover": float(np.mean(scores)) if scores else None}

    def _finish(self) -> None:
        count = len(self._chunk)
        whole = [self._chunk[k][0] for k in frame_indices(count, parts=_NUM_FRAMES, length=1)]
        pieces = [self._chunk[k][1] for k in frame_indices(count, parts=self._num_clips, length=_NUM_FRAMES)]
        views = {"aes_view": _view(whole, 1), "tech_view": _view(pieces, self._num_clips)}
        aesthetic, technical = (float(np.mean(scores)) for scores in self._session.run(None, views))
        self._scores.append(fused(aesthetic, technical))
        self._chunk = []


def fused(aesthetic: float, technical: float) -> float:
    """The overall score, 0 to 1, by the authors' weights. (Their ONNX example passes the two in the wrong order.)"""
    x = 0.6104 * (technical - 0.1107) / 0.07355 + 0.3896 * (aesthetic + 0.08285) / 0.03774
    return float(1 / (1 + np.exp(-x)))


def frame_indices(count: int, *, parts: int, length: int) -> np.ndarray:
    """[parts * length] frames of `count`: each part of the video gives `length` frames, two apart, from its middle;
    where the video is too short it begins anew."""
    size = count // parts
    slack = max(0, size - length * _STEP)
    starts = size * np.arange(parts) + slack // 2
    found: np.ndarray = (starts[:, None] + _STEP * np.arange(length)).ravel() % count
    return found


def fragments(image: np.ndarray) -> np.ndarray:
    """[224, 224, 3] uint8: the middle 32 x 32 pixels of each of 7 x 7 cells, side by side (FAST-VQA, Wu et al. 2022)."""
    height, width = image.shape[:2]
    if (ratio := min(height, width) / _SIDE_PX) < 1:
        size = (round(width / ratio), round(height / ratio))
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        height, width = image.shape[:2]
    piece = _SIDE_PX // _CELLS
    rows, columns = (
        (np.minimum(cell * np.arange(_CELLS), whole - piece) + max(0, cell - piece) // 2)[:, None]
        + np.arange(piece)
        for whole, cell in ((height, height // _CELLS), (width, width // _CELLS))
    )
    found: np.ndarray = image[np.ix_(rows.ravel(), columns.ravel())]
    return found


def _view(images: Sequence[np.ndarray], num_clips: int) -> np.ndarray:
    """[clips, 3, frames, 224, 224] float32, normalised as the networks were trained."""
    stacked = (np.stack(images).astype(np.float32) - _MEAN) / _DEVIATION  # [clips * frames, h, w, 3]
    clips = stacked.reshape(num_clips, -1, *stacked.shape[1:])
    return np.ascontiguousarray(clips.transpose(0, 4, 1, 2, 3))
