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

import contextlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue

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


def closed_and_quiet_groups(
    info: VideoInfo, *, max_pixels: int, num_threads: int = 1
) -> tuple[list[int], list[tuple[int, int]]]:
    """Keyframes, all of which start closed groups, and the quiet stretches [first, last) between two of them: frame
    indices, in order; both empty where packets tell nothing. Of containers that do not list their frames, where seeking
    may fail, no keyframes."""
    times: list[int] = []
    keys: list[int] = []
    with contextlib.ExitStack() as stack:
        local_path = stack.enter_context(local_copy(info.path))
        container = stack.enter_context(open_container(local_path, for_packets=True))
        stream = video_stream(container)
        look = stack.enter_context(_KeyframeLook(info, local_path, max_pixels, num_threads))
        try:
            for group, following in _steady_groups(container, stream, times, keys):
                look.compare(group, following)
        except (av.error.FFmpegError, _TellsNothing):
            return [], []
        quiet, time_base, num_listed = look.alike(), stream.time_base, stream.frames
    times_s = np.array([seconds(each, time_base) for each in sorted(times)])
    if len(times_s) != info.num_frames or np.abs(times_s - info.timestamps_s).max() > 1e-6:
        return [], []
    index = {each: k for k, each in enumerate(sorted(times))}
    keyframes = [index[key] for key in keys] if num_listed == len(times) else []
    return keyframes, [(index[first], index[last]) for first, last in quiet]


class _TellsNothing(Exception):
    """Packets without times, or groups that are open."""


def _steady_groups(
    container: av.container.InputContainer, stream: av.VideoStream, times: list[int], keys: list[int]
) -> Iterator[tuple[_Group, av.Packet]]:
    """Groups whose packets show no change, each with the keyframe behind it; `times` takes those of all packets,
    `keys` those of keyframes."""
    group: _Group | None = None
    for packet in container.demux(stream):
        if packet.size == 0 and packet.dts is None:
            continue  # the flush at the end
        time = packet.pts
        if time is None:
            raise _TellsNothing
        times.append(time)
        if packet.is_keyframe:
            keys.append(time)
            if group is not None and _is_steady(group, packet):
                yield group, packet
            group = _Group(packet, time)
        elif group is None or time < group.start:
            raise _TellsNothing
        else:
            group.is_anchor.append(time > max(group.times, default=group.start))
            group.times.append(time)
            group.sizes.append(packet.size)


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
    """Decodes single keyframes, each in whichever decoder is free, and compares those at the ends of groups."""

    def __init__(self, info: VideoInfo, local_path: str, max_pixels: int, num_threads: int) -> None:
        self._info, self._local_path, self._num_threads = info, local_path, num_threads
        self._size = working_size(info.width, info.height, max_pixels)
        self._containers = contextlib.ExitStack()
        self._decoders: SimpleQueue[tuple[av.VideoCodecContext, Converter]] = SimpleQueue()
        self._pool: ThreadPoolExecutor | None = None
        self._last: tuple[av.Packet, Future[np.ndarray | None]] | None = None
        self._asked: deque[tuple[int, int, Future[np.ndarray | None], Future[np.ndarray | None]]] = deque()
        self._alike: list[tuple[int, int]] = []

    def __enter__(self) -> _KeyframeLook:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._containers.close()

    def compare(self, group: _Group, following: av.Packet) -> None:
        """Takes the next group; remembers it where both its keyframes show one place at one brightness."""
        assert following.pts is not None
        self._asked.append((group.start, following.pts, self._image(group.key), self._image(following)))
        while len(self._asked) > 2 * self._num_threads:
            self._settle()

    def alike(self) -> list[tuple[int, int]]:
        """Times of the first and the following keyframe of the groups that were remembered, in order."""
        while self._asked:
            self._settle()
        return self._alike

    def _settle(self) -> None:
        start, end, before, after = self._asked.popleft()
        if _is_alike(before.result(), after.result()):
            self._alike.append((start, end))

    def _image(self, packet: av.Packet) -> Future[np.ndarray | None]:
        if self._last is None or self._last[0] is not packet:
            self._last = packet, self._started_pool().submit(self._decode, packet)
        return self._last[1]

    def _started_pool(self) -> ThreadPoolExecutor:
        """Threads with a decoder each, opened for the first group that needs them."""
        if self._pool is None:
            for _ in range(self._num_threads):
                container = open_container(self._local_path, for_packets=True)
                codec = video_stream(self._containers.enter_context(container)).codec_context
                codec.thread_type = "NONE"
                codec.options = {"skip_loop_filter": "all"}
                self._decoders.put((codec, Converter(self._size, self._info.width, self._info.rotation_deg)))
            self._pool = ThreadPoolExecutor(self._num_threads)
        return self._pool

    def _decode(self, packet: av.Packet) -> np.ndarray | None:
        codec, convert = self._decoders.get()
        try:
            frames = [*codec.decode(packet), *codec.decode(None)]
            return convert(frames[0]) if len(frames) == 1 else None
        except av.error.FFmpegError:
            return None
        finally:
            codec.flush_buffers()
            self._decoders.put((codec, convert))


def _is_alike(before: np.ndarray | None, after: np.ndarray | None) -> bool:
    """Whether both show one place at one brightness; False where one did not decode."""
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
