"""A Hugging Face dataset folder: `data/train-*.parquet` and a dataset card, for `datasets.load_dataset(FOLDER)`.

The columns are the table's own (datasets/schema.py), so nothing is converted: world_from_cam, OpenCV axes, metres
where scale_status says so. The card states the conventions and counts clips by licence and source. Videos are not
copied; `path`, `start_s` and `end_s` say where a clip is.

    python -m worldline.datasets.formats.hugging_face DATASET --out FOLDER --where "scale_sigma < 0.1"
"""

from __future__ import annotations

import collections
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import tyro

import worldline
from worldline.datasets.posed_clip import PosedClip, clip_from_row, open_table
from worldline.datasets.schema import CONVENTIONS, OK, TRAJECTORIES, table_from_rows
from worldline.datasets.schema_versions import upgraded
from worldline.datasets.shard_plan import query

ROWS_PER_FILE = 4000
"""Some 400 MB of minute-long clips a file, as the hub advises."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HuggingFaceConfig:
    """Write the clips of a dataset folder as a Hugging Face dataset folder."""

    dataset: tyro.conf.Positional[Path]
    """Folder that `worldline annotate` wrote."""
    out: Path
    """Folder to write; it must not exist."""
    where: str = f"status = '{OK}'"
    """SQL condition over the table's columns."""


def write_hugging_face(clip: PosedClip, out_path: Path) -> None:
    """Writes one clip into a new folder."""
    lens = clip.intrinsics
    row = {
        "clip_id": clip.clip_id,
        "video_id": "",
        "path": clip.media_path,
        "start_s": float(clip.timestamps_s[0]),
        "end_s": float(clip.timestamps_s[-1]),
        "width": lens.width if lens else None,
        "height": lens.height if lens else None,
        "num_frames": len(clip.timestamps_s),
        "timestamps_s": clip.timestamps_s.tolist(),
        "world_from_cam": clip.world_from_cam.reshape(-1).tolist(),
        "fxfycxcy_px": lens.fxfycxcy_px.reshape(-1).tolist() if lens else None,
        "camera_model": lens.model if lens else None,
        "distortion": list(lens.distortion) if lens else None,
        "is_registered": clip.is_registered.tolist(),
        "sigma_translation": None if clip.sigma_translation is None else clip.sigma_translation.tolist(),
        "num_registered": int(np.sum(clip.is_registered)),
        "scale_status": clip.scale_status,
        "scale_sigma": clip.scale_sigma,
        "status": OK,
        "tool_version": worldline.__version__,
        "config_hash": "",
    }
    _write(iter([table_from_rows([row], TRAJECTORIES)]), out_path)


def write_hugging_face_table(dataset_dir: Path, out_dir: Path, where: str) -> int:
    """Writes the rows of a dataset folder that fit a condition; how many. Raises ValueError for a wrong condition,
    FileExistsError."""
    files = open_table(dataset_dir).files
    rows = pads.dataset(files, format="parquet", schema=TRAJECTORIES)
    select = "SELECT * FROM rows WHERE ({where}) ORDER BY video_id, start_s, clip_id"
    return _write(_tables(query({"rows": rows}, select, where=where)), out_dir)


def read_hugging_face(
    path: Path, *, fps: float | None = None, width: int | None = None, height: int | None = None
) -> PosedClip:
    """Reads the only clip of such a folder; ValueError where it has several or none."""
    del fps, width, height  # The table has them.
    table = pads.dataset(sorted(map(str, (path / "data").glob("*.parquet"))), format="parquet")
    if (count := table.count_rows()) != 1:
        raise ValueError(f"{path}: {count} clips; read the Parquet files themselves")
    return clip_from_row(upgraded(table.to_table(), TRAJECTORIES).to_pylist()[0], path)


def _tables(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    for batch in batches:
        yield pa.Table.from_batches([batch]).cast(TRAJECTORIES)


def _write(tables: Iterator[pa.Table], out_dir: Path) -> int:
    (out_dir / "data").mkdir(parents=True)
    licences: collections.Counter[str] = collections.Counter()
    sources: collections.Counter[str] = collections.Counter()
    count, number, in_file = 0, 0, 0
    writer: pq.ParquetWriter | None = None
    try:
        for table in tables:
            if writer is None or in_file >= ROWS_PER_FILE:
                if writer is not None:
                    writer.close()
                writer = pq.ParquetWriter(
                    out_dir / "data" / f"train-{number:05d}.parquet", TRAJECTORIES, compression="zstd"
                )
                number, in_file = number + 1, 0
            writer.write_table(table, row_group_size=64)
            licences.update(name or "unknown" for name in table["licence"].to_pylist())
            sources.update(name or "unknown" for name in table["source"].to_pylist())
            count, in_file = count + len(table), in_file + len(table)
    except BaseException:
        shutil.rmtree(out_dir)
        raise
    finally:
        if writer is not None:
            writer.close()
    (out_dir / "README.md").write_text(_card(count, licences, sources), encoding="utf-8")
    return count


def _card(count: int, licences: collections.Counter[str], sources: collections.Counter[str]) -> str:
    size = next((name for name, top in _SIZES if count < top), "n>1M")
    lines = [
        "---",
        "license: other",
        f"license_name: {json.dumps(', '.join(sorted(licences)) or 'unknown')}",
        f"size_categories: [{json.dumps(size)}]",
        'tags: ["camera-pose", "video", "worldline"]',
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: data/train-*.parquet",
        "---",
        "",
        f"# Camera trajectories: {count} clips",
        "",
        f"Written by worldline {worldline.__version__}. One row a clip; per-frame lists are flat.",
        "",
        *(f"- `{name}`: {text}" for name, text in CONVENTIONS.items()),
        "",
        "| licence | clips |",
        "| --- | --- |",
        *(f"| {name} | {number} |" for name, number in sorted(licences.items())),
        "",
        "| source | clips |",
        "| --- | --- |",
        *(f"| {name} | {number} |" for name, number in sorted(sources.items())),
        "",
    ]
    return "\n".join(lines)


_SIZES = (("n<1K", 1000), ("1K<n<10K", 10_000), ("10K<n<100K", 100_000), ("100K<n<1M", 1_000_000))


def main(config: HuggingFaceConfig) -> int:
    """Exit status: 0 written, 1 not, with the reason on stderr."""
    try:
        count = write_hugging_face_table(config.dataset, config.out, config.where)
    except (ValueError, OSError) as error:
        print(f"hugging_face: {error}", file=sys.stderr)
        return 1
    print(f"{config.out}: {count} clips")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(HuggingFaceConfig)))
