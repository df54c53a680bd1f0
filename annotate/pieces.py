"""One video file and its keyframes in, `draft_frames` of it out, made by several decoders at once.

A decoder whose threads share one stream waits where a frame refers to the one before: two cores were 0.75 busy.
Decoders that each have closed groups of pictures to themselves wait for nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice, pairwise
from queue import SimpleQueue

from worldline.annotate.video import Frame, VideoInfo, draft_frames

_PIECES_A_THREAD = 3
_MIN_FRAMES = 32
"""A piece that is shorter costs more to open than it gains."""
_MAX_FRAMES = 300
"""Aimed at: pieces are held in memory, 43 KB a picture of 160x90."""
_MAX_GROUP_FRAMES = 900
"""Files with longer groups are left to one decoder."""


def draft_in_pieces(
    info: VideoInfo,
    keyframes: list[int],
    *,
    max_pixels: int,
    gap_s: float,
    num_threads: int,
    stretch: tuple[int, int],
) -> Iterator[Frame] | None:
    """The frames of `draft_frames`, or None where the stretch is not to be split.

    `keyframes`: indices at which closed groups start, in order.
    """
    pieces = split(keyframes, stretch, num_threads)
    if num_threads < 2 or len(pieces) < 2 or max(last - first for first, last in pieces) > _MAX_GROUP_FRAMES:
        return None

    def fill(frames: SimpleQueue[Frame | None], piece: tuple[int, int]) -> None:
        try:
            for frame in draft_frames(info, max_pixels=max_pixels, gap_s=gap_s, stretch=piece):
                frames.put(frame)
        finally:
            frames.put(None)

    def in_order() -> Iterator[Frame]:
        with ThreadPoolExecutor(num_threads) as pool:
            rest = iter(pieces)
            waiting: deque[tuple[SimpleQueue[Frame | None], Future[None]]] = deque()
            try:
                while True:
                    for piece in islice(rest, 2 * num_threads - len(waiting)):
                        frames: SimpleQueue[Frame | None] = SimpleQueue()
                        waiting.append((frames, pool.submit(fill, frames, piece)))
                    if not waiting:
                        return
                    frames, filled = waiting.popleft()
                    while (frame := frames.get()) is not None:
                        yield frame
                    filled.result()  # raises what ended the piece
            finally:
                pool.shutdown(cancel_futures=True)

    return in_order()


def split(keyframes: list[int], stretch: tuple[int, int], num_threads: int) -> list[tuple[int, int]]:
    """Pieces [first, last) that make up the stretch. All but the first start at a keyframe whose frame before is none,
    where the draft starts anew anyhow."""
    first, last = stretch
    least = min(max((last - first) // (_PIECES_A_THREAD * num_threads), _MIN_FRAMES), _MAX_FRAMES)
    starts = [first]
    for before, key in pairwise([-1, *keyframes]):
        if key - before > 1 and key - starts[-1] >= least and last - key >= _MIN_FRAMES:
            starts.append(key)
    return list(pairwise([*starts, last]))
