"""A drive without its web page: held keys in, frames, recording and video out, one chunk after another.

The world is made in one thread and asks `Control` for keys right before each chunk, as late as the video's clock
allows: keys reach the next chunk, and no chunk is made long before it is seen. Nothing grows with the length of a
drive but the two files.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import psutil

from worldline.annotate.camera import Intrinsics
from worldline.train.actions import KEYS, ActionStepper
from worldline.train.drive_recording import Chunk, Head, pixels_key, write_line
from worldline.train.generate import partial_path, write_video
from worldline.train.generate_run import RunGenerator

RESERVE = 1.5
"""Of the last chunk's latency: so long before a chunk has been seen the next one is begun."""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """What is driven through."""

    generator: RunGenerator
    image_rgb: np.ndarray
    """[H, W, 3] uint8, the first frame at the run's size."""
    lens: Intrinsics
    head: Head


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A chunk that has just been made."""

    chunk: Chunk
    frames: np.ndarray
    """[n, H, W, 3] uint8."""
    frames_per_s: float
    """Made since the chunk before, waiting included."""
    memory_bytes: int
    """Resident memory of this process."""


class Control:
    """What the driver wants, told from one thread and read from another."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held, self._tapped = "", ""
        self._is_running, self._is_over, self._is_closed = False, False, False

    def hold(self, keys: str) -> None:
        """These keys are down from now on. Raises ValueError for a key that does nothing."""
        if unknown := set(keys) - set(KEYS):
            raise ValueError(f"unknown keys {sorted(unknown)}")
        with self._changed:
            self._held = keys
            self._tapped += "".join(set(keys) - set(self._tapped))

    def run(self, is_running: bool) -> None:
        """Lets the world go on or stand still; keys are let go where it stands."""
        with self._changed:
            self._is_running = is_running
            if not is_running:
                self._held = self._tapped = ""
            self._changed.notify_all()

    def end_take(self) -> None:
        """The drive ends after the chunk in the making."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def close(self) -> None:
        """As `end_take`, and no other drive begins."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def wait_for_take(self) -> bool:
        """Waits until somebody drives; False once closed."""
        with self._changed:
            self._is_over = False
            self._changed.wait_for(lambda: self._is_running or self._is_closed)
            return not self._is_closed

    def next_keys(self, not_before_s: float) -> str | None:
        """Keys held now or pressed since the last call, in the order of KEYS; None where the drive ends.

        Waits until `time.monotonic()` is `not_before_s` and the world may go on. A key that was pressed and let go
        between two chunks would be lost if only the moment counted.
        """
        with self._changed:
            while not (self._is_over or self._is_closed):
                left_s = not_before_s - time.monotonic()
                if self._is_running and left_s <= 0:
                    keys = "".join(key for key in KEYS if key in self._held + self._tapped)
                    self._tapped = ""
                    return keys
                self._changed.wait(left_s if self._is_running else None)
            return None


def free_take(out: Path) -> Path:
    """`out`, or the first of NAME-2.mp4, NAME-3.mp4, ... beside it: no drive is written over."""
    take, number = out, 1
    while any(path.exists() for path in (take, recording_path(take), partial_path(take))):
        number += 1
        take = out.with_name(f"{out.stem}-{number}.mp4")
    return take


def recording_path(video: Path) -> Path:
    """Where the recording of a drive goes."""
    return video.with_suffix(".jsonl")


def drive_take(world: World, control: Control, video: Path, show: Callable[[Shown], None]) -> int:
    """Drives from the first frame until `control` ends it; the number of chunks made.

    The recording is written chunk by chunk, the video frame by frame under `partial_path` until it is whole.
    """
    video.parent.mkdir(parents=True, exist_ok=True)
    num_chunks = 0

    def counted(shown: Shown) -> None:
        nonlocal num_chunks
        num_chunks += 1
        show(shown)

    with recording_path(video).open("x", encoding="utf-8") as file:
        write_line(file, world.head)
        frames = _frames(world, control, file, counted)
        first = next(frames, None)
        if first is not None:
            write_video(video, itertools.chain([first], frames), fps=world.head.fps)
    if first is None:
        recording_path(video).unlink()
    return num_chunks


def _frames(
    world: World, control: Control, file: IO[str], show: Callable[[Shown], None]
) -> Iterator[np.ndarray]:
    head, path = world.head, _Path(world, control)
    process, before_s = psutil.Process(), None
    chunks = world.generator.stream_live(
        world.image_rgb, world.lens, path.next_poses, steps=head.steps, seed=head.seed, prompt=head.prompt
    )
    for index, frames in enumerate(chunks):
        now_s = time.monotonic()
        chunk = Chunk(
            chunk=index,
            keys=path.keys,
            poses=tuple(pose.tolist() for pose in path.poses),
            frames_sha256=pixels_key(frames),
            latency_s=now_s - path.asked_s,
        )
        write_line(file, chunk)
        path.seen_until_s = max(now_s, path.seen_until_s) + len(frames) / head.fps
        path.begin_s = path.seen_until_s - RESERVE * chunk.latency_s
        since_s = now_s - (path.asked_s if before_s is None else before_s)
        show(
            Shown(
                chunk=chunk,
                frames=frames,
                frames_per_s=len(frames) / since_s,
                memory_bytes=process.memory_info().rss,
            )
        )
        before_s = now_s
        yield from frames


class _Path:
    """Poses from keys, and the clock of the chunk they are for."""

    def __init__(self, world: World, control: Control) -> None:
        self._stepper, self._control = ActionStepper(world.head.speed), control
        self._steps_a_frame, self._is_first = world.generator.frame_step, True
        self.keys, self.poses = "", list[np.ndarray]()
        self.asked_s = self.begin_s = self.seen_until_s = 0.0

    def next_poses(self, count: int) -> list[np.ndarray]:
        """first_from_cam [3, 4] of `count` frames with the keys held now; none where the drive ends."""
        keys = self._control.next_keys(self.begin_s)
        if keys is None:
            return []
        self.asked_s, self.keys, self.poses = time.monotonic(), keys, []
        for _ in range(count):
            for _ in range(0 if self._is_first else self._steps_a_frame):
                self._stepper.step(keys)
            self._is_first = False
            self.poses.append(self._stepper.pose)
        return self.poses
