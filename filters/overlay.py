"""Frames of one clip in, what was laid over the picture out: text, subtitles, logos, split screens, insets.

What is laid over stays where it is while the scene behind it moves. Gradients are added up as vectors: those of a
still edge agree from look to look, those of a moving scene cancel out. A seam between two pictures shows as a line
of steps that its neighbourhood does not have. Text is found by a backend, frame by frame; the embedded one measures
how much looks like lines of letters and reads nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np

from worldline.annotate.backends import load_backend
from worldline.filters.seams import inset_score, seam_masks, split_score, steps

BACKENDS = {
    "edges": "worldline.filters.text_lines:TextLines",
    "rapidocr": "worldline.annotate.backends.rapid_text:RapidText",
}
HOW_TO_INSTALL = {"rapidocr": "pip install 'worldline[text]'"}

NO_TEXT = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class OverlayConfig:
    """How overlays are looked for."""

    text: str = "edges"
    """edges (likeness, some 2 ms a look), rapidocr (finds and reads, some 0.3 s a look) or none."""
    look_gap_s: float = 0.25
    """Least time between looks in seconds: a 3 s clip has 12."""
    text_gap_s: float = 0.5
    """The same for text; 2 s is enough for rapidocr, whose looks are dear."""
    width_px: int = 480
    """Looks are scaled down to this width at most: a logo of 3 % of the width still has 15 pixels."""
    edge_levels: float = 6.0
    """Mean gradient, in grey levels a pixel, from which an edge counts."""
    still_agreement: float = 0.96
    """Length of the summed gradient over the sum of lengths from which an edge is still: moving scenes have about
    1 / sqrt(looks)."""
    still_ratio: float = 0.35
    """Share of still edges among a neighbourhood's edges from which it belongs to a logo, and ..."""
    still_density: float = 0.14
    """... share of the neighbourhood's pixels that are still edges: a far horizon has 0.05."""
    still_camera_agreement: float = 0.8
    """The same of the median edge, from which the whole scene hardly moves; then a logo or inset cannot be told from
    it. Motorways have up to 0.78, cameras that stand 0.99; in between is unknown."""
    still_split: float = 0.5
    """Seam, as a share of its length, from which a split of a scene that hardly moves is unknown: it may be the
    scene's own straight edge. A shorter one is no split, whatever moves."""
    min_width_px: int = 240
    """Narrower pictures say nothing about logos and insets, whose edges are a few pixels long there."""
    min_looks: int = 4
    """Fewer say nothing about stillness or seams."""

    def __post_init__(self) -> None:
        if self.text not in (*BACKENDS, NO_TEXT):
            raise ValueError(f"text {self.text!r}: known are {', '.join((*BACKENDS, NO_TEXT))}")
        if min(self.look_gap_s, self.text_gap_s) < 0 or self.width_px < 64 or self.min_looks < 2:
            raise ValueError("gaps must be at least 0, width_px at least 64 and min_looks at least 2")


class TextFinder(Protocol):
    """Finds lines of text in a picture."""

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """[H, W, 3] uint8 RGB -> [n, 4] boxes x0, y0, x1, y1 in pixels."""


class OverlayScores:
    """Gathers overlay scores of one clip's frames, added in order of time; holds a few sums of small pictures."""

    def __init__(self, config: OverlayConfig | None = None) -> None:
        """Raises MissingBackend where the text backend is not installed."""
        self._config = config or OverlayConfig()
        self._finder: TextFinder | None = None
        if self._config.text != NO_TEXT:
            self._finder = load_backend(self._config.text, BACKENDS, HOW_TO_INSTALL)()
        self._next_s = self._next_text_s = -math.inf
        self._looks = 0
        self._sums: dict[str, np.ndarray] = {}
        self._least: np.ndarray = np.zeros((0, 0))
        self._text_masks: list[np.ndarray] = []
        self._text_area: list[float] = []
        self._has_subtitle: list[bool] = []

    def add(self, image: np.ndarray, timestamp_s: float, luma: np.ndarray | None = None) -> None:
        """Takes the next frame, [H, W, 3] uint8 RGB; luma [H, W] where the caller has it."""
        if timestamp_s >= self._next_s:
            self._next_s = timestamp_s + self._config.look_gap_s - 5e-4
            if luma is None:
                luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
            self._add_look(_at_width(luma, self._config.width_px).astype(np.float32))
        if self._finder is not None and timestamp_s >= self._next_text_s:
            self._next_text_s = timestamp_s + self._config.text_gap_s - 5e-4
            self._add_text(self._finder(_at_width(image, 2 * self._config.width_px)), image.shape)

    def _add_look(self, luma: np.ndarray) -> None:
        along_x, along_y = (cv2.Sobel(luma, cv2.CV_32F, *order, scale=1 / 8) for order in ((1, 0), (0, 1)))
        step_x, step_y = steps(luma)
        length = cv2.magnitude(along_x, along_y)
        values = {
            "x": along_x,
            "y": along_y,
            "length": length,
            "step_x": step_x,
            "step_y": step_y,
            "luma": luma,
        }
        self._least = np.minimum(self._least, length) if self._looks else length
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if self._looks else value
        self._looks += 1

    def _add_text(self, boxes: np.ndarray, shape: Sequence[int]) -> None:
        """boxes in pixels of the picture that the finder saw."""
        height, width = shape[:2]
        seen_width = min(width, 2 * self._config.width_px)
        grid = np.zeros((90, 160), dtype=np.uint8)
        scale = np.array([160, 90, 160, 90]) / (np.array([width, height] * 2) * seen_width / width)
        is_subtitle = False
        for x0, y0, x1, y1 in np.asarray(boxes, dtype=float).reshape(-1, 4) * scale:
            grid[math.floor(y0) : math.ceil(y1), math.floor(x0) : math.ceil(x1)] = 1
            middle = (x0 + x1) / 2
            is_subtitle |= bool(y0 > 60 and 48 < middle < 112 and x1 - x0 > 24)
        self._text_masks.append(grid.astype(bool))
        self._text_area.append(float(grid.mean()))
        self._has_subtitle.append(is_subtitle)

    def result(self) -> dict[str, Any]:
        """The overlay columns of `datasets/schema.py`; None where they cannot be told."""
        return self._text() | self._still_things()

    def _text(self) -> dict[str, Any]:
        if not self._text_masks:
            return dict.fromkeys(("text_area_share", "text_persistence", "subtitle_share", "text_backend"))
        masks = np.array(self._text_masks)
        # A cell or two of slack: boxes breathe from look to look.
        near = np.array([cv2.dilate(mask.astype(np.uint8), np.ones((3, 3))) for mask in masks])
        return {
            "text_area_share": float(np.mean(self._text_area)),
            "text_persistence": float(near.mean(axis=0).max()) if masks.any() else 0.0,
            "subtitle_share": float(np.mean(self._has_subtitle)),
            "text_backend": self._config.text,
        }

    def _still_things(self) -> dict[str, float | None]:
        """Logos, splits and insets; of a scene that is still, no more than that it is not split can be told."""
        if self._looks < self._config.min_looks:
            return dict.fromkeys(("logo_area_share", "split_screen", "picture_in_picture"))
        top, bottom, left, right = _content(self._sums["luma"] / self._looks)
        means = {name: value[top:bottom, left:right] / self._looks for name, value in self._sums.items()}
        upright, level = seam_masks(means["step_x"], means["step_y"])
        split = split_score(upright, level)
        is_edge = means["length"] > self._config.edge_levels
        agreement = cv2.magnitude(means["x"], means["y"]) / np.maximum(means["length"], 1e-6)
        # Where there are hardly any edges, those may be the logo's alone.
        is_scene_still = bool(
            is_edge.mean() > 0.01 and np.median(agreement[is_edge]) > self._config.still_camera_agreement
        )
        is_told = not is_scene_still or split < self._config.still_split
        found: dict[str, float | None] = {"split_screen": split if is_told else None}
        if is_scene_still or self._sums["luma"].shape[1] < self._config.min_width_px:
            return found | {"logo_area_share": None, "picture_in_picture": None}
        is_still = is_edge & (agreement > self._config.still_agreement)
        is_still &= self._least[top:bottom, left:right] > 0.3 * means["length"]
        is_logo = _dense(is_still, is_edge, means["length"], self._config)
        return found | {
            "logo_area_share": float(is_logo.mean()),
            "picture_in_picture": inset_score(upright, level),
        }


def _at_width(image: np.ndarray, width_px: int) -> np.ndarray:
    height, width = image.shape[:2]
    if width <= width_px:
        return image
    return cv2.resize(image, (width_px, round(height * width_px / width)), interpolation=cv2.INTER_AREA)


def _content(mean_luma: np.ndarray) -> tuple[int, int, int, int]:
    """top, bottom, left, right of the picture inside black bars."""
    bounds = []
    for axis in (1, 0):
        is_bright = np.flatnonzero(mean_luma.max(axis=axis) > 24)
        bounds += (
            [int(is_bright[0]), int(is_bright[-1]) + 1] if len(is_bright) else [0, mean_luma.shape[1 - axis]]
        )
    return bounds[0], bounds[1], bounds[2], bounds[3]


def _dense(
    is_still: np.ndarray, is_edge: np.ndarray, length: np.ndarray, config: OverlayConfig
) -> np.ndarray:
    """[H, W] bool: neighbourhoods, 5 % of the width, in which still edges are many and most."""
    side = round(0.05 * is_still.shape[1]) | 1

    def near(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values.astype(np.float32), (side, side), borderType=cv2.BORDER_CONSTANT)

    is_most = near(is_still * length) > config.still_ratio * near(is_edge * length)
    return is_most & (near(is_still) > config.still_density)
