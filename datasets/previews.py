"""Rows of clips in, a strip of small pictures each out: what a page shows of a clip.

Decoded on demand from the media, with a few seeks a clip: a strip costs a group of pictures a picture, whatever the
clip's length.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import av
import cv2
import numpy as np

from worldline.annotate.container import decode, open_container, seconds, seek, video_stream
from worldline.annotate.video import local_copy
from worldline.datasets.schema import ClipRejected

logger = logging.getLogger(__name__)

_MOST_FRAMES = 400
"""Frames decoded for one picture before it is given up: twice the usual distance of key frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewConfig:
    """Strips of small pictures."""

    count: int = 300
    """Clips that get a strip, spread evenly over the table; 0: none. 300 strips are 3 MB and a minute or two."""
    pictures: int = 4
    """Pictures a strip, spread evenly over the clip."""
    height_px: int = 72
    """Height of a picture."""
    quality: int = 60
    """JPEG quality, 1-95."""

    def __post_init__(self) -> None:
        if self.count < 0 or self.pictures < 1 or self.height_px < 8 or not 1 <= self.quality <= 95:
            raise ValueError("count >= 0, pictures >= 1, height_px >= 8 and quality in 1-95")


def preview_strip(row: Mapping[str, Any], config: PreviewConfig) -> bytes | None:
    """JPEG of the clip's pictures side by side; None where the media cannot be read now."""
    pictures = look(row, config.pictures, config.height_px)
    if not pictures:
        return None
    bgr = np.concatenate(pictures, axis=1)[:, :, ::-1]
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(bgr), [cv2.IMWRITE_JPEG_QUALITY, config.quality])
    return data.tobytes()


def look(row: Mapping[str, Any], count: int, height_px: int) -> list[np.ndarray]:
    """[height_px, w, 3] uint8 RGB of up to `count` moments spread evenly over a clip; none where its media cannot be
    read now."""
    if not row.get("path") or row["end_s"] <= row["start_s"]:
        return []
    step_s = (row["end_s"] - row["start_s"]) / count
    times_s = [row["start_s"] + (k + 0.5) * step_s for k in range(count)]
    try:
        with local_copy(row["path"]) as path:
            found = [_picture(path, time_s, height_px) for time_s in times_s]
    except (OSError, ValueError, av.FFmpegError, ClipRejected) as error:
        logger.info("no pictures of %s: %s", os.path.basename(row["path"]), error)
        return []
    return [picture for picture in found if picture is not None]


def _picture(path: str, time_s: float, height_px: int) -> np.ndarray | None:
    """[h, w, 3] uint8, the first frame at or after the time, upright; None where there is none."""
    with open_container(path) as container:
        stream = video_stream(container)
        stream.codec_context.thread_count = 1
        if not seek(container, stream, time_s):
            return None
        time_base = stream.time_base
        for count, frame in enumerate(decode(container, stream)):
            at_s = seconds(frame.pts, time_base)
            if count >= _MOST_FRAMES:
                break
            if at_s is None or at_s < time_s - 1e-6:
                continue
            turns = round(frame.rotation / 90) % 4
            height, width = frame.height, frame.width
            aspect = float(stream.sample_aspect_ratio or 1)
            shrink = height_px / (width * aspect if turns % 2 else height)
            size = (max(2, round(width * aspect * shrink)), max(2, round(height * shrink)))
            image: np.ndarray = frame.reformat(width=size[0], height=size[1], format="rgb24").to_ndarray()
            # The display matrix' angle counts anticlockwise, as rot90 does.
            return np.rot90(image, turns)[:height_px]
    return None
