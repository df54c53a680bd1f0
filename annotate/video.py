"""Video files in, facts about them and RGB frames with their container times out.

`probe` reads a file's packets once and decodes the first frame; `read_frames` decodes a span in one sequential
pass at the size the caller works at, so nothing ever holds more than a few frames. Both convert and scale
inside FFmpeg's swscale (bicubic with anti-aliasing), which measured cheapest.

Two decoders stand behind one interface. decord reads short 8-bit files whose container lists every frame and
whose groups of pictures are closed: there its pixels are PyAV's, bit for bit. In transport streams, fragmented
files and open groups it was seen to return other frames than asked for, without an error; those, rotated,
10-bit and damaged files go to PyAV. So do large files, because decord keeps all of a file's packets in memory.
A decoder's error inside a file ends a frame, not the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import av
import av.error
import decord
import fsspec
import numpy as np

from worldline.annotate.container import (
    decoded_times,
    first_frame_and_times,
    open_container,
    seconds,
    video_stream,
)
from worldline.annotate.decoder import Converter, walk
from worldline.datasets.schema import ClipRejected

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

MIN_SIDE_PX = 32
"""Smaller videos are refused by `probe`: neither corners nor shot changes mean anything there."""

_DECORD_PIXEL_FORMATS = frozenset(
    {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "nv12"}
)
"""8-bit formats whose frames came out equal from decord and PyAV."""

_DECORD_MAX_BYTES = 32 << 20
"""decord's memory grows by the size of the file: 10 minutes of 2.5 Mbit/s took 190 MiB. PyAV's stays flat, at
the same speed.
"""

_TIME_TOLERANCE_S = 1e-6
"""Spans count to the microsecond, as clip identities do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Half-open time interval [start_s, end_s) on the container's clock (PTS)."""

    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        if not self.start_s < self.end_s:
            raise ValueError(f"span is empty: [{self.start_s}, {self.end_s})")

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.end_s - self.start_s


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VideoInfo:
    """What `probe` found out about a file."""

    path: str
    """Local path or URI, as given to `probe`."""
    video_id: str
    """SHA-256 of the content, first 32 hex digits."""
    size_bytes: int
    codec: str
    pixel_format: str
    """FFmpeg's name."""
    width: int
    """Display width in pixels: after rotation, with square pixels."""
    height: int
    rotation_deg: int
    """Clockwise rotation that is applied to the stored frames: 0, 90, 180 or 270."""
    fps: float
    """Mean frame rate; the header's for a single frame, NaN where that is missing too."""
    is_variable_rate: bool
    """The gaps between frame times differ by more than a tenth."""
    num_frames: int
    duration_s: float
    """Last frame time minus first plus one mean gap; NaN where unknown."""
    timestamps_s: np.ndarray
    """[num_frames] float64, strictly increasing container time (PTS) of every frame that can be decoded."""
    backend: str
    """Decoder that reads the file: decord or pyav."""

    @property
    def span(self) -> Span:
        """The whole file."""
        gap_s = 1.0 / self.fps if math.isfinite(self.fps) else 1.0
        return Span(start_s=float(self.timestamps_s[0]), end_s=float(self.timestamps_s[-1]) + gap_s)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One decoded frame."""

    index: int
    """Counts frames in the whole file: `info.timestamps_s[index] == timestamp_s`."""
    timestamp_s: float
    image: np.ndarray
    """[height, width, 3] uint8 RGB, contiguous, owned by the receiver."""


def working_size(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """Largest even (width, height) of equal shape with at most `max_pixels` pixels, never larger than given."""
    scale = min(1.0, math.sqrt(max_pixels / (width * height)))
    # The small addition keeps exact ratios (640 * 0.5) from falling to the even number below.
    return max(2, int(width * scale / 2 + 1e-9) * 2), max(2, int(height * scale / 2 + 1e-9) * 2)


@contextlib.contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """Yields a local path of `uri`; a remote file (s3://, http://, memory://) is fetched, later removed.

    Decoders seek, so they need a real file. Wrap several calls in one `local_copy` to fetch once. Raises
    what fsspec raises where the remote file cannot be had.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        yield os.path.abspath(uri)
    elif scheme in ("file", "local"):
        yield os.path.abspath(rest)
    else:
        with tempfile.TemporaryDirectory(prefix="worldline-") as folder:
            local_path = os.path.join(folder, "video" + Path(rest).suffix[:8])
            with fsspec.open(uri, "rb") as remote, open(local_path, "wb") as local:
                shutil.copyfileobj(remote, local, length=1 << 20)
            yield local_path


# Probing


def probe(path: str) -> VideoInfo:
    """Reads the facts about a video file or fsspec URI, without decoding it where its index can be trusted.

    Raises ClipRejected("probe", reason, detail): not_found, is_a_folder, no_permission, bad_file_name,
    empty_file, not_a_video, truncated, no_video_stream, unreadable (no frame decodes) or too_small.
    """
    return probe_and(path, lambda info: None)[0]


def probe_and(path: str, work: Callable[[VideoInfo], _Result]) -> tuple[VideoInfo, _Result]:
    """`probe`, and what `work` makes of the facts, which it gets while decord is tried and the file is hashed: until
    then the backend is pyav and the id empty. Raises what `probe` and `work` raise."""
    try:
        with local_copy(path) as local_path, ThreadPoolExecutor(2) as pool:
            # hashlib, decord and FFmpeg all leave the interpreter to others while they work.
            size_bytes = _size(local_path)
            video_id = pool.submit(_hash, local_path)
            info, first = _facts(path, local_path, size_bytes)
            agrees = (
                None if first is None else pool.submit(_decord_agrees, local_path, info.timestamps_s, first)
            )
            result = work(info)
            backend = "decord" if agrees is not None and agrees.result() else "pyav"
            return replace(info, video_id=video_id.result(), backend=backend), result
    except FileNotFoundError as error:
        raise ClipRejected("probe", "not_found", str(path)) from error


def _facts(path: str, local_path: str, size_bytes: int) -> tuple[VideoInfo, av.VideoFrame | None]:
    """All but the id and the backend, and the first frame where decord may read the file."""
    with open_container(local_path, for_packets=True) as container:
        stream = video_stream(container)
        first, packets = first_frame_and_times(container, stream, size_bytes)
        codec, header_rate = stream.codec_context.name, stream.average_rate
        rotation_deg = _clockwise_rotation(first)
        aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
        width, height = _display_size(first, aspect, rotation_deg)
        if min(width, height) < MIN_SIDE_PX:
            raise ClipRejected(
                "probe", "too_small", f"{width}x{height}, the shorter side needs {MIN_SIDE_PX} px"
            )
        first_s = seconds(first.pts, stream.time_base)
        tick_s = float(stream.time_base) if stream.time_base else 0.0
    if packets is None or first_s is None or abs(packets.sorted_s[0] - first_s) > 1e-9:
        timestamps_s, is_plain = decoded_times(local_path), False
    else:
        timestamps_s = packets.sorted_s
        is_plain = packets.is_seekable and rotation_deg == 0 and first.format.name in _DECORD_PIXEL_FORMATS
        is_plain &= size_bytes <= _DECORD_MAX_BYTES
    num_frames = len(timestamps_s)
    gaps_s = np.diff(timestamps_s)
    mean_gap_s = (
        float(gaps_s.mean()) if num_frames > 1 else (1.0 / float(header_rate) if header_rate else math.nan)
    )
    info = VideoInfo(
        path=path,
        video_id="",
        size_bytes=size_bytes,
        codec=codec,
        pixel_format=first.format.name,
        width=width,
        height=height,
        rotation_deg=rotation_deg,
        fps=1.0 / mean_gap_s,
        # Containers round times to their tick, which alone makes gaps differ by up to two ticks.
        is_variable_rate=num_frames > 2 and float(np.ptp(gaps_s)) > 0.1 * mean_gap_s + 2 * tick_s,
        num_frames=num_frames,
        duration_s=float(timestamps_s[-1] - timestamps_s[0]) + mean_gap_s,
        timestamps_s=timestamps_s,
        backend="pyav",
    )
    return info, first if is_plain else None


def _size(local_path: str) -> int:
    try:
        local_path.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ClipRejected("probe", "bad_file_name", f"{local_path!a} is not UTF-8; rename it") from error
    try:
        with open(local_path, "rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
    except IsADirectoryError as error:
        raise ClipRejected("probe", "is_a_folder", local_path) from error
    except PermissionError as error:
        raise ClipRejected("probe", "no_permission", f"{local_path}: grant read permission") from error
    if size_bytes == 0:
        raise ClipRejected("probe", "empty_file", "0 bytes; copy or download it again")
    return size_bytes


def _hash(local_path: str) -> str:
    with open(local_path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _clockwise_rotation(frame: av.VideoFrame) -> int:
    # PyAV gives the display matrix' angle, which counts anticlockwise; other than right angles stay as they
    # are.
    clockwise_deg = -frame.rotation % 360
    return clockwise_deg if clockwise_deg % 90 == 0 else 0


def _display_size(frame: av.VideoFrame, aspect: Fraction | None, rotation_deg: int) -> tuple[int, int]:
    width, height = frame.width, frame.height
    # Absurd pixel shapes are damaged headers.
    if aspect and 0.25 <= aspect <= 4 and aspect != 1:
        width = round(width * float(aspect))
    return (height, width) if rotation_deg % 180 else (width, height)


def _decord_agrees(local_path: str, timestamps_s: np.ndarray, first: av.VideoFrame) -> bool:
    """Whether decord sees the frames that the container lists, and the same first picture."""
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(local_path, num_threads=1)
        times_s = reader.get_frame_timestamp(range(len(reader)))[:, 0]
        image = reader.next().asnumpy()
    except (decord.DECORDError, RuntimeError, AssertionError, StopIteration) as error:
        logger.info("%s: decord declines, PyAV reads it: %s", local_path, _line(error))
        return False
    # decord keeps single precision and starts some files at zero; only order and spacing have to agree.
    if len(times_s) != len(timestamps_s):
        return False
    drift_s = (times_s - times_s[0]) - (timestamps_s - timestamps_s[0])
    return bool(np.abs(drift_s).max() < 1e-3) and np.array_equal(image, first.to_ndarray(format="rgb24"))


# Reading


def read_frames(
    info: VideoInfo,
    span: Span | None = None,
    *,
    max_pixels: int | None = None,
    stride: int = 1,
    num_threads: int = 1,
) -> Iterator[Frame]:
    """Decodes the frames of a span (default: all) in order, in one pass, rotated upright.

    Frames are scaled down to `working_size(info.width, info.height, max_pixels)`; without `max_pixels` they
    keep the display size. `stride` n yields every n-th frame, counted from the span's first. Starts at the
    keyframe before the span. A frame that does not decode is missing from the sequence; indices and times
    of the others stay true. A remote `info.path` is fetched for this call (see `local_copy`).
    """
    if stride < 1 or num_threads < 1:
        raise ValueError(f"stride {stride} and num_threads {num_threads} must be at least 1")
    first, last = 0, info.num_frames
    if span is not None:
        bounds_s = [span.start_s - _TIME_TOLERANCE_S, span.end_s - _TIME_TOLERANCE_S]
        first, last = (int(i) for i in np.searchsorted(info.timestamps_s, bounds_s))
    size = (info.width, info.height)
    if max_pixels is not None:
        size = working_size(info.width, info.height, max_pixels)
    return _read(info, first, last, size, stride, num_threads)


def _read(
    info: VideoInfo, first: int, last: int, size: tuple[int, int], stride: int, num_threads: int
) -> Iterator[Frame]:
    with local_copy(info.path) as local_path:
        position = first
        if info.backend == "decord" and first < last:
            try:
                for frame in _read_decord(info, local_path, first, last, size, stride, num_threads):
                    position = frame.index + stride
                    yield frame
                return
            except decord.DECORDError as error:
                logger.warning(
                    "%s: damaged near frame %d, PyAV reads on: %s", info.path, position, _line(error)
                )
        yield from _read_pyav(info, local_path, position, last, size, stride, num_threads)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _read_decord(
    info: VideoInfo,
    local_path: str,
    first: int,
    last: int,
    size: tuple[int, int],
    stride: int,
    num_threads: int,
) -> Iterator[Frame]:
    decord.logging.set_level(decord.logging.QUIET)
    reader = decord.VideoReader(local_path, width=size[0], height=size[1], num_threads=num_threads)
    if first > 0:
        reader.seek_accurate(first)
    for index in range(first, last):
        if (index - first) % stride:
            reader.skip_frames(1)
            continue
        try:
            image = reader.next().asnumpy()
        except StopIteration:
            raise decord.DECORDError(f"ends at frame {index} of {info.num_frames}") from None
        yield Frame(index, float(info.timestamps_s[index]), image)


def _read_pyav(
    info: VideoInfo,
    local_path: str,
    first: int,
    last: int,
    size: tuple[int, int],
    stride: int,
    num_threads: int,
) -> Iterator[Frame]:
    convert = Converter(size, info.width, info.rotation_deg)
    for frame, index in walk(local_path, info.timestamps_s, first, last, num_threads=num_threads):
        if (index - first) % stride == 0:
            yield Frame(index, float(info.timestamps_s[index]), convert(frame))


def draft_frames(
    info: VideoInfo,
    *,
    max_pixels: int,
    gap_s: float,
    num_threads: int = 1,
    stretch: tuple[int, int] | None = None,
) -> Iterator[Frame]:
    """A cheap look at the file or at a stretch [first, last) of its frames: in order, frames some `gap_s` apart,
    each keyframe and the frame before it.

    Frames that no other refers to are not decoded, so gaps may be longer. Pixels differ a little from
    `read_frames`' (no loop filter); indices and times are true. The frame before a keyframe is there because
    encoders put keyframes at shot changes.
    """
    convert = Converter(working_size(info.width, info.height, max_pixels), info.width, info.rotation_deg)

    def made(frame: av.VideoFrame, index: int) -> Frame:
        return Frame(index, float(info.timestamps_s[index]), convert(frame))

    first, last = stretch or (0, info.num_frames)
    with local_copy(info.path) as local_path:
        frames = walk(local_path, info.timestamps_s, first, last, num_threads=num_threads, is_draft=True)
        last_s = -math.inf
        passed: tuple[av.VideoFrame, int] | None = None
        was_keyframe = False
        for frame, index in frames:
            is_border = frame.key_frame and not was_keyframe  # in all-intra files every frame is one
            was_keyframe = bool(frame.key_frame)
            if not is_border and info.timestamps_s[index] - last_s < gap_s:
                passed = (frame, index)
                continue
            if is_border and passed is not None:
                yield made(*passed)
            yield made(frame, index)
            last_s, passed = info.timestamps_s[index], None
        if passed is not None:
            yield made(*passed)
