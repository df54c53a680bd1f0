"""An annotator without video: a text file says, a line a scene, what becomes of it. To test the job itself.

    ok            poses of ten frames        reject, raise    that outcome
    sleep S       ok after S seconds         hang             never ends
    kill          its worker dies, always    kill-once        its worker dies the first time
    big N         ok with N bytes that do not compress

Run as a script it is `worldline annotate` with this annotator in place of the true one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from worldline.annotate.clip import ClipConfig
from worldline.annotate.scenes import Scene, SceneConfig
from worldline.annotate.video import Span, VideoInfo
from worldline.datasets.schema import ClipRejected


def probe(path: str) -> VideoInfo:
    data = Path(path).read_bytes()
    if not data:
        raise ClipRejected("probe", "empty_file")
    lines = data.decode().splitlines()
    if lines[0] == "die at probe":
        os.kill(os.getpid(), signal.SIGKILL)
    return VideoInfo(
        path=path,
        video_id=hashlib.sha256(data).hexdigest()[:32],
        size_bytes=len(data),
        codec="text",
        pixel_format="none",
        width=64,
        height=48,
        rotation_deg=0,
        fps=10.0,
        is_variable_rate=False,
        num_frames=10 * len(lines),
        duration_s=float(len(lines)),
        timestamps_s=np.arange(10 * len(lines)) / 10,
        backend="decord",
    )


def detect_scenes(info: VideoInfo, config: SceneConfig) -> list[Scene]:
    spans = [Span(start_s=float(k), end_s=float(k + 1)) for k in range(round(info.duration_s))]
    return [Scene(span=span, overlap_s=0.0, num_cuts=0, shot_idx=k) for k, span in enumerate(spans)]


def probe_and_cut(path: str, config: SceneConfig) -> tuple[VideoInfo, list[Scene]]:
    info = probe(path)
    return info, detect_scenes(info, config)


def annotate_clip(
    info: VideoInfo, scene: Scene, config: ClipConfig, *, sidecar_path: Path | None = None
) -> dict[str, Any]:
    order, _, argument = Path(info.path).read_text().splitlines()[scene.shot_idx].partition(" ")
    if order == "reject":
        raise ClipRejected("geometry", "too dark", "luma 3")
    if order == "raise":
        raise ZeroDivisionError("division by zero in the test annotator")
    if order == "sleep":
        time.sleep(float(argument))
    if order == "hang":
        time.sleep(1000)
    if order in ("kill", "kill-once"):
        mark = Path(f"{info.path}.{scene.shot_idx}.killed")
        if order == "kill" or not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    poses = np.tile(np.eye(3, 4).ravel(), 10) + scene.span.start_s
    caption = random.Random(0).randbytes(int(argument) // 2).hex() if order == "big" else None
    if sidecar_path is not None:
        sidecar_path.write_bytes(b"points" * 10)
    return {
        "num_frames": 10,
        "num_registered": 10,
        "world_from_cam": poses.tolist(),
        "width": config.max_pixels,
        "degeneracy": "ok",
        "caption": caption,
    }


def with_fakes(work: Any) -> Any:
    """The job's work with this annotator in place of the true one."""
    return dataclasses.replace(work, probe_and_cut=probe_and_cut, annotate_clip=annotate_clip)


if __name__ == "__main__":
    import tyro

    from worldline.ray_jobs.annotate import JobConfig, main, make_work, new_run_id

    job = tyro.cli(JobConfig)
    sys.exit(main(job, with_fakes(make_work(job, new_run_id()))))
