"""One video file on local disk in, its PyAV container, frames and frame times out: the ground `video.py`
stands on.

FFmpeg reads anything, so what may be opened is narrowed here to containers that hold video, and to the file
itself. Errors inside a file end a packet, not the file.
"""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import av.error
import av.stream
import numpy as np

from worldline.datasets.schema import ClipRejected

logger = logging.getLogger(__name__)

_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mxf,nut,dv,ivf,obu,rm,wtv,gxf,"
    "h264,hevc,m4v,mpegvideo,mjpeg,yuv4mpegpipe"
)
"""FFmpeg demuxers that are tried. Without playlists (which open other files), still images and text."""


_MAX_STREAMS = 16


def open_container(local_path: str, *, for_packets: bool = False) -> av.container.InputContainer:
    """`for_packets`: without decoding pictures to learn how frames are delayed, which MP4 files need for nothing
    but decoding in order: their packets hold the time of their frame. Other files open as ever.
    """
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
    looks = [{"skip_frame": "all"}] * _MAX_STREAMS if for_packets and _is_mp4(local_path) else []
    try:
        # PyAV takes one dictionary a stream, whatever its stubs say.
        return av.open(
            local_path,
            options=options,
            stream_options=looks,  # type: ignore[arg-type]
            metadata_errors="replace",
        )
    except av.error.FFmpegError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO):
            raise  # the machine's trouble, not the file's
        if _is_mp4(local_path):
            detail = "its index (moov) is missing or cut: the file ends early; copy or download it again"
            raise ClipRejected("probe", "truncated", detail) from error
        raise ClipRejected("probe", "not_a_video", f"no known video container: {error.strerror}") from error


def open_for_decoding(local_path: str) -> av.container.InputContainer:
    """As `open_container`, without decoding pictures first where an MP4 file's header says that frames are delayed;
    one that says nothing may have delayed frames too."""
    container = open_container(local_path, for_packets=True)
    if not _is_mp4(local_path) or video_stream(container).codec_context.has_b_frames:
        return container
    container.close()
    return open_container(local_path)


def _is_mp4(local_path: str) -> bool:
    with open(local_path, "rb") as file:
        return file.read(12)[4:8] == b"ftyp"


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    cover = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & cover]
    if not streams:
        kinds = sorted({s.type for s in container.streams})
        raise ClipRejected("probe", "no_video_stream", f"streams: {', '.join(kinds) or 'none'}")
    best = container.streams.best("video")
    stream = best if isinstance(best, av.VideoStream) and best in streams else streams[0]
    for other in container.streams:
        if other is not stream:
            other.discard = av.stream.Discard.all
    return stream


def decode(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Frames in display order; packets that do not decode are passed over, a broken container ends them."""
    return _decode(container, container.demux(stream))


def _decode(container: av.container.InputContainer, packets: Iterator[av.Packet]) -> Iterator[av.VideoFrame]:
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as error:
            logger.warning("%s: container breaks off: %s", container.name, error)
            packet = None
        if packet is None:
            return
        try:
            yield from packet.decode()
        except av.error.EOFError:
            return
        except av.error.FFmpegError as error:
            logger.debug("%s: packet at %s does not decode: %s", container.name, packet.pts, error)


def seconds(pts: int | None, time_base: Fraction | None) -> float | None:
    # Rounds as float(pts * time_base) does, without making a fraction.
    return None if pts is None or not time_base else pts * time_base.numerator / time_base.denominator


@dataclass(frozen=True, kw_only=True, slots=True)
class PacketTimes:
    """What a file's packets tell about its frames."""

    sorted_s: np.ndarray
    """[T] float64 time of each frame."""
    is_seekable: bool
    """The container lists all its frames up front, and no frame refers across a keyframe to earlier ones."""


def first_frame_and_times(
    container: av.container.InputContainer, stream: av.VideoStream, size_bytes: int
) -> tuple[av.VideoFrame, PacketTimes | None]:
    """The first frame that decodes, and all frame times without decoding the others: None where packets cannot
    tell which frames decode. `size_bytes`: of the file.
    """
    if stream.codec_context is None:
        raise ClipRejected("probe", "unreadable", "no decoder for the video stream")
    log = _PacketLog(container, stream, size_bytes)
    packets = iter(log)
    try:
        first = _frame_alone(stream.codec_context, packets) or next(_decode(container, packets), None)
    except ValueError as error:  # PyAV's word for a codec that cannot be opened
        raise ClipRejected("probe", "unreadable", str(error)) from error
    if first is None:
        raise ClipRejected(
            "probe", "unreadable", f"no frame of the {stream.codec_context.name} stream decodes"
        )
    return first, log.times(packets)


def _frame_alone(codec: av.VideoCodecContext, packets: Iterator[av.Packet]) -> av.VideoFrame | None:
    """The frame of the first packet, without decoding the frames that a decoder waits for to put them in order;
    None where it is no keyframe, is not shown or does not decode.
    """
    frames: list[av.VideoFrame] = []
    try:
        packet = next(packets, None)
        if packet is not None:
            frames = packet.decode()
            if packet.is_keyframe and not packet.is_discard:
                frames = frames or codec.decode(None)
                codec.flush_buffers()  # asked for its last frame, a decoder takes no packets before this
    except av.error.FFmpegError as error:
        logger.debug("the first packet does not decode: %s", error)
        codec.flush_buffers()
    return frames[0] if frames else None


class _PacketLog:
    """A stream's packets, passed on one by one; what they tell about frame times is remembered."""

    def __init__(
        self, container: av.container.InputContainer, stream: av.VideoStream, size_bytes: int
    ) -> None:
        self._container, self._stream, self._size_bytes = container, stream, size_bytes
        self._times_s: list[float] = []
        self._keyframe_s = -math.inf
        self._is_closed = True
        # VP8's invisible frames are packets of their own.
        self._is_clear = stream.codec_context.name != "vp8"

    def __iter__(self) -> Iterator[av.Packet]:
        time_base = self._stream.time_base  # made anew at each look
        try:
            for packet in self._container.demux(self._stream):
                if packet.size > 0 or packet.dts is not None:  # else the flush at the end
                    self._note(packet, seconds(packet.pts, time_base))
                yield packet
        except av.error.FFmpegError:
            self._is_clear = False
            raise

    def _note(self, packet: av.Packet, time_s: float | None) -> None:
        is_cut = packet.pos is not None and packet.pos + packet.size > self._size_bytes
        if time_s is None or packet.is_corrupt or is_cut:
            self._is_clear = False
            return
        self._keyframe_s = time_s if packet.is_keyframe else self._keyframe_s
        self._is_closed &= time_s >= self._keyframe_s
        if not packet.is_discard:
            self._times_s.append(time_s)

    def times(self, rest: Iterator[av.Packet]) -> PacketTimes | None:
        """Reads the rest of the packets; None where they do not tell."""
        try:
            while self._is_clear and next(rest, None) is not None:
                pass
        except av.error.FFmpegError as error:
            logger.warning("%s: container breaks off: %s", self._container.name, error)
        # A container that keeps a frame count announces more packets than there are when the file was cut.
        if not self._is_clear or not self._times_s or len(self._times_s) < self._stream.frames:
            return None
        sorted_s = np.unique(np.array(self._times_s, dtype=np.float64))
        if len(sorted_s) != len(self._times_s):
            return None
        is_seekable = self._is_closed and self._stream.frames == len(sorted_s)
        return PacketTimes(sorted_s=sorted_s, is_seekable=is_seekable)


def decoded_times(local_path: str) -> np.ndarray:
    """Times [T] of the frames that a full decode yields; counted at the mean rate where there are none."""
    times_s: list[float] = []
    with open_container(local_path) as container:
        stream = video_stream(container)
        for index, frame in enumerate(decode(container, stream)):
            time_s = frame_time(frame, index, stream)
            if not times_s or time_s > times_s[-1]:
                times_s.append(time_s)
    if not times_s:
        raise ClipRejected("probe", "unreadable", "no frame decodes")
    return np.array(times_s)


def frame_time(frame: av.VideoFrame, count: int, stream: av.VideoStream) -> float:
    """Container time of the `count`-th frame since the file's start."""
    time_s = seconds(frame.pts, stream.time_base)
    if time_s is not None:
        return time_s
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    return float(count / rate)


def seek(container: av.container.InputContainer, stream: av.VideoStream, start_s: float) -> bool:
    """Goes to the keyframe at or before `start_s`; False where that fails, and the container is spent."""
    if not stream.time_base:
        return False
    try:
        container.seek(math.floor(start_s / stream.time_base + 1e-6), stream=stream, backward=True)
    except av.error.FFmpegError as error:
        logger.info("%s: cannot seek, decodes from the start: %s", container.name, error)
        return False
    return True
