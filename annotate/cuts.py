"""Frames of one video in, its shot changes out: hard cuts, fades and dissolves, without weights.

PySceneDetect's adaptive and content detectors propose hard cuts, its threshold detector finds fades through
black, and `dissolves.py` finds dissolves, which none of them sees. Each proposed cut is then checked: where
the picture before it can be found again, displaced, in the picture after it, the camera only swung or a
light flashed, and the proposal is dropped.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector, ThresholdDetector

from worldline.annotate.dissolves import DissolveFinder, Transition, is_same_place
from worldline.annotate.video import Frame

DETECTORS = ("adaptive+content", "adaptive", "content")


@dataclass(frozen=True, kw_only=True, slots=True)
class CutConfig:
    """Thresholds of the weight-free shot change detectors."""

    adaptive_ratio: float = 3.0
    """A cut's content score over the mean of its four neighbours' (PySceneDetect's default)."""
    adaptive_min_content: float = 15.0
    """Least content score, 0-255, of an adaptive cut (PySceneDetect's default)."""
    content_threshold: float = 27.0
    """Content score, 0-255, that is a cut whatever its neighbours (PySceneDetect's default)."""
    fade_luma: float = 12.0
    """Mean value, 0-255, under which the picture counts as faded out; 0 turns fades off (PySceneDetect's
    default).
    """
    flash_s: float = 0.35
    """The picture of before may come back within this time after a proposed cut, which then was a flash."""
    has_dissolves: bool = True
    """Whether to look for dissolves."""

    def __post_init__(self) -> None:
        if self.adaptive_ratio <= 1 or self.flash_s < 0:
            raise ValueError(
                f"adaptive_ratio {self.adaptive_ratio} must exceed 1 and flash_s {self.flash_s} be >= 0"
            )


class CutFinder:
    """Finds the shot changes of one sequence of consecutive frames, in bounded memory."""

    def __init__(self, detector: str, config: CutConfig, fps: float) -> None:
        if detector not in DETECTORS:
            raise ValueError(f"detector {detector!r}: known are {', '.join(DETECTORS)}")
        self._fps = fps
        self._flash_frames = max(2, min(30, round(config.flash_s * fps)))
        # Minimum lengths are zero: short shots are merged later, for all kinds of changes alike (scenes.py).
        self._adaptive = AdaptiveDetector(
            adaptive_threshold=config.adaptive_ratio if "adaptive" in detector else math.inf,
            min_content_val=config.adaptive_min_content,
            min_scene_len=0,
        )
        self._content_threshold = config.content_threshold if "content" in detector else math.inf
        # Two biases of one detector give the last frame before the black and the first after it.
        self._fades = [
            ThresholdDetector(config.fade_luma, min_scene_len=0, fade_bias=bias, add_final_scene=True)
            for bias in (-1.0, 1.0)
            if config.fade_luma > 0
        ]
        self._dissolves = DissolveFinder(fps) if config.has_dissolves else None
        self._images: OrderedDict[int, np.ndarray] = OrderedDict()
        self._proposed: set[int] = set()
        self._flash_end_idx = -1
        self._found: list[Transition] = []

    def __call__(self, frames: Iterable[Frame]) -> list[Transition]:
        """Shot changes in order of time."""
        first_idx = last_idx = -1
        for frame in frames:
            first_idx = frame.index if first_idx < 0 else first_idx
            self._push(frame)
            last_idx = frame.index
        self._settle(upto_idx=last_idx + 1)
        if last_idx >= 0:
            self._add_fades([fade.post_process(self._timecode(last_idx)) for fade in self._fades])
        if self._dissolves is not None:
            self._found += self._dissolves.finish()
        return _without_contained([change for change in self._found if change.next_idx > first_idx])

    def _timecode(self, index: int) -> FrameTimecode:
        return FrameTimecode(index, fps=self._fps)

    def _push(self, frame: Frame) -> None:
        self._images[frame.index] = frame.image
        # The adaptive detector decides two frames late; the frame before a proposal must still be there.
        while len(self._images) > self._flash_frames + 5:
            self._images.popitem(last=False)
        bgr = cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR)
        timecode = self._timecode(frame.index)
        self._proposed.update(cut.frame_num for cut in self._adaptive.process_frame(timecode, bgr))
        # The content detector's rule on the score that the adaptive one, its subclass, has just computed.
        if (self._adaptive._frame_score or 0.0) >= self._content_threshold:
            self._proposed.add(frame.index)
        # The threshold detector looks at the mean alone, so one pixel of it will do.
        mean_pixel = np.array(cv2.mean(bgr)[:3])
        self._add_fades([fade.process_frame(timecode, mean_pixel) for fade in self._fades])
        if self._dissolves is not None:
            self._dissolves.push(frame)
        self._settle(upto_idx=frame.index - self._flash_frames - 2)

    def _add_fades(self, cuts: list[list[FrameTimecode]]) -> None:
        for out, back in zip(*cuts, strict=True) if cuts else ():
            before, after = self._images.get(out.frame_num - 1), self._images.get(back.frame_num)
            is_dropout = before is not None and after is not None and is_same_place(before, after)
            if not is_dropout:
                self._found.append(Transition(first_idx=out.frame_num, next_idx=back.frame_num))

    def _settle(self, upto_idx: int) -> None:
        for cut_idx in sorted(i for i in self._proposed if i < upto_idx):
            self._proposed.remove(cut_idx)
            if cut_idx > self._flash_end_idx and self._is_cut(cut_idx):
                self._found.append(Transition(first_idx=cut_idx, next_idx=cut_idx))

    def _is_cut(self, cut_idx: int) -> bool:
        """Whether the picture before the proposal is gone for good; else remembers when it is back."""
        before = [i for i in self._images if i < cut_idx]
        if not before:
            return False
        # At doubling distances: a flash ends on one of them, or a little before, where the place is still the same.
        distances = {0, self._flash_frames} | {2**k for k in range(5) if 2**k < self._flash_frames}
        for index in sorted(cut_idx + distance for distance in distances):
            after = self._images.get(index)
            if after is not None and is_same_place(self._images[before[-1]], after):
                self._flash_end_idx = index
                return False
        return True


def _without_contained(transitions: list[Transition]) -> list[Transition]:
    """Drops what lies inside a longer transition: the steps of a dissolve or fade may look like cuts."""
    kept: list[Transition] = []
    for one in sorted(transitions, key=lambda t: (t.first_idx, -t.next_idx)):
        if kept and one.first_idx <= kept[-1].next_idx and kept[-1].first_idx < kept[-1].next_idx:
            if one.next_idx > kept[-1].next_idx:
                kept[-1] = Transition(first_idx=kept[-1].first_idx, next_idx=one.next_idx)
            continue
        while kept and one.first_idx < one.next_idx and one.first_idx <= kept[-1].first_idx:
            kept.pop()
        if not kept or one != kept[-1]:
            kept.append(one)
    return kept
