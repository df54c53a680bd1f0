"""One video in, the spans of its scenes out: every frame in exactly one scene, but for recorded overlaps of
windows.

Shot changes come from a detector that sees the frames in order, at 160x90, so memory does not grow with the
file: `cuts.py` needs no weights, leaves out what the packets show to hold no change (`quiet.py`) and decodes in
full only where a first look leaves a doubt; TransNetV2 (the `transnet` extra) sees each frame once. Shots longer
than a window are split into equal windows that overlap. Frames of a dissolve or of black between two shots make
a scene of their own, so that no clip contains a change. A change closer than `min_scene_s` to the one before
makes no scene; it is counted in `num_cuts` of the scene around it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from worldline.annotate.backends import load_backend
from worldline.annotate.cuts import DETECTORS, CutConfig, CutFinder, find_changes, without_contained
from worldline.annotate.decoder import made_ahead
from worldline.annotate.dissolves import Transition
from worldline.annotate.pieces import draft_in_pieces
from worldline.annotate.quiet import closed_and_quiet_groups, unsettled
from worldline.annotate.video import Frame, Span, VideoInfo, draft_frames, local_copy, probe_and, read_frames

BACKENDS = {"transnet": "worldline.annotate.backends.transnet_scenes:TransnetCutFinder"}
HOW_TO_INSTALL = {"transnet": "pip install 'worldline[transnet]'"}

_FRAMES_AHEAD = 8
"""Small pictures that are decoded while the detectors look at the ones before."""

_QUIET_MARGIN_S = 0.5
"""How far the detectors look into groups of pictures that are known to be quiet, for what follows a change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneConfig:
    """How a video is cut into scenes."""

    detector: str = "adaptive+content"
    """adaptive+content, adaptive, content (PySceneDetect, no weights) or transnet (TransNetV2)."""
    min_scene_s: float = 0.6
    """Shortest shot in seconds (PySceneDetect's default); shorter ones are merged into the next."""
    max_window_s: float = 60.0
    """First to last frame of a scene in seconds: 961 frames at 16 fps. Longer shots are split."""
    window_overlap_s: float = 2.0
    """Time in seconds that neighbouring windows of a shot share, so that their paths can be joined."""
    max_pixels: int = 160 * 90
    """Size at which changes are looked for."""
    num_threads: int = 2
    """Decoders at work at once in the first look; threads of one decoder where it cannot be split into pieces, three for
    each, as many packets are left out."""
    transnet_threshold: float = 0.5
    """Probability that makes a TransNetV2 cut; NeMo-Curator uses 0.4."""
    cuts: CutConfig = field(default_factory=CutConfig)
    """Thresholds of the detectors without weights."""

    def __post_init__(self) -> None:
        known = (*DETECTORS, *BACKENDS)
        if self.detector not in known:
            raise ValueError(f"detector {self.detector!r}: known are {', '.join(known)}")
        if not 0 <= self.window_overlap_s <= self.max_window_s / 2:
            raise ValueError(f"window_overlap_s {self.window_overlap_s} must be 0 to half of max_window_s")
        if self.min_scene_s < 0 or self.max_pixels < 1024:
            raise ValueError("min_scene_s must be at least 0 and max_pixels at least 1024")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A stretch of one shot."""

    span: Span
    overlap_s: float
    """Time shared with the previous window of the same shot; 0 for a shot's first."""
    num_cuts: int
    """Shot changes inside the scene: those too close to another to be a border, and 1 for a dissolve
    itself.
    """
    shot_idx: int
    """Counts shots of the video from 0; windows of one shot share it."""


def probe_and_cut(path: str, config: SceneConfig) -> tuple[VideoInfo, list[Scene]]:
    """`probe` and `detect_scenes` of one file, side by side. Raises what they raise."""
    return probe_and(path, lambda info: detect_scenes(info, config))


def detect_scenes(info: VideoInfo, config: SceneConfig) -> list[Scene]:
    """Scenes in order of time. Raises MissingBackend where the chosen detector is not installed."""
    transitions = _find_changes(info, config)
    borders, inner_cuts = _shot_borders(info, transitions, config.min_scene_s)
    scenes = []
    for shot_idx, (first, last) in enumerate(pairwise(borders)):
        previous_end_s = None
        for window_first, window_last in _windows(info.timestamps_s, first, last, config):
            span = _span(info, window_first, window_last)
            overlap_s = 0.0 if previous_end_s is None else max(0.0, previous_end_s - span.start_s)
            previous_end_s = span.end_s
            num_cuts = sum(window_first <= cut < window_last for cut in inner_cuts)
            scenes.append(Scene(span=span, overlap_s=overlap_s, num_cuts=num_cuts, shot_idx=shot_idx))
    return scenes


def _find_changes(info: VideoInfo, config: SceneConfig) -> list[Transition]:
    # Fetched once for the many looks at it. Short stretches far into a file are PyAV's: decord would load the file from
    # its start.
    with local_copy(info.path) as local_path:
        return _changes_in_file(dataclasses.replace(info, path=local_path, backend="pyav"), config)


def _changes_in_file(info: VideoInfo, config: SceneConfig) -> list[Transition]:
    def every_frame(first: int = 0, last: int = info.num_frames) -> Iterable[Frame]:
        span = _span(info, first, last)
        return read_frames(info, span, max_pixels=config.max_pixels, num_threads=config.num_threads)

    if config.detector in BACKENDS:
        finder = load_backend(config.detector, BACKENDS, HOW_TO_INSTALL)(config.transnet_threshold)
        return finder(every_frame())
    gap_s = config.cuts.draft_gap_s
    if gap_s == 0:
        return CutFinder(config.detector, config.cuts)(every_frame())
    keyframes: list[int] = []
    quiet: list[tuple[int, int]] = []
    look = {"max_pixels": config.max_pixels, "num_threads": config.num_threads}
    if config.cuts.trusts_packets:
        keyframes, quiet = closed_and_quiet_groups(info, **look)
    found: list[Transition] = []
    for stretch in unsettled(quiet, info.timestamps_s, _QUIET_MARGIN_S):
        draft = draft_in_pieces(info, keyframes, gap_s=gap_s, stretch=stretch, **look)
        if draft is None:
            draft = made_ahead(draft_frames(info, gap_s=gap_s, stretch=stretch, **look), count=_FRAMES_AHEAD)
        found += find_changes(draft, every_frame, info.timestamps_s, config.detector, config.cuts)
    return without_contained(found)


def _shot_borders(
    info: VideoInfo, transitions: list[Transition], min_scene_s: float
) -> tuple[list[int], list[int]]:
    """First frame of each shot plus the number of frames; and the changes that are not borders."""
    borders, inner_cuts = [0], []
    times_s = info.timestamps_s
    for change in transitions:
        first, following = max(0, change.first_idx), min(info.num_frames, change.next_idx)
        if first < following:
            borders += [i for i in (first, following) if borders[-1] < i < info.num_frames]
            inner_cuts.append(first)
        elif not borders[-1] < first < info.num_frames:
            continue
        elif times_s[first] - times_s[borders[-1]] < min_scene_s:
            inner_cuts.append(first)
        else:
            borders.append(first)
    return [*borders, info.num_frames], inner_cuts


def _windows(times_s: np.ndarray, first: int, last: int, config: SceneConfig) -> list[tuple[int, int]]:
    """Splits frames [first, last) into windows of equal length in time that overlap."""
    start_s, duration_s = float(times_s[first]), float(times_s[last - 1] - times_s[first])
    if duration_s <= config.max_window_s:
        return [(first, last)]
    overlap_s = config.window_overlap_s
    count = math.ceil((duration_s - overlap_s) / (config.max_window_s - overlap_s))
    length_s = (duration_s + (count - 1) * overlap_s) / count
    starts_s = start_s + np.arange(count) * (length_s - overlap_s)
    firsts = np.searchsorted(times_s, starts_s - 1e-6)
    lasts = np.searchsorted(times_s, starts_s + length_s + 1e-6, side="right")
    return [(int(max(a, first)), int(min(b, last))) for a, b in zip(firsts, lasts, strict=True)]


def _span(info: VideoInfo, first: int, last: int) -> Span:
    end_s = float(info.timestamps_s[last]) if last < info.num_frames else info.span.end_s
    return Span(start_s=float(info.timestamps_s[first]), end_s=end_s)
