"""Frames of a clean clip in, the same frames with one known defect out: what the scores are tested with.

Every defect takes frames [T, H, W, 3] uint8 RGB and a random generator that decides its strength and place, and
returns as many frames of the same size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

Defect = Callable[[np.ndarray, np.random.Generator], np.ndarray]

_WORDS = (
    "the",
    "camera",
    "follows",
    "river",
    "road",
    "light",
    "every",
    "morning",
    "Subscribe",
    "WATCH",
    "2024",
)


def blurred(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Out of focus: Gaussian of 0.3 to 0.6 % of the width."""
    sigma = rng.uniform(0.003, 0.006) * frames.shape[2]
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames])


def barred(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Black bars over 8 to 25 % of the height or width, half on each side."""
    height, width = frames.shape[1:3]
    share, result = rng.uniform(0.08, 0.25), frames.copy()
    if rng.random() < 0.5:
        bar = round(share * height / 2)
        result[:, :bar] = result[:, height - bar :] = 0
    else:
        bar = round(share * width / 2)
        result[:, :, :bar] = result[:, :, width - bar :] = 0
    return result


def captioned(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White, outlined lines of words near the lower rim, new ones three times in the clip."""
    height, width = frames.shape[1:3]
    result = frames.copy()
    for part in np.array_split(np.arange(len(frames)), 3):
        text = " ".join(rng.choice(_WORDS, 6))
        scale = rng.uniform(0.6, 0.9) * width / 640
        (wide, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 2)
        scale = min(scale, scale * 0.95 * width / wide)
        (wide, high), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 2)
        origin = ((width - wide) // 2, height - round(rng.uniform(0.04, 0.12) * height) - high // 4)
        for k in part:
            for colour, thickness in ((0, 5), (255, 2)):
                cv2.putText(
                    result[k],
                    text,
                    origin,
                    cv2.FONT_HERSHEY_SIMPLEX,
                    scale,
                    (colour,) * 3,
                    thickness,
                    cv2.LINE_AA,
                )
    return result


def watermarked(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A half transparent ring with letters and a dark rim in a corner, 8 to 14 % of the width."""
    height, width = frames.shape[1:3]
    side = round(rng.uniform(0.08, 0.14) * width)
    mark, shadow = np.zeros((2, side, side), dtype=np.uint8)
    for layer, extra in ((shadow, 3), (mark, 0)):
        thickness = max(2, side // 16) + extra
        cv2.circle(layer, (side // 2, side // 2), side // 2 - 5, 255, thickness, cv2.LINE_AA)
        cv2.putText(
            layer,
            "TV",
            (side // 4, side * 5 // 8),
            cv2.FONT_HERSHEY_DUPLEX,
            side / 55,
            255,
            2 + extra,
            cv2.LINE_AA,
        )
    x = rng.choice([round(0.04 * width), width - side - round(0.04 * width)])
    y = rng.choice([round(0.05 * height), height - side - round(0.05 * height)])
    alpha = rng.uniform(0.45, 0.7) * shadow[:, :, None] / 255.0
    colour = mark[:, :, None].astype(float)
    result = frames.copy()
    corner = result[:, y : y + side, x : x + side]
    corner[:] = (corner * (1 - alpha) + colour * alpha).astype(np.uint8)
    return result


def split(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two moments of the clip side by side, or one over the other."""
    height, width = frames.shape[1:3]
    other, result = _elsewhere(frames), frames.copy()
    if rng.random() < 0.5:
        result[:, :, width // 2 :] = other[:, :, width // 4 : width // 4 + width - width // 2]
    else:
        result[:, height // 2 :] = other[:, height // 4 : height // 4 + height - height // 2]
    return result


def inset(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A small picture of another moment in a corner."""
    height, width = frames.shape[1:3]
    share = rng.uniform(0.22, 0.35)
    size = (round(share * width), round(share * height))
    x = rng.choice([round(0.04 * width), width - size[0] - round(0.04 * width)])
    y = rng.choice([round(0.05 * height), height - size[1] - round(0.05 * height)])
    result = frames.copy()
    for target, source in zip(result, _elsewhere(frames), strict=True):
        target[y : y + size[1], x : x + size[0]] = cv2.resize(source, size, interpolation=cv2.INTER_AREA)
    return result


def frozen(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Stops for 40 to 80 % of the clip."""
    stop = round(len(frames) * rng.uniform(0.2, 0.6))
    result = frames.copy()
    result[stop:] = result[stop]
    return result


def shaken(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Thrown about by 1 to 2 % of the width from frame to frame."""
    height, width = frames.shape[1:3]
    reach = rng.uniform(0.01, 0.02) * width
    shifts = np.clip(rng.normal(0, reach, (len(frames), 2)), -2 * reach, 2 * reach)
    zoom = 1 + 4 * reach / min(height, width)
    middle = np.array([width, height]) / 2
    result = []
    for frame, shift in zip(frames, shifts, strict=True):
        move = np.array([[zoom, 0, 0], [0, zoom, 0]])
        move[:, 2] = middle * (1 - zoom) + shift
        result.append(cv2.warpAffine(frame, move, (width, height), flags=cv2.INTER_LINEAR))
    return np.stack(result)


def overexposed(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A gain of 1.8 to 2.5."""
    return brightened(frames, rng.uniform(1.8, 2.5), 0)


def brightened(frames: np.ndarray, gain: float, offset: float) -> np.ndarray:
    """Levels times gain plus offset, cut off at both ends."""
    levels = np.clip(np.arange(256) * gain + offset, 0, 255).astype(np.uint8)
    return levels[frames]


def blocky(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Coded frame by frame in 8-pixel blocks at JPEG quality 8 to 15."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(8, 16))]
    result = np.empty_like(frames)
    for target, frame in zip(result, frames, strict=True):
        picture = cv2.imdecode(cv2.imencode(".jpg", frame, quality)[1], cv2.IMREAD_COLOR)
        assert picture is not None
        target[:] = picture
    return result


def noisy(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Grey noise of 20 to 30 levels, new in every frame."""
    level = rng.uniform(20, 30)
    result = np.empty_like(frames)
    for target, frame in zip(result, frames, strict=True):
        noise = rng.normal(0, level, frame.shape[:2]).astype(np.float32)
        target[:] = np.clip(frame + noise[..., None], 0, 255)
    return result


def _elsewhere(frames: np.ndarray) -> np.ndarray:
    """The same scene half a clip away, mirrored."""
    return np.roll(frames, len(frames) // 2, axis=0)[:, :, ::-1]


DEFECTS: Mapping[str, tuple[Defect, tuple[str, ...]]] = {
    "blur": (blurred, ("blur", "impairment")),
    "black bars": (barred, ("border_share",)),
    "text": (captioned, ("text_area_share", "subtitle_share")),
    "watermark": (watermarked, ("logo_area_share",)),
    "split screen": (split, ("split_screen",)),
    "inset": (inset, ("picture_in_picture",)),
    "frozen": (frozen, ("frozen_share",)),
    "shake": (shaken, ("jitter",)),
    "overexposure": (overexposed, ("clipped_bright_share",)),
    "blocks": (blocky, ("blockiness", "impairment")),
    "noise": (noisy, ("noise", "impairment")),
}
"""Name -> defect and the scores that must see it."""


def write_video(
    path: Path,
    frames: np.ndarray,
    fps: float,
    *,
    codec: str = "libx264",
    options: Mapping[str, str] | None = None,
    size: tuple[int, int] | None = None,
) -> Path:
    """Codes frames [T, H, W, 3] uint8 RGB, scaled to size (width, height) where given; sides are cut to even
    numbers."""
    height, width = frames.shape[1:3]
    width, height = (side // 2 * 2 for side in size or (width, height))
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=round(fps), options=dict(options or {}))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            if size is not None:
                frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path
