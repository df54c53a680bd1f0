"""Recordings of drives: JSON lines from which the same video is made again, frame for frame.

    {"format": "worldline drive 1", "run": ..., "seed": ..., ...}      all that the frames depend on beside the path
    {"chunk": 0, "keys": "dw", "poses": [...], "frames_sha256": ...}   one line a chunk, once its frames are made

A line is written whole and at once, so a drive that is killed keeps every chunk it had shown.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from worldline.train.actions import ActionConfig
from worldline.train.checkpoint import Run, built, plain, weights_key

logger = logging.getLogger(__name__)

FORMAT = "worldline drive 1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What the frames of a drive depend on, beside its path."""

    run: str
    """Folder of the run, where it was then."""
    run_key: str
    """`run_key` of its checkpoint."""
    step: int
    """Of the checkpoint."""
    image: str
    """File of the first frame, where it was then."""
    image_sha256: str
    """`pixels_key` of the first frame as it was read."""
    fxfycxcy_px: tuple[float, ...]
    """Lens in pixels of that image."""
    prompt: str
    seed: int
    steps: int
    """Of sampling."""
    window_frames: int | None
    """Latent frames the softmax blocks of a chunk-causal run look back; None is all."""
    speed: ActionConfig
    """How keys became poses."""
    fps: float
    """Frames a second of the video."""
    device: str
    dtype: str
    num_threads: int
    """Of torch. Sums are split by it, which rounds differently."""
    torch: str
    """Its version."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """One chunk or window of a drive."""

    chunk: int
    """Its index."""
    keys: str
    """Held during it."""
    poses: tuple[Any, ...]
    """first_from_cam, n times three rows of four, metres; the numbers as they were, to the last bit."""
    frames_sha256: str
    """`pixels_key` of the n frames."""
    latency_s: float
    """From asking for the keys to having the frames."""


def write_line(file: IO[str], line: Head | Chunk) -> None:
    """Appends one line and hands it to the system."""
    head = {"format": FORMAT} if isinstance(line, Head) else {}
    file.write(json.dumps(head | plain(line)) + "\n")
    file.flush()


def read_recording(path: Path) -> tuple[Head, list[Chunk]]:
    """Head and chunks of a recording; a last line that was torn is left out.

    Raises ValueError for another kind of file, naming the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a readable recording: {error}") from error
    if lines[-1]:
        logger.warning("%s: the last line is torn and left out", path)
    values = [_value(path, number, line) for number, line in enumerate(lines[:-1], start=1)]
    if not values or values[0].pop("format", None) != FORMAT:
        raise ValueError(f"{path}: no recording of a drive ({FORMAT!r})")
    try:
        head, chunks = built(Head, values[0]), [built(Chunk, value) for value in values[1:]]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: no recording of a drive: {error}") from error
    for place, chunk in enumerate(chunks):
        if chunk.chunk != place or np.array(chunk.poses).shape[1:] != (3, 4):
            raise ValueError(f"{path}: line {place + 2} is not chunk {place}")
    return head, chunks


def _value(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {number} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: line {number} is not a JSON object")
    return value


def poses_of(chunks: list[Chunk]) -> Iterator[np.ndarray]:
    """first_from_cam [3, 4] of each frame."""
    for chunk in chunks:
        yield from np.array(chunk.poses, dtype=np.float64)


def pixels_key(pixels: np.ndarray) -> str:
    """Hex digits that change with the shape or any value."""
    digest = hashlib.sha256(f"{pixels.dtype} {pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


def run_key(run: Run) -> str:
    """32 hex digits that change with any weight or with how the run makes videos, not with its folder's place."""
    config = {name: run.config[name] for name in ("model", "autoencoder", "view", "chunks")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    digest.update(weights_key(run.autoencoder).encode())
    if run.model is not None:
        digest.update(weights_key(run.model).encode())
    return digest.hexdigest()[:32]


def refuse_another(path: Path, recorded: Head, now: Head) -> None:
    """Raises ValueError where run or first frame is not the recording's; a word where rounding may differ."""
    if now.run_key != recorded.run_key:
        raise ValueError(
            f"{path} was driven with step {recorded.step} of {recorded.run} (key {recorded.run_key}); "
            f"{now.run} has step {now.step} (key {now.run_key}): give the run it was driven with as --run"
        )
    if now.image_sha256 != recorded.image_sha256:
        raise ValueError(f"{path} began with another image than {now.image}: give that one as --image")
    if now.torch != recorded.torch:
        logger.warning("recorded with torch %s, this is %s: frames may differ", recorded.torch, now.torch)
