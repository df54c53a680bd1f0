"""What other systems' formats have no place for, kept beside them: frame times, image size, scale status,
clip id.

An exporter that writes a folder adds `worldline.json`; importers read it where it is, and otherwise ask for
what is missing. Other systems ignore the file. Checks of what a format can hold stand here too, since every
exporter needs them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from worldline.annotate.lens_shift import corner_shift
from worldline.datasets.posed_clip import PosedClip

NAME = "worldline.json"
AS_GOOD_AS_STRAIGHT = 0.005
"""Shift of a corner, over the half diagonal, up to which formats of pinholes take a bent lens as straight: less than
the focal lengths of most of their clips are off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Companion:
    """Facts about a clip of T frames that a format cannot carry."""

    clip_id: str
    timestamps_s: np.ndarray
    """[T] float64"""
    width: int | None
    height: int | None
    scale_status: str | None


def facts(clip: PosedClip) -> dict[str, object]:
    """The companion's content as plain JSON types."""
    return {
        "clip_id": clip.clip_id,
        "timestamps_s": clip.timestamps_s.tolist(),
        "width": clip.intrinsics.width if clip.intrinsics else None,
        "height": clip.intrinsics.height if clip.intrinsics else None,
        "scale_status": clip.scale_status,
    }


def write_companion(clip: PosedClip, folder: Path) -> None:
    """Writes `worldline.json` into the folder."""
    (folder / NAME).write_text(json.dumps(facts(clip)))


def read_companion(
    folder: Path, *, name: str, num_frames: int, fps: float | None, width: int | None, height: int | None
) -> Companion:
    """Reads the folder's companion, or builds one from the arguments, which also override it.

    `name` becomes the clip id and `num_frames` the length where there is no companion. Raises ValueError
    where neither file nor argument gives the frame times.
    """
    path = folder / NAME
    stored = json.loads(path.read_text()) if path.exists() else {}
    return companion_of(stored, name=name, num_frames=num_frames, fps=fps, width=width, height=height)


def companion_of(
    stored: dict, *, name: str, num_frames: int, fps: float | None, width: int | None, height: int | None
) -> Companion:
    """As `read_companion`, from a companion's content, empty where there is none."""
    if fps is not None:
        timestamps_s = np.arange(num_frames) / fps
    elif stored.get("timestamps_s"):
        timestamps_s = np.array(stored["timestamps_s"], dtype=np.float64)
    else:
        raise ValueError(f"{name}: the format carries no frame times; pass fps")
    if len(timestamps_s) < num_frames:
        raise ValueError(
            f"{name}: frame {num_frames - 1} is named, but there are times for {len(timestamps_s)}"
        )
    return Companion(
        clip_id=stored.get("clip_id") or name,
        timestamps_s=timestamps_s,
        width=width or stored.get("width"),
        height=height or stored.get("height"),
        scale_status=stored.get("scale_status"),
    )


def size_of(companion: Companion, name: str) -> tuple[int, int]:
    """(width, height); ValueError where neither the companion nor the caller knows them."""
    if not companion.width or not companion.height:
        raise ValueError(f"{name}: the format carries no image size; pass width and height")
    return companion.width, companion.height


def spread(values: np.ndarray, frame_idx: np.ndarray, num_frames: int) -> np.ndarray:
    """values [N, ...] of the given frames -> [num_frames, ...], NaN for the others."""
    out = np.full((num_frames, *values.shape[1:]), np.nan)
    out[frame_idx] = values
    return out


def need_intrinsics(clip: PosedClip, name: str, *, pinhole: bool = True) -> np.ndarray:
    """fxfycxcy_px [T, 4]; ValueError where they are unknown, or bent by more than `AS_GOOD_AS_STRAIGHT` and the
    format is of pinholes only."""
    if clip.intrinsics is None or not np.isfinite(clip.intrinsics.fxfycxcy_px[clip.is_registered]).all():
        raise ValueError(f"{name} needs intrinsics, clip {clip.clip_id} has none")
    if pinhole and any(clip.intrinsics.distortion):
        fxfycxcy_px = np.atleast_2d(clip.intrinsics.fxfycxcy_px)[clip.is_registered]
        shift = corner_shift(replace(clip.intrinsics, fxfycxcy_px=np.median(fxfycxcy_px, axis=0)))
        if shift > AS_GOOD_AS_STRAIGHT:
            raise ValueError(
                f"{name} has no place for lens distortion, clip {clip.clip_id} is {clip.intrinsics.model} "
                f"{clip.intrinsics.distortion}, which moves a corner by {shift:.1%} of the half diagonal: "
                "undistort the video, or export colmap or nerfstudio"
            )
    return clip.intrinsics.fxfycxcy_px


def need_all_registered(clip: PosedClip, name: str) -> None:
    """ValueError where a frame has no pose: the format pairs poses with frames by their position alone."""
    missing = np.flatnonzero(~clip.is_registered)
    if len(missing):
        raise ValueError(
            f"{name} has no place for frames without a pose, clip {clip.clip_id} has {len(missing)} "
            f"(the first is {missing[0]})"
        )


def need_metric(clip: PosedClip, name: str) -> None:
    """ValueError where lengths are not metres."""
    if not clip.is_metric:
        raise ValueError(
            f"{name} is read as metres, clip {clip.clip_id} is {clip.scale_status or 'of unknown scale'}"
        )


def steady_fps(clip: PosedClip, name: str) -> float:
    """Frames per second; ValueError where frames are not evenly spaced to a tenth of their gap."""
    gaps = np.diff(clip.timestamps_s)
    if len(gaps) == 0 or np.ptp(gaps) > 0.1 * np.median(gaps):
        raise ValueError(f"{name} has one frame rate, clip {clip.clip_id} has frames at uneven times")
    return float(len(gaps) / (clip.timestamps_s[-1] - clip.timestamps_s[0]))
