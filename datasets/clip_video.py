"""RGB frames in, the bytes of one mp4 out, and back: equal frames give equal bytes, and frame k is frame k.

The encoder runs on one thread with a closed group of pictures of fixed length and no B-frames, so presentation
order is storage order, no edit list is needed and any decoder counts the same frames. The container is written
bit-exact: no date, no library version.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import av
import av.error
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from worldline.annotate.camera import Intrinsics
from worldline.datasets.schema import ClipRejected

_OPENCV_AVX512 = 13
"""cv2::CpuFeatures' number of AVX-512F, which OpenCV's Python module does not name."""

_PRESETS = (
    *("ultrafast", "superfast", "veryfast", "faster", "fast"),
    *("medium", "slow", "slower", "veryslow"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeConfig:
    """Size, rate and quality of the written clips."""

    width: int = 1280
    """Pixels; the world model's size. The video is scaled to cover it and cut at the centre."""
    height: int = 704
    """Pixels."""
    fps: int = 16
    """Frames a second; each is the source's nearest frame, none is blended."""
    crf: int = 18
    """x264's constant rate factor, 0 (lossless) to 51; at 18 loss is hard to see."""
    preset: str = "veryfast"
    """x264's speed."""
    gop: int = 16
    """Frames between keyframes: what a reader decodes at most to get at any frame."""
    min_frames: int = 9
    """Shorter clips are rejected; 9 is one latent frame beyond the first."""

    def __post_init__(self) -> None:
        if self.width < 16 or self.height < 16 or self.width % 2 or self.height % 2:
            raise ValueError(f"size {self.width}x{self.height}: sides must be even and at least 16")
        if not 0 <= self.crf <= 51 or self.preset not in _PRESETS:
            raise ValueError(
                f"crf {self.crf} (0 to 51), preset {self.preset!r} (one of {', '.join(_PRESETS)})"
            )
        if min(self.fps, self.gop, self.min_frames) < 1:
            raise ValueError("fps, gop and min_frames must be at least 1")


def nearest_frames(timestamps_s: np.ndarray, fps: float) -> np.ndarray:
    """Index [N] of the frame nearest to each tick k / fps after the first frame, up to the last frame's time.

    `timestamps_s` [T] ascending. The earlier frame wins a tie; a frame repeats where the source is slower.
    """
    length_s = timestamps_s[-1] - timestamps_s[0]
    ticks_s = timestamps_s[0] + np.arange(int(np.floor(length_s * fps + 1e-6)) + 1) / fps
    middles_s = (timestamps_s[1:] + timestamps_s[:-1]) / 2
    # A microsecond is the resolution of clip times: ties that rounding breaks stay ties.
    return np.searchsorted(middles_s + 1e-6, ticks_s, side="left")


def x264_params(**parameters: int) -> str:
    """The option of that name (min-keyint is min_keyint here), with what makes equal frames give equal bytes: x264's
    macroblock tree on AVX-512 now and then gave others on a loaded machine (x264 165 of PyAV 18), on AVX2 it does not.
    """
    pairs = [f"{name.replace('_', '-')}={value}" for name, value in parameters.items()]
    return ":".join([*pairs, "asm=avx2"] if cv2.checkHardwareSupport(_OPENCV_AVX512) else pairs)


def encode_video(frames: Iterable[np.ndarray], config: EncodeConfig) -> bytes:
    """The mp4 of frames [height, width, 3] uint8 RGB, shown at k / fps.

    Colours are BT.601, limited range, and say so: what swscale, and so PyAV and decord, assume of files that say
    nothing.
    """
    output = io.BytesIO()
    with av.open(output, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=config.fps)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = config.width, config.height, "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, config.fps)
        context.gop_size, context.max_b_frames = config.gop, 0
        context.thread_count, context.thread_type = 1, av.codec.context.ThreadType.NONE
        context.flags |= av.codec.context.Flags.bitexact | av.codec.context.Flags.closed_gop
        context.colorspace, context.color_range = 6, 1
        context.options = {
            "preset": config.preset,
            "crf": str(config.crf),
            "x264-params": x264_params(
                keyint=config.gop, min_keyint=config.gop, scenecut=0, open_gop=0, threads=1
            ),
        }
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG")
            frame.pts, frame.time_base = index, Fraction(1, config.fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return output.getvalue()


def decode_video(data: bytes, first: int = 0, count: int | None = None, stride: int = 1) -> np.ndarray:
    """Frames first, first + stride, ... [count, height, width, 3] uint8 RGB of an mp4 written by
    `encode_video`; count None: to the end.

    Raises ClipRejected("video", reason) where the bytes do not decode or hold fewer frames.
    """
    if first < 0 or stride < 1 or (count is not None and count < 1):
        raise ValueError(f"first {first}, count {count}, stride {stride}")
    wanted_last = None if count is None else first + (count - 1) * stride
    images, done = np.empty((0, 0, 0, 3), dtype=np.uint8), 0
    # One for all frames: PyAV's frames each set up the scaler anew, a third of the time that decoding takes.
    reformatter = VideoReformatter()
    try:
        with av.open(io.BytesIO(data), "r", format="mp4") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count, stream.codec_context.thread_type = 1, "NONE"
            assert stream.time_base is not None
            assert stream.average_rate is not None
            per_tick = stream.time_base * stream.average_rate
            if first:
                container.seek(round(first / per_tick), stream=stream, backward=True)
            for frame in container.decode(stream):
                index = round(frame.pts * per_tick) if frame.pts is not None else -1
                if index >= first and (index - first) % stride == 0:
                    if not done:
                        num_left = max(0, -(-(stream.frames - first) // stride))
                        num_frames = num_left if count is None else min(count, num_left)
                        images = _room_for(num_frames, frame, data)
                    if done == len(images) or images.shape[1:3] != (frame.height, frame.width):
                        raise ClipRejected(
                            "video", "does_not_decode", "more frames, or of another size, than said"
                        )
                    images[done] = reformatter.reformat(frame, format="rgb24").to_ndarray()
                    done += 1
                if wanted_last is not None and index >= wanted_last:
                    break
    except (av.error.FFmpegError, IndexError) as error:
        raise ClipRejected("video", "does_not_decode", str(error)) from error
    if not done or (count is not None and done != count):
        raise ClipRejected("video", "too_few_frames", f"{done} of {count} frames from {first}")
    return images[:done]


def _room_for(num_frames: int, frame: av.VideoFrame, data: bytes) -> np.ndarray:
    """[num_frames, height, width, 3] uint8 of unknown content; ClipRejected where no file of that size can hold as
    many."""
    if num_frames > len(data):
        detail = f"says to hold {num_frames} frames in {len(data)} bytes"
        raise ClipRejected("video", "does_not_decode", detail)
    return np.empty((num_frames, frame.height, frame.width, 3), dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Fit:
    """Scales a picture to cover a size and cuts it at the centre."""

    source_width: int
    source_height: int
    width: int
    height: int

    @property
    def factor(self) -> float:
        return max(self.width / self.source_width, self.height / self.source_height)

    @property
    def scaled(self) -> tuple[int, int]:
        """(width, height) before the cut."""
        factor = self.factor
        return (
            max(self.width, round(self.source_width * factor)),
            max(self.height, round(self.source_height * factor)),
        )

    @property
    def left_top(self) -> tuple[int, int]:
        """Of the cut."""
        width, height = self.scaled
        return (width - self.width) // 2, (height - self.height) // 2

    def image(self, image: np.ndarray) -> np.ndarray:
        """[height, width, 3] uint8 of a source image."""
        interpolation = cv2.INTER_AREA if self.factor < 1 else cv2.INTER_CUBIC
        left, top = self.left_top
        if (self.source_width, self.source_height) != self.scaled:
            image = cv2.resize(image, self.scaled, interpolation=interpolation)
        return image[top : top + self.height, left : left + self.width]

    def camera(self, intrinsics: Intrinsics) -> Intrinsics:
        """The source's lens after scaling and cutting."""
        return intrinsics.resized(*self.scaled).cropped(*self.left_top, self.width, self.height)


def cover(images: np.ndarray, lens: Intrinsics, width: int, height: int) -> tuple[np.ndarray, Intrinsics]:
    """Images [F, H, W, 3] uint8 and their lens, fitted to the size."""
    fit = Fit(lens.width, lens.height, width, height)
    return np.stack([fit.image(image) for image in images]), fit.camera(lens)
