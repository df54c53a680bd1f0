"""The table of shots: rows made by hand, and one rendered clip cut into windows beside the same clip whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from worldline.annotate.camera import compose, invert, rotation_from_rotvec, umeyama
from worldline.annotate.clip import ClipConfig, annotate_clip
from worldline.annotate.scenes import Scene
from worldline.annotate.stitch import StitchConfig
from worldline.annotate.video import Span, probe
from worldline.datasets.dataset_dir import DatasetDir
from worldline.datasets.export import ExportConfig
from worldline.datasets.export import main as export_main
from worldline.datasets.formats.tum import read_tum
from worldline.datasets.schema import SHOTS, TRAJECTORIES, table_from_rows
from worldline.datasets.shots import assemble_shots, load_shot, shot_rows
from worldline.datasets.synthetic import SyntheticConfig, write_clip

TIMES = np.arange(100) / 10


def _path() -> np.ndarray:
    t = TIMES[:, None]
    turn = rotation_from_rotvec(np.concatenate([0.1 * np.sin(t), 0.2 * np.sin(0.7 * t), 0 * t], axis=1))
    centre = np.concatenate([np.sin(0.9 * t), 0.3 * np.cos(1.7 * t), 0.4 * t], axis=1)
    return np.concatenate([turn, centre[:, :, None]], axis=2)


def _row(first: int, last: int, *, shot: int = 0, scale: float = 1.0, **changes: Any) -> dict[str, Any]:
    poses = compose(invert(_path()[first : first + 1]), _path()[first:last])
    poses[:, :, 3] *= scale
    count = last - first
    row: dict[str, Any] = dict.fromkeys(TRAJECTORIES.names)
    return row | {
        "clip_id": f"clip-{shot}-{first}",
        "video_id": "ab" * 16,
        "path": "/videos/a.mp4",
        "licence": "MIT",
        "start_s": TIMES[first],
        "end_s": TIMES[last - 1] + 0.1,
        "overlap_s": 2.0 if first else 0.0,
        "shot_idx": shot,
        "width": 640,
        "height": 480,
        "num_frames": count,
        "timestamps_s": TIMES[first:last].tolist(),
        "world_from_cam": poses.ravel().tolist(),
        "fxfycxcy_px": np.tile([500.0 + first, 500 + first, 320, 240], count).tolist(),
        "camera_model": "pinhole",
        "distortion": [],
        "is_registered": [True] * count,
        "sigma_translation": [0.01] * count,
        "sigma_rotation_rad": [0.001] * count,
        "degeneracy": "ok",
        "scale_status": "up_to_scale",
        "status": "ok",
        "tool_version": "1",
        "config_hash": "c",
        **changes,
    }


def _dataset(tmp_path: Path, rows: list[dict[str, Any]]) -> DatasetDir:
    dataset = DatasetDir.open(tmp_path / "out")
    folder = dataset.root / "trajectories"
    folder.mkdir(exist_ok=True)
    pq.write_table(table_from_rows(rows, TRAJECTORIES), folder / "ab.parquet")
    return dataset


def test_windows_become_one_row_and_other_shots_stay_apart(tmp_path: Path) -> None:
    rows = [_row(0, 40), _row(20, 70, scale=3.0), _row(50, 100, scale=0.2), _row(0, 30, shot=1)]
    dataset = _dataset(tmp_path, rows)
    assert assemble_shots(dataset, "ab")
    table = pq.read_table(dataset.root / "shots" / "ab.parquet")
    assert table.schema.names == SHOTS.names
    joined, single = table.to_pylist()
    assert joined["clip_ids"] == ["clip-0-0", "clip-0-20", "clip-0-50"]
    assert (joined["num_pieces"], joined["num_frames"], joined["status"]) == (1, 100, "ok")
    expected = compose(invert(_path()[:1]), _path())
    np.testing.assert_allclose(np.array(joined["world_from_cam"]).reshape(-1, 3, 4), expected, atol=1e-5)
    focal = np.array(joined["fxfycxcy_px"]).reshape(-1, 4)[:, 0]
    assert focal[[0, 39, 40, 69, 70, 99]].tolist() == [500, 500, 520, 520, 550, 550]
    assert np.array(joined["clip_idx"])[[39, 40, 70]].tolist() == [0, 1, 2]
    assert (joined["start_s"], joined["end_s"]) == (0.0, pytest.approx(10.0))
    assert (single["shot_idx"], single["num_frames"], single["clip_ids"]) == (1, 30, ["clip-1-0"])
    np.testing.assert_allclose(single["world_from_cam"], rows[3]["world_from_cam"], atol=1e-12)


def test_equal_rows_give_equal_bytes_and_nothing_is_done_twice(tmp_path: Path) -> None:
    rows = [_row(0, 40), _row(20, 70, scale=3.0)]
    dataset = _dataset(tmp_path, rows)
    assert assemble_shots(dataset, "ab")
    file = dataset.root / "shots" / "ab.parquet"
    before, written = file.read_bytes(), file.stat().st_mtime_ns
    assert not assemble_shots(dataset, "ab")
    assert file.stat().st_mtime_ns == written
    (kept,) = (dataset.root / "stages" / "shots").rglob("*.parquet")
    stitched = kept.stat().st_mtime_ns
    file.unlink()
    assert assemble_shots(dataset, "ab")
    assert file.read_bytes() == before
    assert kept.stat().st_mtime_ns == stitched
    kept.unlink()
    file.unlink()
    assert assemble_shots(dataset, "ab")
    assert file.read_bytes() == before
    _dataset(tmp_path, [row | {"path": "/elsewhere/a.mp4"} for row in rows])
    assert assemble_shots(dataset, "ab")
    (moved,) = pq.read_table(file).to_pylist()
    assert moved["path"] == "/elsewhere/a.mp4"
    assert not assemble_shots(dataset, "zz")


def test_a_failed_window_leaves_two_pieces_and_a_shot_without_any_path_a_reason(tmp_path: Path) -> None:
    failed = _row(20, 60, status="rejected", reason="mapping: no_start", world_from_cam=None)
    rows = [_row(0, 30), failed, _row(50, 100), failed | {"shot_idx": 1, "clip_id": "x"}]
    dataset = _dataset(tmp_path, rows)
    assemble_shots(dataset, "ab")
    first, second, none = pq.read_table(dataset.root / "shots" / "ab.parquet").to_pylist()
    assert first["reason"] == "window 1: mapping: no_start"
    assert second["reason"] is None
    assert [row["piece_idx"] for row in (first, second)] == [0, 1]
    assert first["num_pieces"] == second["num_pieces"] == 2
    assert (none["status"], none["num_pieces"], none["world_from_cam"]) == ("rejected", 0, None)
    assert "mapping: no_start" in none["reason"]


def test_a_still_window_is_a_piece_of_its_own(tmp_path: Path) -> None:
    still = _row(30, 70, degeneracy="static", world_from_cam=np.tile(np.eye(3, 4).ravel(), 40).tolist())
    dataset = _dataset(tmp_path, [_row(0, 40), still, _row(60, 100)])
    assemble_shots(dataset, "ab")
    rows = pq.read_table(dataset.root / "shots" / "ab.parquet").to_pylist()
    assert [row["num_frames"] for row in rows] == [40, 40, 40]
    assert "no motion to tell the scale from" in rows[0]["reason"]


def test_a_shot_is_exported_by_its_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = _dataset(tmp_path, [_row(0, 40), _row(20, 70), _row(0, 30, shot=1)])
    assemble_shots(dataset, "ab")
    name = pq.read_table(dataset.root / "shots" / "ab.parquet")["shot_id"][0].as_py()
    out = tmp_path / "shot.tum"
    config = ExportConfig(dataset=dataset.root, format="tum", out=out, shot=name[:8])
    assert export_main(config) == 0
    written = read_tum(out)
    assert len(written.timestamps_s) == 70
    np.testing.assert_allclose(
        written.world_from_cam, load_shot(dataset.root, name).world_from_cam, atol=1e-6
    )
    assert export_main(replace(config, shot="nonsense", out=tmp_path / "b")) == 1
    assert "no such shot" in capsys.readouterr().err
    assert export_main(replace(config, shot="", out=tmp_path / "b")) == 1
    assert "2 shots fit" in capsys.readouterr().err
    with pytest.raises(ValueError, match="name one"):
        ExportConfig(dataset=dataset.root, format="tum", out=out, shot="a", clip="b")


@pytest.mark.slow
def test_a_clip_cut_into_windows_is_as_true_as_the_same_clip_whole(tmp_path: Path) -> None:
    pytest.importorskip("moderngl")
    config = SyntheticConfig(
        width=320, height=180, num_frames=150, seed=3, scene="room", path="walking", crf=14
    )
    clip = write_clip(config, tmp_path)
    info = probe(str(clip.video_path))
    times = info.timestamps_s

    def annotated(first: int, last: int) -> dict[str, Any]:
        scene = Scene(
            span=Span(start_s=float(times[first]), end_s=float(times[last - 1]) + 0.01),
            overlap_s=1.0,
            num_cuts=0,
            shot_idx=0,
        )
        sidecar = tmp_path / f"{first}.{last}.npz"
        row = annotate_clip(info, scene, ClipConfig(), sidecar_path=sidecar)
        base = _row(0, 2) | {"sidecar_path": sidecar.name, "clip_id": sidecar.stem}
        return base | {"start_s": scene.span.start_s, "end_s": scene.span.end_s, "scale_sigma": None} | row

    def error(row: dict[str, Any]) -> float:
        found = np.array(row["world_from_cam"]).reshape(-1, 3, 4)[:, :, 3]
        true = clip.truth.world_from_cam[:, :, 3]
        aligned = umeyama(true, found).points(found)
        return float(np.sqrt(np.mean(np.sum((aligned - true) ** 2, axis=1))))

    whole = annotated(0, 150)
    windows = [annotated(0, 65), annotated(40, 110), annotated(85, 150)]
    (joined,) = shot_rows(windows, tmp_path, StitchConfig())
    assert joined["num_frames"] == 150
    length = np.linalg.norm(np.diff(clip.truth.world_from_cam[:, :, 3], axis=0), axis=1).sum()
    assert error(whole) < 0.01 * length
    assert error(joined) < 0.01 * length
