"""Tables from finished units: order, bytes, superseded configurations, copies, moved contents, and the
summary."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from worldline.datasets.commit_log import parquet_bytes, replace_file
from worldline.datasets.dataset_dir import DatasetDir, Generation, PathRecord
from worldline.datasets.schema import CONVENTIONS, TRAJECTORIES, clip_id, table_from_rows
from worldline.datasets.table import SCAN, assemble_bucket, summary

VERSIONS = {"tool_version": "0", "config_hash": "c"}


def _record(path: str, video_id: str, **more: Any) -> PathRecord:
    return PathRecord(path=path, video_id=video_id, signature="1:1", source="web", licence="CC0", **more)


def _scan(dataset: DatasetDir, video_id: str, scan_hash: str, starts: list[float]) -> list[str]:
    scenes = [{"clip_id": clip_id(video_id, s, s + 1), "start_s": s, "end_s": s + 1} for s in starts]
    row = {"video_id": video_id, "status": "ok", "num_scenes": len(scenes), "duration_s": 5.0, **VERSIONS}
    table = table_from_rows([row | {"scenes": json.dumps(scenes), "timestamps_s": [0.0]}], SCAN)
    replace_file(dataset.scan_unit(video_id, scan_hash), parquet_bytes(table))
    return [scene["clip_id"] for scene in scenes]


def _clip(dataset: DatasetDir, video_id: str, clip: str, clip_hash: str, start_s: float = 0.0) -> None:
    row = {"clip_id": clip, "video_id": video_id, "start_s": start_s, "end_s": start_s + 1, "status": "ok"}
    row |= VERSIONS | {
        "config_hash": clip_hash,
        "num_frames": 30,
        "num_registered": 29,
        "scale_status": "metric",
    }
    replace_file(
        dataset.clip_unit(video_id, clip, clip_hash), parquet_bytes(table_from_rows([row], TRAJECTORIES))
    )


def _rows(dataset: DatasetDir, name: str = "trajectories") -> list[dict[str, Any]]:
    return pq.read_table(dataset.root / name).to_pylist()


def _bytes(dataset: DatasetDir) -> dict[str, str]:
    files = [*dataset.root.glob("trajectories/*"), *dataset.root.glob("videos/*")]
    return {str(f.relative_to(dataset.root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetDir:
    """Two videos of one bucket with two and one scenes, all done."""
    dataset = DatasetDir.open(tmp_path / "out")
    for video_id, starts in (("abff", [3.0, 0.0]), ("ab00", [0.0])):
        dataset.write_path(_record(f"/v/{video_id}.mp4", video_id), None)
        dataset.put_generation_first(video_id, Generation(scan_hash="s1", clip_hash="c1"))
        for clip, start_s in zip(_scan(dataset, video_id, "s1", starts), starts, strict=True):
            _clip(dataset, video_id, clip, "c1", start_s)
    return dataset


def test_rows_are_ordered_and_carry_path_columns(dataset: DatasetDir) -> None:
    assert assemble_bucket(dataset, "ab", "0")
    rows = _rows(dataset)
    assert [(r["video_id"], r["start_s"]) for r in rows] == [("ab00", 0.0), ("abff", 0.0), ("abff", 3.0)]
    assert {(r["path"], r["licence"], r["source"]) for r in rows} == {
        ("/v/ab00.mp4", "CC0", "web"),
        ("/v/abff.mp4", "CC0", "web"),
    }
    assert [r["video_id"] for r in _rows(dataset, "videos")] == ["ab00", "abff"]
    frame = pd.read_parquet(dataset.root / "trajectories")
    assert list(frame.columns) == TRAJECTORIES.names
    metadata = pq.read_schema(dataset.root / "trajectories" / "ab.parquet").metadata
    assert json.loads(metadata[b"worldline_conventions"]) == CONVENTIONS


def test_nothing_changes_when_nothing_is_new(dataset: DatasetDir) -> None:
    assemble_bucket(dataset, "ab", "0")
    before = _bytes(dataset)
    times = [f.stat().st_mtime_ns for f in sorted(dataset.root.glob("*/ab.parquet"))]
    assert not assemble_bucket(dataset, "ab", "0")
    assert [f.stat().st_mtime_ns for f in sorted(dataset.root.glob("*/ab.parquet"))] == times
    (dataset.root / "trajectories" / "ab.parquet").unlink()
    assert assemble_bucket(dataset, "ab", "0")
    assert _bytes(dataset) == before


def test_superseded_rows_stay_until_all_replacements_are_there(dataset: DatasetDir) -> None:
    assemble_bucket(dataset, "ab", "0")
    dataset.put_generation_first("abff", Generation(scan_hash="s2", clip_hash="c1"))
    clips = _scan(dataset, "abff", "s2", [0.0, 1.0, 2.0])
    for done, clip in enumerate(clips):
        _clip(dataset, "abff", clip, "c1", float(done))
        assemble_bucket(dataset, "ab", "0")
        starts = [r["start_s"] for r in _rows(dataset) if r["video_id"] == "abff"]
        assert starts == ([0.0, 1.0, 2.0] if done == 2 else [0.0, 3.0])


def test_going_back_to_an_earlier_config_brings_back_its_bytes(dataset: DatasetDir) -> None:
    assemble_bucket(dataset, "ab", "0")
    before = _bytes(dataset)
    clips = [r["clip_id"] for r in _rows(dataset) if r["video_id"] == "abff"]
    dataset.put_generation_first("abff", Generation(scan_hash="s1", clip_hash="c2"))
    for clip in clips:
        _clip(dataset, "abff", clip, "c2")
    assemble_bucket(dataset, "ab", "0")
    assert {r["config_hash"] for r in _rows(dataset)} == {"c1", "c2"}
    dataset.put_generation_first("abff", Generation(scan_hash="s1", clip_hash="c1"))
    assemble_bucket(dataset, "ab", "0")
    assert _bytes(dataset) == before


def test_an_unfinished_first_run_shows_what_is_done(dataset: DatasetDir) -> None:
    dataset.write_path(_record("/v/new.mp4", "ab77"), None)
    dataset.put_generation_first("ab77", Generation(scan_hash="s1", clip_hash="c1"))
    first, _ = _scan(dataset, "ab77", "s1", [0.0, 1.0])
    _clip(dataset, "ab77", first, "c1")
    assemble_bucket(dataset, "ab", "0")
    assert [r["clip_id"] for r in _rows(dataset) if r["video_id"] == "ab77"] == [first]


def test_copies_and_rejected_paths(dataset: DatasetDir) -> None:
    dataset.write_path(_record("/v/a copy.mp4", "ab00"), None)
    dataset.write_path(_record("/v/A wrong.mp4", "ab00", rejection="sidecar: wrong (no JSON)"), None)
    dataset.write_path(_record("/v/gone.mp4", "abee", rejection="input: no such file"), None)
    assemble_bucket(dataset, "ab", "9.9")
    videos = {r["video_id"]: r for r in _rows(dataset, "videos")}
    assert videos["ab00"]["path"] == "/v/a copy.mp4"
    assert videos["ab00"]["other_paths"] == ["/v/ab00.mp4", "/v/A wrong.mp4"]
    assert (videos["abee"]["status"], videos["abee"]["reason"]) == ("rejected", "input: no such file")
    assert videos["abee"]["tool_version"] == "9.9"
    assert {r["path"] for r in _rows(dataset) if r["video_id"] == "ab00"} == {"/v/a copy.mp4"}


def test_a_path_with_new_content_leaves_its_old_row(dataset: DatasetDir) -> None:
    assemble_bucket(dataset, "ab", "0")
    old = dataset.read_path("/v/ab00.mp4")
    dataset.write_path(_record("/v/ab00.mp4", "cd00"), old)
    assert assemble_bucket(dataset, "ab", "0")
    assert {r["video_id"] for r in _rows(dataset)} == {"abff"}


def test_a_claim_is_won_once_and_kept_by_its_owner(dataset: DatasetDir) -> None:
    assert dataset.claim("ab00", "run1", "3")
    assert not dataset.claim("ab00", "run1", "4")
    assert dataset.claim("ab00", "run1", "3")
    assert dataset.claim("ab00", "run2", "4")


def test_summary_counts(dataset: DatasetDir) -> None:
    dataset.write_path(_record("/v/gone.mp4", "abee", rejection="input: no such file (x)"), None)
    assemble_bucket(dataset, "ab", "0")
    found = summary(dataset.root)
    assert found["videos"]["status"] == {"ok": 2, "rejected": 1}
    assert found["videos"]["reasons"] == {"input: no such file": 1}
    assert found["trajectories"]["status"] == {"ok": 3}
    assert found["trajectories"]["num_frames"] == 90
    assert found["trajectories"]["num_registered"] == 87
    assert found["trajectories"]["scale_status"] == {"metric": 3}
    assert found["trajectories"]["duration_s"] == pytest.approx(3.0)


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="not a dataset folder"):
        DatasetDir.open(tmp_path)
    with pytest.raises(ValueError, match="no Parquet file"):
        summary(tmp_path)
