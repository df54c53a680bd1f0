"""One video file in, the groups of pictures that hold no shot change out, though only keyframes are decoded.

What is coded between two keyframes tells whether the picture changed. A new shot cannot be predicted from the
one before, so its first frame costs nearly what a keyframe costs; a dissolve makes each of its frames dear; a
flat or black picture costs next to nothing. A group is quiet where the keyframes at both its ends show one place
at one brightness, keyframes are much dearer than the frames between them, and of those none is much dearer or
cheaper than the others. Every other group is left to the detectors: so are open groups, files whose packets do
not tell frame times, and whatever lies behind the last keyframe.

Limits: an encoder that spends the same on each frame makes no group quiet, nor does noise that costs as much as
the picture. A shot that looks alike at both ends and changes by less than a keyframe's cost between them is
taken for one. tests/annotate/test_quiet.py cuts an edited film of six encoders with and without.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import av
import av.error
import cv2
import numpy as np

from worldline.annotate.container import open_container, seconds, video_stream
from worldline.annotate.decoder import Converter
from worldline.annotate.dissolves import likeness_of_place
from worldline.annotate.video import VideoInfo, local_copy, working_size

_MIN_FRAMES = 4
"""Shorter groups between keyframes cost more to look at than to decode."""

_MAX_MEDIAN_OVER_KEY = 0.5
_MAX_OVER_MEDIAN = 2.0
_MAX_WAY_TO_KEY = 0.25
"""Of the way from the median to the cheaper keyframe: cuts went 0.4 of it or beyond twice the median."""
_MIN_OVER_MEDIAN = 0.5

_MIN_LIKENESS = 0.93
"""A cross-fade between shots that have nothing in common leaves this likeness when it is 0.28 on its way."""
_MAX_GAIN = 1.15
_MIN_LUMA = 32.0
"""Keyframes that are darker on the mean, 0-255, tell nothing: that is for the fade detector."""


@dataclass(slots=True)
class _Group:
    """A keyframe and what follows it up to the next."""

    key: av.Packet
    start: int
    """Time stamp of the keyframe."""
    times: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    is_anchor: list[bool] = field(default_factory=list)
    """Shown after everything coded before it: what stands between such frames is smaller by nature."""


def quiet_groups(info: VideoInfo, *, max_pixels: int) -> list[tuple[int, int]]:
    """Stretches [first, last) of frame indices, both keyframes, in order; empty where packets tell nothing."""
    with local_copy(info.path) as local_path, open_container(local_path, for_packets=True) as container:
        stream = video_stream(container)
        stream.codec_context.thread_type = "NONE"
        stream.codec_context.options = {"skip_loop_filter": "all"}
        convert = Converter(working_size(info.width, info.height, max_pixels), info.width, info.rotation_deg)
        look = _KeyframeLook(stream.codec_context, convert)
        times: list[int] = []
        quiet: list[tuple[int, int]] = []
        group: _Group | None = None
        try:
            for packet in container.demux(stream):
                if packet.size == 0 and packet.dts is None:
                    continue  # the flush at the end
                time = packet.pts
                if time is None:
                    return []
                times.append(time)
                if packet.is_keyframe:
                    if group is not None and _is_steady(group, packet) and look.is_alike(group.key, packet):
                        quiet.append((group.start, time))
                    group = _Group(packet, time)
                elif group is None or time < group.start:
                    return []
                else:
                    group.is_anchor.append(time > max(group.times, default=group.start))
                    group.times.append(time)
                    group.sizes.append(packet.size)
        except av.error.FFmpegError:
            return []
        time_base = stream.time_base
    times_s = np.array([seconds(each, time_base) for each in sorted(times)])
    if len(times_s) != info.num_frames or np.abs(times_s - info.timestamps_s).max() > 1e-6:
        return []
    index = {each: k for k, each in enumerate(sorted(times))}
    return [(index[first], index[last]) for first, last in quiet]


def _is_steady(group: _Group, following: av.Packet) -> bool:
    if len(group.sizes) < _MIN_FRAMES:
        return False
    sizes, is_anchor = np.array(group.sizes), np.array(group.is_anchor)
    median, cheaper_key = np.median(sizes[is_anchor]), min(group.key.size, following.size)
    return bool(
        median <= _MAX_MEDIAN_OVER_KEY * cheaper_key
        and sizes.max() <= _MAX_OVER_MEDIAN * median
        and sizes.max() - median <= _MAX_WAY_TO_KEY * (cheaper_key - median)
        and sizes[is_anchor].min() >= _MIN_OVER_MEDIAN * median
    )


class _KeyframeLook:
    """Decodes single keyframes and compares them; remembers the last."""

    def __init__(self, codec: av.VideoCodecContext, convert: Converter) -> None:
        self._codec, self._convert = codec, convert
        self._last: tuple[av.Packet, np.ndarray] | None = None

    def is_alike(self, first: av.Packet, second: av.Packet) -> bool:
        """Whether both show one place at one brightness; False where one does not decode."""
        before, after = self._image(first), self._image(second)
        if before is None or after is None:
            return False
        lumas = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (before, after)]
        if min(float(luma.mean()) for luma in lumas) < _MIN_LUMA:
            return False
        for measure in (np.mean, np.std):
            low, high = sorted(float(measure(luma)) + 1.0 for luma in lumas)
            if high > _MAX_GAIN * low:
                return False
        return likeness_of_place(before, after) > _MIN_LIKENESS

    def _image(self, packet: av.Packet) -> np.ndarray | None:
        if self._last is not None and self._last[0] is packet:
            return self._last[1]
        try:
            frames = [*self._codec.decode(packet), *self._codec.decode(None)]
        except av.error.FFmpegError:
            return None
        finally:
            self._codec.flush_buffers()
        if len(frames) != 1:
            return None
        image = self._convert(frames[0])
        self._last = packet, image
        return image


def unsettled(
    quiet: list[tuple[int, int]], timestamps_s: np.ndarray, margin_s: float
) -> list[tuple[int, int]]:
    """What is left of the file, as disjoint stretches [first, last) that reach `margin_s` into quiet groups.

    `timestamps_s`: [T]. Into the group before a stretch they reach only where all of it lies within the margin:
    a group decodes from its keyframe on.
    """
    count = len(timestamps_s)
    is_open = np.ones(count, bool)
    for first, last in quiet:
        is_open[first:last] = False
    starts_quiet = {last: first for first, last in quiet}
    edges = np.flatnonzero(np.diff(is_open.astype(int), prepend=0, append=0)).reshape(-1, 2)
    stretches: list[tuple[int, int]] = []
    for first, end in edges.tolist():
        start_s = timestamps_s[first] - margin_s
        while first in starts_quiet and timestamps_s[starts_quiet[first]] >= start_s:
            first = starts_quiet[first]
        last = end if end == count else int(np.searchsorted(timestamps_s, timestamps_s[end] + margin_s)) + 1
        if stretches and first <= stretches[-1][1]:
            first = stretches.pop()[0]
        stretches.append((first, min(last, count)))
    return stretches
