"""`worldline caption`: a dataset folder in, `DIR/captions/NAME.parquet` out, one row a clip with a path.

Beside the data and made anew at will, as decisions are. `worldline shard` writes the captions of
`DIR/captions/captions.parquet` into the samples.
"""

from __future__ import annotations

import collections
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import tyro

from worldline.annotate.caption import CaptionConfig, caption_clip, make_captioner
from worldline.datasets.commit_log import parquet_bytes, replace_file
from worldline.datasets.posed_clip import open_table
from worldline.datasets.previews import look
from worldline.datasets.schema import OK, TRAJECTORIES, MissingBackend, config_hash

logger = logging.getLogger(__name__)

CAPTIONS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("caption", pa.string()),
        ("caption_backend", pa.string()),
        ("camera_words", pa.list_(pa.string())),
        ("problem", pa.string()),
        ("caption_hash", pa.string()),
    ]
)
"""`caption`: null where there is none, `problem` says why. `camera_words`: wording about the camera in sentences that
were dropped. `caption_hash`: of the configuration."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionJobConfig:
    """Write a scene-static caption for every clip, free of what the camera does."""

    dataset: tyro.conf.Positional[Path]
    """Folder that `worldline annotate` wrote."""
    caption: tyro.conf.OmitArgPrefixes[CaptionConfig] = field(default_factory=CaptionConfig)
    height_px: int = 448
    """Height of the pictures that a backend sees; 16 pixels of them make a token's side."""

    def __post_init__(self) -> None:
        if self.height_px < 32:
            raise ValueError("height_px must be at least 32")


def main(config: CaptionJobConfig) -> int:
    """Exit status: 0 written, 1 not a dataset folder, or the backend is not there."""
    try:
        rows = list(caption_dataset(config))
    except (ValueError, OSError, MissingBackend) as error:
        print(f"worldline caption: {error}", file=sys.stderr)
        return 1
    path = captions_path(config.dataset)
    path.parent.mkdir(exist_ok=True)
    replace_file(path, parquet_bytes(pa.Table.from_pylist(rows, schema=CAPTIONS)))
    problems = collections.Counter(row["problem"] for row in rows if row["problem"])
    dropped = sum(bool(row["camera_words"]) for row in rows)
    print(
        f"{path}: {sum(row['caption'] is not None for row in rows)} captions by {config.caption.backend}, {dropped} shortened"
    )
    for problem, count in problems.most_common(5):
        print(f"{count} without: {problem}")
    return 0


def captions_path(dataset_dir: Path) -> Path:
    return dataset_dir / "captions" / "captions.parquet"


def caption_dataset(config: CaptionJobConfig) -> Iterator[dict[str, Any]]:
    """One row of CAPTIONS for every annotated clip, in the table's order."""
    captioner = make_captioner(config.caption)
    table = pads.dataset(open_table(config.dataset).files, format="parquet", schema=TRAJECTORIES)
    names = [f.name for f in TRAJECTORIES if not pa.types.is_list(f.type)]
    digest = config_hash(config.caption)
    for batch in table.to_batches(columns=names, filter=pads.field("status") == OK):
        for row in batch.to_pylist():
            out = {
                "clip_id": row["clip_id"],
                "caption_backend": config.caption.backend,
                "caption_hash": digest,
            }
            frames = (
                []
                if config.caption.backend == "sidecar"
                else look(row, config.caption.num_looks, config.height_px)
            )
            try:
                if captioner is not None and not frames:
                    raise ValueError("its pictures cannot be read")
                made = caption_clip(row, frames, config.caption, captioner)
            except ValueError as error:
                yield out | {"problem": str(error)}
                continue
            why = "nothing but the camera" if made.camera_words else "no caption"
            yield out | {
                "caption": made.text,
                "camera_words": list(made.camera_words),
                "problem": None if made.text else why,
            }


def captions_of(dataset_dir: Path, clip_ids: list[str]) -> dict[str, str]:
    """clip_id -> caption, of those that have one."""
    path = captions_path(dataset_dir)
    if not path.exists():
        return {}
    chosen = pads.field("clip_id").isin(clip_ids) & pads.field("caption").is_valid()
    found = pads.dataset(str(path), format="parquet").to_table(columns=["clip_id", "caption"], filter=chosen)
    return dict(zip(found["clip_id"].to_pylist(), found["caption"].to_pylist(), strict=True))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(CaptionJobConfig)))
