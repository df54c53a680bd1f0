"""A small dataset folder whose poses say which frame they belong to, without running the annotator.

Frame k of a video stands at x = k + 1000 * (number of the video), so that a pose read anywhere tells the frame it
was taken of; the picture shows k too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from worldline.annotate.video import probe
from worldline.datasets.commit_log import replace_file
from worldline.datasets.dataset_dir import DatasetDir
from worldline.datasets.schema import TRAJECTORIES, clip_id, table_from_rows


def rows_of_video(
    path: Path, scenes: list[tuple[int, int]], number: int = 0, **more: Any
) -> list[dict[str, Any]]:
    """One row a scene [first, last) of frames."""
    info = probe(str(path))
    rows = []
    for first, last in scenes:
        times = info.timestamps_s[first:last]
        end = float(info.timestamps_s[last]) if last < info.num_frames else info.span.end_s
        count = last - first
        poses = np.tile(np.eye(3, 4), (count, 1, 1))
        poses[:, 0, 3] = np.arange(first, last) + 1000 * number
        rows.append(
            dict.fromkeys(TRAJECTORIES.names)
            | {
                "clip_id": clip_id(info.video_id, float(times[0]), end),
                "video_id": info.video_id,
                "source": "test",
                "licence": "CC0",
                "path": str(path),
                "start_s": float(times[0]),
                "end_s": end,
                "fps": info.fps,
                "width": info.width,
                "height": info.height,
                "num_frames": count,
                "timestamps_s": times.tolist(),
                "world_from_cam": poses.reshape(-1).tolist(),
                "fxfycxcy_px": np.tile([200.0, 210.0, info.width / 2, info.height / 2], count).tolist(),
                "camera_model": "pinhole",
                "is_registered": [True] * count,
                "sigma_translation": (0.001 * np.arange(count)).tolist(),
                "sigma_rotation_rad": (0.0001 * np.arange(count)).tolist(),
                "num_registered": count,
                "registered_share": 1.0,
                "degeneracy": "ok",
                "scale_status": "metric",
                "scale": 1.0,
                "scale_sigma": 0.05,
                "reprojection_px": 0.5,
                "status": "ok",
                "tool_version": "test",
                "config_hash": "0123456789abcdef",
                **more,
            }
        )
    return rows


def numbered_dataset(folder: Path, media: Any, num_videos: int) -> Path:
    """FOLDER/v0.mp4 and so on, 100 numbered frames at 30 fps each, and a dataset of two scenes of each."""
    rows = []
    for number in range(num_videos):
        video = media.numbered(folder / f"v{number}.mp4", count=100, fps=30, seed=number)
        rows += rows_of_video(video, [(0, 40), (40, 100)], number)
    return write_table(folder / "dataset", rows)


def write_table(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as `worldline annotate` lays them out: a file a bucket."""
    dataset = DatasetDir.open(folder)
    buckets: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: (r["video_id"], r["start_s"])):
        buckets.setdefault(dataset.bucket(row["video_id"]), []).append(row)
    for bucket, found in buckets.items():
        path = folder / "trajectories" / f"{bucket}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table_from_rows(found, TRAJECTORIES), path)
    replace_file(folder / "videos" / "none", b"")
    return folder


def make_shards(dataset: Path, out: Path, **plan: Any) -> Path:
    """What `worldline shard` does, in this process without Ray."""
    import dataclasses

    from worldline.datasets.clip_video import EncodeConfig
    from worldline.datasets.commit_log import CommitLog, parquet_bytes
    from worldline.datasets.shard_format import INDEX, ShardDir
    from worldline.datasets.shard_index import assemble_index, groups, write_manifest
    from worldline.datasets.shard_plan import (
        PlanConfig,
        clips_of_shard,
        extend_plan,
        planned_shards,
        trajectory_rows,
    )
    from worldline.datasets.shards import write_shard

    shards, encode = ShardDir(out), EncodeConfig(width=160, height=96)
    config = PlanConfig(**({"frames_per_shard": 60} | plan))
    shards.describe({"encode": dataclasses.asdict(encode), "frames_per_shard": config.frames_per_shard})
    extend_plan(dataset, shards, config, encode.fps)
    log = CommitLog(out)
    for number, _ in planned_shards(shards):
        if not shards.part(number).exists():
            rows = write_shard(
                trajectory_rows(dataset, clips_of_shard(shards, number)), shards.tar(number), encode
            )
            data = parquet_bytes(table_from_rows(rows, INDEX))
            log.commit(shards.part(number), data, stage="shard", num_frames=0)
    log.close()
    for group in groups(shards):
        assemble_index(shards, group)
    write_manifest(shards)
    return out
