"""A folder, zip or depth file of a video's known depth in, its depth maps by frame number out.

Three forms (docs/depth.md): a depth file as `worldline annotate --engine.keep-depth` writes it; a folder, or a
zip of one, with `000042.png` (16-bit, in units of `depth_unit_m`, 0 unknown) or `000042.npy` (metres, 0 or NaN
unknown) per frame; the number is the frame's in the video, from 0. Depth is along the camera's z axis, seen by
the camera of the video itself.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from worldline.annotate.depth import DepthKind, DepthMap
from worldline.annotate.depth_files import DepthFile
from worldline.annotate.given import GT_DEPTH, GivenConfig
from worldline.datasets.schema import ClipRejected

_NUMBERED = re.compile(r"(?:^|/)[^/]*?(\d+)\.(png|npy)$")


class DepthFolder:
    """`GivenDepth` of a folder or zip of numbered images."""

    def __init__(self, path: Path, config: GivenConfig) -> None:
        """Raises ClipRejected where there is nothing to read."""
        self._path, self._config = path, config
        if path.is_dir():
            names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        else:
            with _archive(path) as archive:
                names = archive.namelist()
        self._names: dict[int, str] = {}
        for name in names:
            found = _NUMBERED.search(name)
            if found is None:
                continue
            number = int(found.group(1))
            if number in self._names:
                raise ClipRejected(
                    GT_DEPTH, "given depth is ambiguous", f"{path}: two files for frame {number}"
                )
            self._names[number] = name
        if not self._names:
            raise ClipRejected(GT_DEPTH, "no given depth", f"{path} holds no 000042.png or 000042.npy")

    def frames(self) -> np.ndarray:
        return np.array(sorted(self._names), dtype=np.int64)

    def maps(self, wanted: Sequence[int]) -> Iterator[DepthMap]:
        if self._path.is_dir():
            for frame in wanted:
                name = self._names[frame]
                yield self._decoded(frame, name, (self._path / name).read_bytes())
            return
        with _archive(self._path) as archive:
            for frame in wanted:
                name = self._names[frame]
                try:
                    content = archive.read(name)
                except (zipfile.BadZipFile, OSError) as error:
                    raise ClipRejected(GT_DEPTH, "given depth is damaged", f"{name}: {error}") from error
                yield self._decoded(frame, name, content)

    def _decoded(self, frame: int, name: str, content: bytes) -> DepthMap:
        if name.endswith(".npy"):
            try:
                z = np.load(io.BytesIO(content), allow_pickle=False)
            except (ValueError, OSError, EOFError) as error:
                raise ClipRejected(GT_DEPTH, "given depth is damaged", f"{name}: {error}") from error
        else:
            z = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if content else None
            if z is not None and z.dtype != np.uint16:
                raise ClipRejected(
                    GT_DEPTH, "given depth is no depth", f"{name}: {z.dtype} where 16 bits belong"
                )
            z = None if z is None else z * np.float32(self._config.depth_unit_m)
        if z is None or z.ndim != 2:
            raise ClipRejected(GT_DEPTH, "given depth is damaged", f"{name}: not one image of depth")
        z = np.where(np.isfinite(z) & (z > 0), z, np.nan).astype(np.float32)
        kind = DepthKind.METRIC if self._config.depth_is_metric else DepthKind.UP_TO_SCALE
        known = np.isfinite(z).astype(np.float32)
        return DepthMap(frame_idx=frame, z=z, confidence=known, kind=kind, intrinsics=None)


class KeptDepth:
    """`GivenDepth` of a depth file. What it calls `trajectory` is metres only if the user says so."""

    def __init__(self, path: Path, config: GivenConfig) -> None:
        self._path = path
        self._kind = DepthKind.METRIC if config.depth_is_metric else DepthKind.UP_TO_SCALE
        try:
            with DepthFile(path) as file:
                self._frames = np.sort(file.frame_idx.astype(np.int64))
                if file.kind is DepthKind.UP_TO_SCALE:
                    self._kind = DepthKind.UP_TO_SCALE
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise ClipRejected(GT_DEPTH, "given depth is damaged", f"{path}: {error}") from error

    def frames(self) -> np.ndarray:
        return self._frames

    def maps(self, wanted: Sequence[int]) -> Iterator[DepthMap]:
        with DepthFile(self._path) as file:
            for frame in wanted:
                try:
                    one = file.read(frame)
                except (ValueError, KeyError, zipfile.BadZipFile) as error:
                    raise ClipRejected(
                        GT_DEPTH, "given depth is damaged", f"frame {frame}: {error}"
                    ) from error
                yield replace(one, kind=self._kind)


def open_given_depth(path: Path, config: GivenConfig) -> DepthFolder | KeptDepth:
    """The depth at `path`, or at `path` with `.zip` behind it. Raises ClipRejected where it is not there or
    not readable."""
    found = located(path)
    if found is None:
        raise ClipRejected(GT_DEPTH, "no given depth", f"neither {path} nor {path}.zip is there")
    if found.is_dir():
        return DepthFolder(found, config)
    with _archive(found) as archive:
        is_kept = "header.json" in archive.namelist()
    return KeptDepth(found, config) if is_kept else DepthFolder(found, config)


def located(path: Path) -> Path | None:
    """`path`, or with `.zip` behind it; None where neither is there."""
    for candidate in (path, path.with_name(f"{path.name}.zip")):
        if candidate.exists():
            return candidate
    return None


def depth_digest(path: Path) -> str:
    """32 hex digits that change with the content: of a zip its members' checksums, of a folder its files'
    sizes and times."""
    found = located(path)
    digest = hashlib.sha256()
    if found is None:
        digest.update(b"absent")
    elif found.is_dir():
        for file in sorted(p for p in found.rglob("*") if p.is_file()):
            state = file.stat()
            digest.update(f"{file.relative_to(found)}:{state.st_size}:{state.st_mtime_ns}\n".encode())
    else:
        try:
            with zipfile.ZipFile(found) as archive:
                for member in archive.infolist():
                    digest.update(f"{member.filename}:{member.file_size}:{member.CRC}\n".encode())
        except (zipfile.BadZipFile, OSError):
            state = found.stat()
            digest.update(f"damaged:{state.st_size}:{state.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise ClipRejected(GT_DEPTH, "given depth is damaged", f"{path}: {error}") from error
