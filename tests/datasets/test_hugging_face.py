"""A whole table as a Hugging Face dataset folder."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from worldline.datasets.formats.hugging_face import (
    HuggingFaceConfig,
    main,
    read_hugging_face,
    write_hugging_face_table,
)


def test_the_rows_are_the_table_s(posed_folder, tmp_path) -> None:
    table = pq.read_table(posed_folder / "trajectories").to_pylist()
    assert write_hugging_face_table(posed_folder, tmp_path / "out", "status = 'ok'") == len(table)
    found = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert sorted(found, key=lambda r: r["clip_id"]) == sorted(table, key=lambda r: r["clip_id"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| CC0 | {len(table)} |" in card
    with pytest.raises(ValueError, match="6 clips"):
        read_hugging_face(tmp_path / "out")
    with pytest.raises(FileExistsError):
        write_hugging_face_table(posed_folder, tmp_path / "out", "TRUE")


def test_a_query_chooses_and_a_wrong_one_leaves_nothing(posed_folder, tmp_path) -> None:
    config = HuggingFaceConfig(dataset=posed_folder, out=tmp_path / "few", where="start_s > 1")
    assert main(config) == 0
    assert len(pq.read_table(tmp_path / "few" / "data")) == 3
    assert main(HuggingFaceConfig(dataset=posed_folder, out=tmp_path / "none", where="no_column = 1")) == 1
    assert not (tmp_path / "none").exists()
