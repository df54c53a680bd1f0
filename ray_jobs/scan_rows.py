"""Scenes as a scan unit stores them, and back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa

from worldline.annotate.scenes import Scene
from worldline.annotate.video import Span, VideoInfo
from worldline.datasets.schema import clip_id


def plain_scene(video_id: str, scene: Scene) -> dict[str, Any]:
    """A scene as the scan unit's JSON holds it."""
    return {
        "clip_id": clip_id(video_id, scene.span.start_s, scene.span.end_s),
        "start_s": scene.span.start_s,
        "end_s": scene.span.end_s,
        "overlap_s": scene.overlap_s,
        "num_cuts": scene.num_cuts,
        "shot_idx": scene.shot_idx,
    }


def load_scene(scan: pa.Table, scene_idx: int, path: str) -> tuple[VideoInfo, Scene]:
    """What the scan unit stored, as the annotator's own types; `path` is where the content lies in this
    run."""
    stored = scan.to_pylist()[0]
    times = np.array(stored["timestamps_s"], dtype=np.float64)
    info = VideoInfo(path=path, video_id=stored["video_id"], timestamps_s=times, **json.loads(stored["info"]))
    plain = json.loads(stored["scenes"])[scene_idx]
    span = Span(start_s=plain["start_s"], end_s=plain["end_s"])
    scene = Scene(
        span=span, overlap_s=plain["overlap_s"], num_cuts=plain["num_cuts"], shot_idx=plain["shot_idx"]
    )
    return info, scene
