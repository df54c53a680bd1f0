"""Frames of one scene by index, decoded when asked for, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import numpy as np

from worldline.annotate.video import Frame, Span, VideoInfo, read_frames

_KEPT_BYTES = 128_000_000
"""Frames kept for a second look: some 500 of 320x240, more than a plane sweep reaches back."""


class ClipFrames:
    """A `FrameSource` (annotate/depth.py) over a span of a video.

    Reading onwards decodes onwards; frames passed by are kept up to a limit of memory, and one further back
    is decoded again from a little before it.
    """

    def __init__(
        self,
        info: VideoInfo,
        timestamps_s: np.ndarray,
        *,
        max_pixels: int,
        num_threads: int = 1,
        stretch: float = 1.0,
    ) -> None:
        """timestamps_s [T]: the frames' times. stretch: factor on the height (`square_pixels`)."""
        self._info, self._times = info, np.asarray(timestamps_s, dtype=np.float64)
        self._max_pixels, self._num_threads, self._stretch = max_pixels, num_threads, stretch
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._next = len(self._times)
        self._decoder: Iterator[Frame] = iter(())

    def __len__(self) -> int:
        return len(self._times)

    def __getitem__(self, frame_idx: int) -> np.ndarray:
        """[H, W, 3] uint8 RGB. Raises IndexError outside the clip, RuntimeError where a frame that decoded
        before does not."""
        if not 0 <= frame_idx < len(self._times):
            raise IndexError(f"frame {frame_idx} of {len(self._times)}")
        if frame_idx not in self._kept and not self._next <= frame_idx <= self._next + 200:
            self._restart(max(0, frame_idx - 8))
        while frame_idx not in self._kept:
            frame = next(self._decoder, None)
            if frame is None:
                raise RuntimeError(f"{self._info.path}: frame {frame_idx} of the clip does not decode again")
            idx = int(np.searchsorted(self._times, frame.timestamp_s - 1e-6))
            self._keep(idx, square_pixels(frame.image, self._stretch))
            self._next = idx + 1
        return self._kept[frame_idx]

    def _restart(self, frame_idx: int) -> None:
        gap_s = float(np.median(np.diff(self._times))) if len(self._times) > 1 else 1.0
        span = Span(start_s=float(self._times[frame_idx]), end_s=float(self._times[-1]) + 0.5 * gap_s)
        self._decoder = read_frames(
            self._info, span, max_pixels=self._max_pixels, num_threads=self._num_threads
        )
        self._next = frame_idx

    def _keep(self, frame_idx: int, image: np.ndarray) -> None:
        self._kept[frame_idx] = image
        self._kept.move_to_end(frame_idx)
        while len(self._kept) > max(8, _KEPT_BYTES // image.nbytes):
            self._kept.popitem(last=False)


def square_pixels(image: np.ndarray, stretch: float) -> np.ndarray:
    """The engine holds one focal length, so known unequal ones are made equal by stretching the image's
    height by fx / fy."""
    import cv2

    if abs(stretch - 1) < 1e-3:
        return image
    return cv2.resize(image, (image.shape[1], round(image.shape[0] * stretch)), interpolation=cv2.INTER_AREA)
