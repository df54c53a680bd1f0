"""Depth maps of one clip in, one compressed file out, and back, frame by frame.

The file is a plain zip, readable without this module:

- `header.json`: {"format": "worldline depth", "version": 1, "kind": metric | trajectory | up_to_scale,
  "width", "height", "log_step", "intrinsics": null or {"model", "distortion"}}
- `z/000042.png` per frame: 16-bit grey PNG; 0 is unknown, else z = near * exp(log_step * (value - 1)), where
  `near`, one a frame, stands in `frames.json`
- `confidence/000042.png` per frame: 8-bit grey PNG, confidence * 255, at least 1 where z is known
- `frames.json`, written last: {"frame_idx": [..], "near": [..], "fxfycxcy_px": [[fx, fy, cx, cy], ..] or
  null}

Depth is spaced evenly in its logarithm: at the default step of 2^-13 the rounding error is at most 6.2e-5 of
the depth and the 65,535 levels span a factor of 2,900 from each frame's nearest point; anything farther is
stored as unknown.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from worldline.annotate.camera import Intrinsics
from worldline.annotate.depth import DepthKind, DepthMap

_LOG_STEP = 2.0**-13
_FORMAT, _VERSION = "worldline depth", 1
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Every member's date, so that equal maps give equal bytes."""


def write_depth_file(path: Path, maps: Iterable[DepthMap]) -> int:
    """Writes maps of equal size and kind as they come, under a temporary name until complete; returns how
    many.

    Raises ValueError where there is none, or where size or kind changes.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            num_maps = _write_members(archive, maps)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return num_maps


def _write_members(archive: zipfile.ZipFile, maps: Iterable[DepthMap]) -> int:
    header: dict[str, object] | None = None
    frame_idx: list[int] = []
    near: list[float | None] = []
    cameras: list[list[float]] = []
    for one in maps:
        if header is None:
            header = _header(one)
            _add(archive, "header.json", json.dumps(header, indent=1).encode())
        elif _header(one) != header:
            raise ValueError(f"frame {one.frame_idx}: depth maps of one file must share size, kind and lens")
        levels, nearest = _quantised(one.z)
        certainty = np.where(levels > 0, np.clip(np.rint(one.confidence * 255), 1, 255), 0).astype(np.uint8)
        _add(archive, f"z/{one.frame_idx:06d}.png", _png(levels))
        _add(archive, f"confidence/{one.frame_idx:06d}.png", _png(certainty))
        frame_idx.append(int(one.frame_idx))
        near.append(nearest)
        if one.intrinsics is not None:
            cameras.append([float(v) for v in one.intrinsics.fxfycxcy_px])
    if header is None:
        raise ValueError("no depth map to write")
    frames = {"frame_idx": frame_idx, "near": near, "fxfycxcy_px": cameras or None}
    _add(archive, "frames.json", json.dumps(frames).encode())
    return len(frame_idx)


def _header(one: DepthMap) -> dict[str, object]:
    height, width = one.z.shape
    lens = None
    if one.intrinsics is not None:
        lens = {"model": one.intrinsics.model, "distortion": list(one.intrinsics.distortion)}
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "kind": str(one.kind),
        "width": width,
        "height": height,
        "log_step": _LOG_STEP,
        "intrinsics": lens,
    }


def _quantised(z: np.ndarray) -> tuple[np.ndarray, float | None]:
    """(levels [H, W] uint16, nearest depth or None where nothing is known)."""
    is_known = np.isfinite(z) & (z > 0)
    if not is_known.any():
        return np.zeros(z.shape, np.uint16), None
    nearest = float(z[is_known].min())
    level = np.zeros(z.shape)
    level[is_known] = 1 + np.rint(np.log(z[is_known].astype(np.float64) / nearest) / _LOG_STEP)
    return np.where(level <= 65535, level, 0).astype(np.uint16), nearest


def _png(image: np.ndarray) -> bytes:
    done, encoded = cv2.imencode(".png", image)
    assert done
    return encoded.tobytes()


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)


class DepthFile:
    """Random access to what `write_depth_file` wrote; a context manager.

    Raises ValueError for a file that is no depth file of this version, KeyError for a frame it does not hold.
    """

    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path)
        try:
            header = json.loads(self._archive.read("header.json"))
            frames = json.loads(self._archive.read("frames.json"))
        except KeyError as error:
            self._archive.close()
            raise ValueError(f"{path} is no depth file: {error.args[0]}") from error
        if (header["format"], header["version"]) != (_FORMAT, _VERSION):
            self._archive.close()
            raise ValueError(
                f"{path} is {header['format']} version {header['version']}, this reads version {_VERSION}"
            )
        self.kind = DepthKind(header["kind"])
        self.width, self.height = int(header["width"]), int(header["height"])
        self.frame_idx = np.array(frames["frame_idx"], np.int32)
        """[N] frames of the clip that have a map, in the order written."""
        self._log_step = float(header["log_step"])
        self._near = dict(zip(frames["frame_idx"], frames["near"], strict=True))
        self._lens = header["intrinsics"]
        cameras = frames["fxfycxcy_px"]
        self._cameras = {} if cameras is None else dict(zip(frames["frame_idx"], cameras, strict=True))

    def read(self, frame_idx: int) -> DepthMap:
        """The map of one frame."""
        near = self._near[int(frame_idx)]
        level = self._image(f"z/{frame_idx:06d}.png").astype(np.float64)
        scale = np.nan if near is None else near
        z = np.where(level > 0, scale * np.exp(self._log_step * (level - 1)), np.nan).astype(np.float32)
        confidence = self._image(f"confidence/{frame_idx:06d}.png").astype(np.float32) / 255
        intrinsics = None
        if self._lens is not None:
            intrinsics = Intrinsics(
                fxfycxcy_px=np.array(self._cameras[int(frame_idx)]),
                width=self.width,
                height=self.height,
                model=self._lens["model"],
                distortion=tuple(self._lens["distortion"]),
            )
        return DepthMap(
            frame_idx=int(frame_idx), z=z, confidence=confidence, kind=self.kind, intrinsics=intrinsics
        )

    def _image(self, name: str) -> np.ndarray:
        content = np.frombuffer(self._archive.read(name), np.uint8)
        image = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
        if image is None or image.shape != (self.height, self.width):
            raise ValueError(f"{name} in {self._archive.filename} is damaged")
        return image

    def close(self) -> None:
        self._archive.close()

    def __enter__(self) -> DepthFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
