"""One picture in, boxes of what looks like lines of letters out; nothing is read and nothing is learned.

Letters of a line are strokes of one thickness, much brighter or darker than what is around them, side by side. A
top-hat keeps thin bright strokes (a black-hat dark ones), closing along x joins letters to lines, and a line must
change between stroke and gap often enough for its height. Railings and foliage can pass: a likeness, labelled so.
"""

from __future__ import annotations

import cv2
import numpy as np

_LEAST_LEVELS = 60.0
_WIDTH_PX = 480


class TextLines:
    """Callable, `TextFinder` of filters/overlay.py."""

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """[H, W, 3] uint8 RGB -> [n, 4] boxes x0, y0, x1, y1 in pixels."""
        scale = min(1.0, _WIDTH_PX / image.shape[1])
        luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        if scale < 1:
            luma = cv2.resize(luma, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        boxes = []
        thickness = cv2.getStructuringElement(cv2.MORPH_RECT, (9, 9))
        for operation in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):
            strokes = cv2.morphologyEx(luma, operation, thickness) > _LEAST_LEVELS
            boxes += _lines(strokes)
        return np.array(boxes, dtype=float).reshape(-1, 4) / scale


def _lines(strokes: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Boxes of groups of strokes [H, W] bool that are built like a line of text."""
    height = len(strokes)
    joined = cv2.morphologyEx(strokes.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 13)))
    joined = cv2.morphologyEx(joined, cv2.MORPH_OPEN, np.ones((3, 3)))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(joined)
    found = []
    for label, (x, y, w, h, area) in enumerate(stats):
        if label == 0 or not 5 <= h <= 0.14 * height or w < 2.5 * h or w < 24 or area < 0.45 * w * h:
            continue
        inside = strokes[y : y + h, x : x + w] & (labels[y : y + h, x : x + w] == label)
        density = inside.mean()
        # Both letters and gaps: a bar is all stroke, scattered leaves are hardly any.
        if not 0.15 < density < 0.75:
            continue
        middle = inside[h // 4 : max(h // 4 + 1, h - h // 4)]
        changes = np.abs(np.diff(middle.astype(np.int8), axis=1)).sum(axis=1).mean()
        if changes > 0.8 * w / h and changes >= 6:
            found.append((x, y, x + w, y + h))
    return found
