"""`worldline caption` on a small dataset folder, and the shards that carry what it wrote."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from worldline.annotate.caption import CaptionConfig
from worldline.datasets.captions import CaptionJobConfig, captions_of, main


def test_captions_lie_beside_the_data_and_reach_the_shards(
    posed_folder: Path, posed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = tmp_path / "d"
    shutil.copytree(posed_folder, dataset)
    assert main(CaptionJobConfig(dataset=dataset)) == 0
    assert "6 captions by measured" in capsys.readouterr().out
    rows = pq.read_table(dataset / "captions").to_pylist()
    assert [row["caption_backend"] for row in rows] == ["measured"] * 6
    assert all(row["caption"].startswith("Measured attributes: ") for row in rows)
    shards = posed.make_shards(dataset, tmp_path / "s")
    index = pq.read_table(shards / "index", columns=["clip_id", "caption"]).to_pylist()
    assert {row["clip_id"]: row["caption"] for row in index} == {
        row["clip_id"]: row["caption"] for row in rows
    }


def test_clips_without_a_caption_say_why(
    posed_folder: Path, posed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted((posed_folder / "trajectories").glob("*"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    words = ["A red corner on a drifting texture. The camera pans right.", "The camera pans right.", None]
    for row, text in zip(rows[::2], words, strict=True):
        video = tmp_path / f"{row['video_id']}.mp4"
        shutil.copy(row["path"], video)
        if text:
            Path(f"{video}.caption.txt").write_text(text)
        row["path"] = str(video)
    dataset = posed.write_table(tmp_path / "d", rows[::2])
    assert main(CaptionJobConfig(dataset=dataset, caption=CaptionConfig(backend="sidecar"))) == 0
    assert "1 captions by sidecar, 2 shortened" in capsys.readouterr().out
    found = pq.read_table(dataset / "captions").to_pylist()
    assert [row["problem"] for row in found] == [None, "nothing but the camera", "no caption"]
    ids = [row["clip_id"] for row in found]
    assert captions_of(dataset, ids) == {ids[0]: "A red corner on a drifting texture."}
    assert captions_of(posed_folder, ids) == {}
    assert main(CaptionJobConfig(dataset=tmp_path)) == 1
