"""SANA-WM: the training loader's shard files, and the benchmark's .npz. world_from_cam 4x4, OpenCV axes,
metres, pixels.

Loader: `SHARD.zip` with `KEY.json` (width, height), `SHARD_camera.npz` with `ids`, `ranges` (start, count),
`pose` and `intrinsics`, and `SHARD_metric_scale_stats.json`, a factor per key that the loader multiplies
translations with: ours is 1. That loader takes a clip without an entry as identity poses and one without a
factor as 1, so we always write both and refuse a clip with a frame without a pose. Benchmark: `c2w` [N, 4,
4], `intrinsics` [N, 3, 3], `fps`, `num_frames`.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np

from worldline.annotate.camera import Intrinsics, as_matrix
from worldline.datasets.formats.companion import (
    companion_of,
    facts,
    need_all_registered,
    need_intrinsics,
    need_metric,
    steady_fps,
)
from worldline.datasets.posed_clip import PosedClip
from worldline.datasets.schema import METRIC

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Every zip member's date, so that equal clips give equal bytes."""


def write_sana_wm(clip: PosedClip, out_path: Path) -> None:
    """Writes a new folder with one shard of one clip, named by its id."""
    out_path.mkdir()
    write_shard([clip], out_path, clip.clip_id)


def write_shard(clips: list[PosedClip], folder: Path, name: str) -> None:
    """Writes the loader's three files for several clips into an existing folder.

    Raises ValueError where a clip is not metric, not a pinhole, or has a frame without a pose.
    """
    poses, cameras, ranges, start = [], [], [], 0
    for clip in clips:
        cameras.append(need_intrinsics(clip, "sana_wm").astype(np.float32))
        need_all_registered(clip, "sana_wm")
        need_metric(clip, "sana_wm")
        poses.append(as_matrix(clip.world_from_cam).astype(np.float32))
        ranges.append((start, len(poses[-1])))
        start += len(poses[-1])
    ids = [clip.clip_id for clip in clips]
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        for clip in clips:
            entry = zipfile.ZipInfo(f"{clip.clip_id}.json", date_time=_EPOCH)
            archive.writestr(entry, json.dumps(facts(clip) | {"key": clip.clip_id}))
    np.savez(
        folder / f"{name}_camera.npz",
        ids=np.array(ids),
        ranges=np.array(ranges, dtype=np.int64),
        pose=np.concatenate(poses),
        intrinsics=np.concatenate(cameras),
    )
    (folder / f"{name}_metric_scale_stats.json").write_text(json.dumps({key: {"median": 1.0} for key in ids}))


def read_sana_wm(
    path: Path, *, fps: float | None = None, width: int | None = None, height: int | None = None
) -> PosedClip:
    """Reads the only clip of a folder with one shard; see `read_shard`."""
    cameras = sorted(path.glob("*_camera.npz"))
    if len(cameras) != 1:
        raise ValueError(f"{path}: expected one *_camera.npz, found {len(cameras)}")
    clips = read_shard(path, cameras[0].name.removesuffix("_camera.npz"), fps=fps, width=width, height=height)
    if len(clips) != 1:
        raise ValueError(f"{path}: the shard has {len(clips)} clips; use read_shard")
    return clips[0]


def read_shard(
    folder: Path, name: str, *, fps: float | None = None, width: int | None = None, height: int | None = None
) -> list[PosedClip]:
    """Reads every clip of a shard; translations are multiplied by the stored factor, which makes them metres.

    Raises ValueError for a clip without a factor, and for unknown frame times or image size.
    """
    with np.load(folder / f"{name}_camera.npz", allow_pickle=False) as data:
        ids, ranges = data["ids"].tolist(), data["ranges"]
        pose, fxfycxcy = data["pose"].astype(np.float64), data["intrinsics"].astype(np.float64)
    factors = _read_factors(folder / f"{name}_metric_scale_stats.json")
    clips = []
    with zipfile.ZipFile(folder / f"{name}.zip") as archive:
        for key, (start, count) in zip(ids, ranges, strict=True):
            if key not in factors:
                raise ValueError(f"{folder}: clip {key} has no metric scale; its unit is unknown")
            stored = json.loads(archive.read(f"{key}.json"))
            known = companion_of(stored, name=key, num_frames=int(count), fps=fps, width=width, height=height)
            if not known.width or not known.height:
                raise ValueError(f"{folder}: clip {key} has no image size; pass width and height")
            poses = pose[start : start + count, :3].copy()
            poses[:, :, 3] *= factors[key]
            clips.append(
                PosedClip(
                    clip_id=key,
                    timestamps_s=known.timestamps_s,
                    world_from_cam=poses,
                    intrinsics=Intrinsics(
                        fxfycxcy_px=fxfycxcy[start : start + count], width=known.width, height=known.height
                    ),
                    scale_status=METRIC,
                )
            )
    return clips


def _read_factors(path: Path) -> dict[str, float]:
    """Key -> factor, from a dict or a list of {"key": ..}; a factor is a number or {"median": number}."""
    content = json.loads(path.read_text()) if path.exists() else {}
    items = {item["key"]: item for item in content} if isinstance(content, list) else content
    return {
        key: float(value["median"] if isinstance(value, dict) else value)
        for key, value in items.items()
        if not isinstance(value, dict) or "median" in value
    }


def write_sana_wm_bench(clip: PosedClip, out_path: Path) -> None:
    """Writes one .npz of the benchmark; frames must be evenly spaced, posed and metric."""
    need_intrinsics(clip, "sana_wm_bench")
    need_all_registered(clip, "sana_wm_bench")
    need_metric(clip, "sana_wm_bench")
    assert clip.intrinsics is not None
    with out_path.open("wb") as file:  # np.savez would add .npz to another suffix.
        np.savez(
            file,
            c2w=as_matrix(clip.world_from_cam).astype(np.float32),
            intrinsics=clip.intrinsics.matrix().astype(np.float32),
            fps=np.float32(steady_fps(clip, "sana_wm_bench")),
            num_frames=np.int64(len(clip.timestamps_s)),
        )


def read_sana_wm_bench(
    path: Path, *, fps: float | None = None, width: int | None = None, height: int | None = None
) -> PosedClip:
    """Reads one .npz of the benchmark, whose stem becomes the clip id; ValueError without width and
    height."""
    if not width or not height:
        raise ValueError(f"{path}: the format carries no image size; pass width and height")
    with np.load(path, allow_pickle=False) as data:
        poses, matrix = data["c2w"].astype(np.float64), data["intrinsics"].astype(np.float64)
        rate = fps or float(data["fps"])
    fxfycxcy = np.stack([matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 0, 2], matrix[:, 1, 2]], axis=-1)
    return PosedClip(
        clip_id=path.stem,
        timestamps_s=np.arange(len(poses)) / rate,
        world_from_cam=poses[:, :3],
        intrinsics=Intrinsics(fxfycxcy_px=fxfycxcy, width=width, height=height),
        scale_status=METRIC,
    )
