"""The export command: what it writes, and how it says what is wrong."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import tyro

from worldline.datasets.export import ExportConfig, main
from worldline.datasets.formats.tum import read_tum
from worldline.datasets.posed_clip import load_clip
from worldline.datasets.schema import TRAJECTORIES, table_from_rows

IDS = ("6f1d2c5e-aaaa", "6f1d2c5e-bbbb", "77777777-cccc")


def row(clip_id, **columns):
    poses = np.tile(np.eye(3, 4), (3, 1, 1))
    poses[:, 2, 3] = [0, 1, 2]
    return {
        "clip_id": clip_id,
        "video_id": "v",
        "path": "video.mp4",
        "start_s": 0.0,
        "end_s": 0.3,
        "width": 64,
        "height": 48,
        "num_frames": 3,
        "timestamps_s": [0.0, 0.1, 0.2],
        "world_from_cam": poses.reshape(-1).tolist(),
        "is_registered": [True, False, True],
        "scale_status": "metric",
        "status": "ok",
        "tool_version": "0",
        "config_hash": "0",
    } | columns


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data" / "trajectories").mkdir(parents=True)
    rows = [
        row(IDS[0]),
        row(IDS[1]),
        row(IDS[2], status="failed", reason="decode: torn", world_from_cam=None),
    ]
    pq.write_table(table_from_rows(rows, TRAJECTORIES), tmp_path / "data" / "trajectories" / "a.parquet")
    return tmp_path / "data"


def run(capsys, folder, *flags):
    status = main(tyro.cli(ExportConfig, args=[str(folder), *flags]))
    return status, capsys.readouterr()


def test_writes_a_clip(folder, tmp_path, capsys):
    out = tmp_path / "new" / "path.tum"
    status, said = run(capsys, folder, "--format", "tum", "--clip", "6f1d2c5e-a", "--out", str(out))
    assert status == 0
    assert str(out) in said.out
    read = read_tum(out)
    assert read.timestamps_s.tolist() == [0.0, 0.2]  # The unregistered frame has no line.
    assert read.world_from_cam[1, :, 3].tolist() == [0, 0, 2]
    assert [path.name for path in out.parent.iterdir()] == ["path.tum"]  # No temporary file stays.


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--format", "obj", "--clip", IDS[0]), "unknown format 'obj'; known: colmap"),
        (("--format", "tum", "--clip", "6f1d2c5e-aaab"), f"close: {IDS[0]}"),
        (("--format", "tum", "--clip", "6f1d"), "fits 2 rows"),
        (("--format", "tum", "--clip", "7777"), "failed, decode: torn"),
        (("--format", "tum"), "several clips"),
        (("--format", "vipe", "--clip", IDS[0]), "needs intrinsics"),
    ],
)
def test_says_what_is_wrong_and_writes_nothing(folder, tmp_path, capsys, flags, message):
    out = tmp_path / "out"
    status, said = run(capsys, folder, "--out", str(out), *flags)
    assert (status, said.out) == (1, "")
    assert message in said.err
    assert not out.exists()
    assert not list(tmp_path.glob(".*out*"))


def test_never_overwrites(folder, tmp_path, capsys):
    out = tmp_path / "out.tum"
    out.write_text("mine")
    status, said = run(capsys, folder, "--format", "tum", "--clip", IDS[0], "--out", str(out))
    assert status == 1
    assert "exists" in said.err
    assert out.read_text() == "mine"


def test_other_schema_version_and_empty_folder(folder, tmp_path):
    with pytest.raises(ValueError, match="no Parquet file"):
        load_clip(tmp_path)
    schema = TRAJECTORIES.with_metadata({b"worldline_schema": b"99"})
    pq.write_table(table_from_rows([row(IDS[0])], schema), folder / "trajectories" / "a.parquet")
    with pytest.raises(ValueError, match="schema version 99"):
        load_clip(folder)


def test_file_that_lacks_a_newer_nullable_column_still_reads(folder):
    table = table_from_rows([row(IDS[0])], TRAJECTORIES).drop_columns(["sidecar_path", "sigma_translation"])
    pq.write_table(table, folder / "trajectories" / "a.parquet")
    clip = load_clip(folder)
    assert clip.sidecar_path is None
    assert clip.is_registered.tolist() == [True, False, True]
