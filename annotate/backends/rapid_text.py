"""Lines of text by RapidOCR (PP-OCR's detector on ONNX Runtime, Apache-2.0; weights come with the package)."""

from __future__ import annotations

from typing import Any

import numpy as np
from rapidocr import RapidOCR

_ONE_THREAD = {
    "EngineConfig.onnxruntime.intra_op_num_threads": 1,
    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    "Global.log_level": "critical",
}


class RapidText:
    """`rapidocr` of filters/overlay.py: where text is; what it says is not read."""

    def __init__(self) -> None:
        self._engine = RapidOCR(params=_ONE_THREAD)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """[H, W, 3] uint8 RGB -> [n, 4] boxes x0, y0, x1, y1 in pixels."""
        bgr = np.ascontiguousarray(image[:, :, ::-1])
        found: Any = self._engine(bgr, use_det=True, use_cls=False, use_rec=False)
        if found.boxes is None or len(found.boxes) == 0:
            return np.zeros((0, 4))
        corners = np.asarray(found.boxes, dtype=float)  # [n, 4, 2]
        return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
