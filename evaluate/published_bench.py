"""SANA-WM-Bench as it is published: its folder in, first frames, paths and prompts out.

Layout (NVlabs/Sana, "SANA-WM Benchmark"): `images/ID.png`, and a folder a split with `sanawm_export_v2/run_manifest.jsonl`,
whose lines name `id`, `prompt` and `camera_path`, the path's .npz (c2w [961, 4, 4], intrinsics [961, 3, 3], fps) from the
benchmark's folder. The first frames are generated pictures: there is no true video to hold a model's against.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from worldline.annotate.camera import Intrinsics, compose, invert
from worldline.datasets.formats.sana_wm import read_sana_wm_bench
from worldline.evaluate.benchmark_paths import POSES_PER_S

SPLIT_FOLDERS = {"simple": "benchmark_v2_smooth_60s", "hard": "benchmark_v2_hard_60s"}
_MANIFEST = "sanawm_export_v2/run_manifest.jsonl"
_STEADY = 1e-3
"""Largest relative change of a lens that counts as none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedScene:
    """One first frame with the path to follow."""

    name: str
    split: str
    """simple or hard."""
    first_frame: np.ndarray
    """[H, W, 3] uint8 RGB."""
    first_from_cam: np.ndarray
    """[F, 3, 4], metres."""
    intrinsics: Intrinsics
    """Of the first frame, fxfycxcy_px [4]."""
    prompt: str


def manifest(folder: Path, split: str) -> list[dict[str, str]]:
    """Lines of one split. Raises ValueError that names the file where the folder is not the benchmark's."""
    path = folder / SPLIT_FOLDERS[split] / _MANIFEST
    if not path.is_file():
        raise ValueError(f"{path} is not there: give the folder that SANA-WM-Bench was downloaded to")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    missing = {key for row in rows for key in ("id", "camera_path", "prompt") if key not in row}
    if missing or not rows:
        raise ValueError(f"{path}: {'no scene' if not rows else f'a scene without {sorted(missing)}'}")
    return rows


def published_scene(folder: Path, split: str, row: dict[str, str]) -> PublishedScene:
    """The scene of one line of the manifest.

    Raises ValueError, naming the file, for a picture that does not open, a lens that changes along its path and a rate
    other than 16 poses a second.
    """
    picture_path = folder / "images" / f"{row['id']}.png"
    picture = cv2.imread(str(picture_path), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError(f"{picture_path} is not a readable picture")
    height, width = picture.shape[:2]
    path = folder / row["camera_path"]
    clip = read_sana_wm_bench(path, width=width, height=height)
    assert clip.intrinsics is not None
    lenses = np.asarray(clip.intrinsics.fxfycxcy_px)
    if np.abs(lenses / lenses[0] - 1).max() > _STEADY:
        raise ValueError(f"{path}: the lens changes along the path, which no stream of frames takes")
    if not np.allclose(np.diff(clip.timestamps_s), 1 / POSES_PER_S, rtol=1e-3):
        raise ValueError(f"{path}: poses are not {POSES_PER_S} a second")
    return PublishedScene(
        name=row["id"],
        split=split,
        first_frame=np.ascontiguousarray(picture[..., ::-1]),
        first_from_cam=compose(invert(clip.world_from_cam[:1]), clip.world_from_cam),
        intrinsics=Intrinsics(fxfycxcy_px=lenses[0], width=width, height=height),
        prompt=row["prompt"],
    )
