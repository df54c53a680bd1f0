"""One local video file and the times of its frames in, PyAV's frames with their index out.

`walk` gives every frame of a stretch. As a draft it leaves out what no other frame refers to (half of the
frames where there are B-frames) and the loop filter, which makes small pictures cheaper by up to half; the
frames that come keep their true index and time. B-frames that others refer to have to be decoded: without them
the frames that follow were off by 31 of 255 on the mean in a video where P-frames refer to them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from worldline.annotate.container import decode, frame_time, open_for_decoding, seconds, seek, video_stream

_DRAFT_THREADS = 3
"""Decoder threads of a draft for each that is asked for. Packets go to the threads in turn, also those that are
then left out: with two threads and every second packet left out, one thread has all the work.
"""

_Item = TypeVar("_Item")


def walk(
    local_path: str,
    timestamps_s: np.ndarray,
    first: int,
    last: int,
    *,
    num_threads: int = 1,
    is_draft: bool = False,
) -> Iterator[tuple[av.VideoFrame, int]]:
    """Frames with first <= index < last; indices strictly increase. `timestamps_s`: [T] of the whole file."""
    if first >= last:
        return
    start_s = float(timestamps_s[first])
    previous = first - 1
    # A broken index may refuse to seek, or land past the stretch or where times are unknown: then from the
    # start.
    for is_sought in (True, False) if first > 0 else (False,):
        with open_for_decoding(local_path) as container:
            stream = video_stream(container)
            stream.codec_context.thread_count = num_threads
            stream.codec_context.thread_type = "AUTO" if num_threads > 1 else "NONE"
            if is_draft:
                if num_threads > 1:
                    stream.codec_context.thread_count = _DRAFT_THREADS * num_threads
                stream.codec_context.skip_frame = "NONREF"
                stream.codec_context.options = {"skip_loop_filter": "all"}
            if is_sought and not seek(container, stream, start_s):
                continue
            count = -1
            time_base = stream.time_base  # made anew at each look
            for count, frame in enumerate(decode(container, stream)):
                known_s = seconds(frame.pts, time_base)
                time_s = frame_time(frame, count, stream) if known_s is None else known_s
                is_lost = known_s is None or known_s > start_s + 1e-9
                if is_sought and count == 0 and is_lost:
                    count = -1
                    break
                index = _index_of(timestamps_s, time_s)
                if index is None or index <= previous:
                    continue
                if index >= last:
                    return
                previous = index
                yield frame, index
            if count >= 0:
                return


def _index_of(timestamps_s: np.ndarray, time_s: float) -> int | None:
    index = int(np.searchsorted(timestamps_s, time_s - 1e-9))
    is_known = index < len(timestamps_s) and abs(timestamps_s[index] - time_s) < 1e-9 * max(1.0, abs(time_s))
    return index if is_known else None


def made_ahead(items: Iterator[_Item], *, count: int) -> Iterator[_Item]:
    """The same items, up to `count` of them made in a thread while the caller works on the one before.

    Not every decoder has threads, and scaling never does; FFmpeg and OpenCV leave the interpreter to others.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, items, None) for _ in range(count))
        try:
            while (item := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next, items, None))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)


class Converter:
    """Frames of one file to upright RGB of one size."""

    def __init__(self, size: tuple[int, int], width: int, rotation_deg: int) -> None:
        """`size`: (width, height) wanted, upright; `width`: of the upright picture before scaling."""
        self._size = size[::-1] if rotation_deg % 180 else size
        self._rotation_deg = rotation_deg
        # Averaging is cheaper than bicubic, and as good where each pixel covers many.
        self._interpolation = "AREA" if size[0] * 3 <= width else "BICUBIC"
        # Kept from frame to frame: making swscale's tables anew costs more than scaling a small picture.
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """[height, width, 3] uint8, contiguous."""
        # One thread: handing slices to others costs more than scaling them.
        rgb = self._reformatter.reformat(
            frame, *self._size, "rgb24", interpolation=self._interpolation, threads=1
        )
        image: np.ndarray = rgb.to_ndarray()
        if self._rotation_deg:
            image = np.ascontiguousarray(np.rot90(image, -(self._rotation_deg // 90)))
        return image
