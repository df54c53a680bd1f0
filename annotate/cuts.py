"""Frames of one video in, its shot changes out: hard cuts, fades and dissolves, without weights.

PySceneDetect's adaptive and content rules (`content_cuts.py`) propose hard cuts, its threshold detector finds fades
through black, and `dissolves.py` finds dissolves, which none of them sees. Each proposed cut is then checked: where
the picture before it can be found again, displaced, in the picture after it, the camera only swung or a
light flashed, and the proposal is dropped.

`CutFinder` looks at a sequence of frames. `find_changes` runs it first on a draft that is cheap to decode, and
again on every frame of the stretches where the draft leaves a doubt.
"""

from __future__ import annotations

import math
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from scenedetect import FrameTimecode
from scenedetect.detectors import ThresholdDetector

from worldline.annotate.content_cuts import ContentCuts
from worldline.annotate.dissolves import WINDOWS_S, DissolveFinder, Transition, is_same_place
from worldline.annotate.video import Frame

DETECTORS = ("adaptive+content", "adaptive", "content")

_CONTEXT_FRAMES = 6
_NEAR_S = 0.25
"""A change counts as the one that the first look proposed when it is no further from it."""


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

    draft_gap_s: float = 0.06
    """Frames of the first look are about this far apart, in seconds: two frames at 30 a second. 0: every frame
    is decoded and looked at, which takes some three times as long.
    """

    trusts_packets: bool = True
    """Whether groups of pictures are left undecoded whose keyframes and sizes of packets show that nothing
    changes in them (annotate/quiet.py); only where there is a first look.
    """

    def for_draft(self) -> CutConfig:
        """For frames that lie further apart: motion between neighbours is larger, a cut as large as ever."""
        ratio = 1 + (self.adaptive_ratio - 1) / 4
        return replace(self, adaptive_ratio=ratio, content_threshold=0.8 * self.content_threshold)

    def __post_init__(self) -> None:
        if self.draft_gap_s < 0:
            raise ValueError(f"draft_gap_s {self.draft_gap_s} must be at least 0")
        if self.adaptive_ratio <= 1 or self.flash_s < 0:
            raise ValueError(
                f"adaptive_ratio {self.adaptive_ratio} must exceed 1 and flash_s {self.flash_s} be >= 0"
            )


class CutFinder:
    """Finds the shot changes of one sequence of frames that follow one another, in bounded memory.

    The frames may be a video's every frame or, for a first look, only some of them: gaps are measured in
    time where they matter.
    """

    def __init__(self, detector: str, config: CutConfig) -> None:
        if detector not in DETECTORS:
            raise ValueError(f"detector {detector!r}: known are {', '.join(DETECTORS)}")
        self._flash_s, self._fade_luma, self._is_dark = config.flash_s, config.fade_luma, False
        # Minimum lengths are zero: short shots are merged later, for all kinds of changes alike (scenes.py).
        self._content = ContentCuts(
            adaptive_ratio=config.adaptive_ratio if "adaptive" in detector else math.inf,
            adaptive_min_content=config.adaptive_min_content,
            content_threshold=config.content_threshold if "content" in detector else math.inf,
        )
        # Two biases of one detector give the last frame before the black and the first after it.
        self._fades = [
            ThresholdDetector(config.fade_luma, min_scene_len=0, fade_bias=bias, add_final_scene=True)
            for bias in (-1.0, 1.0)
            if config.fade_luma > 0
        ]
        self._dissolves = DissolveFinder() if config.has_dissolves else None
        # Everything below counts positions in the sequence; `_index` translates them for the result.
        self._index = array("q")
        self._frames: OrderedDict[int, tuple[Frame, float]] = OrderedDict()
        self._proposed: set[int] = set()
        self._flash_end = -1
        self._found: list[Transition] = []
        self.score_of_adjacent: dict[int, float] = {}
        """Content scores of found cuts, by index, where the frame before was the one before in the video."""

    @property
    def seen(self) -> Sequence[int]:
        """Indices of the frames that were looked at."""
        return self._index

    def __call__(self, frames: Iterable[Frame]) -> list[Transition]:
        """Shot changes in order of time; their indices are the frames' own."""
        for frame in frames:
            self._push(frame)
        self._settle(upto_s=math.inf)
        if not self._index:
            return []
        self._add_fades([fade.post_process(_timecode(len(self._index) - 1)) for fade in self._fades])
        if self._dissolves is not None:
            self._found += self._dissolves.finish()
        return without_contained([change for change in self._found if change.next_idx > self._index[0]])

    def _push(self, frame: Frame) -> None:
        position = len(self._index)
        self._index.append(frame.index)
        score, cuts = self._content.push(frame.image)
        self._proposed.update(cuts)
        self._remember(position, frame, score)
        # The threshold detectors look at the mean alone, and do something only where it crosses theirs.
        red, green, blue, _ = cv2.mean(frame.image)
        mean = (blue + green + red) / 3
        if position == 0 or (mean < self._fade_luma) != self._is_dark:
            self._is_dark = mean < self._fade_luma
            timecode = _timecode(position)
            self._add_fades([fade.process_frame(timecode, np.array([mean])) for fade in self._fades])
        if self._dissolves is not None:
            self._dissolves.push(frame)
        self._settle(upto_s=frame.timestamp_s - self._flash_s)

    def _remember(self, position: int, frame: Frame, score: float) -> None:
        self._frames[position] = frame, score
        # The adaptive detector decides two frames late; the frame before a proposal must still be there.
        while len(self._frames) > 6:
            sixth, _ = self._frames[position - len(self._frames) + 6]
            if sixth.timestamp_s >= frame.timestamp_s - self._flash_s:
                return
            self._frames.popitem(last=False)

    def _add_fades(self, cuts: list[list[FrameTimecode]]) -> None:
        for out, back in zip(*cuts, strict=True) if cuts else ():
            before, after = self._frames.get(out.frame_num - 1), self._frames.get(back.frame_num)
            if before is not None and after is not None and is_same_place(before[0].image, after[0].image):
                continue  # the picture failed for a moment
            next_idx = self._index[min(back.frame_num, len(self._index) - 1)]
            self._found.append(Transition(first_idx=self._index[out.frame_num], next_idx=next_idx))

    def _settle(self, upto_s: float) -> None:
        """Decides on the proposals whose time for a flash is over."""
        for cut in sorted(self._proposed):
            frame, score = self._frames[cut]
            if frame.timestamp_s > upto_s:
                return
            self._proposed.remove(cut)
            if cut > self._flash_end and self._is_cut(cut, frame.timestamp_s):
                self._found.append(Transition(first_idx=frame.index, next_idx=frame.index))
                if frame.index - self._index[cut - 1] == 1:
                    self.score_of_adjacent[frame.index] = score

    def _is_cut(self, cut: int, cut_s: float) -> bool:
        """Whether the picture before the proposal is gone for good; else remembers when it is back."""
        if cut - 1 not in self._frames:
            return False
        before, _ = self._frames[cut - 1]
        upto_s = cut_s + self._flash_s + 1e-6
        within = [
            p for p, (f, _) in self._frames.items() if p >= cut and (f.timestamp_s <= upto_s or p <= cut + 2)
        ]
        # At doubling distances: a flash ends on one of them, or a little before, where the place is still the same.
        for position in sorted({cut, within[-1]} | {cut + 2**k for k in range(5)}.intersection(within)):
            if is_same_place(before.image, self._frames[position][0].image):
                self._flash_end = position
                return False
        return True


def find_changes(
    draft: Iterable[Frame],
    dense: Callable[[int, int], Iterable[Frame]],
    timestamps_s: np.ndarray,
    detector: str,
    config: CutConfig,
) -> list[Transition]:
    """Shot changes of a video of which `draft` shows some frames, and `dense(first, last)` all of a stretch.

    A first look at the draft, with thresholds that let through more, says where to look at every frame. A cut
    between two frames that are neighbours in the video too, and that clears the threshold, needs no second
    look. `timestamps_s`: [T] of the whole video.
    """
    finder = CutFinder(detector, config.for_draft())
    proposed = finder(draft)
    found, doubtful = [], []
    for change in proposed:
        is_hard = change.first_idx == change.next_idx
        threshold = config.content_threshold if "content" in detector else math.inf
        if is_hard and finder.score_of_adjacent.get(change.first_idx, 0.0) >= threshold:
            found.append(change)
        else:
            doubtful.append((change, config.flash_s + 0.1 if is_hard else WINDOWS_S[-1] + 0.3))
    # In a hole of the draft a shot could come and go.
    index = np.asarray(finder.seen)
    for at in np.flatnonzero(np.diff(timestamps_s[index]) > max(config.flash_s, 0.1)):
        if index[at + 1] - index[at] > 1:
            hole = Transition(first_idx=int(index[at]) + 1, next_idx=int(index[at + 1]))
            doubtful.append((hole, config.flash_s + 0.1))
    for first, last, changes in _stretches(doubtful, timestamps_s):
        for change in CutFinder(detector, config)(dense(first, last)):
            if any(_is_near(change, other, timestamps_s) for other in changes):
                found.append(change)
    return without_contained(found)


def _stretches(
    doubtful: list[tuple[Transition, float]], times_s: np.ndarray
) -> list[tuple[int, int, list[Transition]]]:
    """Disjoint stretches (first, last, changes in it) that reach the given time beyond each change."""
    merged: list[tuple[int, int, list[Transition]]] = []
    for change, margin_s in sorted(doubtful):
        # The detectors look at a few frames on either side, however slow the video.
        end_s = times_s[min(change.next_idx, len(times_s) - 1)]
        begin = np.searchsorted(times_s, times_s[change.first_idx] - margin_s) - _CONTEXT_FRAMES
        end = np.searchsorted(times_s, end_s + margin_s) + _CONTEXT_FRAMES
        first, last, changes = max(0, int(begin)), min(len(times_s), int(end)), [change]
        while merged and first <= merged[-1][1]:
            before = merged.pop()
            first, last, changes = min(first, before[0]), max(last, before[1]), before[2] + changes
        merged.append((first, last, changes))
    return merged


def _is_near(one: Transition, other: Transition, times_s: np.ndarray) -> bool:
    last = len(times_s) - 1
    begin_s, other_begin_s = times_s[one.first_idx], times_s[other.first_idx]
    end_s, other_end_s = times_s[min(one.next_idx, last)], times_s[min(other.next_idx, last)]
    return bool(begin_s <= other_end_s + _NEAR_S and end_s >= other_begin_s - _NEAR_S)


def _timecode(position: int) -> FrameTimecode:
    # The detectors count frames only; their lengths in time are not used.
    return FrameTimecode(position, fps=25.0)


def without_contained(transitions: list[Transition]) -> list[Transition]:
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
